"""The preview picture: one sheet with the anchor frame's skeleton and weights, posed frames, the error and its scale.

The sheet is a flat scene of its own, one unit per pixel: every character is turned to a three-quarter view, scaled and
moved into its panel in numpy, so one orthographic camera sees them all and neither size nor place in the world matters.
Along the view nothing is lost in an orthographic picture, so the skeleton simply lies in front of its mesh.

Workbench draws it, in seconds even in software. Where a background process has no OpenGL, Blender would abort, so a
child process tries first, and Cycles draws instead.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bpy
import numpy as np

from ..backend.errors import SprigError
from ..backend.kinematics import linear_blend_skinning
from .console import PendingFiles, writing_error
from .looks import SHORTEST_SCALE, heat, joint_colors, linear, octahedra
from .skinned_mesh import mesh_from_arrays

WIDTH, HEIGHT = 1920, 1080
MARGIN = 48
SMALL, MEDIUM, LARGE = 19, 24, 40  # heights of text
BACKGROUND, FLOOR, INK, QUIET = "#15171C", "#2A2E37", "#F2F3F5", "#A3A9B4"
BONE, JOINT = "#F7F4EA", "#FFB547"
FEWEST_POSES, MOST_POSES = 3, 5
TURN, TILT = np.radians(35), np.radians(14)  # of the three-quarter view: to the side, and from above
BACK, FRONT = -2e4, 2e4  # depths of the background and of the skeletons; a character seen end-on is less deep
KEY = np.array([-0.45, 0.60, 0.66])  # direction of the key light in the picture: from the upper left, in front
CREASE = np.radians(50)  # sharper edges are shaded as edges
MAX_FRAMES_COMPARED, VERTICES_COMPARED = 200, 500  # when the poses to show are chosen
MATERIAL = "SPRig preview"
PROBE_SECONDS = 60
WORKBENCH_SAMPLES, CYCLES_SAMPLES = "8", 8

# Draws four pixels with Workbench; a machine without OpenGL aborts here instead of in the user's process.
PROBE = """
import bpy
scene = bpy.context.scene
scene.render.engine = "BLENDER_WORKBENCH"
scene.render.resolution_x = scene.render.resolution_y = 4
scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
scene.collection.objects.link(scene.camera)
bpy.ops.render.render()
"""


def render_preview(path, rig, sequence):
    """Draw the sheet for `rig`, which was made from `sequence`, as a PNG. The user's scene is not touched.

    SprigError when the picture cannot be written.
    """
    path = Path(path)
    with PendingFiles() as files, _sheet_scene() as scene:
        pending = files.add(path)
        _lay_out(_Sheet(scene), rig, sequence)
        _set_up_render(scene, pending)
        try:
            bpy.ops.render.render(write_still=True, scene=scene.name)
        except RuntimeError as error:
            raise SprigError(
                f"The preview {path} could not be written; check the free space and permissions."
            ) from error
        except OSError as error:
            raise writing_error(error, path) from error
        if pending.stat().st_size == 0:
            raise SprigError(f"The preview {path} could not be written; check the free space and permissions.")
        files.commit()


# --- what is on the sheet ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """A panel of the sheet, in pixels from the lower left corner."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def centre(self) -> np.ndarray:
        return np.array([self.left + self.width / 2, self.bottom + self.height / 2])

    def columns(self, count: int) -> list[_Box]:
        gap = 24
        width = (self.width - gap * (count - 1)) / count
        return [_Box(self.left + k * (width + gap), self.bottom, width, self.height) for k in range(count)]


def _lay_out(sheet, rig, sequence):
    """Title and caption above; the anchor at the left; posed frames over heat maps at the right."""
    split = 0.44 * WIDTH
    large = _Box(MARGIN, 96, split - 2 * MARGIN, HEIGHT - 270)
    upper = _Box(split, 600, WIDTH - split - MARGIN, 300)
    lower = _Box(split, 96, WIDTH - split - MARGIN - 110, 380)
    sheet.rectangle(_Box(-9, -9, WIDTH + 18, HEIGHT + 18), BACKGROUND, depth=BACK)
    sheet.text(sequence.name.replace("_", " "), MARGIN, HEIGHT - 88, LARGE, INK, WIDTH - 2 * MARGIN)
    sheet.text(_caption(rig, sequence), MARGIN, HEIGHT - 130, MEDIUM, QUIET, WIDTH - 2 * MARGIN)

    view = _view(rig)
    seams = _seams(rig.rest_vertices)
    shape_of = cache(lambda f: linear_blend_skinning(rig.rest_vertices, rig.weights, rig.motion[f]) @ view.T)
    weights = rig.weights @ joint_colors(len(rig.skeleton))
    per_vertex, worst_errors = _errors(rig, sequence)

    def draw(frames, boxes, colors, labels, *, bones: bool):
        """One shape per panel, all at one scale, with a label below."""
        seen = [np.concatenate([shape_of(f), *(_bones(rig, f, view) if bones else ())]) for f in frames]
        scale = min(_scale_to_fit(points, box) for points, box in zip(seen, boxes, strict=True))
        tallest = max(np.ptp(points[:, 1]) for points in seen)
        for f, box, color, label, points in zip(frames, boxes, colors, labels, seen, strict=True):
            shape = shape_of(f)
            middle = (points.min(axis=0) + points.max(axis=0)) / 2
            middle[1] = points[:, 1].min() + tallest / 2  # all stand on one ground

            def to_panel(points, middle=middle, box=box):
                return (points - middle) * scale + [*box.centre, 0]

            sheet.floor(to_panel(shape))
            sheet.surface(to_panel(shape), rig.faces, color, seams)
            if bones:
                heads, tails = _bones(rig, f, view)
                sheet.skeleton(to_panel(heads), to_panel(tails), thickness=box.height / 600)
            sheet.text(label, box.centre[0], box.bottom - 34, SMALL, QUIET, box.width, align="CENTER")

    anchor, worst, number = rig.anchor, rig.worst_frame, rig.frame_numbers
    draw([anchor], [large], [weights], [f"Rest pose (frame {number[anchor]}), skeleton and skin weights"], bones=True)
    size = np.ptp(shape_of(anchor), axis=0)
    fitting = round(upper.width / upper.height * size[1] / max(size[0], 1e-30))
    poses = _telling_frames(rig, min(max(fitting, FEWEST_POSES), MOST_POSES))
    draw(poses, upper.columns(len(poses)), [weights] * len(poses), [f"Frame {number[f]}" for f in poses], bones=True)

    limit = _round_up(max(np.percentile(np.concatenate([per_vertex, worst_errors]), 99), SHORTEST_SCALE))
    errors = [heat(values / limit) for values in (per_vertex, worst_errors)]
    labels = ["Error over all frames", f"Error in the worst frame, {number[worst]}"]
    draw([anchor, worst], lower.columns(2), errors, labels, bones=False)
    _draw_scale(sheet, _Box(lower.left + lower.width + 30, lower.bottom + 40, 20, lower.height - 80), limit)


def _caption(rig, sequence) -> str:
    return (
        f"{sequence.vertex_count:,} vertices, {sequence.frame_count} frames, {len(rig.skeleton)} joints.   "
        f"RMSE {rig.rmse:.3g} % of the diagonal; worst frame {rig.frame_numbers[rig.worst_frame]}: "
        f"{rig.rmse_per_frame.max():.3g} %"
    )


def _draw_scale(sheet, box: _Box, limit: float):
    """The colour scale of the heat maps with its three labels."""
    levels = np.linspace(0, 1, 33)
    for low, color in zip(levels[:-1], heat(levels[:-1] + 1 / 64), strict=True):
        sheet.rectangle(_Box(box.left, box.bottom + low * box.height, box.width, box.height / 32 + 0.5), color)
    for level in (0.0, 0.5, 1.0):
        height = box.bottom + level * box.height - SMALL / 3
        sheet.text(f"{level * limit:.3g} %", box.left + box.width + 12, height, SMALL, QUIET, 90)


def _view(rig) -> np.ndarray:
    """Rows right, up and towards the viewer (3,3): a three-quarter view of the longer side, rather from the front.

    The character's longer horizontal axis (its spine, or its spread arms) lies TURN away from the picture plane; of the
    four such views the one nearest to Blender's front, -Y, is taken.
    """
    flat = rig.rest_vertices[:, :2].astype(np.float64)
    _, _, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    across = np.arctan2(axes[1, 1], axes[1, 0])
    angles = across + np.array([0, 0, np.pi, np.pi]) + TURN * np.array([1, -1, 1, -1])
    angle = min(angles, key=lambda a: (round(np.sin(a), 3), -np.cos(a)))
    towards = np.array([np.cos(TILT) * np.cos(angle), np.cos(TILT) * np.sin(angle), np.sin(TILT)])
    right = np.cross([0, 0, 1], towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


def _scale_to_fit(shape, box: _Box) -> float:
    """Pixels per unit with which a turned shape (V,3) fills a panel."""
    extent = np.maximum(np.ptp(shape[:, :2], axis=0), 1e-30)  # a flat shape seen from its edge has none
    return float(min(box.width / extent[0], box.height / extent[1]))


def _telling_frames(rig, wanted: int) -> list[int]:
    """The frames whose poses differ most: each next one is farthest from those taken, wherever the character stands."""
    candidates = list(range(0, len(rig.motion), max(1, len(rig.motion) // MAX_FRAMES_COMPARED)))
    some = slice(None, None, max(1, len(rig.weights) // VERTICES_COMPARED))
    rest, weights = rig.rest_vertices[some], rig.weights[some]
    poses = np.stack([linear_blend_skinning(rest, weights, rig.motion[f]) for f in candidates])
    poses = (poses - poses.mean(axis=1, keepdims=True)).reshape(len(candidates), -1)
    chosen = [int(np.linalg.norm(poses - poses.mean(axis=0), axis=1).argmax())]
    nearest = np.linalg.norm(poses - poses[chosen[0]], axis=1)
    while len(chosen) < min(wanted, len(candidates)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(poses - poses[chosen[-1]], axis=1))
    return sorted(candidates[k] for k in set(chosen))


def _bones(rig, frame: int, view) -> tuple[np.ndarray, np.ndarray]:
    """Posed heads and tails (J,3) in view space."""
    ends = []
    for points in (rig.skeleton.joints, rig.skeleton.tails):
        posed = np.einsum("jab,jb->ja", rig.motion[frame, :, :3, :3], points) + rig.motion[frame, :, :3, 3]
        ends.append(posed @ view.T)
    return ends[0], ends[1]


def _errors(rig, sequence) -> tuple[np.ndarray, np.ndarray]:
    """Error per vertex (V,), RMS over the frames and in the worst frame, per cent of the anchor frame's diagonal."""
    diagonal = np.linalg.norm(np.ptp(sequence.vertices[rig.anchor].astype(np.float64), axis=0))
    squares = np.zeros(sequence.vertex_count)
    weights, offset = rig.weights.astype(np.float64), rig.origin - sequence.origin
    for f in range(sequence.frame_count):
        shape = linear_blend_skinning(rig.rest_vertices, weights, rig.motion[f]) + offset
        error = ((shape - sequence.vertices[f]) ** 2).sum(axis=1)
        squares += error
        if f == rig.worst_frame:
            worst = error
    return 100 / diagonal * np.sqrt(squares / sequence.frame_count), 100 / diagonal * np.sqrt(worst)


def _round_up(value: float) -> float:
    """The next round number, where a scale can end."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9)))


# --- colours and light -------------------------------------------------------------------------------------------


def _light(normals) -> np.ndarray:
    """Brightness (...,1) of surfaces with these unit normals: a key light from the upper left, sky and a soft rim.

    Computed here instead of by the engine, so that Workbench and Cycles draw the same and text keeps its colour.
    """
    key = np.clip(normals @ KEY, 0, None)
    sky = 0.5 + 0.5 * normals[..., 1]
    rim = np.clip(1 - np.abs(normals[..., 2]), 0, 1) ** 3 * np.clip(normals[..., 1] + 0.4, 0, None)
    return (0.30 + 0.62 * key + 0.22 * sky + 0.25 * rim)[..., None]


def _seams(rest_vertices) -> np.ndarray:
    """For each vertex the first one at the same place (V,): shading continues across texture seams."""
    _, first, inverse = np.unique(rest_vertices, axis=0, return_index=True, return_inverse=True)
    return first[inverse.ravel()]


def _corner_normals(vertices, faces, seams) -> np.ndarray:
    """Shading normals (M,3,3): smooth, except where a face turns away from its neighbours by more than CREASE."""
    corners = vertices[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    smooth = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(smooth, seams[faces[:, k]], flat)
    smooth, flat = (n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-30) for n in (smooth, flat))
    around = smooth[seams][faces]
    alike = (around * flat[:, None]).sum(axis=2, keepdims=True) > np.cos(CREASE)
    return np.where(alike, around, flat[:, None])


# --- drawing -----------------------------------------------------------------------------------------------------


class _Sheet:
    """Adds coloured shapes to the sheet's scene; x and y are pixels, z points to the viewer."""

    def __init__(self, scene):
        self.scene = scene

    def triangles(self, vertices, faces, colors):
        """A mesh with linear RGB per vertex (V,3) or per corner (M,3,3)."""
        colors = np.asarray(colors, dtype=np.float64)
        mesh = mesh_from_arrays("sheet", vertices, faces)
        attribute = mesh.color_attributes.new("Color", "FLOAT_COLOR", "CORNER")
        rgba = np.ones((len(faces) * 3, 4), dtype=np.float32)
        rgba[:, :3] = (colors if colors.ndim == 3 else colors[faces]).reshape(-1, 3)
        attribute.data.foreach_set("color", rgba.ravel())
        self._add(mesh)

    def _add(self, mesh):
        mesh.color_attributes.active_color_index = mesh.color_attributes.render_color_index = 0
        mesh.materials.append(bpy.data.materials.get(MATERIAL))
        self.scene.collection.objects.link(bpy.data.objects.new("sheet", mesh))

    def surface(self, vertices, faces, colors, seams):
        """A lit surface with linear RGB per vertex (V,3)."""
        lit = colors[faces] * _light(_corner_normals(vertices, faces, seams))
        self.triangles(vertices, faces, lit)

    def skeleton(self, heads, tails, thickness: float):
        """Octahedra from heads to tails (J,3) and a ball at each head, in front of everything else."""
        length = np.linalg.norm(tails - heads, axis=1, keepdims=True)
        width = np.clip(0.09 * length, 3.5 * thickness, 11 * thickness)
        apart = octahedra(heads, tails, width).reshape(-1, 3) + [0, 0, FRONT]
        ids = np.arange(len(apart))
        self.surface(apart, ids.reshape(-1, 3), np.tile(linear(BONE), (len(apart), 1)), ids)
        for head in heads:
            self.disc(head + [0, 0, FRONT + 20], 4.2 * thickness, linear(JOINT), linear(JOINT))

    def disc(self, centre, radius, inner, outer, squash: float = 1.0):
        """A disc, or an ellipse lying down, from one colour in the middle to another at the edge."""
        turn = np.linspace(0, 2 * np.pi, 49)[:-1]
        rings = np.linspace(0, 1, 9)[1:]
        edge = np.stack([np.cos(turn), squash * np.sin(turn), 0 * turn], axis=1)
        vertices = np.concatenate([[[0, 0, 0]], *(r * edge for r in rings)]) * radius + centre
        fade = np.concatenate([[0], np.repeat(rings, 48)])
        fade = fade * fade * (3 - 2 * fade)  # smoothstep: no visible edge
        k, after = np.arange(48), (np.arange(48) + 1) % 48
        faces = [np.stack([0 * k, 1 + k, 1 + after], axis=1)]
        for r in range(len(rings) - 1):
            a, b = 1 + 48 * r, 1 + 48 * (r + 1)
            faces += [np.stack([a + k, b + k, b + after], axis=1), np.stack([a + k, b + after, a + after], axis=1)]
        self.triangles(vertices, np.concatenate(faces), inner + fade[:, None] * (outer - inner))

    def floor(self, shape):
        """A pool of light on the ground under a character, seen at the view's tilt."""
        low = shape[:, 1].min()
        near = shape[shape[:, 1] < low + 0.3 * np.ptp(shape[:, 1])]
        centre = np.array([(near[:, 0].min() + near[:, 0].max()) / 2, low + 0.04 * np.ptp(shape[:, 1]), BACK + 2])
        radius = 0.62 * max(np.ptp(near[:, 0]), 0.5 * np.ptp(shape[:, 0]))
        self.disc(centre, radius, linear(FLOOR), linear(BACKGROUND), squash=0.34)

    def rectangle(self, box: _Box, color, depth: float = 0.0):
        color = linear(color) if isinstance(color, str) else color
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [box.width, box.height] + [box.left, box.bottom]
        vertices = np.column_stack([corners, np.full(4, depth)])
        self.triangles(vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.tile(color, (4, 1)))

    def text(self, line: str, x, y, size, color, width: float, align: str = "LEFT"):
        """One line of text, smaller where it would be wider than `width` pixels."""
        curve = bpy.data.curves.new("sheet", "FONT")
        curve.body, curve.size, curve.align_x = line, size, align
        writing = bpy.data.objects.new("sheet", curve)
        mesh = bpy.data.meshes.new_from_object(writing)
        if len(mesh.polygons) == 0:
            return
        points = np.empty((len(mesh.vertices), 3), dtype=np.float32)
        mesh.vertices.foreach_get("co", points.ravel())
        points *= min(1.0, width / np.ptp(points[:, 0]))
        mesh.vertices.foreach_set("co", (points + [x, y, 0]).astype(np.float32).ravel())
        attribute = mesh.color_attributes.new("Color", "FLOAT_COLOR", "CORNER")
        attribute.data.foreach_set("color", np.tile([*linear(color), 1], len(mesh.loops)).astype(np.float32))
        mesh.materials.clear()
        self._add(mesh)


@contextmanager
def _sheet_scene():
    """An empty scene for the sheet; everything that was made for it is removed afterwards."""
    before = set(bpy.data.user_map())
    try:
        scene = bpy.data.scenes.new("SPRig preview")
        material = bpy.data.materials.new(MATERIAL)  # only Cycles looks at it; Workbench takes the colours themselves
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        nodes.clear()
        color = nodes.new("ShaderNodeVertexColor")
        color.layer_name = "Color"
        glow, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
        material.cycles.emission_sampling = "NONE"  # nothing is lit by it
        links.new(color.outputs["Color"], glow.inputs["Color"])
        links.new(glow.outputs["Emission"], output.inputs["Surface"])
        yield scene
    finally:
        bpy.data.batch_remove(set(bpy.data.user_map()) - before)


def _set_up_render(scene, path: Path):
    """Camera, engine and output of the sheet."""
    camera = bpy.data.cameras.new("sheet")
    camera.type, camera.ortho_scale, camera.clip_end = "ORTHO", WIDTH, 4 * FRONT
    scene.camera = bpy.data.objects.new("sheet", camera)
    scene.camera.location = (WIDTH / 2, HEIGHT / 2, 2 * FRONT)
    scene.collection.objects.link(scene.camera)
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = WIDTH, HEIGHT, 100
    render.filepath, render.image_settings.file_format = str(path), "PNG"
    render.image_settings.color_mode, render.image_settings.compression = "RGB", 60
    scene.view_settings.view_transform = "Standard"
    if _has_opengl():
        render.engine = "BLENDER_WORKBENCH"
        scene.display.render_aa = WORKBENCH_SAMPLES
        shading = scene.display.shading
        shading.light, shading.color_type = "FLAT", "VERTEX"
    else:
        render.engine = "CYCLES"
        scene.cycles.device, scene.cycles.samples = "CPU", CYCLES_SAMPLES
        scene.cycles.max_bounces, scene.cycles.use_denoising = 0, False


@cache
def _has_opengl() -> bool:
    """Whether Workbench can draw here: always with a window, and in the background when a child process can."""
    if not bpy.app.background:
        return True
    if bpy.app.binary_path:
        command = [bpy.app.binary_path, "--background", "--factory-startup", "--python-exit-code", "1", "--python-expr"]
    else:  # the bpy module in an ordinary Python
        command = [sys.executable, "-c"]
    try:
        return (
            subprocess.run([*command, PROBE], capture_output=True, timeout=PROBE_SECONDS, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
