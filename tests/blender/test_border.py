"""The border: what Blender evaluates from what we write is our own skinning, whatever the rig, scale and place."""

import bpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.naming import read_anatomy
from sprig.backend.rolls import rest_frames
from sprig.sprig_blender.write_armature import evaluated_positions, evaluated_rmse, write_armature

from .rigs import random_rig, replay, source_of, tube

# One deterministic set of examples per run; an empty scene per example is not needed, since names stay unique.
border_settings = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def largest_error(written, sequence) -> float:
    """Largest distance over frames and vertices, in diagonals of the anchor frame, with both in float64 world space."""
    scene = bpy.context.scene
    worst = 0.0
    for f, number in enumerate(sequence.frame_numbers):
        scene.frame_set(int(number))
        depsgraph = bpy.context.evaluated_depsgraph_get()
        shape = np.concatenate([evaluated_positions(mesh, depsgraph) for mesh in written.meshes])
        worst = max(worst, np.linalg.norm(shape - sequence.world_vertices(f), axis=1).max())
    return worst / np.linalg.norm(np.ptp(sequence.vertices[0].astype(np.float64), axis=0))


@border_settings
@given(
    seed=st.integers(0, 2**32 - 1),
    joints=st.integers(1, 9),
    size=st.sampled_from([1e-4, 0.02, 1.0, 1e4]),
    place=st.sampled_from([0.0, 1.0, 50.0]),
    scale=st.tuples(*[st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0])] * 3),
    stretch=st.booleans(),
)
def test_blender_evaluates_our_skinning(seed, joints, size, place, scale, stretch):
    rng = np.random.default_rng(seed)
    vertices, faces = tube()
    origin = rng.normal(size=3) * place * size
    rig = random_rig(
        rng, vertices, faces, joints=joints, size=size, origin=origin, stretch=(joints - 1,) if stretch else ()
    )
    matrix = np.eye(4)
    matrix[:3, :3] *= scale
    source = source_of(rig, faces, matrix=matrix)

    written = write_armature(bpy.context, rig, [source], np.zeros(len(vertices), int))

    assert largest_error(written, replay(rig)) < 1e-5


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rest_matrices_are_the_rest_frames(size):
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(3), vertices, faces, joints=9, size=size)
    armature = write_armature(bpy.context, rig, [source_of(rig, faces)], np.zeros(len(vertices), int)).armature
    skeleton = rig.skeleton
    anatomy = read_anatomy(skeleton.joints, skeleton.parents)
    expected = rest_frames(skeleton.joints, skeleton.tails, skeleton.parents, anatomy)
    for j, name in enumerate(rig.skeleton.names):
        bone = armature.data.bones[name]
        actual = np.array(bone.matrix_local)
        assert np.abs(actual[:3, :3] - expected[j, :3, :3]).max() < 1e-5
        assert np.abs(actual[:3, 3] - expected[j, :3, 3]).max() < 1e-5 * size
        assert np.linalg.norm(np.array(bone.tail_local) - rig.skeleton.tails[j]) < 1e-5 * size


@pytest.mark.parametrize("origin", [(1e4, -1e4, 30.0), (0.1, 0.2, 0.3)], ids=["10 km away", "near the origin"])
def test_a_far_origin_loses_no_precision(origin):
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(5), vertices, faces, origin=origin)
    source = source_of(rig, faces)
    written = write_armature(bpy.context, rig, [source], np.zeros(len(vertices), int))
    assert largest_error(written, replay(rig)) < 1e-6  # float32 of the whole world position would give 5e-4
    at_world_origin = np.allclose(written.armature.location, 0)
    assert at_world_origin == (np.linalg.norm(origin) < 10)
    assert written.meshes[0].matrix_world == written.armature.matrix_world


def test_zero_length_and_tiny_bones_survive():
    """Blender deletes bones below 1e-6 units on leaving Edit Mode; a rig of a small object must keep all of its own."""
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(7), vertices, faces, joints=4, size=1e-4)
    rig.skeleton.tails[1] = rig.skeleton.joints[1]
    rig.skeleton.tails[2] = rig.skeleton.joints[2] + [1e-8, 0, 0]
    written = write_armature(bpy.context, rig, [source_of(rig, faces)], np.zeros(len(vertices), int))
    assert [bone.name for bone in written.armature.data.bones] == list(rig.skeleton.names)
    assert largest_error(written, replay(rig)) < 1e-5


def test_evaluated_rmse_measures_what_is_wrong():
    """Against the sequence shifted by 1 % of the diagonal in one frame, only that frame reports anything: 1 %."""
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(11), vertices, faces)
    written = write_armature(bpy.context, rig, [source_of(rig, faces)], np.zeros(len(vertices), int))
    sequence = replay(rig)
    diagonal = np.linalg.norm(np.ptp(sequence.vertices[0], axis=0))
    sequence.vertices[2] += np.float32(0.01 * diagonal / np.sqrt(3))
    bpy.context.scene.frame_set(4)
    np.testing.assert_allclose(evaluated_rmse(bpy.context, written, sequence), [0, 0, 1, 0], atol=2e-4)
    assert bpy.context.scene.frame_current == 4


def test_keys_interpolate_linearly_and_the_short_way():
    """Half way between two keys (the rig's frames are two apart) the evaluated quaternion is the normalised mean."""
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(13), vertices, faces, joints=6, frames=8, angle=3.0)
    written = write_armature(bpy.context, rig, [source_of(rig, faces)], np.zeros(len(vertices), int))
    scene, bones = bpy.context.scene, written.armature.pose.bones

    def quaternions(frame):
        scene.frame_set(frame)
        return np.array([bone.rotation_quaternion for bone in bones])

    for first, second in zip(rig.frame_numbers[:-1], rig.frame_numbers[1:], strict=True):
        before, between, after = (quaternions(int(n)) for n in (first, (first + second) // 2, second))
        assert ((before * after).sum(axis=1) > -1e-6).all()
        np.testing.assert_allclose(between, (before + after) / 2, atol=1e-6)


def test_corrective_shape_keys_replay_exactly():
    vertices, faces = tube()
    rng = np.random.default_rng(17)
    rig = random_rig(rng, vertices, faces, joints=4, frames=5, angle=0.8)
    sequence = replay(rig)
    sequence.vertices[...] += rng.normal(size=sequence.vertices.shape).astype(np.float32) * 0.02
    source, ids = source_of(rig, faces), np.zeros(len(vertices), int)

    without = write_armature(bpy.context, rig, [source], ids)
    assert without.meshes[0].data.shape_keys is None
    assert evaluated_rmse(bpy.context, without, sequence).min() > 0.5

    written = write_armature(bpy.context, rig, [source], ids, corrective=sequence)
    assert largest_error(written, sequence) < 1e-5


def test_the_rest_pose_without_animation_is_the_rest_shape():
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(19), vertices, faces)
    written = write_armature(bpy.context, rig, [source_of(rig, faces)], np.zeros(len(vertices), int))
    written.armature.data.pose_position = "REST"
    bpy.context.view_layer.update()
    shape = evaluated_positions(written.meshes[0], bpy.context.evaluated_depsgraph_get())
    np.testing.assert_allclose(shape, rig.rest_vertices, atol=1e-6)
    bind = linear_blend_skinning(rig.rest_vertices, rig.weights, np.tile(np.eye(4), (len(rig.skeleton), 1, 1)))
    np.testing.assert_allclose(shape, bind, atol=1e-6)
