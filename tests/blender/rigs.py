"""Small rigs for the tests of the Blender side: random trees of bones on a tube, and the sequences they replay."""

import bpy
import numpy as np

from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.rig import Rig, Skeleton
from sprig.backend.sequence import MeshSequence
from sprig.sprig_blender.write_armature import evaluated_positions


def tube(rings: int = 9, around: int = 8, length: float = 2.0):
    """A closed tube along Z: vertices (V,3) and quads and caps as a list of faces, outside out."""
    angles = np.arange(around) / around * 2 * np.pi
    circle = np.stack([0.3 * np.cos(angles), 0.2 * np.sin(angles), 0 * angles], axis=1)
    vertices = np.concatenate([circle + [0, 0, z] for z in np.linspace(0, length, rings)])
    side = [
        [r * around + a, r * around + (a + 1) % around, (r + 1) * around + (a + 1) % around, (r + 1) * around + a]
        for r in range(rings - 1)
        for a in range(around)
    ]
    return vertices, [*side, list(range(around))[::-1], list(range((rings - 1) * around, rings * around))]


def triangles(faces) -> np.ndarray:
    return np.array([[f[0], f[i], f[i + 1]] for f in faces for i in range(1, len(f) - 1)])


def random_rotations(rng, *shape, angle: float = 1.0) -> np.ndarray:
    """Rotation matrices (*shape,3,3) about random axes by up to `angle` radians (Rodrigues)."""
    axis = rng.normal(size=(*shape, 3))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    turn = rng.uniform(-angle, angle, size=shape)[..., None, None]
    cross = np.cross(axis[..., None, :], np.eye(3)).swapaxes(-1, -2)
    return np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross


def random_rig(rng, vertices, faces, *, joints=5, frames=4, size=1.0, origin=(0, 0, 0), angle=1.0, stretch=()) -> Rig:
    """A tree of `joints` bones that turn at random, with a moving root; `stretch` lists joints that also translate.

    vertices (V,3) are scaled by `size`; frames are numbered 3, 5, 7, … .
    """
    vertices = vertices * size
    parents = np.array([-1] + [int(rng.integers(0, j)) for j in range(1, joints)])
    heads = vertices[rng.choice(len(vertices), joints, replace=False)]
    tails = heads + rng.normal(size=(joints, 3)) * 0.2 * size
    rotation = random_rotations(rng, frames, joints, angle=angle)
    motion = np.tile(np.eye(4), (frames, joints, 1, 1))
    for j, parent in enumerate(parents):
        turn = np.tile(np.eye(4), (frames, 1, 1))
        turn[:, :3, :3] = rotation[:, j]
        turn[:, :3, 3] = heads[j] - rotation[:, j] @ heads[j]
        if parent < 0 or j in stretch:
            turn[:, :3, 3] += rng.normal(size=(frames, 3)) * 0.3 * size
        motion[:, j] = turn if parent < 0 else motion[:, parent] @ turn
    weights = rng.dirichlet(np.ones(joints), len(vertices))
    weights[weights < np.sort(weights, axis=1)[:, [-min(4, joints)]]] = 0  # four influences
    weights[weights < 1e-3] = 0  # nothing that pruning would change
    weights /= weights.sum(axis=1, keepdims=True)
    names = [f"bone_{j}" for j in range(joints)]
    return Rig(
        Skeleton(heads, tails, parents, names), weights, motion, vertices, triangles(faces), anchor=0,
        origin=origin, fps=25.0, frame_numbers=3 + 2 * np.arange(frames), frame_index=np.arange(frames),
        seen_in_motion=np.ones(joints, bool), rotation_range=np.full(joints, 0.5), rmse_per_frame=np.zeros(frames),
    )  # fmt: skip


def replay(rig: Rig) -> MeshSequence:
    """The sequence that the rig replays exactly (within float32)."""
    shapes = [linear_blend_skinning(rig.rest_vertices, rig.weights, pose) for pose in rig.motion]
    return MeshSequence(
        np.array(shapes), rig.faces, fps=rig.fps, origin=rig.origin,
        frame_numbers=rig.frame_numbers, frame_index=rig.frame_index,
    )  # fmt: skip


def mesh_object(vertices, faces, name="Body"):
    """A mesh object in the scene's collection."""
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(np.asarray(vertices).tolist(), [], faces)
    made = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(made)
    return made


def source_of(rig: Rig, faces, name="Body", matrix=None):
    """A mesh object whose world positions are the rig's rest shape, under the world matrix (4,4) given."""
    matrix = np.eye(4) if matrix is None else matrix
    world = rig.rest_vertices + rig.origin
    made = mesh_object((world - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T, faces, name)
    made.matrix_world = matrix.T  # Blender reads columns from a flat numpy array
    bpy.context.view_layer.update()
    return made


def replayed(mesh, numbers):
    """World positions (F,V,3) of a mesh object on the scene's frames."""
    shapes = []
    for number in numbers:
        bpy.context.scene.frame_set(int(number))
        shapes.append(evaluated_positions(mesh, bpy.context.evaluated_depsgraph_get()))
    return np.stack(shapes)
