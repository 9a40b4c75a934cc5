"""What a previewed rig looks like in the 3D viewports: its bones, skin weights, and how far its replay is off.

Everything comes from the rig and the sequence in memory; nothing is evaluated by Blender and nothing of the file is
read but the frame and the settings.

Choices a reader would question:
* The network's own skeletons of single frames are drawn where they are, below the rig's bones: the distance is the
  point. They are plain lines from joint to joint, which is all that the network says.
* A frame that was not read shows the nearest one that was.
* Bones lie in front of everything. A surface is drawn a hundredth of the character's size nearer to the viewer than it
  is, so that the mesh it replays does not shine through.
* Blender's own shaders know no light, so the colours of surfaces and octahedra are shaded here, by a light that is
  fixed in the world: turning the view then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader
from mathutils import Matrix, Vector

from ..backend.kinematics import carried_points, linear_blend_skinning
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from . import looks
from .looks import SHORTEST_SCALE, heat, joint_colors

PLAIN, UNKNOWN, LINK = (0.97, 0.95, 0.88), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.6)  # as the screen shows them
RAW = (0.10, 0.80, 0.95, 1.0)  # of the network's skeletons of single frames: on none of the other scales
FULL_RANGE = np.pi / 2  # radians: joints that turn this far have the end of the scale
APART = 1e-3  # diagonals: a bone that begins farther from its parent's end is joined to it by a thin line
TAIL = 0.45  # a stick's brightness at its end: it fades, so that one sees where the next begins
STICK, OUTLINE = 3.0, 6.0  # pixels at scale 1: widths of a line and of what is dark behind it
DARK = (0.0, 0.0, 0.0, 0.7)
THICKNESS, THINNEST, THICKEST = 0.09, 0.003, 0.015  # of octahedra: of their length, and in diagonals
LIGHT = np.array([0.36, -0.48, 0.80])  # from the front (-Y), above and to the side
NEARER = 0.01  # diagonals that a surface is drawn nearer to the viewer
MEMORY = 256e6  # bytes of posed surfaces that are kept


class Surface(NamedTuple):
    """The replay of one frame: positions (V,3), brightness (V,1), errors (V,) in per cent of the diagonal; float32."""

    positions: np.ndarray
    light: np.ndarray
    errors: np.ndarray


class Overlay:
    """Draws a rig; one for each preview. What was drawn last is kept on the GPU until it changes or `clear` is called.

    heads, tails (F,J,3): bones relative to the rig's origin, in all frames; error_limit: per cent of the diagonal at
    which the colours of errors end; raw: the network's RawSkeletons of single frames, None where it was not asked.
    """

    def __init__(self, rig: Rig, sequence: MeshSequence, raw=None):
        from ..backend.metrics import diagonal  # SciPy is loaded when work starts

        self.rig, self.sequence, self.raw = rig, sequence, raw
        self.diagonal = diagonal(sequence.vertices[rig.anchor])
        self.heads = carried_points(rig.motion, rig.skeleton.joints)
        self.tails = carried_points(rig.motion, rig.skeleton.tails)
        self.links = loose_bones(rig, APART * self.diagonal)
        self.error_limit = max(2 * float(rig.rmse_per_frame.max()), SHORTEST_SCALE)
        self._surfaces: dict[int, Surface] = {}
        self._batches: dict[str, tuple] = {}  # what is drawn: the key it was made for, and the batch

    def position(self, frame: int) -> int:
        """0-based position of the frame that was read nearest to this frame of the scene."""
        return int(np.abs(self.rig.frame_numbers - frame).argmin())

    def surface(self, f: int) -> Surface:
        """The replay at position f; computed once."""
        if f not in self._surfaces:
            if (len(self._surfaces) + 1) * 20 * len(self.rig.rest_vertices) > MEMORY:  # 5 float32 a vertex
                self._surfaces.clear()
            positions = linear_blend_skinning(self.rig.rest_vertices, self.rig.weights, self.rig.motion[f])
            errors = 100 / self.diagonal * np.linalg.norm(positions - self.sequence.vertices[f], axis=1)
            light = brightness(vertex_normals(positions, self.rig.faces))[:, None]
            self._surfaces[f] = Surface(*(part.astype(np.float32) for part in (positions, light, errors)))
        return self._surfaces[f]

    def colored_surface(self, f: int, kind: str, joint: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions (V,3) and RGBA (V,4) at position f: `kind` as in the settings; joint: name, or none for all."""
        surface = self.surface(f)
        if kind == "ERROR":
            colors = scale_colors(surface.errors / self.error_limit)
        else:
            colors = weight_colors(self.rig, joint)
        return surface.positions, opaque(colors * surface.light)

    def draw(self, context) -> None:
        """Draw into the 3D viewport that is being drawn, as its scene's settings say, unless its overlays are off."""
        if not context.space_data.overlay.show_overlays:
            return
        settings, f = context.scene.sprig, self.position(context.scene.frame_current)
        with _own_state(), gpu.matrix.push_pop():
            gpu.matrix.translate(Vector(self.rig.origin))
            if settings.preview_surface != "NONE":
                self._draw_surface(f, settings.preview_surface, settings.preview_joint, context.region_data)
            if self.raw is not None and settings.preview_raw:
                self._draw_raw(f, context)
            if settings.preview_bones != "NONE" and context.mode != "EDIT_ARMATURE":  # there they are edited
                self._draw_bones(f, settings.preview_bones, settings.preview_bone_color, context)

    def clear(self) -> None:
        """Let go of what is on the GPU."""
        self._batches.clear()

    def _draw_surface(self, f: int, kind: str, joint: str, view) -> None:
        shader = gpu.shader.from_builtin("SMOOTH_COLOR")

        def make():
            positions, colors = self.colored_surface(f, kind, joint)
            return batch_for_shader(shader, "TRIS", {"pos": positions, "color": colors}, indices=self.rig.faces)

        batch = self._batch("surface", (f, kind, joint), make)
        model_view = gpu.matrix.get_model_view_matrix()
        middle = model_view @ Vector(self.heads[f].mean(axis=0))
        with gpu.matrix.push_pop():
            gpu.matrix.load_matrix(_nearer(NEARER * self.diagonal, middle.length, view.is_perspective) @ model_view)
            gpu.state.depth_test_set("LESS_EQUAL")
            gpu.state.depth_mask_set(True)
            batch.draw(shader)

    def _draw_raw(self, f: int, context) -> None:
        """The network's own skeleton of the decoded frame that is nearest to position f."""
        nearest = int(np.abs(self.raw.frames - f).argmin())

        def make():
            ends = raw_lines(self.raw.joints[nearest], self.raw.parents[nearest])
            return _lines(ends, np.tile(np.float32(RAW), (len(ends), 1))) if len(ends) else ()

        _draw_lines(self._batch("raw", (nearest,), make), context)

    def _draw_bones(self, f: int, kind: str, color: str, context) -> None:
        """Sticks, or octahedra; with the thin lines between bones that do not touch."""
        heads, tails = self.heads[f], self.tails[f]

        def make_lines():
            ends, colors = link_lines(heads, tails, self.rig.skeleton.parents, self.links)
            if kind == "STICKS":
                sticks, stick_colors = stick_lines(heads, tails, bone_colors(self.rig, color))
                ends, colors = np.concatenate([ends, sticks]), np.concatenate([colors, stick_colors])
            return _lines(ends, colors) if len(ends) else ()

        _draw_lines(self._batch("lines", (f, kind, color), make_lines), context)
        if kind == "OCTAHEDRA":
            shader = gpu.shader.from_builtin("SMOOTH_COLOR")

            def make_octahedra():
                corners, colors = octahedra(heads, tails, bone_colors(self.rig, color), self.diagonal)
                return batch_for_shader(shader, "TRIS", {"pos": corners, "color": colors})

            gpu.state.face_culling_set("BACK")  # so a convex shape needs no depth
            self._batch("octahedra", (f, color), make_octahedra).draw(shader)

    def _batch(self, part: str, key: tuple, make: Callable):
        """The batch of one part, made anew only when its key has changed."""
        if part not in self._batches or self._batches[part][0] != key:
            self._batches[part] = key, make()
        return self._batches[part][1]


# --- geometry ----------------------------------------------------------------------------------------------------


def loose_bones(rig: Rig, distance: float) -> np.ndarray:
    """Joints (L,) that are farther than `distance` from the tail of their parent at rest."""
    skeleton = rig.skeleton
    gap = np.linalg.norm(skeleton.joints - skeleton.tails[skeleton.parents], axis=1)
    return np.flatnonzero((skeleton.parents >= 0) & (gap > distance))


def stick_lines(heads, tails, colors) -> tuple[np.ndarray, np.ndarray]:
    """Line ends (2J,3) and RGBA (2J,4), float32, of bones with RGB (J,3): head, tail, head, tail, …"""
    ends = np.stack([heads, tails], axis=1).reshape(-1, 3)
    fading = np.stack([colors, TAIL * colors], axis=1).reshape(-1, 3)
    return ends.astype(np.float32), opaque(fading)


def raw_lines(joints, parents) -> np.ndarray:
    """Line ends (2B,3) float32 from each joint's parent to the joint, for joints (J,3) and parents (J,)."""
    child = np.flatnonzero(np.asarray(parents) >= 0)
    return np.stack([joints[parents[child]], joints[child]], axis=1).reshape(-1, 3).astype(np.float32)


def link_lines(heads, tails, parents, links) -> tuple[np.ndarray, np.ndarray]:
    """Line ends (2L,3) and RGBA (2L,4), float32, from the parents' tails to the heads of the joints `links` (L,)."""
    ends = np.stack([tails[parents[links]], heads[links]], axis=1).reshape(-1, 3)
    return ends.astype(np.float32), np.tile(np.float32(LINK), (len(ends), 1))


def octahedra(heads, tails, colors, diagonal: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners (24J,3) and RGBA (24J,4), float32, of facetted bones with RGB (J,3): three to a face, outside out."""
    length = np.linalg.norm(tails - heads, axis=1, keepdims=True)
    width = np.clip(THICKNESS * length, THINNEST * diagonal, THICKEST * diagonal)
    corners = looks.octahedra(heads, tails, width)
    shade = brightness(_unit(np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])))
    lit = np.repeat(colors[:, None] * shade[..., None], 3, axis=1)
    return corners.reshape(-1, 3).astype(np.float32), opaque(lit.reshape(-1, 3))


def vertex_normals(vertices, faces) -> np.ndarray:
    """Unit normals (V,3), the faces (M,3) around a vertex weighted by their areas."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals, corners = np.cross(b - a, c - a), faces.T.ravel()
    return _unit(
        np.stack([np.bincount(corners, np.tile(axis, 3), minlength=len(vertices)) for axis in normals.T], axis=1)
    )


def _unit(vectors) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


# --- colours -----------------------------------------------------------------------------------------------------


def brightness(normals) -> np.ndarray:
    """Brightness (...) in [0.6, 1] of surfaces with these unit normals (...,3)."""
    return 0.8 + 0.2 * (normals @ LIGHT)


def opaque(colors) -> np.ndarray:
    """RGBA (N,4) float32 of RGB (N,3)."""
    return np.concatenate([colors, np.ones((len(colors), 1))], axis=1).astype(np.float32)


def _on_screen(linear) -> np.ndarray:
    """The screen's RGB of linear RGB."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


SCALE = _on_screen(heat(np.linspace(0, 1, 256)))


def scale_colors(values) -> np.ndarray:
    """RGB (N,3) of values (N,) in [0, 1] on the scale from dark to light; what is beyond has the end's, NaN is grey."""
    known = np.isfinite(values)
    step = np.rint(255 * np.clip(np.where(known, values, 0), 0, 1)).astype(int)
    return np.where(known[:, None], SCALE[step], UNKNOWN)


def bone_colors(rig: Rig, kind: str) -> np.ndarray:
    """RGB (J,3): PLAIN; CONFIDENCE of the networks; MOTION, how far a joint turns. Grey where that is not known."""
    if kind == "CONFIDENCE":
        return scale_colors(rig.confidence)
    if kind == "MOTION":
        return scale_colors(np.where(rig.seen_in_motion, rig.rotation_range / FULL_RANGE, np.nan))
    return np.tile(PLAIN, (len(rig.skeleton), 1))


def weight_colors(rig: Rig, joint: str) -> np.ndarray:
    """RGB (V,3): the weights of the joint with this name on the scale, or each joint in a colour of its own."""
    if joint in rig.skeleton.names:
        return scale_colors(rig.weights[:, rig.skeleton.names.index(joint)])
    return _on_screen(rig.weights @ joint_colors(len(rig.skeleton)))


# --- the GPU -----------------------------------------------------------------------------------------------------


def _lines(ends, colors) -> tuple[tuple, tuple]:
    """Shader, batch and width of lines with ends (2S,3) and RGBA (2S,4), and before them of their dark outline."""
    shader = gpu.shader.from_builtin("POLYLINE_SMOOTH_COLOR")
    dark = np.tile(np.float32(DARK), (len(ends), 1))
    return tuple(
        (shader, batch_for_shader(shader, "LINES", {"pos": ends, "color": rgba}), width)
        for rgba, width in ((dark, OUTLINE), (colors, STICK))
    )


def _draw_lines(lines, context) -> None:
    """Draw what `_lines` made, in front of everything."""
    gpu.state.depth_test_set("NONE")
    gpu.state.depth_mask_set(False)
    gpu.state.blend_set("ALPHA")
    viewport, scale = gpu.state.viewport_get()[2:], context.preferences.system.ui_scale
    for shader, batch, width in lines:
        shader.bind()
        shader.uniform_float("viewportSize", viewport)
        shader.uniform_float("lineWidth", width * scale)
        batch.draw(shader)


@contextmanager
def _own_state():
    """Whatever is drawn, Blender finds its own state again."""
    blend, test, mask = gpu.state.blend_get(), gpu.state.depth_test_get(), gpu.state.depth_mask_get()
    try:
        yield
    finally:
        gpu.state.blend_set(blend)
        gpu.state.depth_test_set(test)
        gpu.state.depth_mask_set(mask)
        gpu.state.face_culling_set("NONE")


def _nearer(step: float, distance: float, is_perspective: bool) -> Matrix:
    """What brings something at `distance` from the eye nearer by `step`, without a change in the picture."""
    if is_perspective:
        return Matrix.Scale(max(1 - step / max(distance, step), 0.5), 4)
    return Matrix.Translation((0, 0, step))
