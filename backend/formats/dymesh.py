"""DyMesh `.bin`: a Python pickle of a dict with `vertices` (T,N,3), `faces` (M,3) and `caption`.

A pickle is a program that may import and call anything, so it is not run by the plain unpickler. Ours resolves the few
names with which numpy writes arrays to inert stand-ins of its own (fresh ones in every file, so that a pickle cannot
tamper with them), and refuses every other name. No numpy code runs before type, shape and number of bytes agree.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import warnings
from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import checks

MAX_BYTES = 2_000_000_000  # of the file; the largest published clip (32 frames, 50,000 vertices) has 20 MB
MAX_OPERATIONS = 20_000_000  # pickle opcodes; numbers in plain lists take one or two each
MAX_NESTING = 4  # lists within lists that still are a table of numbers; frames x vertices x 3 needs 3
NUMBER_KINDS = "fiu"  # floating point, signed and unsigned whole numbers
UNPICKLING_ERRORS = (  # the pickle module documents no list; these are what damaged bytes raise
    pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError, TypeError, ValueError, OverflowError,
    MemoryError, RecursionError, struct.error, AssertionError,
)  # fmt: skip


def read(path, *, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read a DyMesh .bin."""
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SprigError(f"{path.name} has {size} bytes, more than the {MAX_BYTES} that can be read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about escapes in damaged text
            content = load(path.read_bytes(), path.name)
        if not isinstance(content, dict) or not {"vertices", "faces"} <= content.keys():
            raise SprigError(f"{path.name} is no DyMesh file: it should hold a dict with vertices and faces.")
        vertices, faces = _as_array(content["vertices"]), _as_array(content["faces"])
    except UNPICKLING_ERRORS as error:
        raise SprigError(f"{path.name} is damaged or no DyMesh pickle ({error}); export it again.") from error
    checks.check_positions(path, vertices)
    checks.check_triangles(path, faces)
    checks.check_indices(path, faces, vertices.shape[1])
    return MeshSequence.from_world(
        checks.upright(vertices, up),
        faces,
        fps=checks.DEFAULT_FPS if fps is None else fps,
        object_names=(path.stem,),
        name=path.stem,
    )


def load(data: bytes, name: str):
    """Unpickle arrays (as _Array), text, numbers and containers; SprigError when a pickle names anything else."""
    _check_operations(data, name)
    return _Unpickler(io.BytesIO(data), name).load()


def _check_operations(data: bytes, name: str) -> None:
    """Refuse pickles that would make the unpickler reserve memory out of proportion to their size.

    The unpickler's memo is an array that grows to the index it is told, so a few bytes could claim gigabytes.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise SprigError(f"{name} is a damaged or malicious pickle; get it again from where it came from.")
        if count >= MAX_OPERATIONS:
            raise SprigError(f"{name} takes more than {MAX_OPERATIONS} steps to read; save its tables as numpy arrays.")


class _Unpickler(pickle.Unpickler):
    """Resolves numpy's own names to stand-ins and refuses all others, so nothing is imported."""

    def __init__(self, file, name: str):
        super().__init__(file)
        self.name = name

    def find_class(self, module: str, name: str):
        makers = {
            ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy._core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("numpy._core.numeric", "_frombuffer"): _from_buffer,
            ("numpy", "ndarray"): _refuse_call,
            ("numpy", "dtype"): lambda code, *flags: _Type(code),
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in makers:
            raise SprigError(
                f"{self.name} is a pickle that asks for {f'{module}.{name}'[:100]!r}; only arrays, text and numbers "
                "are read, and a file that asks for more may be malicious."
            )
        return _Callable(makers[module, name])

    def persistent_load(self, identifier):
        raise SprigError(f"{self.name} refers to data outside the file; save it with plain numpy arrays.")


class _Callable:
    """What a global of the pickle resolves to: made anew each time, so changing it has no effect elsewhere."""

    def __init__(self, make):
        self.make = make

    def __call__(self, *arguments):
        return self.make(*arguments)


class _Type:
    """A numpy dtype in the making: only plain numbers become one."""

    def __init__(self, code):
        self.code, self.order = str(code), "="

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def to_dtype(self) -> np.dtype:
        if self.code[:1] not in NUMBER_KINDS or not self.code[1:].isdigit():
            raise ValueError(f"an array holds {self.code[:20]!r} instead of numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """A numpy array in the making: what the pickle says of it, not yet believed."""

    def __init__(self, shape=(), kind=None, fortran=False, raw=b""):
        self.shape, self.kind, self.fortran, self.raw = shape, kind, fortran, raw

    def __setstate__(self, state):
        _, self.shape, self.kind, self.fortran, self.raw = state

    def to_array(self) -> np.ndarray:
        if not isinstance(self.kind, _Type) or not isinstance(self.raw, bytes | bytearray):
            raise ValueError("an array does not hold plain numbers")
        values = np.frombuffer(self.raw, dtype=self.kind.to_dtype())
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def _scalar(kind, raw) -> _Array:
    return _Array((), kind, False, raw)


def _from_buffer(raw, kind, shape, order) -> _Array:
    return _Array(shape, kind, order == "F", raw)


def _encode(text: str, codec: str) -> bytes:
    """How Python writes bytes in pickles of protocol 2 and below."""
    if codec != "latin1":
        raise ValueError(f"bytes are written with the codec {codec[:20]!r}")
    return text.encode("latin1")


def _refuse_call(*arguments):
    """numpy.ndarray is only ever named in a pickle, as the kind of array to reconstruct."""
    raise ValueError("an array is made in a way that numpy does not write")


def _as_array(value, depth: int = 0) -> np.ndarray:
    """An array from a stand-in, or from numbers or arrays in nested lists."""
    if isinstance(value, _Array):
        return value.to_array()
    if isinstance(value, list | tuple) and value and depth < MAX_NESTING:
        if isinstance(value[0], int | float):
            if not all(isinstance(item, int | float) for item in value):
                raise ValueError("a list holds other things than numbers")
            return np.array(value)
        return np.stack([_as_array(item, depth + 1) for item in value])
    raise ValueError(f"a {type(value).__name__} stands where numbers should be")
