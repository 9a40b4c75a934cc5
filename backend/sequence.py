"""An animated mesh with fixed topology: what every reader returns and every later stage works on.

World axes, Z up, scene units. Positions are float32 relative to a float64 `origin` (the centre of the first frame's
bounding box), so that a character 10 km from the world's origin keeps its precision. The vertex order and count are
the user's and are never changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .errors import SprigError

MIN_VERTICES = 4  # fewer cannot span a volume, so no rigid motion is determined


@dataclass(frozen=True)
class ClipSpan:
    """One of several clips whose frames follow each other: it has the positions from `start` up to before `stop`."""

    name: str
    fps: float
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """Selects the clip's own from an array over all frames."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class MeshSequence:
    """F frames of V vertices joined by M triangles; checked on construction, so later code checks nothing twice.

    vertices (F,V,3) float32 relative to origin; faces (M,3) int32; origin (3,) float64;
    object_id (V,) int32 indexes object_names; frame_numbers (F,) int32 are the scene's (1.. where a file has none);
    frame_index (F,) int32 are the 0-based positions of the frames in the input;
    clips: one or several inputs one after another (`join_clips`), each with frame numbers, positions and a rate of its
    own; empty for a sequence that was not joined.
    Raises SprigError when shapes, indices or values are not usable.
    """

    vertices: np.ndarray
    faces: np.ndarray
    fps: float = 24.0
    origin: np.ndarray = None
    object_id: np.ndarray = None
    object_names: tuple[str, ...] = ("mesh",)
    frame_numbers: np.ndarray = None
    frame_index: np.ndarray = None
    name: str = "sequence"
    warnings: tuple[str, ...] = ()
    clips: tuple[ClipSpan, ...] = ()

    def __post_init__(self):
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which _check reports
            vertices = np.ascontiguousarray(_positions(self.vertices), dtype=np.float32)
        frames, count = vertices.shape[:2]
        faces = np.asarray(self.faces)
        if faces.dtype.kind not in "iu" and faces.size:
            raise SprigError(f"faces should hold whole numbers, they hold {faces.dtype.name}.")
        numbers = np.arange(1, frames + 1) if self.frame_numbers is None else self.frame_numbers
        index = np.arange(frames) if self.frame_index is None else self.frame_index
        object_id = np.zeros(count) if self.object_id is None else self.object_id
        settle = {
            "vertices": vertices,
            "faces": faces.reshape(0, 3) if faces.size == 0 else faces,  # to int32 once the range is known
            "fps": float(self.fps),
            "origin": np.asarray(np.zeros(3) if self.origin is None else self.origin, dtype=np.float64),
            "object_id": np.ascontiguousarray(object_id, dtype=np.int32),
            "frame_numbers": np.ascontiguousarray(numbers, dtype=np.int32),
            "frame_index": np.ascontiguousarray(index, dtype=np.int32),
            "object_names": tuple(self.object_names),
        }
        for field, value in settle.items():
            object.__setattr__(self, field, value)
        self._check()
        object.__setattr__(self, "faces", np.ascontiguousarray(faces, dtype=np.int32))

    def _check(self):
        frames, count = self.vertices.shape[:2]
        if self.faces.size == 0:
            raise SprigError("The mesh has no faces; give a surface mesh rather than points or curves.")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise SprigError(f"faces should have shape (faces, 3), shape is {self.faces.shape}.")
        if self.faces.min() < 0 or self.faces.max() >= count:
            raise SprigError(
                f"Face indices run from {self.faces.min()} to {self.faces.max()}, but the mesh has {count} vertices; "
                "export the mesh again."
            )
        for field, length in (("object_id", count), ("frame_numbers", frames), ("frame_index", frames)):
            if getattr(self, field).shape != (length,):
                raise SprigError(f"{field} should have shape ({length},), shape is {getattr(self, field).shape}.")
        finite = np.isfinite(self.vertices).all(axis=2)
        if not finite.all():
            bad = np.flatnonzero(~finite.all(axis=1))
            raise SprigError(
                f"{np.count_nonzero(~finite[bad[0]])} vertices of frame {self.frame_numbers[bad[0]]} have positions "
                f"that are not finite ({len(bad)} of {frames} frames are affected); repair the cache or leave those "
                "frames out."
            )
        if not np.isfinite(self.origin).all() or self.origin.shape != (3,):
            raise SprigError(f"origin should be three finite numbers, is {self.origin}.")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise SprigError(f"The frame rate is {self.fps}; give a positive one.")
        if self.object_id.min() < 0 or self.object_id.max() >= len(self.object_names):
            raise SprigError("object_id points outside the list of objects; export the mesh again.")
        starts = [clip.start for clip in self.clips]
        assert not starts or starts == [0, *(clip.stop for clip in self.clips[:-1])], self.clips
        if any((np.diff(numbers) <= 0).any() for numbers in np.split(self.frame_numbers, starts)):
            raise SprigError("Frame numbers should increase from frame to frame.")

    @classmethod
    def from_world(cls, vertices, faces, **fields) -> MeshSequence:
        """A sequence from world positions (F,V,3) of any number type, with the first frame's centre as its origin."""
        vertices = _positions(vertices)
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are reported by _check
            first = vertices[0].astype(np.float64)
            origin = (first.min(axis=0) + first.max(axis=0)) / 2
            origin = np.where(np.isfinite(origin), origin, 0.0)
            local = np.empty(vertices.shape, dtype=np.float32)
            for f in range(len(vertices)):
                local[f] = vertices[f].astype(np.float64) - origin
        return cls(local, faces, origin=origin, **fields)

    @property
    def frame_count(self) -> int:
        return self.vertices.shape[0]

    @property
    def vertex_count(self) -> int:
        return self.vertices.shape[1]

    def world_vertices(self, frame: int) -> np.ndarray:
        """World positions (V,3) float64 of one frame (0-based position)."""
        return self.vertices[frame].astype(np.float64) + self.origin

    def position_of(self, frame_number: int) -> int:
        """0-based position of a frame number, of several clips in the first; SprigError when it is not there."""
        numbers = self.frame_numbers[self.clips[0].rows] if self.clips else self.frame_numbers
        found = np.flatnonzero(numbers == frame_number)
        if len(found) == 0:
            where = f"the first clip, {self.clips[0].name}" if self.clips else "the sequence"
            raise SprigError(f"Frame {frame_number} is not in {where}; choose one from {numbers[0]} to {numbers[-1]}.")
        return int(found[0])

    def with_frames(self, start: int, end: int, step: int = 1) -> MeshSequence:
        """Keep the frame numbers start, start+step, … up to and including end; SprigError when none is left.

        For a sequence of one clip: frames are chosen before clips are joined.
        """
        assert not self.clips, "several clips have no common frame numbers"
        first, last = int(self.frame_numbers[0]), int(self.frame_numbers[-1])
        if step < 1:
            raise SprigError(f"The frame step is {step}; give 1 or more.")
        if end < start:
            raise SprigError(f"The frame range {start}:{end} is reversed; give the first frame before the last.")
        # Python's integers: a range that a user types may be larger than any numpy integer.
        keep = np.array([start <= n <= end and (n - start) % step == 0 for n in self.frame_numbers.tolist()])
        if not keep.any():
            raise SprigError(f"No frame lies in {start}:{end}; the input has frames {first} to {last}.")
        return replace(
            self,
            vertices=self.vertices[keep],
            frame_numbers=self.frame_numbers[keep],
            frame_index=self.frame_index[keep],
        )

    def with_objects(self, names) -> MeshSequence:
        """Keep the named objects only, in the sequence's own order; SprigError for a name that is not there."""
        missing = [name for name in names if name not in self.object_names]
        if missing:
            raise SprigError(f"There is no object {missing[0]!r}; the input has {', '.join(self.object_names)}.")
        kept = [i for i, name in enumerate(self.object_names) if name in names]
        keep = np.isin(self.object_id, kept)
        new_index = np.cumsum(keep) - 1
        return replace(
            self,
            vertices=self.vertices[:, keep],
            faces=new_index[self.faces[keep[self.faces].all(axis=1)]],
            object_id=np.searchsorted(kept, self.object_id[keep]),
            object_names=tuple(self.object_names[i] for i in kept),
        )


def _positions(vertices) -> np.ndarray:
    """The argument as an array of numbers (F,V,3) with a frame and enough vertices; SprigError when it is none."""
    vertices = np.asarray(vertices)
    if vertices.dtype.kind not in "fiu":
        raise SprigError(f"vertices should be numbers, they are {vertices.dtype.name}.")
    if vertices.ndim != 3 or vertices.shape[2] != 3 or len(vertices) == 0:
        raise SprigError(f"vertices should have shape (frames, vertices, 3), shape is {vertices.shape}.")
    if vertices.shape[1] < MIN_VERTICES:
        raise SprigError(f"The mesh has {vertices.shape[1]} vertices; a rig needs at least {MIN_VERTICES}.")
    return vertices
