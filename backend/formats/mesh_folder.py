"""A folder of OBJ or PLY files, one per frame, in natural order: frame2 before frame10."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import checks
from .mesh_file import read_mesh
from .polygons import triangulate

SUFFIXES = (".obj", ".ply")


def read(path, *, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read every mesh file of a folder as a frame; all must have the vertices and faces of the first."""
    path = Path(path)
    files = frame_files(path)
    first = read_mesh(files[0])
    count = len(first.points)
    checks.check_counts(path, frames=len(files), vertices=count)
    positions = np.empty((len(files), count, 3))
    for f, file in enumerate(files):
        mesh = read_mesh(file, like=first) if f else first
        if len(mesh.points) != count:
            raise SprigError(
                f"{file.name} (frame {f + 1}) has {len(mesh.points)} vertices and {files[0].name} has {count}; "
                "all frames need the same mesh, export without remeshing."
            )
        if not mesh.same_topology(first):
            raise SprigError(
                f"{file.name} (frame {f + 1}) has other faces than {files[0].name}; "
                "all frames need the same mesh, export without remeshing."
            )
        positions[f] = mesh.points
    return MeshSequence.from_world(
        checks.upright(positions, up),
        triangulate(first.counts, first.indices, positions[0]),
        fps=checks.DEFAULT_FPS if fps is None else fps,
        object_id=first.object_id,
        object_names=first.object_names,
        name=path.resolve().name,
    )


def frame_files(folder: Path) -> list[Path]:
    """The mesh files of a folder in natural order; hidden files are passed over. Raises SprigError."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    kinds = {file.suffix.lower() for file in files}
    if not files:
        raise SprigError(f"The folder {folder} holds no .obj or .ply files; give a folder with one mesh per frame.")
    if len(kinds) > 1:
        raise SprigError(f"The folder {folder} holds both .obj and .ply files; keep one kind.")
    return sorted(files, key=_natural_order)


def _natural_order(file: Path):
    """Text and numbers of a file name in turn, the numbers compared as numbers; the plain name decides ties."""
    pieces = re.split(r"([0-9]+)", file.stem)
    return [int(piece) if k % 2 else piece.lower() for k, piece in enumerate(pieces)], file.name
