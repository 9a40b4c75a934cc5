"""Checkpoints: a network comes back as it was; a bad file is refused in a sentence, runs nothing, allocates nothing."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sprig.backend import checkpoint
from sprig.backend.checkpoint import fingerprint, kinds_in, load_checkpoint, read_provenance, save_checkpoint
from sprig.backend.errors import SprigError
from sprig.backend.puppeteer import skeleton as puppeteer_skeleton
from sprig.backend.puppeteer import skinning as puppeteer_skinning
from sprig.backend.puppeteer.skeleton import PuppeteerSkeleton
from sprig.backend.puppeteer.skinning import PuppeteerSkinning
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skinning.network import SkinningConfig, SkinningNetwork

from .small_puppeteer import small_puppeteer

PROVENANCE = {"command": "train --seed 3", "commit": "0d9ae1e", "epochs": 12, "scores": {"CD-J2J": 3.25, "clips": 12}}


@dataclass(frozen=True)
class TinyConfig:
    width: int = 4
    layers: int = 2
    dropout: float = 0.0
    gated: bool = True
    activation: str = "gelu"

    def __post_init__(self):
        if not 1 <= self.layers <= 8:
            raise ValueError(f"layers is {self.layers}, should be 1 to 8")


class TinyNetwork(nn.Module):
    kind = "skeleton"

    def __init__(self, config):
        super().__init__()
        if config.width % 2:
            raise RuntimeError(f"a width of {config.width} is not even")
        self.config = config
        self.layers = nn.ModuleList([nn.Linear(config.width, config.width) for _ in range(config.layers)])
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("order", torch.arange(config.width))
        self.register_buffer("signs", torch.tensor([1.0, -1.0]).repeat(config.width // 2), persistent=False)

    def forward(self, x):
        for layer in self.layers:
            x = self.dropout(torch.tanh(layer(x)))
        return self.scale * (x * self.signs)[..., self.order]


class OtherNetwork(TinyNetwork):
    kind = "skinning"


@dataclass(frozen=True)
class NestedConfig:
    inner: TinyConfig = field(default_factory=TinyConfig)
    channels: tuple[int, ...] = (3, 5)


class NestedNetwork(nn.Module):
    """Of another architecture: a config within its config, and an output head that is its embedding, too."""

    kind = "skinning"
    architecture = "nested"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.inner = TinyNetwork(config.inner)
        self.channels = nn.ModuleList([nn.Linear(width, 1) for width in config.channels])
        self.embedding = nn.Embedding(7, config.inner.width)
        self.head = nn.Linear(config.inner.width, 7, bias=False)
        self.head.weight = self.embedding.weight


CLASSES = {
    ("skeleton", "sprig"): (TinyNetwork, TinyConfig),
    ("skinning", "sprig"): (OtherNetwork, TinyConfig),
    ("skinning", "nested"): (NestedNetwork, NestedConfig),
}


def load(path, kind="skeleton"):
    return load_checkpoint(path, kind, classes=CLASSES)


def refused(path, kind="skeleton") -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(SprigError) as caught:
        load(path, kind)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and path.name in message
    return message


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TinyNetwork(TinyConfig()).eval()


@pytest.fixture
def saved(network, tmp_path) -> Path:
    save_checkpoint(tmp_path / "tiny.safetensors", network, PROVENANCE)
    return tmp_path / "tiny.safetensors"


def parts(path) -> tuple[dict, bytes]:
    """The header and the numbers of a safetensors file, by hand."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def write_parts(path, header, numbers, *, to=None):
    """Write a safetensors file from a header (or its text), padded with spaces up to `to` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = text.ljust(to or len(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def with_metadata(path, **changes):
    """Change what the metadata says; None takes a key away."""
    header, numbers = parts(path)
    values = {**header["__metadata__"], **changes}
    header["__metadata__"] = {key: value for key, value in values.items() if value is not None}
    write_parts(path, header, numbers)


def networks_in(path) -> dict:
    return json.loads(parts(path)[0]["__metadata__"]["networks"])


def with_config(path, kind="skeleton", inside=(), **changes):
    """Change settings in a config, or in the config `inside` it; None takes one away."""
    described = networks_in(path)
    config = described[kind]["config"]
    for name in inside:
        config = config[name]
    config.update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        config.pop(name, None)
    with_metadata(path, networks=json.dumps(described))


# ---- what is written is what is read


def test_a_network_comes_back(network, saved):
    found = load(saved)
    assert type(found) is TinyNetwork and found.config == network.config and not found.training
    assert found.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor) and found.state_dict()[name].dtype == tensor.dtype
    x = torch.randn(3, 4)
    assert torch.equal(found(x), network(x))
    assert found.layers[0].weight.requires_grad and not found.scale.requires_grad
    found.train()(x).sum().backward()  # and can be trained on
    assert found.layers[0].weight.grad is not None
    assert read_provenance(saved) == PROVENANCE


def test_the_file_is_the_safetensors_format(network, saved):
    """Read by hand from the description of the format, not with the library."""
    header, numbers = parts(saved)
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "sprig" and metadata["version"] == "1"
    described = {"skeleton": {"architecture": "sprig", "config": dataclasses.asdict(network.config)}}
    assert json.loads(metadata["networks"]) == described
    assert json.loads(metadata["provenance"]) == PROVENANCE
    assert sum(end - start for start, end in (entry["data_offsets"] for entry in header.values())) == len(numbers)
    entry = header["skeleton.layers.1.weight"]
    start, end = entry["data_offsets"]
    weight = torch.frombuffer(bytearray(numbers[start:end]), dtype=torch.float32)
    assert torch.equal(weight.reshape(entry["shape"]), network.layers[1].weight)
    assert (8 + int.from_bytes(saved.read_bytes()[:8], "little")) % 8 == 0


def test_saving_and_loading_leave_the_random_numbers_alone(saved):
    before = torch.get_rng_state()
    save_checkpoint(saved, load(saved), {})
    assert torch.equal(torch.get_rng_state(), before)


SAVE_ONCE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tests.test_checkpoint import PROVENANCE, TinyConfig, TinyNetwork, save_checkpoint
torch.manual_seed(0)
save_checkpoint(sys.argv[2], TinyNetwork(TinyConfig()), PROVENANCE)
"""


def test_the_same_network_makes_the_same_file_in_another_process(saved, tmp_path):
    """The library alone orders the metadata by a seed of the process."""
    again = tmp_path / "again.safetensors"
    command = [sys.executable, "-c", SAVE_ONCE, str(Path(__file__).parents[1]), str(again)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == saved.read_bytes()
    assert fingerprint(again) == fingerprint(saved)


def test_fingerprint(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert fingerprint(tmp_path / "abc") == "ba7816bf8f01cfea"  # FIPS 180-2, appendix B.1
    (tmp_path / "abc").write_bytes(b"abd")
    assert fingerprint(tmp_path / "abc") != "ba7816bf8f01cfea"
    with pytest.raises(SprigError, match="does not exist"):
        fingerprint(tmp_path / "missing")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(dtype, network, tmp_path):
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path / "half.safetensors", network.to(dtype), {})
    found = load(tmp_path / "half.safetensors").state_dict()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        through = tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], through)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_file_is_not_held_after_loading(saved):
    """Windows refuses to replace a file that is mapped, and fine-tuning writes where it has read."""
    found = load(saved)
    assert str(saved) not in Path("/proc/self/maps").read_text()
    before = found.scale.item()
    saved.write_bytes(b"\xff" * saved.stat().st_size)
    assert found.scale.item() == before


def test_saving_replaces_the_file_or_leaves_it(network, saved):
    before = fingerprint(saved)
    with torch.no_grad():
        network.layers[0].bias[1] = float("nan")
    with pytest.raises(SprigError, match=r"layers\.0\.bias is not finite"):
        save_checkpoint(saved, network, {})
    assert fingerprint(saved) == before
    with torch.no_grad():
        network.layers[0].bias[1] = 7
    save_checkpoint(saved, network, {})
    assert load(saved).layers[0].bias[1] == 7 and read_provenance(saved) == {}
    assert os.listdir(saved.parent) == [saved.name]


def test_saving_where_that_cannot_be(network, tmp_path):
    with pytest.raises(SprigError, match="cannot be written"):
        save_checkpoint(tmp_path / "no folder" / "a.safetensors", network, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(SprigError, match="cannot be written"):
        save_checkpoint(tmp_path / "folder", network, {})
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


def test_a_provenance_that_is_too_long_is_not_written(network, tmp_path):
    with pytest.raises(AssertionError, match="this long"):
        save_checkpoint(tmp_path / "a.safetensors", network, {"log": "x" * checkpoint.MAX_HEADER})
    assert os.listdir(tmp_path) == []


def test_weights_that_share_memory_are_not_saved_apart(network, tmp_path):
    network.layers[1].weight = network.layers[0].weight
    with pytest.raises(AssertionError, match=r"layers\.1\.weight"):
        save_checkpoint(tmp_path / "tied.safetensors", network, {})
    network.layers[1].weight = nn.Parameter(network.layers[0].weight.detach())
    with pytest.raises(RuntimeError, match="share memory"):
        save_checkpoint(tmp_path / "tied.safetensors", network, {})
    assert os.listdir(tmp_path) == []


def test_what_the_class_does_not_make_is_not_saved(network, tmp_path):
    network.extra = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="extra"):
        save_checkpoint(tmp_path / "a.safetensors", network, {})
    assert os.listdir(tmp_path) == []


# ---- two networks in a file, and other architectures


@pytest.fixture
def pair(network, tmp_path) -> Path:
    save_checkpoint(tmp_path / "pair.safetensors", [network, nested()], PROVENANCE)
    return tmp_path / "pair.safetensors"


def nested(seed=1) -> NestedNetwork:
    torch.manual_seed(seed)
    return NestedNetwork(NestedConfig(TinyConfig(width=6, layers=1), (2, 4, 9)))


def assert_same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_networks_in_one_file(network, pair):
    assert kinds_in(pair) == ("skeleton", "skinning")
    for kind, expected in (("skeleton", network), ("skinning", nested())):
        found = load(pair, kind)
        assert type(found) is type(expected) and found.config == expected.config and not found.training
        assert_same_state(found, expected)
    assert read_provenance(pair) == PROVENANCE
    before = fingerprint(pair)
    save_checkpoint(pair, [nested(), network], PROVENANCE)  # the order they are given in does not matter
    assert fingerprint(pair) == before
    save_checkpoint(pair, [nested()], {})
    assert kinds_in(pair) == ("skinning",)
    assert "is a skinning checkpoint; give it to --checkpoint-skinning" in refused(pair)
    for networks in ([], [network, network], [network, nested(), nested()]):
        with pytest.raises(AssertionError):
            save_checkpoint(pair, networks, {})


def test_a_tensor_with_two_names_is_there_once_and_comes_back_as_one(pair):
    names = set(parts(pair)[0])
    assert "skinning.embedding.weight" in names and "skinning.head.weight" not in names
    found = load(pair, "skinning")
    assert found.head.weight is found.embedding.weight


def test_each_network_answers_for_its_own_tensors(network, pair):
    header, numbers = parts(pair)
    renamed = {name.replace("skinning.head", "skinning.tail"): entry for name, entry in header.items()}
    renamed["skinning.tail"] = renamed.pop("skinning.embedding.weight")
    write_parts(pair, renamed, numbers)
    assert_same_state(load(pair), network)
    assert "lacks the tensor 'skinning.embedding.weight'" in refused(pair, "skinning")
    for name in ("skeletons.tail", "tail", ""):  # belongs to neither
        strange = dict(renamed)
        strange[name] = strange.pop("skinning.tail")
        write_parts(pair, strange, numbers)
        assert "unknown tensor" in refused(pair) and "unknown tensor" in refused(pair, "skinning")


@pytest.mark.parametrize(
    ("inside", "changes", "words"),
    [
        (["inner"], {"width": None}, "lacks 'width'"),
        (["inner"], {"colour": 1}, "unknown setting 'colour'"),
        (["inner"], {"width": True}, "width True"),
        (["inner"], {"layers": 9}, "layers is 9"),
        (["inner"], {"width": 8}, "expected (8,"),
        ([], {"inner": 3}, "inner 3"),
        ([], {"inner": [3]}, "inner [3]"),
        ([], {"channels": 3}, "expected tuple"),
        ([], {"channels": {"0": 3}}, "expected tuple"),
        ([], {"channels": [2, 0, 9]}, "channels 0"),
        ([], {"channels": [2, 4.0, 9]}, "channels 4.0"),
        ([], {"channels": [2, [4], 9]}, "channels [4]"),
        ([], {"channels": [2, 4, 8]}, "expected (1, 8)"),
        ([], {"channels": [2, 4]}, "unknown tensor 'skinning.channels.2.bias'"),
        ([], {"channels": []}, "unknown tensor"),
        ([], {"channels": [1] * 200_000}, "more tensors than the file has"),
    ],
)
def test_configs_within_configs(inside, changes, words, network, pair):
    with_config(pair, "skinning", inside, **changes)
    assert words in refused(pair, "skinning")
    assert_same_state(load(pair), network)


def test_architectures(pair):
    for what, words in (
        ("sprig", "lacks 'width'"),
        ("gpt\n" * 1000, "architecture 'gpt"),
        (3, "does not say architecture and config"),
        ([], "does not say architecture and config"),
    ):
        described = networks_in(pair)
        described["skinning"]["architecture"] = what
        with_metadata(pair, networks=json.dumps(described))
        assert words in refused(pair, "skinning")


# ---- files that are something else


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_names_that_cannot_be_read(tmp_path):
    assert "does not exist" in refused(tmp_path / "missing.safetensors")
    assert "not a regular file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
    assert "not a regular file" in refused(tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_not_opened(legacy, network, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": network.state_dict(), "trap": Trap(tmp_path / "sprung")}, path,
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    assert "zip or pickle" in refused(path)
    os.rename(path, tmp_path / "model.safetensors")
    assert "zip or pickle" in refused(tmp_path / "model.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_not_opened(protocol, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    message = refused(tmp_path / "a.safetensors")
    assert ("pickle" in message) == (protocol >= 2)  # the first two are text without a mark
    assert not (tmp_path / "sprung").exists()


def test_a_header_whose_length_looks_like_a_pickle(saved):
    header, numbers = parts(saved)
    write_parts(saved, header, numbers, to=0x0480)
    assert saved.read_bytes()[:2] == pickle.PROTO + b"\x04"
    load(saved)


@pytest.mark.parametrize(
    "content", [b"", b"\0", bytes(8), bytes(2000), b"\xff" * 2000, b"version https://git-lfs\n" * 9]
)
def test_bytes_that_are_something_else(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors")


def test_other_safetensors_files(network, saved):
    header, numbers = parts(saved)
    del header["__metadata__"]
    write_parts(saved, header, numbers)
    assert "something else" in refused(saved)
    write_parts(saved, {**header, "__metadata__": {"format": "pt"}}, numbers)
    assert "something else" in refused(saved)
    with pytest.raises(SprigError, match="something else"):
        read_provenance(saved)


# ---- metadata and config


def test_versions(saved):
    with_metadata(saved, version="2")
    message = refused(saved)
    assert "newer SPRig" in message and "update" in message
    for version in ("", "0", "-1", "1.5", "x", "1\n", "\u0661", "9" * 5000, None):
        with_metadata(saved, version=version)
        assert "no usable version" in refused(saved)


def test_kinds(network, saved):
    other = saved.with_name("other.safetensors")
    save_checkpoint(other, OtherNetwork(TinyConfig()), PROVENANCE)
    assert isinstance(load(other, "skinning"), OtherNetwork)
    assert "is a skinning checkpoint; give it to --checkpoint-skinning" in refused(other)
    assert "is a skeleton checkpoint; give it to --checkpoint-skeleton" in refused(saved, "skinning")
    for key in ("networks", "provenance"):
        with_metadata(other, **{key: None})
        assert f"does not say its {key}" in refused(other)
        with pytest.raises(SprigError, match=f"does not say its {key}"):
            kinds_in(other)
        with_metadata(other, networks="{}", provenance="{}")
    for described, words in (
        ({}, "holds no networks"),
        ({"hair\n" * 1000: {"architecture": "sprig", "config": {}}}, "not known here"),
        ({"skeleton": {"config": {}}}, "does not say architecture"),
        ({"skeleton": {"architecture": "sprig"}}, "does not say architecture"),
        ({"skeleton": {"architecture": "sprig", "config": []}}, "does not say architecture"),
        ({"skeleton": {"architecture": "sprig", "config": {}, "more": 1}}, "does not say architecture"),
        ({"skeleton": 3}, "does not say architecture"),
    ):
        with_metadata(saved, networks=json.dumps(described))
        assert words in refused(saved)
        with pytest.raises(SprigError, match=words):
            kinds_in(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": None}, "lacks 'width'"),
        ({"colour": 3}, "unknown setting 'colour'"),
        ({"x\n" * 9999: 3}, "unknown setting"),
        ({"width": "4"}, "width '4'"),
        ({"width": 4.0}, "expected int from 1 to 65536"),
        ({"width": True}, "width True"),
        ({"width": -4}, "width -4"),
        ({"width": 10**30}, "width 1000"),
        ({"width": {"width": 4}}, "width {"),
        ({"width": [4]}, "width [4]"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"dropout": 1e300}, "dropout 1e+300"),
        ({"dropout": False}, "dropout False"),
        ({"gated": 1}, "gated 1"),
        ({"activation": 1}, "expected str;"),
        ({"layers": 0}, "layers 0"),
        ({"layers": 60_000}, "layers is 60000"),  # the dataclass's own limit
        ({"width": 3}, "not even"),  # the constructor's
    ],
)
def test_configs_that_make_no_network(changes, words, saved):
    with_config(saved, **changes)
    assert words in refused(saved)


def test_a_whole_number_does_for_a_float(saved):
    with_config(saved, dropout=1)
    found = load(saved).config
    assert found.dropout == 1.0 and isinstance(found.dropout, float)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"width": NaN}', '{"width": null}', "[" * 300_000])
@pytest.mark.parametrize("key", ["networks", "provenance"])
def test_json_that_is_something_else(key, text, saved):
    with_metadata(saved, **{key: text})
    with pytest.raises(SprigError, match=key):
        load(saved) if key == "networks" else read_provenance(saved)


@pytest.mark.parametrize("depth", [1, 30, 100, 200, 300, 400, 500, 700, 900, 5000])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
def test_json_that_is_deep(depth, brackets, saved):
    """However deep, Python's recursion ends in a refusal, also where the text is quoted."""
    deep = brackets[0] * depth + "3" + brackets[1] * depth
    described = json.dumps(networks_in(saved)).replace('"width": 4', f'"width": {deep}')
    assert deep in described
    with_metadata(saved, networks=described)
    refused(saved)
    with_metadata(saved, provenance=f'{{"a": {deep}}}')
    try:
        read_provenance(saved)
    except SprigError as error:
        assert "provenance" in str(error) and depth > 30


def test_a_config_of_terabytes_allocates_nothing(saved):
    """65,536 squared in two layers: 34 GB in float32 if they were made."""
    with_config(saved, width=65_536)
    before = resident_bytes()
    assert "expected (65536,)" in refused(saved)
    assert resident_bytes() - before < 50_000_000


def test_a_config_of_many_layers_is_given_up(network, saved):
    """The dataclass allows any depth here, and 60,000 layers would be minutes and gigabytes of Python objects."""
    deep = dataclasses.make_dataclass("DeepConfig", [], bases=(TinyConfig,), frozen=True,
                                      namespace={"__post_init__": lambda self: None})  # fmt: skip
    with_config(saved, layers=60_000)
    with pytest.raises(SprigError, match="more tensors than the file has"):
        load_checkpoint(saved, "skeleton", classes={("skeleton", "sprig"): (TinyNetwork, deep)})
    nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])  # the limit ends with the loading


def resident_bytes() -> int:
    """Bytes of this process in memory, where Linux says so."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


# ---- tensors


def test_tensors_that_do_not_fit(network, saved):
    def changed(change) -> str:
        other = saved.with_name("other.safetensors")
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        change(state)
        metadata = parts(saved)[0]["__metadata__"]
        other.write_bytes(checkpoint.save({f"skeleton.{name}": value for name, value in state.items()}, metadata))
        return refused(other)

    assert "lacks the tensor 'skeleton.layers.0.bias'" in changed(lambda state: (state.pop("layers.1.bias"),
                                                                        state.pop("layers.0.bias")))  # fmt: skip
    assert "unknown tensor 'skeleton.extra'" in changed(lambda state: state.update(extra=torch.ones(2)))
    message = changed(lambda state: state.update({"layers.1.weight": torch.ones(4, 5)}))
    assert "'skeleton.layers.1.weight' of shape (4, 5)" in message and "expected (4, 4)" in message
    assert "of shape (16,)" in changed(lambda state: state.update({"layers.1.weight": torch.ones(16)}))
    assert "type F64" in changed(lambda state: state.update(scale=torch.ones((), dtype=torch.float64)))
    assert "type I64" in changed(lambda state: state.update(scale=torch.ones((), dtype=torch.int64)))
    assert "type F32" in changed(lambda state: state.update(order=torch.ones(4)))
    assert "type I32" in changed(lambda state: state.update(order=torch.ones(4, dtype=torch.int32)))
    for value in (float("nan"), float("inf"), -float("inf")):
        assert "'skeleton.layers.1.bias' that are not finite" in changed(
            lambda state, v=value: state["layers.1.bias"].fill_(v)
        )


def test_offsets_that_lie(saved):
    """The library's checks, which the claim that only the file's own bytes are read rests on."""
    header, numbers = parts(saved)
    names = [name for name in header if name != "__metadata__"]
    size = len(numbers)
    lies = [[0, 64 + size], [size, size + 64], [-64, 0], [64, 0], [0, 2**64 - 1], [0, 2**70], [0], [0, 64, 128], "0:64"]
    for name in names:
        start, end = header[name]["data_offsets"]
        for offsets in (*lies, [start, end + 4], [start + 4, end + 4], [start, start]):
            if offsets != [start, end]:
                write_parts(saved, {**header, name: {**header[name], "data_offsets": offsets}}, numbers)
                assert "damaged" in refused(saved)
    one, two = "skeleton.layers.0.weight", "skeleton.layers.1.weight"  # both would have the same bytes
    same = {**header, one: {**header[one], "data_offsets": header[two]["data_offsets"]}}
    write_parts(saved, same, numbers)
    assert "damaged" in refused(saved)
    for shape in ([2**62, 4], [2**32, 2**32], [-4, -4], [4.0, 4], [4, 4, 0], [4] * 5000, "4"):
        write_parts(saved, {**header, one: {**header[one], "shape": shape}}, numbers)
        assert "damaged" in refused(saved)
    write_parts(saved, header, numbers + b"\0")  # bytes that belong to nothing
    assert "damaged" in refused(saved)


def test_a_name_that_is_there_twice(saved):
    header, numbers = parts(saved)
    text = json.dumps(header).replace('"skeleton.layers.0.bias":', '"skeleton.layers.0.weight":').encode()
    assert text.count(b'"skeleton.layers.0.weight":') == 2
    write_parts(saved, text, numbers)
    refused(saved)  # whichever of the two counts, the other's bytes belong to nothing


def test_headers_of_many_bytes(saved):
    header, numbers = parts(saved)
    write_parts(saved, header, numbers, to=checkpoint.MAX_HEADER)
    load(saved)
    write_parts(saved, header, numbers, to=checkpoint.MAX_HEADER + 8)
    refused(saved)
    write_parts(saved, b"[" * 900_000, numbers)
    refused(saved)


# ---- damage


def test_truncated_files(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        saved.write_bytes(data[:length])
        refused(saved)


def test_flipped_bits(saved):
    """Every byte of the header once: a refusal, or a network of the same shapes; no other exception."""
    data = saved.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    expected = {name: tensor.shape for name, tensor in load(saved).state_dict().items()}
    loaded = 0
    for place in range(end):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        saved.write_bytes(changed)
        try:
            found = load(saved).state_dict()
        except SprigError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
        else:
            loaded += 1
            assert {name: tensor.shape for name, tensor in found.items()} == expected
    assert loaded < end / 3  # the provenance and a few spellings may change unnoticed


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=20))
def test_damaged_bytes(saved, edits):
    """The format has no checksum: damage in the numbers goes unnoticed where they stay finite; what loads is finite."""
    data = saved.read_bytes()
    changed = bytearray(data)
    for place, value in edits:
        changed[place % len(data)] = value
    saved.write_bytes(changed)
    try:
        found = load(saved)
    except SprigError:
        pass
    else:
        assert all(torch.isfinite(tensor).all() for tensor in found.state_dict().values())
    finally:
        saved.write_bytes(data)


# ---- the two networks of the package

REAL = {
    "skeleton": lambda: SkeletonNetwork(
        SkeletonConfig(width=32, heads=2, seeds=16, neighbours=8, encoder_blocks=1, decoder_blocks=2)
    ),
    "skinning": lambda: SkinningNetwork(SkinningConfig(width=24, blocks=2, support=64)),
    "puppeteer skeleton": lambda: small_puppeteer("skeleton"),
    "puppeteer bones": lambda: small_puppeteer("skeleton", tokens_per_slot=6, slots=4, target_table=False),
    "puppeteer skinning": lambda: small_puppeteer("skinning"),
}


def answer(network) -> torch.Tensor:
    """What a network says about a cloud of 64 points and, for skinning, a chain of three joints; for skeletons, BOS."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(1, 64, 6, generator=generator) - 0.5
    points[..., 3:] = nn.functional.normalize(points[..., 3:], dim=-1)
    with torch.no_grad():
        if network.kind == "skeleton":
            return network(network.condition(points), torch.tensor([[0, 67, 67, 67, 3]]))
        joints = torch.rand(1, 3, 3, generator=generator) - 0.5
        seen = [points, joints, torch.tensor([[-1, 0, 1]]), torch.ones(1, 3, dtype=torch.bool)]
        if not isinstance(network, PuppeteerSkinning):
            seen.append(torch.rand(1, 64, 3, 2, generator=generator).softmax(2))
        return network(*seen)


@pytest.mark.parametrize("name", REAL)
def test_the_networks_come_back(name, tmp_path):
    torch.manual_seed(2)
    network = REAL[name]().eval()
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, network, PROVENANCE)
    found = load_checkpoint(path, network.kind)
    assert type(found) is type(network) and found.config == network.config and not found.training
    assert torch.equal(answer(found), answer(network))
    if isinstance(found, PuppeteerSkeleton):
        assert found.transformer.lm_head.weight is found.transformer.model.decoder.embed_tokens.weight
    other = "skinning" if network.kind == "skeleton" else "skeleton"
    with pytest.raises(SprigError, match=f"--checkpoint-{network.kind}"):
        load_checkpoint(path, other)


@pytest.mark.parametrize("names", [("puppeteer skeleton", "skinning"), ("skeleton", "puppeteer skinning")])
def test_networks_of_both_architectures_share_a_file(names, tmp_path):
    torch.manual_seed(2)
    networks = [REAL[name]().eval() for name in names]
    path = tmp_path / "student.safetensors"
    save_checkpoint(path, networks, PROVENANCE)
    for network in networks:
        found = load_checkpoint(path, network.kind)
        assert type(found) is type(network) and torch.equal(answer(found), answer(network))


@pytest.mark.parametrize("released", [puppeteer_skeleton, puppeteer_skinning])
def test_configs_of_the_released_sizes_can_be_written(released):
    config = getattr(released, "SkeletonConfig", None) or released.SkinningConfig
    values = json.loads(json.dumps(dataclasses.asdict(config())))
    assert checkpoint._read_config(Path("a"), values, config) == config()


def settings_of(values: dict, inside=()):
    """Every setting of a config and of the configs in it: (names of the configs it is in, name, value)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from settings_of(value, (*inside, name))
        else:
            yield inside, name, value


@pytest.mark.parametrize("value", [0, 5, 64, checkpoint.MAX_SETTING])
@pytest.mark.parametrize("name", REAL)
def test_settings_of_the_networks_that_were_changed(name, value, tmp_path):
    """Each number of the config in turn: refused, or a network of the same shapes that works; quickly, and without the
    memory it claims."""
    path = tmp_path / "network.safetensors"
    network = REAL[name]()
    save_checkpoint(path, network, PROVENANCE)
    good, before = path.read_bytes(), resident_bytes()
    for inside, setting, old in settings_of(dataclasses.asdict(network.config)):
        new = [value] * len(old) if isinstance(old, tuple) else type(old)(value)
        with_config(path, network.kind, inside, **{setting: new})
        try:
            found = load_checkpoint(path, network.kind)
        except SprigError as error:
            assert path.name in str(error)
        else:
            assert value > 0 or isinstance(old, float | bool), setting
            assert all(p.shape == q.shape for p, q in zip(found.parameters(), network.parameters(), strict=True))
            assert answer(found).isfinite().all()
        path.write_bytes(good)
    assert resident_bytes() - before < 150_000_000
