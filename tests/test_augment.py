"""Augmentation: hand-made characters, each part against what it should keep, and against the numpy of the backend."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.metrics import unit_cube
from sprig.backend.skeleton.tokens import decode_batch, order_joints, reorder
from sprig.backend.skinning.heat import heat_features
from sprig.training.augment import DEFAULT, OFF, AugmentConfig, Store, draw, in_order, to_tokens
from sprig.training.character import Character

from .creatures import chain, tube

EVERYTHING = AugmentConfig(shape=1, prune=1, merge=0.7, hole=1, length=0.5, thickness=0.5)


def character(name, vertices, faces, weights, joints, parents, motion=None, rig_id=None):
    motion = np.zeros((0, len(joints), 4, 4)) if motion is None else motion
    return Character(
        name,
        rig_id or name,
        "test",
        "test",
        "CC0-1.0",
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.int32),
        np.asarray(weights, np.float32),
        np.asarray(joints, np.float32),
        np.asarray(parents, np.int32),
        np.asarray(motion, np.float32),
    )


def snake(name="snake", bones=4, poses=3, rig_id=None, seed=0):
    """A tube with a chain of bones and poses of its own."""
    vertices, faces = tube()
    _, joints, weights, motion = chain(bones=bones, frames=6, seed=seed, travel=50.0)
    parents = np.arange(bones) - 1
    return character(
        name, vertices * 3 + 7, faces, weights, joints * 3 + 7, parents, _moved(motion[:poses], 3, 7), rig_id
    )


def _moved(motion, scale, shift):
    """The same motion for a rest pose that was scaled and shifted."""
    moved = motion.copy()
    moved[..., :3, 3] = scale * motion[..., :3, 3] + shift - motion[..., :3, :3] @ np.full(3, shift)
    return moved


def star():
    """Three closed tubes that meet at the root: seven joints, no poses."""
    limb, faces = tube(rings=9, around=8, length=1.0, radius=0.1)
    joints, parents = [[0, 0, 0]], [-1]
    vertices, triangles, weights = [], [], []
    for k, axes in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0])):
        vertices.append(limb[:, axes])
        triangles.append(faces + k * len(limb))
        near, far = 2 * k + 1, 2 * k + 2
        joints += [np.array([0.3, 0, 0])[axes], np.array([0.6, 0, 0])[axes]]
        parents += [0, near]
        own = np.zeros((len(limb), 7))
        share = np.clip(limb[:, 0] * 2, 0, 1)
        own[:, 0], own[:, near], own[:, far] = (1 - share) ** 2, 2 * share * (1 - share), share**2
        weights.append(own)
    return character(
        "star", np.concatenate(vertices), np.concatenate(triangles), np.concatenate(weights), joints, parents
    )


CHARACTERS = [snake(), star(), snake("worm", bones=2, poses=0)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def everything(count=24, points=300, config=EVERYTHING, seed=0):
    return draw(Store(CHARACTERS), count, generator(seed), points, config)


def off_surface(positions, vertices, faces):
    """Distance (N,) of positions (N,3) to the nearest triangle that they lie above."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    offset = positions[:, None] - a
    inside = np.ones(offset.shape[:2], dtype=bool)
    for p, q in ((a, b), (b, c), (c, a)):
        inside &= (np.cross(q - p, positions[:, None] - p) * normal).sum(axis=2) > -1e-5
    return np.where(inside, np.abs((offset * normal).sum(axis=2)), np.inf).min(axis=1)


def cube(character, vertices=None):
    return unit_cube(character.vertices if vertices is None else vertices)


# ---- one part at a time


def test_with_everything_off_a_batch_is_the_normalised_rest_pose():
    batch = everything(count=12, config=OFF)
    assert set(batch.character.tolist()) == {0, 1, 2}
    for b, index in enumerate(batch.character.tolist()):
        one, count = CHARACTERS[index], len(CHARACTERS[index].joints)
        centre, scale = cube(one)
        vertices = (one.vertices - centre) / scale
        assert off_surface(batch.points[b, :, :3].double().numpy(), vertices, one.faces).max() < 1e-5
        np.testing.assert_allclose(batch.joints[b, :count], (one.joints - centre) / scale, atol=1e-6)
        assert batch.parents[b, :count].tolist() == one.parents.tolist()
        assert batch.valid[b].tolist() == [True] * count + [False] * (batch.valid.shape[1] - count)
        # weights are linear on a triangle, so the nearest vertex bounds how far they can be off
        near = np.linalg.norm(batch.points[b, :, None, :3].numpy() - vertices, axis=2).argmin(axis=1)
        assert np.abs(batch.weights[b, :, :count].numpy() - one.weights[near]).mean() < 0.05


def test_weights_and_positions_share_their_barycentrics():
    """A weight that is linear in x over the whole tube must be so at every point."""
    vertices, faces = tube()
    share = vertices[:, 0] / 2
    one = character("bar", vertices, faces, np.column_stack([1 - share, share]), [[0, 0, 0], [1, 0, 0]], [-1, 0])
    batch = draw(Store([one]), 2, generator(), 200, OFF)
    np.testing.assert_allclose(batch.weights[..., 1], batch.points[..., 0] + 0.5, atol=1e-6)


def test_points_are_uniform_by_area():
    """Two flat squares, one with four times the area, cut into unequal triangles."""
    vertices = np.array(
        [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [5, 0, 0], [6, 0, 0], [6, 1, 0], [5, 1, 0], [5.5, 0.5, 0]]
    )
    faces = [[0, 1, 2], [0, 2, 3], [4, 5, 8], [5, 6, 8], [6, 7, 8], [7, 4, 8]]
    weights = np.column_stack([vertices[:, 0] < 3, vertices[:, 0] >= 3])
    one = character("squares", vertices, faces, weights, [[0, 0, 0], [5, 0, 0]], [-1, 0])
    # beside a character with more faces, so that padding would show
    batch = draw(Store([one, star()]), 8, generator(), 20000, OFF)
    b = batch.character.tolist().index(0)
    assert 1 in batch.character and abs(float(batch.weights[b, :, 1].mean()) - 0.2) < 0.015  # 5 standard deviations
    left = batch.points[b, batch.weights[b, :, 0] == 1, :3]
    centre, scale = cube(one)
    np.testing.assert_allclose(left.mean(dim=0), (np.array([1, 1, 0]) - centre) / scale, atol=0.01)
    np.testing.assert_allclose(batch.points[b, :, 3:], np.tile([0, 0, 1], (20000, 1)), atol=1e-6)


def test_turning_and_mirroring_keep_distances():
    config = replace(OFF, yaw=180, tilt=30, mirror=0.5)
    before, after = everything(config=OFF), everything(config=config)
    assert torch.equal(before.character, after.character)
    handed = []
    for b in range(len(before.character)):
        count = int(before.valid[b].sum())
        # the box of a turned mesh has another size, so distances are compared up to scale
        first, second = (torch.cdist(batch.joints[b, :count], batch.joints[b, :count]) for batch in (before, after))
        np.testing.assert_allclose(first / first.max(), second / second.max(), atol=1e-4)
        if CHARACTERS[before.character[b]].name == "star":  # tips 2, 4, 6 are the axes
            handed.append(float(torch.linalg.det((after.joints[b, [2, 4, 6]] - after.joints[b, :1]).double())) > 0)
    assert True in handed and False in handed


def test_mirroring_alone_is_x_to_minus_x():
    before, after = everything(config=OFF), everything(config=replace(OFF, mirror=1.0))
    np.testing.assert_allclose(after.joints, before.joints * torch.tensor([-1, 1, 1]), atol=1e-6)
    radial = after.points[..., 1:3]
    along = after.points[..., 3].abs() < 0.5  # not on the ends
    snakes = (after.character != 1)[:, None] & along
    assert ((radial * after.points[..., 4:6]).sum(dim=2)[snakes] > 0).all()


def test_own_poses_are_linear_blend_skinning():
    one = CHARACTERS[0]
    batch = draw(Store([one]), 16, generator(), 200, replace(OFF, clip=1.0))
    found = set()
    for b in range(16):
        errors = []
        for motion in one.motion:
            posed = linear_blend_skinning(one.vertices, one.weights, motion)
            centre, scale = cube(one, posed)
            joints = np.einsum("jab,jb->ja", motion[:, :3, :3], one.joints) + motion[:, :3, 3]
            surface = off_surface(batch.points[b, :, :3].double().numpy(), (posed - centre) / scale, one.faces)
            errors.append(max(surface.max(), np.abs(batch.joints[b].numpy() - (joints - centre) / scale).max()))
        found.add(int(np.argmin(errors)))
        assert min(errors) < 5e-5
    assert found == {0, 1, 2}


def test_a_pose_may_pull_joints_off_their_parents():
    """A prop that slides away from the bone it hangs on."""
    one = snake(bones=3, poses=1)
    one.motion[0, 2, :3, 3] += [0, 0, 4]
    batch = draw(Store([one]), 1, generator(), 50, replace(OFF, clip=1.0))
    posed = linear_blend_skinning(one.vertices, one.weights, one.motion[0])
    centre, scale = cube(one, posed)
    joints = np.einsum("jab,jb->ja", one.motion[0, :, :3, :3], one.joints) + one.motion[0, :, :3, 3]
    np.testing.assert_allclose(batch.joints[0], (joints - centre) / scale, atol=5e-6)


def test_random_rotations_keep_bone_lengths():
    config = replace(OFF, bend=1.0, bend_root=30, bend_leaf=60)
    before, after = everything(config=OFF), everything(config=config)
    for b in range(len(before.character)):
        parents = before.parents[b, before.valid[b]][1:]
        lengths = [
            (batch.joints[b, 1 : len(parents) + 1] - batch.joints[b, parents]).norm(dim=1) for batch in (before, after)
        ]
        ratio = lengths[1] / lengths[0]  # the box changes, the same for all bones
        assert float(ratio.max() - ratio.min()) < 1e-4
    assert (before.joints - after.joints).abs().amax(dim=(1, 2)).median() > 0.02


def test_thickness_alone_keeps_joints_and_length_alone_keeps_girth():
    """A tube along x: what is across it is y and z."""
    store = Store([snake(bones=3, poses=0)])
    rest = draw(store, 1, generator(), 400, OFF)
    thick = draw(store, 8, generator(), 400, replace(OFF, shape=1, thickness=0.5))
    long = draw(store, 8, generator(), 400, replace(OFF, shape=1, length=0.5))
    np.testing.assert_allclose(thick.joints, rest.joints.expand(8, -1, -1), atol=1e-6)
    assert thick.points[..., 1].abs().amax(dim=1).std() > 0.003
    assert (long.joints - rest.joints).abs().max() > 0.02
    np.testing.assert_allclose(long.joints[..., 1:], 0, atol=1e-6)
    side = long.points[..., 3].abs() < 0.1
    girth = [long.points[b, side[b], 1:3].norm(dim=1) for b in range(8)]
    assert max(float((one.max() - one.min()) / one.max()) for one in girth) < 0.06  # ten-sided: 1 - cos 18°


def test_twins_are_reshaped_alike():
    batch = draw(Store([star()]), 4, generator(), 50, replace(OFF, shape=1, length=0.5))
    near = (batch.joints[:, [1, 3, 5]] - batch.joints[:, :1]).norm(dim=2)
    np.testing.assert_allclose(near, near[:, :1].expand(-1, 3), rtol=1e-4)
    assert near[:, 0].std() > 0.005


def test_noise_and_holes():
    store = Store([CHARACTERS[1]])
    one = CHARACTERS[1]
    centre, scale = cube(one)
    noisy = draw(store, 4, generator(), 200, replace(OFF, noise=0.01)).points[..., :3].double().numpy()
    assert noisy.min() >= -0.5 and noisy.max() <= 0.5
    assert (
        min(
            np.linalg.norm(noisy[b] - draw(store, 4, generator(), 200, OFF).points[b, :, :3].numpy(), axis=1).mean()
            for b in range(4)
        )
        > 0
    )
    holed = draw(store, 8, generator(), 600, replace(OFF, hole=1, hole_share=0.5)).points[..., :3]
    whole = draw(store, 1, generator(1), 2000, OFF).points[0, :, :3]
    assert holed.shape == (8, 600, 3)
    for b in range(8):
        assert off_surface(holed[b].double().numpy(), (one.vertices - centre) / scale, one.faces).max() < 1e-5
    gaps = torch.cdist(whole[None].expand(8, -1, -1), holed).amin(dim=2).amax(dim=1)
    assert (
        gaps.max()
        > 0.2
        > 0.1
        > torch.cdist(whole, draw(store, 1, generator(), 600, OFF).points[0, :, :3]).amin(dim=1).max()
    )


def test_pruning_gives_weights_to_the_parent():
    one = snake(bones=4, poses=0)
    before = draw(Store([one]), 1, generator(), 300, OFF)
    config = replace(OFF, prune=1.0, prune_leaf=1.0, prune_rounds=2)
    after = draw(Store([one]), 1, generator(), 300, config)
    assert after.joints.shape == (1, 2, 3) and after.parents.tolist() == [[-1, 0]]
    assert torch.equal(after.joints, before.joints[:, :2]) and torch.equal(after.points, before.points)
    np.testing.assert_allclose(after.weights[..., 0], before.weights[..., 0], atol=1e-6)
    np.testing.assert_allclose(after.weights[..., 1], before.weights[..., 1:].sum(dim=2), atol=1e-6)
    alone = draw(Store([one]), 1, generator(), 10, replace(config, prune_rounds=9))
    assert alone.parents.tolist() == [[-1]] and (alone.weights == 1).all()


def test_a_joint_within_a_limb_leaves_weights_and_children_to_its_parent():
    one = snake(bones=6, poses=0)
    counts = set()
    for seed in range(8):
        before = draw(Store([one]), 1, generator(seed), 300, OFF)
        after = draw(Store([one]), 1, generator(seed), 300, replace(OFF, merge=1.0, merge_joint=0.5))
        assert torch.equal(after.points, before.points)
        kept = [int((before.joints[0] - joint).norm(dim=1).argmin()) for joint in after.joints[0]]
        assert kept[0] == 0 and kept == sorted(set(kept))  # some of the chain, the root among them
        assert after.parents[0].tolist() == list(range(-1, len(kept) - 1))
        parts = np.split(before.weights[0].numpy(), kept[1:], axis=1)
        np.testing.assert_allclose(after.weights[0], np.stack([part.sum(axis=1) for part in parts], axis=1), atol=1e-6)
        counts.add(len(kept))
    assert len(counts) > 2


# ---- all parts together


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [OFF, DEFAULT, EVERYTHING], ids=["off", "default", "everything"])
def test_what_holds_for_every_batch(config, seed):
    batch = everything(config=config, seed=seed)
    points, weights, valid = batch.points, batch.weights, batch.valid
    assert points.dtype == weights.dtype == batch.joints.dtype == torch.float32 and points.shape == (24, 300, 6)
    assert all(torch.isfinite(value).all() for value in (points, weights, batch.joints))
    assert points[..., :3].abs().max() <= 0.5 + 1e-6
    np.testing.assert_allclose(points[..., 3:].norm(dim=2), 1, atol=1e-5)
    np.testing.assert_allclose(weights.sum(dim=2), 1, atol=1e-5)
    assert weights.min() >= 0 and (weights * ~valid[:, None] == 0).all()
    assert (batch.joints[~valid] == 0).all() and (batch.parents[~valid] == -1).all()
    assert (valid[:, :-1] >= valid[:, 1:]).all() and valid[:, -1].any()
    every = torch.arange(valid.shape[1]).expand_as(batch.parents)
    assert (batch.parents[:, 0] == -1).all()
    children = valid & (every > 0)
    assert (batch.parents[children] >= 0).all() and (batch.parents < every)[children].all()


def test_normals_point_outward():
    """The flux of the position through a closed surface is three times its volume, whatever the pose."""
    batch = everything(points=1500, config=replace(EVERYTHING, hole=0.0, noise=0.0))
    middle = batch.points[..., :3].mean(dim=1, keepdim=True)
    flux = ((batch.points[..., :3] - middle) * batch.points[..., 3:]).sum(dim=2).mean(dim=1)
    assert flux.min() > 0.005


def test_tokens_are_the_skeleton_in_canonical_order():
    batch = everything(config=DEFAULT)
    ids = to_tokens(in_order(batch))
    assert ids.dtype == torch.long and ids.shape == (24, 4 * batch.valid.shape[1] + 2)
    joints, parents, valid = decode_batch(ids.numpy())
    np.testing.assert_array_equal(valid, batch.valid)
    for b, count in enumerate(valid.sum(axis=1)):
        own = batch.joints[b, :count].numpy(), batch.parents[b, :count].numpy()
        expected, above = reorder(*own, order_joints(*own))
        np.testing.assert_allclose(joints[b, :count], expected.clip(-0.5, 0.5), atol=0.5 / 128 + 1e-6)
        np.testing.assert_array_equal(parents[b, :count], above)


# ---- heat


def test_heat_is_drawn_like_weights():
    """At rest the heat of the points is that of the mesh; where leaves are deleted, rows still sum to one."""
    one = snake()
    store, config = Store([one], heat=True), replace(OFF, prune=0.0)
    batch = draw(store, 2, generator(), 64, config)
    expected = heat_features(one.vertices, one.faces, one.joints, one.parents)
    assert (batch.heat >= 0).all()
    torch.testing.assert_close(batch.heat.sum(2), torch.ones(2, 64, 2))
    low, high = torch.as_tensor(expected).amin(0) - 1e-2, torch.as_tensor(expected).amax(0) + 2e-2
    assert ((batch.heat >= low) & (batch.heat <= high)).all()
    pruned = in_order(draw(store, 8, generator(), 64, replace(config, prune=1.0, prune_leaf=0.7, prune_rounds=2)))
    assert pruned.valid.shape[1] <= len(one.joints) and not pruned.valid.all()
    torch.testing.assert_close(pruned.heat.sum(2), torch.ones(8, 64, 2))
    assert (pruned.heat.sum(1) * ~pruned.valid[..., None] == 0).all()
    assert draw(Store([one]), 1, generator(), 8, OFF).heat is None


# ---- drawing


def test_rigs_count_once_whatever_their_number_of_files():
    characters = [snake(f"copy {k}", rig_id="many") for k in range(5)] + [star()]
    drawn = draw(Store(characters), 600, generator(), 1, OFF).character
    assert abs(int((drawn == 5).sum()) - 300) < 60  # 5 standard deviations
    assert all(abs(int((drawn == k).sum()) - 60) < 37 for k in range(5))


def test_the_same_generator_draws_the_same_batch():
    first, again, other = everything(), everything(), everything(seed=1)
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(first).items() if value is not None)
    assert not torch.equal(first.points, other.points)


def test_padding_changes_nothing():
    """A character drawn beside a larger one is the same as alone."""
    alone = draw(Store([CHARACTERS[2]]), 3, generator(), 100, OFF)
    beside = draw(Store([CHARACTERS[2], star()]), 12, generator(), 100, OFF)
    b = beside.character.tolist().index(0)
    assert beside.valid.shape[1] == 7
    torch.testing.assert_close(beside.joints[b, :2], alone.joints[0])
    centre, scale = cube(CHARACTERS[2])
    vertices = (CHARACTERS[2].vertices - centre) / scale
    assert off_surface(beside.points[b, :, :3].double().numpy(), vertices, CHARACTERS[2].faces).max() < 1e-5


def test_what_cannot_be_learned_from_is_refused():
    one = star()
    flat = character("flat", one.vertices * 0, one.faces, one.weights, one.joints, one.parents)
    with pytest.raises(ValueError, match="flat: the rest pose has no area"):
        Store([flat])
    with pytest.raises(ValueError, match="at least one"):
        Store([])
    long = character(
        "long",
        one.vertices,
        one.faces,
        np.eye(102)[np.zeros(len(one.vertices), int)],
        np.zeros((102, 3)),
        np.arange(102) - 1,
    )
    with pytest.raises(ValueError, match="102 joints"):
        Store([long])
    with pytest.raises(ValueError, match="hole_share"):
        AugmentConfig(hole_share=1.0)


@pytest.mark.gpu
def test_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    store = Store(CHARACTERS).to("cuda")
    batches = [draw(store, 24, torch.Generator("cuda").manual_seed(0), 300, EVERYTHING) for _ in range(2)]
    assert all(torch.equal(value, getattr(batches[1], name)) for name, value in vars(batches[0]).items())
    np.testing.assert_allclose(batches[0].weights.sum(dim=2).cpu(), 1, atol=1e-5)
    assert to_tokens(in_order(batches[0])).device.type == "cuda"
