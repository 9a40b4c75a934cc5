"""Small animated meshes written in every format that is read without Blender."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 2)], dtype=np.float64)
QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])  # outwards


def fans(polygons) -> np.ndarray:
    """Triangles (M,3) of polygons."""
    return np.array([[p[0], p[k], p[k + 1]] for p in polygons for k in range(1, len(p) - 1)])


TRIANGLES = fans(QUADS)


def tumbling_cube(frames: int = 4) -> np.ndarray:
    """Positions (F,8,3) float32 of a box that turns, stretches and travels."""
    turns = Rotation.from_rotvec(np.linspace(0, 1, frames)[:, None] * [0.3, 0.7, 1.1]).as_matrix()
    stretched = CUBE * (1 + 0.2 * np.linspace(0, 1, frames)[:, None, None])
    travel = np.linspace(0, 1, frames)[:, None, None] * np.array([3.0, 2.0, 1.0])
    return (np.einsum("fij,fvj->fvi", turns, stretched) + travel).astype(np.float32)


def z_to_y_up(positions: np.ndarray) -> np.ndarray:
    """Where a Y-up file has what is at (x, y, z) here: (x, z, -y)."""
    return np.stack([positions[..., 0], positions[..., 2], -positions[..., 1]], axis=-1)


def write_npz(path: Path, positions, faces=TRIANGLES, **more) -> Path:
    np.savez(path, vertices=positions, faces=faces, **more)
    return path


def write_pc2(path: Path, positions) -> Path:
    frames, count = positions.shape[:2]
    header = struct.pack("<12siiffi", b"POINTCACHE2\0", 1, count, 0.0, 1.0, frames)
    path.write_bytes(header + positions.astype("<f4").tobytes())
    return path


def write_mdd(path: Path, positions) -> Path:
    frames, count = positions.shape[:2]
    times = (np.arange(frames) / 24).astype(">f4").tobytes()
    path.write_bytes(struct.pack(">ii", frames, count) + times + positions.astype(">f4").tobytes())
    return path


def write_anime(path: Path, positions, faces=TRIANGLES) -> Path:
    offsets = positions[1:].astype(np.float64) - positions[0]
    header = struct.pack("<iii", len(positions), positions.shape[1], len(faces))
    parts = (positions[0].astype("<f4"), faces.astype("<i4"), offsets.astype("<f4"))
    path.write_bytes(header + b"".join(part.tobytes() for part in parts))
    return path


def write_dymesh(path: Path, positions, faces=TRIANGLES, protocol: int = 4) -> Path:
    content = {"vertices": positions, "faces": faces, "caption": "a box tumbles"}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def write_obj(path: Path, points, polygons=QUADS) -> Path:
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in np.asarray(points, np.float64).tolist()]
    lines += ["f " + " ".join(str(corner + 1) for corner in polygon) for polygon in polygons]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_ply(path: Path, points, polygons=QUADS, kind: str = "binary_little_endian") -> Path:
    header = (
        f"ply\nformat {kind} 1.0\ncomment made by a test\nelement vertex {len(points)}\n"
        "property float x\nproperty float y\nproperty float z\nproperty uchar quality\n"
        f"element face {len(polygons)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if kind == "ascii":
        rows = [f"{x:.9g} {y:.9g} {z:.9g} 7" for x, y, z in np.asarray(points, np.float64)]
        rows += [f"{len(polygon)} {' '.join(map(str, polygon))}" for polygon in polygons]
        body = ("\n".join(rows) + "\n").encode()
    else:
        order = "<" if kind == "binary_little_endian" else ">"
        body = b"".join(struct.pack(order + "3fB", *point, 7) for point in np.asarray(points, np.float32))
        body += b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)
    path.write_bytes(header.encode() + body)
    return path


def write_folder(path: Path, positions, suffix: str = ".obj", **options) -> Path:
    path.mkdir()
    for f, points in enumerate(positions):
        (write_obj if suffix == ".obj" else write_ply)(path / f"box_{f}{suffix}", points, **options)
    return path


@dataclass
class AbcMesh:
    """A mesh for `write_abc`: positions (F,V,3) in the file's own axes, polygons as lists of corners."""

    positions: np.ndarray
    polygons: list = field(default_factory=lambda: QUADS[:, ::-1].tolist())  # Alembic's faces are clockwise
    name: str = "boxShape"
    times: list | None = None
    polygons_of_frame: dict = field(default_factory=dict)  # frame -> other polygons from there on
    subdivided: bool = False


@dataclass
class AbcTransform:
    """A transform for `write_abc` with row-vector matrices (N,4,4), children and where it inherits (N,)."""

    children: list
    matrices: np.ndarray = field(default_factory=lambda: np.eye(4)[None])
    name: str = "box"
    times: list | None = None
    inherits: list | None = None


def write_abc(path: Path, *tree, times=None, noted_rate: float | None = None) -> Path:
    """Write an Ogawa archive. times: seconds of the samples of whatever has none of its own; None is 1/24, 2/24, ..."""
    from alembic3d import Abc

    if noted_rate is None:
        archive = Abc.OArchive(str(path), True)
    else:
        archive = Abc.CreateArchiveWithInfo(str(path), noted_rate, "tests", "made by a test")
    for node in tree:
        _write_node(archive.getTop(), node, times)
    return path


WRITERS = {  # format -> function (folder, positions (F,V,3), polygons) that writes it there
    "npz": lambda folder, x, polygons: write_npz(folder / "box.npz", x, fans(polygons)),
    "pc2": lambda folder, x, polygons: write_pc2(folder / "box.pc2", x),
    "mdd": lambda folder, x, polygons: write_mdd(folder / "box.mdd", x),
    "obj": lambda folder, x, polygons: write_folder(folder / "box", x, ".obj", polygons=polygons),
    "ply": lambda folder, x, polygons: write_folder(folder / "box", x, ".ply", polygons=polygons),
    "big-endian ply": lambda folder, x, polygons: write_folder(
        folder / "box", x, ".ply", polygons=polygons, kind="binary_big_endian"
    ),
    "text ply": lambda folder, x, polygons: write_folder(folder / "box", x, ".ply", polygons=polygons, kind="ascii"),
    "anime": lambda folder, x, polygons: write_anime(folder / "box.anime", x, fans(polygons)),
    "dymesh": lambda folder, x, polygons: write_dymesh(folder / "box.bin", x, fans(polygons)),
    "abc": lambda folder, x, polygons: write_abc(
        folder / "box.abc", AbcMesh(z_to_y_up(x), [list(polygon)[::-1] for polygon in polygons])
    ),
}


def write_clip(kind: str, folder: Path, positions, polygons=QUADS) -> tuple[Path, Path | None]:
    """Write one of WRITERS; its path, and that of the mesh for --rest if the format needs one."""
    path = WRITERS[kind](folder, positions, polygons)
    return path, write_obj(folder / "rest.obj", positions[0], polygons) if path.suffix in (".pc2", ".mdd") else None


def _write_node(above, node, times) -> None:
    from alembic3d import AbcGeom

    if isinstance(node, AbcTransform):
        thing = AbcGeom.OXform(above, node.name)
        thing.getSchema().setTimeSampling(_time_sampling(node.times or times))
        for k, matrix in enumerate(np.asarray(node.matrices)):
            thing.getSchema().set(_transform_sample(matrix, True if node.inherits is None else node.inherits[k]))
        for child in node.children:
            _write_node(thing, child, times)
        return
    kind, sample = (
        (AbcGeom.OSubD, AbcGeom.OSubDSchemaSample)
        if node.subdivided
        else (AbcGeom.OPolyMesh, AbcGeom.OPolyMeshSchemaSample)
    )
    schema = kind(above, node.name).getSchema()
    schema.setTimeSampling(_time_sampling(node.times or times))
    polygons = node.polygons
    for f, points in enumerate(node.positions):
        polygons = node.polygons_of_frame.get(f, polygons)
        corners = [corner for polygon in polygons for corner in polygon]
        schema.set(sample(_vectors(points), _integers(corners), _integers([len(polygon) for polygon in polygons])))


def _time_sampling(times):
    from alembic3d import AbcCoreAbstract

    if times is None:
        return AbcCoreAbstract.TimeSampling(1 / 24, 1 / 24)
    if isinstance(times, AbcCoreAbstract.TimeSampling):
        return times
    vector = AbcCoreAbstract.TimeVector()
    vector.extend(list(map(float, times)))
    acyclic = AbcCoreAbstract.TimeSamplingType(AbcCoreAbstract.AcyclicFlag.kAcyclic)
    return AbcCoreAbstract.TimeSampling(acyclic, vector)


def _transform_sample(matrix, inherits: bool):
    import imath
    from alembic3d import AbcGeom

    sample = AbcGeom.XformSample()
    sample.setMatrix(imath.M44d(*map(float, np.asarray(matrix).ravel())))
    sample.setInheritsXforms(bool(inherits))
    return sample


def _vectors(points):
    import imath

    array = imath.V3fArray(len(points))
    for k, point in enumerate(points):
        array[k] = imath.V3f(*map(float, point))
    return array


def _integers(values):
    import imath

    array = imath.IntArray(len(values))
    for k, value in enumerate(values):
        array[k] = int(value)
    return array
