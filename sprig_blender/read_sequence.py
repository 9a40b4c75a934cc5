"""Reading animated meshes from a scene, frame by frame, into one MeshSequence in world space.

Choices a reader would question:
* Positions are those of the mesh's own vertices. Modifiers that change the topology (Subdivision, Mirror, ...) are off
  while frames are read where nothing deforms the mesh after them; elsewhere they are refused by name.
* The scene is changed only between entering and leaving the reader, and every change is undone in reverse order,
  whatever happens: the frame, what was hidden, the modifiers.
* An object that the view layer does not show is linked to the scene's own collection meanwhile: nothing else makes
  Blender evaluate it, and it leaves the user's collections alone.
* Simulations are played from their first frame, since Blender knows no state that it has not reached step by step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import bpy
import numpy as np

from ..backend.errors import SprigError, no_progress
from ..backend.sequence import MeshSequence
from .what_moves import influences, is_animated, simulation_start

# Modifiers after which the mesh may have other vertices. Geometry nodes may too, but often do not: those are tried.
GENERATIVE = frozenset(
    "ARRAY BEVEL BOOLEAN BUILD DECIMATE EDGE_SPLIT EXPLODE FLUID MASK MIRROR MULTIRES OCEAN PARTICLE_INSTANCE REMESH "
    "SCREW SKIN SOLIDIFY SUBSURF TRIANGULATE VOLUME_TO_MESH WELD WIREFRAME".split()
)
NODES = "NODES"
LAST_FRAME = 1_048_574  # Blender's own limit, in both directions
# Modifiers that leave every vertex where it is.
DATA_ONLY = frozenset(
    "COLLISION DATA_TRANSFER NORMAL_EDIT PARTICLE_SYSTEM SURFACE UV_PROJECT UV_WARP VERTEX_WEIGHT_EDIT "
    "VERTEX_WEIGHT_MIX VERTEX_WEIGHT_PROXIMITY WEIGHTED_NORMAL".split()
)


def animated_meshes(where: bpy.types.Scene | bpy.types.Context) -> list[bpy.types.Object]:
    """The meshes of a scene (or of a context's scene), hidden ones too, whose shape or place changes with time."""
    scene = where if isinstance(where, bpy.types.Scene) else where.scene
    return [thing for thing in scene.objects if thing.type == "MESH" and is_animated(thing)]


def read_sequence(
    context, objects, start: int | None = None, end: int | None = None, step: int = 1, progress=no_progress
) -> MeshSequence:
    """Read frames start, start + step, ... up to and including end (the scene's range where not given).

    The objects become one sequence, in the order given. `progress` is called before every frame and may raise
    Cancelled. Raises SprigError for what cannot be read; the scene is as before in every case.
    """
    scene = context.scene
    start = scene.frame_start if start is None else start
    end = scene.frame_end if end is None else end
    if step < 1:
        raise SprigError(f"The frame step is {step}; give 1 or more.")
    if end < start:
        raise SprigError(f"The frame range {start}:{end} is reversed; give the first frame before the last.")
    with SequenceReader(context, objects, range(start, end + 1, step)) as reader:
        deque(reader.prepare(), maxlen=0)
        while not reader.done:
            progress(reader.fraction, f"Reading frame {reader.next_frame}")
            reader.step()
        return reader.result()


class SequenceReader:
    """Reads objects one frame per `step()`, so that a modal operator can do it in slices; use it in a `with` block.

    Go through `prepare()` first, which takes the objects one by one. `done`, `fraction` (0 to 1) and `next_frame` say
    how far it is; `result()` is the MeshSequence. Preparing raises SprigError when an object cannot be read, a step
    when its topology changes or it was deleted; leaving restores the scene.
    """

    def __init__(self, context, objects: Iterable[bpy.types.Object], frame_numbers: Iterable[int]):
        self._scene, self._view_layer = context.scene, context.view_layer
        self._objects = list(dict.fromkeys(objects))
        self._numbers = [int(number) for number in frame_numbers]
        if not self._objects:
            raise SprigError("There is no mesh to read; select one or several animated meshes.")
        if not self._numbers:
            raise SprigError("There is no frame to read; give a frame range that holds at least two.")
        if any(later <= earlier for earlier, later in zip(self._numbers, self._numbers[1:], strict=False)):
            raise SprigError("Frame numbers should increase from frame to frame.")
        if self._numbers[0] < -LAST_FRAME or self._numbers[-1] > LAST_FRAME:
            raise SprigError(f"Blender's frames run from {-LAST_FRAME} to {LAST_FRAME}; choose frames among them.")
        self._row = {number: row for row, number in enumerate(self._numbers)}
        self._warnings: list[str] = []
        self._steps_done = 0
        self._changes = ExitStack()  # how to take back what was done to the scene

    def __enter__(self) -> SequenceReader:
        return self

    def __exit__(self, *error):
        self._changes.close()

    @property
    def done(self) -> bool:
        return self._steps_done == len(self._plan)

    @property
    def fraction(self) -> float:
        return self._steps_done / len(self._plan)

    @property
    def next_frame(self) -> int:
        """The scene frame that the next step evaluates."""
        return self._plan[self._steps_done]

    def step(self):
        """Evaluate one frame and keep its positions; a frame that only a simulation needs is just evaluated."""
        number = self.next_frame
        with _unless_deleted():
            self._scene.frame_set(number)
            if number in self._row:
                self._read(self._row[number], number)
        self._steps_done += 1

    def result(self) -> MeshSequence:
        """The sequence, once every frame is read; SprigError when positions are not finite or too few.

        Touches nothing of Blender's, so that a thread can check the many positions.
        """
        assert self.done, f"{len(self._plan) - self._steps_done} frames are not read yet"
        starts = np.cumsum(self._sizes) - self._sizes
        return MeshSequence(
            self._positions,
            np.concatenate([faces + start for faces, start in zip(self._faces, starts, strict=True)]),
            fps=self._fps,
            origin=self._origin,
            object_id=np.repeat(np.arange(len(self._names)), self._sizes),
            object_names=self._names,
            frame_numbers=self._numbers,
            frame_index=np.subtract(self._numbers, self._first_of_all),
            name=self._names[0],
            warnings=tuple(self._warnings),
        )

    def prepare(self) -> Iterator[None]:
        """Check the objects and make the scene readable, one object at a time; leaving the reader takes it back."""
        with _unless_deleted():
            yield from self._prepare()

    def _prepare(self) -> Iterator[None]:
        for mesh in self._objects:
            check_readable(mesh)
            yield
        self._take_back(self._scene.frame_set, self._scene.frame_current, subframe=self._scene.frame_subframe)
        for mesh in self._objects:
            self._show(mesh)
            yield
        for mesh in self._objects:
            self._leave_out_generative(mesh)
            yield

        simulated_from = simulation_start(self._scene, self._objects)
        self._plan = self._numbers
        if simulated_from is not None:
            before = [number for number in self._numbers if number < simulated_from]
            self._plan = before + list(range(simulated_from, self._numbers[-1] + 1))

        self._faces = []
        for mesh in self._objects:
            self._faces.append(_triangles(mesh.data))
            yield
        render = self._scene.render
        self._fps = render.fps / render.fps_base
        self._first_of_all = min(self._scene.frame_start, self._numbers[0])
        self._names = [mesh.name for mesh in self._objects]
        self._sizes = [len(mesh.data.vertices) for mesh in self._objects]
        shape = (len(self._numbers), sum(self._sizes), 3)
        try:
            self._positions = np.empty(shape, dtype=np.float32)
        except MemoryError as error:
            raise SprigError(
                f"{shape[0]} frames of {shape[1]} vertices do not fit into memory; take fewer frames or a larger step."
            ) from error
        self._corners: list = [None] * len(self._objects)

    def _take_back(self, function, *arguments, **named):
        """Have this called on leaving, unless what it needs was deleted or taken out of the scene meanwhile."""

        def put_back():
            with suppress(ReferenceError, RuntimeError):
                function(*arguments, **named)

        self._changes.callback(put_back)

    def _change(self, thing, attribute: str, value):
        """Set an attribute, to be as before on leaving."""
        old = getattr(thing, attribute)
        if old != value:
            setattr(thing, attribute, value)
            self._take_back(setattr, thing, attribute, old)

    def _show(self, mesh: bpy.types.Object):
        """Make the view layer evaluate an object that it hides or does not hold."""
        if mesh.visible_get(view_layer=self._view_layer):
            return
        self._change(mesh, "hide_viewport", False)
        if not mesh.visible_get(view_layer=self._view_layer) and mesh not in self._scene.collection.objects[:]:
            self._scene.collection.objects.link(mesh)
            self._take_back(self._scene.collection.objects.unlink, mesh)
        if mesh.hide_get(view_layer=self._view_layer):
            mesh.hide_set(False, view_layer=self._view_layer)
            self._take_back(mesh.hide_set, True, view_layer=self._view_layer)

    def _leave_out_generative(self, mesh: bpy.types.Object):
        """Switch off the modifiers after the last deforming one that change the number of vertices."""
        enabled = [modifier for modifier in mesh.modifiers if modifier.show_viewport]
        deforming = [i for i, modifier in enumerate(enabled) if modifier.type not in GENERATIVE | DATA_ONLY | {NODES}]
        after = enabled[deforming[-1] + 1 if deforming else 0 :]
        left_out = [modifier for modifier in after if modifier.type in GENERATIVE]
        for modifier in left_out:
            self._change(modifier, "show_viewport", False)
        for modifier in reversed([modifier for modifier in after if modifier.type == NODES]):
            if self._has_own_vertices(mesh):
                break
            self._change(modifier, "show_viewport", False)
            left_out.append(modifier)
        if not self._has_own_vertices(mesh):
            raise self._refusal(mesh, self._scene.frame_current)
        if left_out:
            names = ", ".join(modifier.name for modifier in mesh.modifiers if modifier in left_out)
            self._warnings.append(f"{mesh.name} was read without {names}: the rig moves the mesh's own vertices.")

    def _has_own_vertices(self, mesh: bpy.types.Object) -> bool:
        self._view_layer.update()
        return len(self._evaluated(mesh).data.vertices) == len(mesh.data.vertices)

    def _evaluated(self, mesh: bpy.types.Object) -> bpy.types.Object:
        return mesh.evaluated_get(self._view_layer.depsgraph)

    def _read(self, row: int, number: int):
        """Keep the world positions of the frame that is current."""
        worlds = []
        for i, mesh in enumerate(self._objects):
            if mesh.data.is_editmode:  # entered in another window
                raise _in_edit_mode(mesh)
            evaluated = self._evaluated(mesh)
            local = np.empty((self._sizes[i], 3), dtype=np.float32)
            corners = corners_of(evaluated.data)
            if self._corners[i] is None:
                self._corners[i] = corners
            if len(evaluated.data.vertices) != len(local) or not np.array_equal(corners, self._corners[i]):
                raise self._refusal(mesh, number)
            evaluated.data.attributes["position"].data.foreach_get("vector", local.ravel())
            matrix = np.array(evaluated.matrix_world, dtype=np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # MeshSequence reports what is not finite
                worlds.append(local.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3])
        world = np.concatenate(worlds)
        with np.errstate(invalid="ignore", over="ignore"):
            if row == 0:
                centre = (world.min(axis=0) + world.max(axis=0)) / 2
                self._origin = np.where(np.isfinite(centre), centre, 0.0)
            self._positions[row] = world - self._origin

    def _refusal(self, mesh: bpy.types.Object, number: int) -> SprigError:
        """What to say about a mesh whose evaluated topology is not its own, or not that of the first frame."""
        suspects = [modifier for modifier in mesh.modifiers if modifier.show_viewport]
        suspects = [modifier for modifier in suspects if modifier.type in GENERATIVE | {NODES}] or suspects
        names = ", ".join(modifier.name for modifier in suspects)
        if any(modifier.type == "MESH_SEQUENCE_CACHE" for modifier in suspects):
            return SprigError(
                f"{mesh.name} has another topology at frame {number} than before (modifier {names}); "
                "its topology must not change, export the cache without remeshing."
            )
        return SprigError(
            f"{mesh.name} has other vertices at frame {number} than its own mesh has, because of the modifier {names}; "
            "apply that modifier or switch it off."
        )


def check_readable(mesh: bpy.types.Object):
    """Raise SprigError for an object whose animated surface Blender cannot give."""
    if mesh.type != "MESH":
        kind = mesh.type.replace("_", " ").lower()
        raise SprigError(f"{mesh.name} is no mesh but of type {kind}; convert it to a mesh or select another object.")
    if len(mesh.data.vertices) == 0:
        raise SprigError(f"{mesh.name} has no vertices; select a mesh with a surface.")
    if len(mesh.data.polygons) == 0:
        raise SprigError(f"{mesh.name} has no faces; select a mesh with a surface.")
    for thing in influences(mesh):
        if getattr(thing.data, "is_editmode", False):
            raise _in_edit_mode(thing)
    if mesh.mode == "SCULPT":
        raise SprigError(f"{mesh.name} is in Sculpt Mode; switch to Object Mode and try again.")
    for modifier in mesh.modifiers:
        if not modifier.show_viewport:
            continue
        if modifier.type == "MESH_SEQUENCE_CACHE" and modifier.cache_file:
            _check_file(mesh, _on_disk(modifier.cache_file.filepath, modifier.cache_file), modifier)
        elif modifier.type == "MESH_CACHE":
            _check_file(mesh, _on_disk(modifier.filepath, mesh), modifier)


def _in_edit_mode(thing: bpy.types.Object) -> SprigError:
    return SprigError(f"{thing.name} is in Edit Mode; switch to Object Mode and try again.")


def _on_disk(path: str, owner: bpy.types.ID) -> str:
    """The path in full; // in it means the folder of the .blend file that its owner lies in, which may be linked."""
    return bpy.path.abspath(path, library=owner.path_resolve("library"))


def _check_file(mesh: bpy.types.Object, path: str, modifier: bpy.types.Modifier):
    if not Path(path).is_file():
        raise SprigError(f"{mesh.name}: the file of its modifier {modifier.name} is missing ({path}); give its place.")


@contextmanager
def _unless_deleted() -> Iterator[None]:
    """What is read may go between two steps, through a script or another window; Python then has a dead reference."""
    try:
        yield
    except ReferenceError as error:
        raise SprigError("What was read was deleted meanwhile; undo that and run it again.") from error


def corners_of(mesh: bpy.types.Mesh) -> np.ndarray:
    """Vertex of every face corner (C,) int32: the topology, but for where faces begin."""
    corners = np.empty(len(mesh.loops), dtype=np.int32)
    if len(corners):
        # 500 times as quick as the same through mesh.loops, which is more than all else that reading a frame does
        mesh.attributes[".corner_vert"].data.foreach_get("value", corners)
    return corners


def _triangles(mesh: bpy.types.Mesh) -> np.ndarray:
    """The mesh's own faces as triangles (M,3) int32."""
    mesh.calc_loop_triangles()
    triangles = np.empty((len(mesh.loop_triangles), 3), dtype=np.int32)
    mesh.loop_triangles.foreach_get("vertices", triangles.ravel())
    return triangles
