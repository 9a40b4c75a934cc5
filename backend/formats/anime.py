"""DeformingThings4D `.anime`: an animal or humanoid as a first frame and each later frame's offsets from it.

Little-endian: int32 frames, vertices, triangles; float32 vertices x 3, the first frame; int32 triangles x 3; float32
(frames - 1) x vertices x 3, the offsets. No frame rate, no up axis.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import SprigError
from ..sequence import MeshSequence
from . import checks

HEADER_BYTES = 12


def read(path, *, fps: float | None = None, up: str | None = None) -> MeshSequence:
    """Read an .anime file."""
    path = Path(path)
    header = np.fromfile(path, dtype="<i4", count=3)
    if len(header) < 3:
        raise SprigError(f"{path.name} is truncated: it is shorter than its header; export it again.")
    frames, vertices, triangles = (int(count) for count in header)
    checks.check_counts(path, frames=frames, vertices=vertices, faces=triangles)
    checks.check_byte_count(path, HEADER_BYTES + 12 * (frames * vertices + triangles), path.stat().st_size)
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        first = np.fromfile(file, dtype="<f4", count=3 * vertices).reshape(vertices, 3)
        faces = np.fromfile(file, dtype="<i4", count=3 * triangles).reshape(triangles, 3)
        offsets = np.fromfile(file, dtype="<f4").reshape(frames - 1, vertices, 3)
    checks.check_indices(path, faces, vertices)
    positions = np.empty((frames, vertices, 3), dtype=np.float64)  # a float32 sum would round far from the origin
    positions[0] = first
    np.add(offsets, positions[0], out=positions[1:])
    return MeshSequence.from_world(
        checks.upright(positions, up),
        faces,
        fps=checks.DEFAULT_FPS if fps is None else fps,
        object_names=(path.stem,),
        name=path.stem,
    )
