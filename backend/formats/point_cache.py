"""Point caches: PC2 (3ds Max, Blender) and MDD (LightWave), positions of one mesh in every frame.

Neither knows faces, so a mesh file (.obj, .ply) with the same vertices in the same order supplies them.

PC2, little-endian: 12 bytes "POINTCACHE2\\0", int32 version 1, int32 points, float32 first frame, float32 frames per
sample, int32 samples, then float32 samples x points x 3. MDD, big-endian: int32 samples, int32 points, float32 time of
each sample in seconds, then float32 samples x points x 3. The times are not read: programs write seconds or frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import checks
from .mesh_file import read_mesh
from .polygons import triangulate

PC2_HEADER = np.dtype(
    [("magic", "S12"), ("version", "<i4"), ("points", "<i4"), ("start", "<f4"), ("step", "<f4"), ("samples", "<i4")]
)
SHORTEST_STEP = 0.01  # frames; the Mesh Cache modifier goes through a file a hundred times as fast at most
MDD_HEADER = np.dtype([("samples", ">i4"), ("points", ">i4")])


def read(path, *, rest, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read a .pc2 or .mdd; `rest` is the mesh file whose vertices it moves. `up` is the axis of the cache."""
    path = Path(path)
    positions = _read_pc2(path) if path.suffix.lower() == ".pc2" else _read_mdd(path)
    mesh = read_mesh(rest)
    if len(mesh.points) != positions.shape[1]:
        raise SprigError(
            f"{Path(rest).name} has {len(mesh.points)} vertices and {path.name} moves {positions.shape[1]}; "
            "give the mesh that the cache was made from."
        )
    return MeshSequence.from_world(
        checks.upright(positions, up),
        triangulate(mesh.counts, mesh.indices, positions[0]),
        fps=checks.DEFAULT_FPS if fps is None else fps,
        object_id=mesh.object_id,
        object_names=mesh.object_names,
        name=path.stem,
    )


@dataclass(frozen=True)
class PointCache:
    """What the header of a point cache says: start is the frame of its first sample, step the frames between two."""

    samples: int
    vertices: int
    start: float = 1.0
    step: float = 1.0


def probe(path) -> PointCache:
    """The header of a .pc2 or .mdd; SprigError unless the file is as long as it says."""
    path = Path(path)
    with checks.file_errors(path):
        if path.suffix.lower() == ".pc2":
            header, start = _pc2_header(path), PC2_HEADER.itemsize
            timing = _pc2_timing(header)
        else:
            header = _read_header(path, MDD_HEADER)
            start, timing = _mdd_start(header), {}
        frames, vertices = _check_size(path, start, header)
    return PointCache(frames, vertices, **timing)


def _read_pc2(path: Path) -> np.ndarray:
    return _read_positions(path, PC2_HEADER.itemsize, _pc2_header(path), "<f4")


def _read_mdd(path: Path) -> np.ndarray:
    header = _read_header(path, MDD_HEADER)
    return _read_positions(path, _mdd_start(header), header, ">f4")


def _pc2_header(path: Path):
    header = _read_header(path, PC2_HEADER)
    if header["magic"] != b"POINTCACHE2" or header["version"] != 1:
        raise SprigError(f"{path.name} is no PC2 file of version 1; export it again.")
    return header


def _pc2_timing(header) -> dict[str, float]:
    """Start and step of a PC2; neither where the file has nonsense there, as some writers leave it empty."""
    start, step = float(header["start"]), float(header["step"])
    plausible = abs(start) <= checks.MAX_FRAMES and SHORTEST_STEP <= step <= checks.MAX_FRAMES
    return {"start": start, "step": step} if plausible else {}


def _mdd_start(header) -> int:
    """Where the positions begin: behind the header and the times."""
    return MDD_HEADER.itemsize + 4 * max(0, int(header["samples"]))


def _read_header(path: Path, layout: np.dtype):
    header = np.fromfile(path, dtype=layout, count=1)
    if len(header) == 0:
        raise SprigError(f"{path.name} is truncated: it is shorter than its header; export it again.")
    return header[0]


def _read_positions(path: Path, offset: int, header, kind: str) -> np.ndarray:
    """Positions (F,V,3)."""
    frames, vertices = _check_size(path, offset, header)
    return np.fromfile(path, dtype=kind, offset=offset).reshape(frames, vertices, 3)


def _check_size(path: Path, offset: int, header) -> tuple[int, int]:
    """Frames and vertices, once they are plausible and the file is exactly as long as they say."""
    frames, vertices = int(header["samples"]), int(header["points"])
    checks.check_counts(path, frames=frames, vertices=vertices)
    checks.check_byte_count(path, offset + 12 * frames * vertices, path.stat().st_size)
    return frames, vertices
