"""Rigs from networks, end to end. These networks are small and untrained: what a rig is does not depend on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sprig.backend.errors import SprigError
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.learned import SKELETON_POINTS, find_skeleton, load_networks
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.points import UnitCube, sample_surface
from sprig.backend.sequence import MeshSequence
from sprig.backend.skeleton.consensus import consensus
from sprig.backend.skeleton.generate import generate
from sprig.sprig_blender import cli

from .creatures import chain, tube


def learned(sequence, network_files, **options):
    return rig_sequence(sequence, RigOptions(skeleton="learned", **network_files, **options))


def test_the_networks_rig_is_kept_and_only_posed(network_files):
    sequence, *_ = chain(3, 12)
    rig = learned(sequence, network_files)
    assert rig.provenance["skeleton_source"] == "learned"
    assert np.isfinite(rig.confidence).all() and (rig.confidence > 0).all() and (rig.confidence <= 1).all()
    np.testing.assert_array_equal(rig.rest_vertices, sequence.vertices[rig.anchor])  # no rest correction
    np.testing.assert_allclose(rig.motion[rig.anchor], np.broadcast_to(np.eye(4), rig.motion.shape[1:]), atol=1e-6)
    size = np.linalg.norm(np.ptp(sequence.vertices[rig.anchor], axis=0))
    for f in (0, 5):
        posed = linear_blend_skinning(rig.rest_vertices, rig.weights, rig.motion[f])
        error = 100 / size * np.sqrt(((posed - sequence.vertices[f]) ** 2).sum(1).mean())
        assert error == pytest.approx(rig.rmse_per_frame[f], abs=1e-4)
    again = learned(sequence, network_files)
    np.testing.assert_array_equal(again.weights, rig.weights)
    np.testing.assert_array_equal(again.skeleton.joints, rig.skeleton.joints)


def test_a_single_mesh_and_one_that_stands_still_get_a_rig_without_motion(network_files):
    sequence, *_ = chain(3, 12)
    still = MeshSequence(np.repeat(sequence.vertices[:1], 4, axis=0), sequence.faces)
    single = MeshSequence(sequence.vertices[:1], sequence.faces)
    for case in (still, single):
        rig = learned(case, network_files)
        assert rig.motion.shape[0] == case.frame_count and rig.rmse < 1e-3
        assert not rig.seen_in_motion.any()
        with pytest.raises(SprigError, match="--skeleton learned"):
            rig_sequence(case, RigOptions(skeleton="motion"))


def test_the_number_of_joints_can_be_given(network_files):
    sequence, *_ = chain(3, 6)
    assert len(learned(sequence, network_files, joints=5).skeleton) == 5
    with pytest.raises(SprigError):
        learned(sequence, network_files, joints=13)  # this network holds 12


def test_drawn_skeletons_follow_the_seed(network_files):
    sequence, *_ = chain(3, 6)
    first, second, other = (
        learned(sequence, network_files, temperature=1.0, candidates=3, joints=6, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.skeleton.joints, second.skeleton.joints)
    assert np.abs(first.skeleton.joints - other.skeleton.joints).max() > 0


def test_a_rig_moves_with_its_mesh(network_files):
    """Elsewhere and at another size it is the same rig: networks see the unit cube."""
    sequence, *_ = chain(3, 6)
    here = learned(sequence, network_files)
    moved = MeshSequence.from_world(sequence.vertices.astype(np.float64) * 8 + [16, -32, 64], sequence.faces)
    there = learned(moved, network_files)
    np.testing.assert_array_equal(there.skeleton.parents, here.skeleton.parents)
    np.testing.assert_allclose(
        there.skeleton.joints + there.origin, here.skeleton.joints * 8 + [16, -32, 64], atol=1e-2
    )


def test_on_the_command_line(network_files, tmp_path):
    sequence, *_ = chain(3, 8)
    np.savez(tmp_path / "tube.npz", vertices=sequence.vertices, faces=sequence.faces)
    out, report = tmp_path / "rig.npz", tmp_path / "rig.json"
    options = [f"--{name.replace('_', '-')}={file}" for name, file in network_files.items()]
    arguments = ["rig", str(tmp_path / "tube.npz"), "-o", str(out), "-q", "--report", str(report)]
    assert cli.main([*arguments, "--skeleton", "learned", "--joints", "4", *options]) == 0
    told = json.loads(report.read_text())
    assert told["skeleton_source"] == "learned" and len(told["joints"]) == 4
    assert set(told["checkpoints"]) == {"skeleton", "skinning"}
    assert all(0 < joint["confidence"] <= 1 for joint in told["joints"])
    assert {"networks", "learned", "motion"} <= set(told["seconds"])


def test_files_in_each_others_place_are_refused(network_files):
    sequence, *_ = chain(3, 6)
    swapped = dict(zip(network_files, reversed(network_files.values()), strict=True))
    with pytest.raises(SprigError, match="skinning"):
        learned(sequence, swapped)


def test_the_skeleton_is_decoded_in_many_views_but_a_students_in_one(network_files):
    networks = load_networks(
        **{name.replace("checkpoint_", "") + "_file": path for name, path in network_files.items()}
    )
    vertices, faces = tube()
    cube = UnitCube.of(vertices)
    inside = cube.to_cube(vertices)
    points = torch.as_tensor(sample_surface(inside, faces, SKELETON_POINTS, 0).at(inside, faces))
    agreed, greedy = consensus(networks.skeleton, points), generate(networks.skeleton, points)[0]
    assert len(agreed.parents) != len(greedy.parents) or not np.allclose(agreed.joints, greedy.joints)

    def same(found, expected):
        np.testing.assert_array_equal(found.parents, expected.parents)
        np.testing.assert_allclose(found.joints, cube.from_cube(expected.joints))
        assert found.agreed == (expected is agreed)

    same(find_skeleton(vertices, faces, networks), agreed)
    same(find_skeleton(vertices, faces, networks, greedy=True), greedy)
    networks.skeleton.config = replace(networks.skeleton.config, many_views=False)
    same(find_skeleton(vertices, faces, networks), greedy)
