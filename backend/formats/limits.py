"""Sizes beyond which a file is refused, and the door every reader opens its file through.

A file is untrusted: what its header claims is compared with these limits, and where the format is not compressed with
the bytes that are really there, before anything is allocated.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import SprigError

MAX_VERTICES = 10_000_000  # 120 MB a frame; the largest film scans have a few million
MAX_FRAMES = 100_000  # more than an hour at 24 frames a second
MAX_FACES = 20_000_000  # a closed triangle mesh has twice as many faces as vertices
MAX_CORNERS = 80_000_000  # polygon corners: four for each of the most faces
MAX_POSITIONS = 250_000_000  # frames x vertices; 3 GB in float32, and the solver holds it about twice
MAX_TEXT_BYTES = 2_000_000_000  # one OBJ or PLY file; some 60 bytes a vertex with its face corners
DEFAULT_FPS = 24.0  # for formats that do not say


def check_counts(path, frames: int, vertices: int, faces: int = 0, corners: int = 0) -> None:
    """Refuse counts that are negative, zero where something is needed, or beyond the limits above."""
    name = Path(path).name
    for what, count, least, most in (
        ("frames", frames, 1, MAX_FRAMES),
        ("vertices", vertices, 1, MAX_VERTICES),
        ("faces", faces, 0, MAX_FACES),
        ("face corners", corners, 0, MAX_CORNERS),
        ("vertex positions in all frames", frames * vertices, 1, MAX_POSITIONS),
    ):
        if count > most:
            raise SprigError(f"{name} claims {count} {what}, more than the {most} that are read; is it damaged?")
        if count < least:
            raise SprigError(f"{name} claims {count} {what}; it is empty or damaged, export it again.")
