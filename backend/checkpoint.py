"""Trained networks on disk: one safetensors file with a skeleton network, a skinning network, or one of each.

The metadata says {"format": "sprig", "version", "networks", "provenance"}, where `networks` gives each kind its
architecture (SPRig's own or Puppeteer's) and its config, so no option outside the file changes what its weights mean.
A tensor is named after its network's kind, "skeleton.head.bias"; one that a network has under two names (Puppeteer's
embedding is its output head, too) is there once, under the first.

A checkpoint comes from anywhere and is not trusted. A safetensors file is a JSON header and raw numbers: reading it
runs no code. The config is checked field by field and the network is first built on the meta device, which takes no
memory whatever sizes the config claims. It is built for real, and numbers are read, only when every name and shape in
the file is the network's own: what is allocated is what the file holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import stat
import threading
import typing
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.modules.module import register_module_parameter_registration_hook

from .errors import SprigError
from .formats.checks import file_errors
from .formats.whole_file import whole_file

FORMAT = "sprig"
VERSION = 1  # raised when a network or its config changes so that older files no longer mean the same
MAX_HEADER = 1_000_000  # bytes; both of Puppeteer's networks and a long provenance need 190,000
MAX_SETTING = 65_536  # of a number in a config; widths, depths and counts are far below, and at least 1
METADATA = ("networks", "provenance")  # beside format and version
KINDS = ("skeleton", "skinning")
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as the format calls them
INTEGERS = {"I64": torch.int64}
JSON_ERRORS = (ValueError, RecursionError)
NETWORK_ERRORS = (  # what a constructor raises for settings that do not fit each other
    AssertionError, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def save_checkpoint(path, networks, provenance: dict) -> None:
    """Write a network, or a list of networks of different kinds, in any order.

    A network's class names its `kind`, and its `architecture` where that is not SPRig's own; `config` is the frozen
    dataclass that it was made from. provenance: where the weights come from (command, commit, data, scores): strings,
    finite numbers, and lists and dicts of these. The file appears whole or not at all, and is the same, byte for byte,
    for the same networks and provenance. Raises SprigError where `path` cannot be written or a weight is not finite.
    """
    path = Path(path)
    networks = [networks] if isinstance(networks, torch.nn.Module) else sorted(networks, key=lambda each: each.kind)
    kinds = [network.kind for network in networks]
    assert kinds and set(kinds) <= set(KINDS) and len(set(kinds)) == len(kinds), kinds
    assert _is_plain(provenance) and isinstance(provenance, dict), provenance
    tensors, described = {}, {}
    for network in networks:
        kind, config = network.kind, json.loads(json.dumps(dataclasses.asdict(network.config), allow_nan=False))
        assert _read_config(path, config, type(network.config)) == network.config, config
        described[kind] = {"architecture": architecture(network), "config": config}
        with torch.device("meta"):
            expected = _tensors(type(network)(network.config))
        found = _tensors(network)
        assert found.keys() == expected.keys(), f"what is new in {found.keys() ^ expected.keys()} would not be read"
        for name, tensor in found.items():
            assert tensor.dtype in {*FLOATS.values(), *INTEGERS.values()}, (name, tensor.dtype)
            if not torch.isfinite(tensor).all():
                raise SprigError(
                    f"The {kind} network's {name} is not finite, so {path.name} was not written; train with a lower "
                    "learning rate."
                )
            tensors[f"{kind}.{name}"] = tensor.cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "networks": json.dumps(described, allow_nan=False),
        "provenance": json.dumps(provenance, allow_nan=False),
    }
    data = save(tensors, metadata)  # refuses tensors that share memory, which would come back untied
    with whole_file(path) as temporary:
        _write(temporary, data, metadata)


def load_checkpoint(path, kind: str, device="cpu", classes: dict | None = None) -> torch.nn.Module:
    """Read the network of this kind ("skeleton" or "skinning") from a file, in eval mode and on `device`.

    classes: {(kind, architecture): (network class, config class)}, by default the networks of this package. Tensors
    come back in the type that the class gives them, also where the file has them in half precision. Raises SprigError
    for everything that is wrong with the file.
    """
    path = Path(path)
    classes = classes or _classes()
    with _open(path) as (file, metadata):
        described = _read_networks(path, metadata)
        if kind not in described:
            (found,) = described
            raise SprigError(f"{path.name} is a {found} checkpoint; give it to --checkpoint-{found}.")
        found, values = described[kind]
        if (kind, found) not in classes:
            raise SprigError(
                f"{path.name} holds a {kind} network of architecture {_quoted(found)}, which is not known here; "
                "update SPRig."
            )
        network_class, config_class = classes[kind, found]
        config = _read_config(path, values, config_class)
        names = _names(path, file, described)[kind]
        network = _build_on_meta(path, len(names), network_class, config)
        _check_tensors(path, file, names, {f"{kind}.{name}": tensor for name, tensor in _tensors(network).items()})
        with torch.random.fork_rng(devices=[]):  # whoever loads a network keeps the random numbers it had
            network = network_class(config)
        for name, tensor in _tensors(network).items():
            tensor.copy_(_read_tensor(path, file, f"{kind}.{name}"))
    return network.eval().to(device)


def kinds_in(path) -> tuple[str, ...]:
    """The kinds of the networks in a checkpoint, "skeleton" before "skinning"."""
    path = Path(path)
    with _open(path) as (_file, metadata):
        described = _read_networks(path, metadata)
        return tuple(kind for kind in KINDS if kind in described)


def read_provenance(path) -> dict:
    """Where the weights of a checkpoint come from, as given to `save_checkpoint`."""
    path = Path(path)
    with _open(path) as (_file, metadata):
        return _read_json(path, "provenance", metadata["provenance"])


def architecture(network) -> str:
    """Which of the architectures of its kind a network has: "sprig" or "puppeteer"."""
    return getattr(network, "architecture", "sprig")


def fingerprint(path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: names the weights in a report."""
    with file_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _classes() -> dict:
    """{(kind, architecture): (network class, config class)}; imported here: the networks may import this module."""
    from .puppeteer import skeleton as puppeteer_skeleton
    from .puppeteer import skinning as puppeteer_skinning
    from .skeleton.network import SkeletonConfig, SkeletonNetwork
    from .skinning.network import SkinningConfig, SkinningNetwork

    return {
        ("skeleton", "sprig"): (SkeletonNetwork, SkeletonConfig),
        ("skinning", "sprig"): (SkinningNetwork, SkinningConfig),
        ("skeleton", "puppeteer"): (puppeteer_skeleton.PuppeteerSkeleton, puppeteer_skeleton.SkeletonConfig),
        ("skinning", "puppeteer"): (puppeteer_skinning.PuppeteerSkinning, puppeteer_skinning.SkinningConfig),
    }


def _tensors(network) -> dict[str, torch.Tensor]:
    """The state of a network by name; a tensor that it has under several names, by the first."""
    first = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor.detach()))
    return dict(first.values())


def _write(path: Path, data: bytes, metadata: dict[str, str]) -> None:
    """Write a new file from the library's bytes, with the metadata in our order: the library's differs every time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # the numbers stay aligned
    assert len(text) <= MAX_HEADER, "a provenance this long could not be read back"
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(data)[end:])


@contextmanager
def _open(path: Path):
    """Open a checkpoint of a version that we read: the library's file and the metadata, a dict of str."""
    try:
        with file_errors(path):
            _check_start(path)
            with safe_open(path, framework="pt") as file:
                yield file, _check_metadata(path, file.metadata() or {})
    except SafetensorError as error:
        raise SprigError(f"{path.name} is truncated or damaged ({_brief(error)}); get it again.") from error


def _check_start(path: Path) -> None:
    """Refuse what cannot be a safetensors file by its first eight bytes, the length of the header."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise SprigError(f"{path.name} is not a regular file; give a checkpoint that SPRig wrote.")
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) == 8 and int.from_bytes(start, "little") <= MAX_HEADER:
        return
    if start[:4] == b"PK\x03\x04" or re.match(rb"\x80[\x02-\x05]", start):  # torch.save, new and old; pickle
        raise SprigError(
            f"{path.name} is a zip or pickle file (such as .pth), which can carry code and is not opened; "
            "give a .safetensors checkpoint that SPRig wrote."
        )
    raise SprigError(f"{path.name} is no safetensors file; give a checkpoint that SPRig wrote.")


def _check_metadata(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        raise SprigError(f"{path.name} is a safetensors file of something else; give a checkpoint that SPRig wrote.")
    version = metadata.get("version", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise SprigError(f"{path.name} has no usable version ({_quoted(version)}); get it again.")
    if int(version) > VERSION:
        raise SprigError(
            f"{path.name} was made by a newer SPRig (version {version}, this one reads {VERSION}); update SPRig."
        )
    for key in METADATA:
        if key not in metadata:
            raise SprigError(f"{path.name} does not say its {key}; get it again.")
    return metadata


def _read_json(path: Path, key: str, text: str) -> dict:
    """The dict that a value of the metadata holds: strings, finite numbers, booleans, and lists and dicts of these."""
    try:
        values = json.loads(text)
        if isinstance(values, dict) and _is_plain(values):
            return values
    except JSON_ERRORS as error:
        raise SprigError(f"{path.name} has no usable {key} ({_brief(error)}); get it again.") from error
    raise SprigError(f"{path.name} has no usable {key} (no dict of strings and numbers); get it again.")


def _is_plain(value) -> bool:
    """Whether a value is a string, a finite number, true, false, or a list or dict of such, with strings as keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _read_networks(path: Path, metadata: dict[str, str]) -> dict[str, tuple[str, dict]]:
    """What the file says it holds: {kind: (architecture, values of the config)}, at least one and all kinds known."""
    described = {}
    for kind, values in _read_json(path, "networks", metadata["networks"]).items():
        if kind not in KINDS:
            raise SprigError(
                f"{path.name} holds a network of kind {_quoted(kind)}, which is not known here; update SPRig."
            )
        values = values if isinstance(values, dict) else {}
        found, config = values.get("architecture"), values.get("config")
        if not isinstance(found, str) or not isinstance(config, dict) or len(values) != 2:
            raise SprigError(f"{path.name} does not say architecture and config of its {kind} network; get it again.")
        described[kind] = found, config
    if not described:
        raise SprigError(f"{path.name} says that it holds no networks; get it again.")
    return described


def _read_config(path: Path, values: dict, config_class):
    """The config, with exactly the fields of its dataclass: int (a size or a count), float, bool, str, a tuple of int,
    or another such dataclass."""
    types = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in (*names, *values):
        if name not in values or name not in names:
            fault = "lacks" if name in names else "has the unknown setting"
            raise SprigError(f"{path.name} has a config that {fault} {_quoted(name)}; was it made by another SPRig?")
    read = {name: _read_setting(path, name, value, types[name]) for name, value in values.items()}
    try:
        return config_class(**read)
    except NETWORK_ERRORS as error:  # the dataclass has limits of its own
        raise SprigError(f"{path.name} has a config that makes no network ({_brief(error)}); get it again.") from error


def _read_setting(path: Path, name: str, value, wanted):
    """One value of a config as the type that it should have."""
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return _read_config(path, value, wanted)
    if wanted == tuple[int, ...] and isinstance(value, list):
        return tuple(_read_setting(path, name, each, int) for each in value)
    least = 1 if wanted is int else 0
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits or (wanted in (int, float) and not least <= value <= MAX_SETTING):
        limits = f" from {least} to {MAX_SETTING}" if wanted in (int, float) else ""
        raise SprigError(
            f"{path.name} has {name} {_quoted(value)} in its config, expected {wanted.__name__}{limits}; get it again."
        )
    return wanted(value)


def _build_on_meta(path: Path, tensors: int, network_class, config) -> torch.nn.Module:
    """The network without memory for its numbers; given up when it becomes deeper than its `tensors` in the file, which
    takes time."""
    limit, made, thread = 2 * tensors, itertools.count(1), threading.get_ident()

    def check(_module, _name, _parameter):  # twice as many, because a constructor may replace what it has made
        if threading.get_ident() == thread and next(made) > limit:
            raise ValueError("it needs more tensors than the file has")

    hook = register_module_parameter_registration_hook(check)
    try:
        with torch.device("meta"):
            return network_class(config)
    except NETWORK_ERRORS as error:
        raise SprigError(f"{path.name} has a config that makes no network ({_brief(error)}); get it again.") from error
    finally:
        hook.remove()


def _names(path: Path, file, described) -> dict[str, set[str]]:
    """{kind: names of its tensors in the file}; none may belong to no network."""
    names = {kind: set() for kind in described}
    for name in sorted(file.keys()):
        kind = name.split(".")[0]
        if kind not in names:
            raise SprigError(f"{path.name} has the unknown tensor {_quoted(name)}; get it again.")
        names[kind].add(name)
    return names


def _check_tensors(path: Path, file, found: set[str], expected: dict[str, torch.Tensor]) -> None:
    """Compare names, shapes and types with those of the network, before any number is read."""
    for name in (*expected, *sorted(found)):
        if name not in found or name not in expected:
            fault = "lacks the tensor" if name in expected else "has the unknown tensor"
            raise SprigError(f"{path.name} {fault} {_quoted(name)}; it does not fit its own config, get it again.")
    for name, tensor in expected.items():
        entry = file.get_slice(name)
        shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
        allowed = FLOATS if tensor.is_floating_point() else INTEGERS
        if shape != tuple(tensor.shape) or dtype not in allowed:
            raise SprigError(
                f"{path.name} has {_quoted(name)} of shape {_brief(shape)} and type {dtype}, expected "
                f"{tuple(tensor.shape)} and {' or '.join(allowed)}; it does not fit its own config, get it again."
            )


def _read_tensor(path: Path, file, name: str) -> torch.Tensor:
    """A view of the file, to be copied while it is open: where it is mapped, Windows lets nobody replace it."""
    tensor = file.get_tensor(name)
    if not torch.isfinite(tensor).all():
        raise SprigError(f"{path.name} has values in {_quoted(name)} that are not finite; get it again.")
    return tensor


def _quoted(value) -> str:
    """A value from the file as it can stand in a sentence: on one line and not too long."""
    return repr(value if not isinstance(value, str) else value[:80])[:100]


def _brief(error) -> str:
    """The first line of an exception's text, or its kind where it has none; not too long."""
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:120]
