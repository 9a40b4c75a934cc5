"""Alembic archives through alembic3d: every polygon mesh in them, posed by its parents, as one sequence.

Alembic stores row vectors (p' = p M), Y up, faces clockwise, and for each property its own sample times. The frames
of the sequence are all sample times of the meshes and of the transforms above them; whatever has no sample at such a
time is interpolated linearly, as Blender does, and held before its first and after its last one. Visibility is not
looked at.

The library is run in a process of its own (`alembic_worker.py`): it crashed on one in eight hundred archives in which
we changed a single byte. That costs a tenth of a second.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import alembic_worker, checks, ogawa
from .polygons import triangulate

TIME_TOLERANCE = 1e-6  # seconds; sample times are sums in float64, and no shutter is that short
FRAME_TOLERANCE = 1e-2  # of a frame; times written as float32 milliseconds still are whole frames
FPS_TOLERANCE = 1e-3  # a rate this close to a whole number is that number
MAX_OBJECTS = 1_000_000  # in an archive; large film sets have some hundred thousand
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # row vectors: (x, y, z) to (x, -z, y)
MAX_NUMBER = 2**31 - 1  # of a frame: frame numbers are int32


@dataclass(eq=False)
class _Transform:
    """A transform: row-vector matrices (N,4,4) at times (N,), and where its parents count."""

    parent: int
    times: np.ndarray
    matrices: np.ndarray
    inherits: np.ndarray


@dataclass(eq=False)
class _Mesh:
    """A mesh below the transform `parent` (-1: none): positions (N or 1, V, 3) float32 at times (N,), and polygons.

    changed_at is the time of the first sample with other polygons or another number of vertices, None if there is
    none; counts and indices are those of the first sample.
    """

    name: str
    parent: int
    times: np.ndarray
    positions: np.ndarray
    counts: np.ndarray
    indices: np.ndarray
    changed_at: float | None


def read(path, *, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read an .abc. Its frame rate is that of its samples and its up axis is Y, unless they are given."""
    path = Path(path)
    noted_rate, nodes = _copy_out(path)
    meshes = [node for node in nodes if isinstance(node, _Mesh)]
    if not meshes:
        raise _without_mesh(path)
    times = _frame_times(path, nodes)
    fps, numbers = _frame_numbers(times, fps, noted_rate)
    for mesh in meshes:
        _check_mesh(path, mesh, times, numbers)
    sizes = np.array([mesh.positions.shape[1] for mesh in meshes])
    starts = np.cumsum(sizes) - sizes
    counts = np.concatenate([mesh.counts for mesh in meshes])
    indices = np.concatenate([start + _reversed(mesh) for start, mesh in zip(starts, meshes, strict=True)])
    checks.check_counts(path, frames=len(times), vertices=int(sizes.sum()), faces=len(counts), corners=len(indices))

    above = {-1: np.tile(np.eye(4), (len(times), 1, 1))}
    for k, node in enumerate(nodes):  # parents come first
        if isinstance(node, _Transform):
            above[k] = _world_matrices(node, above[node.parent], times)
    axes = np.eye(4) if up == "z" else Y_UP
    placed = [above[mesh.parent] @ axes for mesh in meshes]

    # float64 frame by frame and float32 relative to the origin for good, so that a long cache is not held twice
    first = np.concatenate([_frame(mesh, place, times, 0) for mesh, place in zip(meshes, placed, strict=True)])
    origin = checks.centre(first)
    positions = np.empty((len(times), sizes.sum(), 3), dtype=np.float32)
    for mesh, place, start, size in zip(meshes, placed, starts, sizes, strict=True):
        for f in range(len(times)):
            positions[f, start : start + size] = _frame(mesh, place, times, f) - origin
    return MeshSequence(
        positions,
        triangulate(counts, indices, first),
        fps=fps,
        origin=origin,
        object_id=np.repeat(np.arange(len(meshes)), sizes),
        object_names=_unique([mesh.name for mesh in meshes]),
        frame_numbers=numbers,
        name=path.stem,
    )


def probe(path) -> tuple[float, np.ndarray]:
    """Frame rate, and times (F,) of the samples in seconds; SprigError unless the archive can be read to its end.

    Blender's importer aborts on some that cannot. Looks at more than `read` does: texture coordinates, normals,
    curves, points and cameras, which Blender imports too.
    """
    path = Path(path)
    with checks.file_errors(path):
        noted_rate, nodes = _copy_out(path, everything=True)
    if not any(isinstance(node, _Mesh) for node in nodes):
        raise _without_mesh(path)
    times = _frame_times(path, nodes)
    return _frame_numbers(times, None, noted_rate)[0], times


def _without_mesh(path: Path) -> SprigError:
    return SprigError(f"{path.name} holds no polygon mesh with vertices; export meshes rather than points or curves.")


def _copy_out(path: Path, everything: bool = False) -> tuple[float | None, list[_Transform | _Mesh]]:
    """The frame rate that the exporter noted, and the meshes and transforms of the archive, parents first."""
    ogawa.check_structure(path)
    modules = {name: importlib.util.find_spec(name) for name in ("alembic3d", "imath")}
    if None in modules.values():
        raise SprigError(f"Reading {path.name} needs the package alembic3d; install it with: pip install alembic3d")
    search_path = os.pathsep.join({str(Path(module.origin).parent) for module in modules.values()})
    options = {
        "objects": MAX_OBJECTS,
        "samples": checks.MAX_FRAMES,
        "values": checks.MAX_POSITIONS,
        "everything": everything,
    }
    with tempfile.TemporaryDirectory(prefix="sprig_", ignore_cleanup_errors=True) as folder:
        worker = [sys.executable, "-P", "-S", alembic_worker.__file__]  # looks for modules in PYTHONPATH only
        done = subprocess.run(
            [*worker, str(path.resolve()), folder, json.dumps(options)],
            env={**os.environ, "PYTHONPATH": search_path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows opens a console otherwise
            check=False,
        )
        index_file = Path(folder) / "index.json"
        if done.returncode or not index_file.exists():
            last_words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            reason = "".join(last_words)[:200] or f"status {done.returncode}"
            raise SprigError(f"{path.name} is damaged: Alembic's library failed on it ({reason}); export it again.")
        index = json.loads(index_file.read_text())
        if "error" in index:
            raise SprigError(f"{path.name} {index['error']}")
        values = Path(folder) / "values"
        makers = {"transform": _transform_node, "mesh": _mesh_node}
        nodes = [makers[node["kind"]](node, values) for node in index["nodes"]]
    for node in nodes:
        if not np.isfinite(node.times).all() or (np.diff(node.times) <= 0).any():
            raise SprigError(f"{path.name} has sample times that do not increase; export it again.")
    return _number(index["noted_rate"]), nodes


def _transform_node(node: dict, values: Path) -> _Transform:
    times = np.array(node["times"], dtype=np.float64)
    matrices = np.fromfile(values, "<f8", 16 * len(times), offset=node["matrices"]).reshape(-1, 4, 4)
    return _Transform(node["parent"], times, matrices, np.array(node["inherits"], dtype=bool))


def _mesh_node(node: dict, values: Path) -> _Mesh:
    times = np.array(node["times"], dtype=np.float64)
    begin, size = node["positions"][0]
    other = [times[k] for k, (_, count) in enumerate(node["positions"]) if count != size]
    samples = len(node["positions"]) if not other else 1
    positions = np.fromfile(values, "<f4", 3 * samples * size, offset=begin).reshape(samples, size, 3)
    counts, indices = (
        np.fromfile(values, "<i4", count, offset=begin).astype(np.int64)
        for begin, count in (node["counts"], node["indices"])
    )
    changes = [time for time in (*other[:1], node["changes"]) if time is not None]
    return _Mesh(node["name"], node["parent"], times, positions, counts, indices, min(changes, default=None))


def _check_mesh(path: Path, mesh: _Mesh, times: np.ndarray, numbers: np.ndarray) -> None:
    """Refuse a mesh whose polygons change or do not fit its vertices."""
    if mesh.changed_at is not None:
        raise SprigError(
            f"{path.name}, object {mesh.name!r}, has other vertices or faces from frame "
            f"{numbers[np.abs(times - mesh.changed_at).argmin()]} on; its topology must not change, "
            "export without remeshing."
        )
    if (mesh.counts < 0).any() or mesh.counts.sum() != len(mesh.indices):
        raise SprigError(f"{path.name}, object {mesh.name!r}, has damaged faces; export it again.")
    checks.check_indices(path, mesh.indices, mesh.positions.shape[1])


def _reversed(mesh: _Mesh) -> np.ndarray:
    """The polygons' corners counter-clockwise, polygon by polygon."""
    last = np.cumsum(mesh.counts) - 1
    return mesh.indices[np.repeat(2 * last - mesh.counts + 1, mesh.counts) - np.arange(len(mesh.indices))]


def _frame_times(path: Path, nodes: list[_Transform | _Mesh]) -> np.ndarray:
    """The frames' times: those of everything with more than one sample, each once; one frame if nothing has."""
    sampled = [node.times for node in nodes if len(node.times)]
    times = np.unique(np.concatenate([each for each in sampled if len(each) > 1] or [sampled[-1]]))
    times = times[np.diff(times, prepend=-np.inf) > TIME_TOLERANCE]
    checks.check_counts(path, frames=len(times))
    return times


def _frame_numbers(times: np.ndarray, fps: float | None, noted: float | None) -> tuple[float, np.ndarray]:
    """Frame rate, and the frame numbers (F,) at which Blender shows the samples: time x rate, else 1, 2, ...

    The rate is the given one, else the one that the exporter noted if every sample is a whole frame of it, else the
    one that the spacing of the samples makes.
    """
    spacing = float(np.median(np.diff(times))) if len(times) > 1 else 1 / checks.DEFAULT_FPS
    spaced = round(1 / spacing) if abs(1 / spacing - round(1 / spacing)) < FPS_TOLERANCE else 1 / spacing
    for rate in (noted, spaced) if fps is None else (fps,):
        if rate is not None and 0 < rate < MAX_NUMBER:
            numbers = times * rate
            whole = np.round(numbers)
            if (
                np.abs(whole).max() < MAX_NUMBER
                and np.abs(numbers - whole).max() < FRAME_TOLERANCE
                and (np.diff(whole) > 0).all()
            ):
                return rate, whole.astype(np.int32)
    return spaced if fps is None else fps, np.arange(1, len(times) + 1)


def _number(text: str) -> float | None:
    """The number that a metadata text spells, if it does."""
    try:
        return float(text)
    except ValueError:
        return None


def _world_matrices(transform: _Transform, above: np.ndarray, times: np.ndarray) -> np.ndarray:
    """World matrices (F,4,4) of a transform below `above` (F,4,4), which does not count where it does not inherit."""
    if len(transform.times) == 0:  # a transform without samples is the identity
        return above
    local = np.stack([_interpolate(transform.times, transform.matrices, time) for time in times])
    earlier = np.searchsorted(transform.times, times + TIME_TOLERANCE, side="right") - 1
    inherits = transform.inherits[np.maximum(earlier, 0)]
    return np.where(inherits[:, None, None], local @ above, local)


def _interpolate(times: np.ndarray, samples: np.ndarray, time: float) -> np.ndarray:
    """Value at `time` of samples (N,...) at `times` (N,), or of the only one; held outside their range."""
    if len(samples) == 1:
        return samples[0]
    after = int(np.searchsorted(times, time - TIME_TOLERANCE))
    if after == len(times):
        return samples[-1]
    if after == 0 or times[after] - time <= TIME_TOLERANCE:
        return samples[after]
    share = (time - times[after - 1]) / (times[after] - times[after - 1])
    return (1 - share) * samples[after - 1] + share * samples[after]


def _frame(mesh: _Mesh, place: np.ndarray, times: np.ndarray, f: int) -> np.ndarray:
    """World positions (V,3) float64 of a mesh at frame f, under row-vector matrices (F,4,4)."""
    local = _interpolate(mesh.times, mesh.positions, times[f]).astype(np.float64)
    return local @ place[f, :3, :3] + place[f, 3, :3]


def _unique(names: list[str]) -> tuple[str, ...]:
    """Names with .001, .002, ... after those that are there already, as Blender numbers them."""
    taken: dict[str, None] = {}
    for name in names:
        new, number = name, 0
        while new in taken:
            number += 1
            new = f"{name}.{number:03d}"
        taken[new] = None
    return tuple(taken)
