"""Readers that need no Blender: a file or folder in, a MeshSequence out.

One module per format; each has `read(path, ...)`. Everything that can be wrong with a file is a SprigError. What a
reader needs beyond numpy (alembic3d) is imported when its format is read, so that the others work without it.
"""

from __future__ import annotations

import importlib
import stat
from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import checks

READERS = {  # suffix -> module of this package
    ".npz": "npz",
    ".abc": "alembic",
    ".mdd": "point_cache",
    ".pc2": "point_cache",
    ".anime": "anime",
    ".bin": "dymesh",
}
FOLDER_READER = "mesh_folder"
NEEDS_REST = (".mdd", ".pc2")  # point caches hold positions alone; the faces come from another file
UP_AXES = ("y", "z")


def is_native(path) -> bool:
    """Whether `read_sequence_file` is the reader for this path, by its suffix: no Blender is needed."""
    path = Path(path)
    return path.suffix.lower() in READERS or path.is_dir()


def read_sequence_file(path, *, rest=None, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read an animated mesh from a file or a folder of frames.

    rest: the mesh (.obj, .ply) that a point cache moves. fps and up ("y" or "z") win over what the file says; where
    neither says anything they are 24 and z. Raises SprigError for everything that is wrong with the file.
    """
    path = Path(path)
    if up is not None and up not in UP_AXES:
        raise SprigError(f"The up axis is {up!r}; give y or z.")
    suffix = path.suffix.lower()
    with checks.file_errors(path):
        folder = stat.S_ISDIR(path.stat().st_mode)
        if not folder and suffix not in READERS:
            raise SprigError(
                f"{path.name} is of a kind that is not read here; give {', '.join(READERS)} or a folder of meshes."
            )
        if not folder and not path.is_file():
            raise SprigError(f"{path.name} is not a regular file; give a file or a folder of meshes.")
        options = {"fps": fps, "up": up}
        if not folder and suffix in NEEDS_REST:
            if rest is None:
                raise SprigError(f"{path.name} holds positions alone; name the mesh it moves with --rest mesh.obj.")
            options["rest"] = rest
        elif rest is not None:
            raise SprigError(f"--rest belongs to {' and '.join(NEEDS_REST)} files; leave it out for {path.name}.")
        reader = importlib.import_module(f".{FOLDER_READER if folder else READERS[suffix]}", __name__)
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are reported by the sequence
            return reader.read(path, **options)
