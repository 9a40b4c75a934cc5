"""Trained networks on disk: one safetensors file that holds the weights, what network they belong to and where from.

The metadata says {"format": "sprig", "version", "kind", "config", "provenance"}, so no option outside the file changes
what its weights mean. A checkpoint comes from anywhere and is not trusted. A safetensors file is a JSON header and raw
numbers: reading it runs no code. The config is checked field by field and the network is first built on the meta
device, which takes no memory whatever sizes the config claims. It is built for real, and numbers are read, only when
every name and shape in the file is the network's own: what is allocated is what the file holds.
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
MAX_HEADER = 1_000_000  # bytes; a few hundred tensors and a long provenance need 60,000
MAX_SETTING = 65_536  # of a number in a config; widths, depths and counts are far below, and at least 1
METADATA = ("kind", "config", "provenance")  # beside format and version
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as the format calls them
INTEGERS = {"I64": torch.int64}
JSON_ERRORS = (ValueError, RecursionError)
NETWORK_ERRORS = (  # what a constructor raises for settings that do not fit each other
    AssertionError, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def save_checkpoint(path, model, provenance: dict) -> None:
    """Write a network: its class names its `kind`, and `model.config` is the frozen dataclass that it was made from.

    provenance: where the weights come from (command, commit, data, scores): strings, finite numbers and dicts of these.
    The file appears whole or not at all, and is the same, byte for byte, for the same network and provenance. Raises
    SprigError where `path` cannot be written or a weight is not finite.
    """
    path = Path(path)
    config = json.dumps(dataclasses.asdict(model.config), allow_nan=False)
    assert _read_config(path, config, type(model.config)) == model.config, config
    assert _is_plain(provenance) and isinstance(provenance, dict), provenance
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        assert tensor.dtype in {*FLOATS.values(), *INTEGERS.values()}, (name, tensor.dtype)
        if not torch.isfinite(tensor).all():
            raise SprigError(
                f"The network's {name} is not finite, so {path.name} was not written; train with a lower learning rate."
            )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": model.kind,
        "config": config,
        "provenance": json.dumps(provenance, allow_nan=False),
    }
    data = save(tensors, metadata)  # refuses tensors that share memory, which would come back untied
    with whole_file(path) as temporary:
        _write(temporary, data, metadata)


def load_checkpoint(path, kind: str, device="cpu", classes: dict | None = None) -> torch.nn.Module:
    """Read the network of this kind ("skeleton" or "skinning") from a file, in eval mode and on `device`.

    classes: {kind: (network class, config class)}, by default the two networks of this package. Tensors come back in
    the type that the class gives them, also where the file has them in half precision. Raises SprigError for everything
    that is wrong with the file.
    """
    path = Path(path)
    classes = classes or _classes()
    with _open(path) as (file, metadata):
        found = metadata["kind"]
        if found not in classes:
            raise SprigError(
                f"{path.name} holds a network of kind {_quoted(found)}, which is not known here; update SPRig."
            )
        if found != kind:
            raise SprigError(f"{path.name} is a {found} checkpoint; give it to --checkpoint-{found}.")
        network_class, config_class = classes[kind]
        config = _read_config(path, metadata["config"], config_class)
        _check_tensors(path, file, _build_on_meta(path, file, network_class, config).state_dict())
        with torch.random.fork_rng(devices=[]):  # whoever loads a network keeps the random numbers it had
            model = network_class(config)
        for name, tensor in model.state_dict().items():
            tensor.copy_(_read_tensor(path, file, name))
    return model.eval().to(device)


def read_provenance(path) -> dict:
    """Where the weights of a checkpoint of either kind come from, as given to `save_checkpoint`."""
    path = Path(path)
    with _open(path) as (_file, metadata):
        return _read_json(path, "provenance", metadata["provenance"])


def fingerprint(path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256: names the weights in a report."""
    with file_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _classes() -> dict:
    """{kind: (network class, config class)}; imported here because the networks may import this module."""
    from .skeleton.network import SkeletonConfig, SkeletonNetwork
    from .skinning.network import SkinningConfig, SkinningNetwork

    return {"skeleton": (SkeletonNetwork, SkeletonConfig), "skinning": (SkinningNetwork, SkinningConfig)}


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
    """The dict that a value of the metadata holds: strings, finite numbers, true, false and dicts of these."""
    try:
        values = json.loads(text)
        if isinstance(values, dict) and _is_plain(values):
            return values
    except JSON_ERRORS as error:
        raise SprigError(f"{path.name} has a {key} that is no JSON ({_brief(error)}); get it again.") from error
    raise SprigError(f"{path.name} has a {key} that is no dict of strings and numbers; get it again.")


def _is_plain(value) -> bool:
    """Whether a value is a string, a finite number, true, false or a dict of such values with strings as keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _read_config(path: Path, text: str, config_class):
    """The config, with exactly the fields of its dataclass: int (a size or a count), float, bool or str."""
    values = _read_json(path, "config", text)
    types = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in (*names, *values):
        if name not in values or name not in names:
            fault = "lacks" if name in names else "has the unknown setting"
            raise SprigError(f"{path.name} has a config that {fault} {_quoted(name)}; was it made by another SPRig?")
    for name, value in values.items():
        wanted = types[name]
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        least = 1 if wanted is int else 0
        if not fits or (wanted in (int, float) and not least <= value <= MAX_SETTING):
            limits = f" from {least} to {MAX_SETTING}" if wanted in (int, float) else ""
            raise SprigError(
                f"{path.name} has {name} {_quoted(value)} in its config, expected {wanted.__name__}{limits}; "
                "get it again."
            )
    try:
        return config_class(**{name: types[name](value) for name, value in values.items()})
    except NETWORK_ERRORS as error:  # the dataclass has limits of its own
        raise SprigError(f"{path.name} has a config that makes no network ({_brief(error)}); get it again.") from error


def _build_on_meta(path: Path, file, network_class, config) -> torch.nn.Module:
    """The network without memory for its numbers; given up when it becomes deeper than the file, which takes time."""
    limit, made, thread = 2 * len(file.keys()), itertools.count(1), threading.get_ident()

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


def _check_tensors(path: Path, file, expected: dict[str, torch.Tensor]) -> None:
    """Compare names, shapes and types with those of the network, before any number is read."""
    found = set(file.keys())
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
