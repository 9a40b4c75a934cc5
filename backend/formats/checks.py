"""What a file may claim, and the checks that several readers share.

A file is untrusted: what its header claims is compared with these limits, and where the format is not compressed with
the bytes that are really there, before anything is allocated.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import SprigError

MAX_VERTICES = 10_000_000  # 120 MB a frame; the largest film scans have a few million
MAX_FRAMES = 100_000  # more than an hour at 24 frames a second
MAX_FACES = 20_000_000  # a closed triangle mesh has twice as many faces as vertices
MAX_CORNERS = 80_000_000  # polygon corners: four for each of the most faces
MAX_POSITIONS = 250_000_000  # frames x vertices; 3 GB in float32, and a reader holds up to three times that
MAX_MESH_BYTES = 500_000_000  # one OBJ or PLY file; text takes ten times as much while it is parsed
DEFAULT_FPS = 24.0  # for formats that do not say


@contextmanager
def file_errors(path):
    """Turn what the operating system says while `path` is read into a SprigError."""
    try:
        yield
    except FileNotFoundError as error:
        raise SprigError(f"{error.filename or path} does not exist; check the name.") from error
    except OSError as error:
        raise SprigError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its rights."
        ) from error


def check_counts(path, *, frames: int = 1, vertices: int = 1, faces: int = 0, corners: int = 0) -> None:
    """Refuse counts that are below what makes sense or beyond the limits above."""
    name = Path(path).name
    for what, count, least, most in (
        ("frames", frames, 1, MAX_FRAMES),
        ("vertices", vertices, 1, MAX_VERTICES),
        ("faces", faces, 0, MAX_FACES),
        ("face corners", corners, 0, MAX_CORNERS),
        ("vertex positions in all frames", frames * vertices, 1, MAX_POSITIONS),
    ):
        if count > most:
            raise SprigError(
                f"{name} claims {count} {what}, more than the {most} that can be read; "
                "export less, or export it again if it is damaged."
            )
        if count < least:
            raise SprigError(f"{name} claims {count} {what}: it is empty or damaged; export it again.")


def check_byte_count(path, expected: int, actual: int) -> None:
    """Refuse an uncompressed file whose header does not fit its length."""
    if expected != actual:
        fault = "truncated" if actual < expected else "damaged"
        raise SprigError(
            f"{Path(path).name} is {fault}: its header needs {expected} bytes and it has {actual}; export it again."
        )


def check_indices(path, indices: np.ndarray, vertex_count: int) -> None:
    """Refuse vertex indices outside 0 .. vertex_count - 1, in their own type: a cast to int32 could wrap around."""
    if indices.size and not 0 <= indices.min() <= indices.max() < vertex_count:
        raise SprigError(
            f"{Path(path).name} has faces with vertex indices from {indices.min()} to {indices.max()}, "
            f"but its mesh has {vertex_count} vertices; export it again."
        )


def check_triangles(path, faces) -> None:
    """Refuse faces that are not (M,3) whole numbers; `faces` is an array, or a header with its shape and dtype."""
    if faces.dtype.kind not in "iu" or len(faces.shape) != 2 or faces.shape[1] != 3:
        raise SprigError(
            f"{Path(path).name} should have faces of shape (faces, 3) with whole numbers, "
            f"has {faces.shape} of {faces.dtype}; export triangles."
        )
    check_counts(path, faces=faces.shape[0])


def check_positions(path, vertices) -> None:
    """Refuse positions that are not (F,V,3) numbers; `vertices` is an array, or a header with its shape and dtype."""
    if vertices.dtype.kind not in "fiu" or len(vertices.shape) != 3 or vertices.shape[2] != 3:
        raise SprigError(
            f"{Path(path).name} should have vertices of shape (frames, vertices, 3) with numbers, "
            f"has {vertices.shape} of {vertices.dtype}; export positions of one mesh per frame."
        )
    check_counts(path, frames=vertices.shape[0], vertices=vertices.shape[1])


def centre(positions: np.ndarray) -> np.ndarray:
    """Centre (3,) of the bounding box of positions (V,3), with 0 where it is not finite: a sequence's origin."""
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    return np.where(np.isfinite(middle), middle, 0.0)


def upright(positions: np.ndarray, up: str | None) -> np.ndarray:
    """Positions (...,3) with Z up: (x, -z, y) when the file has Y up, else as they are."""
    if up != "y":
        return positions
    return np.stack([positions[..., 0], -positions[..., 2], positions[..., 1]], axis=-1)
