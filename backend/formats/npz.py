"""NumPy archives: sequences in (`vertices faces fps object_id`), finished rigs out and back in (DESIGN 5).

Nothing in an archive is ever unpickled. An array is loaded only when its header has said that its type and size are
acceptable and that so many bytes can be there, so a small file cannot make us allocate a large array.
"""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import SprigError
from ..given_skeleton import GivenSkeleton, moving_bones
from ..kinematics import world_bones
from ..rig import Rig
from ..sequence import MeshSequence
from . import checks
from .whole_file import whole_file

MAX_DEFLATE_RATIO = 1040  # deflate packs at most 1,032 bytes into one; a member that claims more is damaged or forged
MAX_JOINTS = 10_000  # of a rig that is read: a whole crowd of characters
MAX_NAME = 1000  # letters of a joint's name; Blender's own limit is 63 bytes
MAX_RIG_VALUES = 1_000_000_000  # in one array of a rig: a million vertices with a thousand joints, 4 GB
PARSER_ERRORS = (  # what zipfile, its decompressors and numpy's header parser raise on damaged bytes
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, EOFError, RuntimeError,
    ValueError, TypeError, SyntaxError, OverflowError, MemoryError, LookupError,
)  # fmt: skip
RIG_KEYS = (
    "rest_vertices", "faces", "joint_names", "parents", "joints_rest", "tails_rest", "weights", "bone_rest",
    "bone_world", "frame_index", "anchor_frame", "fps",
)  # fmt: skip
SKELETON_KEYS = ("joint_names", "parents", "joints_rest", "tails_rest", "rest_vertices")
CLIP_KEYS = ("clip_names", "clip_start", "clip_fps")  # beside them where a rig has several clips


def read(path, *, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read `vertices` (F,V,3), `faces` (M,3) and where present `fps`, `object_id` (V,); every other key is ignored."""
    path = Path(path)
    with _open(path) as archive:
        for key in ("vertices", "faces"):
            if key not in archive:
                raise SprigError(f"{path.name} has no array {key!r}; an .npz needs vertices (F,V,3) and faces (M,3).")
        checks.check_positions(path, archive.header("vertices"))
        checks.check_triangles(path, archive.header("faces"))
        count = archive.header("vertices").shape[1]
        if fps is None and "fps" in archive:
            fps = archive.load_number("fps")
        object_id = archive.load("object_id", (count,), "iu") if "object_id" in archive else np.zeros(count, np.int32)
        vertices = archive.load("vertices")
        faces = archive.load("faces")
    checks.check_indices(path, faces, count)
    numbers, object_id = np.unique(object_id, return_inverse=True)
    names = (path.stem,) if len(numbers) == 1 else tuple(f"object_{number}" for number in numbers)
    return MeshSequence.from_world(
        checks.upright(vertices, up),
        faces,
        fps=checks.DEFAULT_FPS if fps is None else fps,
        object_id=object_id,
        object_names=names,
        name=path.stem,
    )


def write_rig(path, rig: Rig) -> None:
    """Write a rig as the table of DESIGN 5: world space, float32, in the input's vertex order.

    Of several clips the frames follow each other, frame_index counts each by itself, and three arrays more say which
    are whose: clip_names (C,), clip_start (C,) position of its first frame, clip_fps (C,); fps is the first one's.
    The file appears whole or not at all: it is written under a temporary name beside `path` and then renamed.
    """
    bone_rest, bone_world = world_bones(rig)
    skeleton = rig.skeleton
    arrays = {
        "rest_vertices": (rig.rest_vertices + rig.origin).astype(np.float32),
        "faces": rig.faces,
        "joint_names": np.array(skeleton.names),
        "parents": skeleton.parents,
        "joints_rest": (skeleton.joints + rig.origin).astype(np.float32),
        "tails_rest": (skeleton.tails + rig.origin).astype(np.float32),
        "weights": rig.weights,
        "bone_rest": bone_rest.astype(np.float32),
        "bone_world": bone_world.astype(np.float32),
        "frame_index": rig.frame_index,
        "anchor_frame": np.array(rig.anchor, dtype=np.int32),
        "fps": np.array(rig.fps, dtype=np.float64),
    }
    assert tuple(arrays) == RIG_KEYS, tuple(arrays)
    if rig.clips:
        values = zip(*((clip.name, clip.start, clip.fps) for clip in rig.clips), strict=True)
        arrays |= {key: np.array(value) for key, value in zip(CLIP_KEYS, values, strict=True)}
        arrays["clip_start"] = arrays["clip_start"].astype(np.int32)
    path = Path(path)
    with whole_file(path) as temporary:
        _write(temporary, arrays)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a new .npz. Unlike numpy's it is the same, byte for byte, for the same arrays."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as file:
        for key, array in arrays.items():
            # the default date is 1980 for every member; numpy's is today; zip64 for arrays above 2 GB
            info = zipfile.ZipInfo(f"{key}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with file.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_rig(path) -> dict:
    """Read what `write_rig` wrote: a dict with every key of DESIGN 5's table, joint_names as a tuple of str.

    Several clips' own keys are not read.

    Raises SprigError when an array is missing, or its shape or type does not fit the others.
    """
    path = Path(path)
    with _open(path) as archive:
        archive.check_keys(RIG_KEYS, "is no rig", "give an .npz that SPRig wrote")
        frames, vertices, faces, joints = map(archive.length, ("frame_index", "rest_vertices", "faces", "parents"))
        checks.check_counts(path, frames=frames, vertices=vertices, faces=faces)
        _check_joints(path, archive, joints, frames, vertices)
        expected = {
            "rest_vertices": ((vertices, 3), "f"), "faces": ((faces, 3), "iu"), "joint_names": ((joints,), "U"),
            "parents": ((joints,), "i"), "joints_rest": ((joints, 3), "f"), "tails_rest": ((joints, 3), "f"),
            "weights": ((vertices, joints), "f"), "bone_rest": ((joints, 4, 4), "f"),
            "bone_world": ((frames, joints, 4, 4), "f"), "frame_index": ((frames,), "iu"), "anchor_frame": ((), "iu"),
            "fps": ((), "f"),
        }  # fmt: skip
        rig = {key: archive.load(key, *expected[key]) for key in RIG_KEYS}
    rig["joint_names"] = tuple(str(name) for name in rig["joint_names"])
    rig["anchor_frame"], rig["fps"] = int(rig["anchor_frame"]), float(rig["fps"])
    return rig


def read_skeleton(path) -> GivenSkeleton:
    """Read a skeleton to fit: `joint_names parents joints_rest tails_rest rest_vertices` as `write_rig` writes them.

    Used where they are present: `weights`, of which bones without any stay without; `bone_rest`, which says the rolls;
    with it `bone_world`, the skeleton's own poses: a bone whose place against its parent varies there may move.
    Raises SprigError when an array is missing, or its shape or type does not fit the others.
    """
    path = Path(path)
    with _open(path) as archive:
        archive.check_keys(SKELETON_KEYS, "holds no skeleton", f"give one with {', '.join(SKELETON_KEYS)}")
        joints, vertices = map(archive.length, ("parents", "rest_vertices"))
        frames = archive.length("bone_world") if "bone_world" in archive else 1
        checks.check_counts(path, frames=frames, vertices=vertices)
        _check_joints(path, archive, joints, frames, vertices)
        expected = {
            "joint_names": ((joints,), "U"), "parents": ((joints,), "i"), "joints_rest": ((joints, 3), "f"),
            "tails_rest": ((joints, 3), "f"), "rest_vertices": ((vertices, 3), "f"),
            "weights": ((vertices, joints), "f"), "bone_rest": ((joints, 4, 4), "f"),
            "bone_world": ((frames, joints, 4, 4), "f"),
        }  # fmt: skip
        found = {key: archive.load(key, *expected[key]) for key in expected if key in archive}
    names = tuple(str(name) for name in found.pop("joint_names"))
    if len(set(names)) < len(names):
        raise SprigError(f"{path.name} has several joints of one name; give every joint a name of its own.")
    parents = found.pop("parents")
    if (parents < -1).any() or (parents >= joints).any():
        raise SprigError(f"{path.name} has parents that are none of its {joints} joints; export it again.")
    for key, values in found.items():
        if not np.isfinite(values).all():
            raise SprigError(f"{path.name} has {key} that are not finite; export it again.")
    found = {key: values.astype(np.float64) for key, values in found.items()}
    weights, rest, world = (found.get(key) for key in ("weights", "bone_rest", "bone_world"))
    if weights is not None and weights.min() < 0:
        raise SprigError(f"{path.name} has weights below zero; export it again.")
    if rest is not None and np.abs(np.linalg.det(rest)).min() <= 0:
        raise SprigError(f"{path.name} has a bone_rest that has no inverse; export it again.")
    motion = located = None
    if rest is not None and world is not None:
        if np.abs(np.linalg.det(world)).min() <= 0:
            raise SprigError(f"{path.name} has a bone_world that has no inverse; export it again.")
        motion = world @ np.linalg.inv(rest)
        size = float(np.linalg.norm(np.ptp(found["rest_vertices"], axis=0)))
        located = moving_bones(motion, found["joints_rest"], parents, size)
    return GivenSkeleton(
        found["joints_rest"],
        found["tails_rest"],
        parents,
        names,
        rest_vertices=found["rest_vertices"],
        frames=rest,
        located=located,
        deform=None if weights is None or weights.max() <= 0 else weights.max(axis=0) > 0,
        weights=weights,
        motion=motion,
    )


def _check_joints(path: Path, archive: _Archive, joints: int, frames: int, vertices: int) -> None:
    """Refuse more joints, or longer names, than any rig has."""
    if not 1 <= joints <= MAX_JOINTS or joints * max(16 * frames, vertices) > MAX_RIG_VALUES:
        raise SprigError(f"{path.name} claims {joints} joints for {vertices} vertices; is it damaged?")
    if archive.header("joint_names").dtype.itemsize > 4 * MAX_NAME:
        raise SprigError(f"{path.name} has joint names of more than {MAX_NAME} letters; shorten them.")


class _Header(NamedTuple):
    """What the header of one array says, checked against the room that the array has in the archive."""

    shape: tuple[int, ...]
    dtype: np.dtype


class _Archive:
    """Arrays of an open .npz by name. Errors of the parsers pass through; `_open` turns them into SprigErrors."""

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path, self.file = path, file
        self.headers: dict[str, _Header] = {}

    def __contains__(self, key: str) -> bool:
        return f"{key}.npy" in self.file.NameToInfo

    def header(self, key: str) -> _Header:
        if key not in self.headers:
            with self.file.open(f"{key}.npy") as member:
                self.headers[key] = self._read_header(key, member)
        return self.headers[key]

    def length(self, key: str) -> int:
        """Of an array's first dimension; 0 where it has none."""
        return next(iter(self.header(key).shape), 0)

    def check_keys(self, keys, what: str, advice: str) -> None:
        """SprigError, saying what the file then is not and what to do, unless it has all arrays."""
        missing = [key for key in keys if key not in self]
        if missing:
            raise SprigError(f"{self.path.name} {what}: it lacks the array {missing[0]!r}; {advice}.")

    def load(self, key: str, shape: tuple[int, ...] | None = None, kinds: str = "fiu") -> np.ndarray:
        """The whole array; refused before it is read when its shape or the kind of its type is another."""
        found = self.header(key)
        if found.dtype.kind not in kinds or shape not in (None, found.shape):
            raise SprigError(
                f"{self.path.name} has {key} of shape {found.shape} and type {found.dtype}, "
                f"expected shape {shape}; export it again."
            )
        with self.file.open(f"{key}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def load_number(self, key: str) -> float:
        """A single number, alone or in an array of length one."""
        shape = self.header(key).shape
        return float(self.load(key, () if shape == () else (1,)).reshape(()))

    def _read_header(self, key: str, member) -> _Header:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"unknown version {version} of array {key!r}")
        if dtype.hasobject:
            raise SprigError(
                f"{self.path.name} stores {key!r} as Python objects, which are never read; save a plain array."
            )
        info = self.file.getinfo(f"{key}.npy")
        size = dtype.itemsize
        for length in shape:  # Python integers: a product of claimed lengths does not overflow
            if length < 0:
                raise ValueError(f"array {key!r} has a negative length")
            size *= length
        if size > info.file_size or info.file_size > 1000 + info.compress_size * MAX_DEFLATE_RATIO:
            raise SprigError(f"{self.path.name} claims {size} bytes for {key!r}, more than it can hold; it is damaged.")
        return _Header(shape, dtype)


@contextmanager
def _open(path: Path):
    """Open an archive, and turn whatever its parsers raise on damaged bytes into a SprigError."""
    try:
        with checks.file_errors(path), zipfile.ZipFile(path) as file:
            yield _Archive(path, file)
    except PARSER_ERRORS as error:
        raise SprigError(f"{path.name} is damaged or no .npz archive ({_first_line(error)}); save it again.") from error


def _first_line(error: Exception) -> str:
    """The first line of an exception's text, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
