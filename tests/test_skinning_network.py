"""The skinning network: what must not matter, and that it can learn."""

import copy

import numpy as np
import pytest
import torch

from sprig.backend.points import UnitCube, sample_surface
from sprig.backend.skinning.heat import heat_features
from sprig.backend.skinning.network import LEAST_HEAT, SkinningConfig, SkinningNetwork, pair_geometry

from .creatures import chain

SMALL = SkinningConfig(width=32, blocks=2, support=256, dropout=0.0)


def random_tree(joints, generator, roots=1) -> torch.Tensor:
    """Parents (J,) of a random tree, shuffled so that parents do not come first."""
    parents = torch.tensor([-1 if j < roots else int(torch.randint(j, (), generator=generator)) for j in range(joints)])
    order = torch.randperm(joints, generator=generator)
    return relabel(parents[None], order)[0]


def relabel(parents, order) -> torch.Tensor:
    """Parents (B,J) after the joints are put in the order `order` (J,)."""
    place = order.argsort()
    return torch.where(parents < 0, -1, place[parents.clamp_min(0)])[:, order]


def random_body(batch=2, points=200, joints=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    position = torch.rand(batch, points, 3, generator=generator) - 0.5
    normal = torch.nn.functional.normalize(torch.randn(batch, points, 3, generator=generator), dim=-1)
    parents = torch.stack([random_tree(joints, generator) for _ in range(batch)])
    places = torch.rand(batch, joints, 3, generator=generator) - 0.5
    heat = torch.rand(batch, points, joints, 2, generator=generator)
    valid = torch.ones(batch, joints, dtype=torch.bool)
    return torch.cat([position, normal], dim=-1), places, parents, valid, heat / heat.sum(2, keepdim=True)


@pytest.fixture(scope="module")
def network() -> SkinningNetwork:
    """Random parameters throughout; the last layer, which starts at zero, too."""
    torch.manual_seed(0)
    network = SkinningNetwork(SMALL).eval()
    torch.nn.init.normal_(network.logit.weight, std=0.3)
    return network


# ---- geometry


def test_pair_geometry_by_hand():
    """A joint at the origin with children along X and Y; points beside the first bone and beyond its end."""
    joints = torch.tensor([[[0.0, 0, 0], [0.4, 0, 0], [0, 0.2, 0]]])
    up = torch.tensor([[0, 0, 0]])  # the root's parent is itself
    points = torch.tensor([[[0.1, 0, 0.3, 0, 0, 1], [0.5, 0, 0, -1, 0, 0]]])
    pairs = pair_geometry(points, joints, up, torch.ones(1, 3, dtype=torch.bool))[0]
    joint, child, bone = pairs[..., :3].unbind(-1)
    child_where, where, child_side, side, nearer = pairs[..., 6:].unbind(-1)
    far = 0.1**0.5
    torch.testing.assert_close(joint, torch.tensor([[far, 0.18**0.5, 0.14**0.5], [0.5, 0.1, 0.29**0.5]]))
    torch.testing.assert_close(bone, torch.tensor([[far, 0.3, far], [0.5, 0.1, 0.5]]))
    # the leaves' own bones reach from 0.4 to 0.6 along X and from 0.2 to 0.3 along Y
    torch.testing.assert_close(child, torch.tensor([[0.3, 0.18**0.5, 0.14**0.5], [0.1, 0.0, 0.29**0.5]]))
    torch.testing.assert_close(where, torch.tensor([[0, 0.25, 0], [0, 1.25, 0]]))
    torch.testing.assert_close(child_where[:, 0], torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(side[:, 1], torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(child_side[:, 0], torch.tensor([1.0, -1.0]))
    assert nearer[0, 0] == 0 and (nearer[0, 1:] < 0).all() and nearer[1, 1] == 0 and (nearer[1, ::2] < 0).all()


def test_pair_geometry_moves_with_the_body():
    points, joints, parents, valid, _ = random_body()
    up = torch.where(parents < 0, torch.arange(parents.shape[1]), parents)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    moved = torch.cat([points[..., :3] @ turn + 0.1, points[..., 3:] @ turn], dim=-1)
    pairs, again = pair_geometry(points, joints, up, valid), pair_geometry(moved, joints @ turn + 0.1, up, valid)
    torch.testing.assert_close(again, pairs, atol=1e-4, rtol=1e-4)


# ---- what must not matter


def test_weights_lie_on_the_simplex(network):
    points, joints, parents, valid, heat = random_body()
    valid[1, 4:] = False
    parents = torch.where(valid & (parents < 4), parents, -1)
    with torch.no_grad():
        weights = network(points, joints, parents, valid, heat)
    assert weights.shape == (2, 200, 9) and weights.dtype == torch.float32
    assert (weights >= 0).all() and (weights[1, :, 4:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 200))


def test_order_of_the_joints_does_not_matter(network):
    points, joints, parents, valid, heat = random_body()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    weights = network.predict(points, joints, parents, valid, heat)
    shuffled = network.predict(points, joints[:, order], relabel(parents, order), valid, heat[:, :, order])
    torch.testing.assert_close(shuffled, weights[..., order], atol=1e-5, rtol=0)
    assert (weights - weights[..., order]).abs().max() > 1e-3


def test_order_of_the_points_does_not_matter(network):
    points, joints, parents, valid, heat = random_body()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    weights = network.predict(points, joints, parents, valid, heat)
    shuffled = network.predict(points[:, order], joints, parents, valid, heat[:, order])
    torch.testing.assert_close(shuffled, weights[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rubbish", [0.0, 0.3, float("nan")])
def test_padding_does_not_matter(network, rubbish):
    points, joints, parents, valid, heat = random_body()
    padded = network.predict(
        points,
        torch.cat([joints, torch.full((2, 5, 3), rubbish)], dim=1),
        torch.cat([parents, torch.full((2, 5), -1)], dim=1),
        torch.cat([valid, torch.zeros(2, 5, dtype=torch.bool)], dim=1),
        torch.cat([heat, torch.zeros(2, 200, 5, 2)], dim=2),
    )
    expected = network.predict(points, joints, parents, valid, heat)
    torch.testing.assert_close(padded[..., :9], expected, atol=1e-5, rtol=0)
    assert (padded[..., 9:] == 0).all()


@pytest.mark.parametrize("points", [200, 1000])  # within the support and beyond it
def test_chunks_equal_the_whole(network, points):
    body = random_body(points=points)
    with torch.no_grad():
        whole = network(*body)
    torch.testing.assert_close(network.predict(*body, chunk=33), whole, atol=1e-5, rtol=0)


def test_neighbours_in_slices_are_the_same(network, monkeypatch):
    body = random_body()
    whole = network.predict(*body)
    monkeypatch.setattr("sprig.backend.skinning.network.SEARCH", 4000)
    torch.testing.assert_close(network.predict(*body), whole, atol=1e-5, rtol=0)


def test_bodies_in_a_batch_do_not_mix(network):
    body = random_body()
    together = network.predict(*body)
    alone = torch.cat([network.predict(*(part[i : i + 1] for part in body)) for i in range(2)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_heat_matters(network):
    points, joints, parents, valid, heat = random_body()
    expected = network.predict(points, joints, parents, valid, heat)
    for k in range(2):  # the point's own, and that of its piece
        other = heat.clone()
        other[..., k] = other[..., k].roll(1, dims=2)
        assert (network.predict(points, joints, parents, valid, other) - expected).abs().max() > 1e-2


def test_an_untrained_network_gives_the_heat():
    points, joints, parents, valid, heat = random_body()
    weights = SkinningNetwork(SMALL).eval().predict(points, joints, parents, valid, heat)
    expected = heat[..., 0] + LEAST_HEAT
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("joint", "heard"), [(0, [0, 1, 2]), (5, [3, 4, 5])])
def test_messages_go_along_the_bones(network, joint, heard):
    """Two blocks take what is known at one joint of a chain two joints down, or up, and no farther."""
    points, joints, _, valid, heat = random_body(joints=6)
    body = network.encode(points, joints, torch.arange(-1, 5).expand(2, -1), valid)
    deaf = copy.deepcopy(network)
    x, same = torch.zeros(2, 200, 6, SMALL.width), torch.zeros(2, 200, 6, SMALL.width)
    x[:, :, joint] = torch.randn(SMALL.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in deaf.blocks:
            block.from_all.weight.zero_()  # what every joint hears of all
            x, same = (block(values, body, heat[..., 0]) for values in (x, same))
    assert torch.nonzero((x - same).abs().amax(dim=(0, 1, 3)) > 1e-5)[:, 0].tolist() == heard


def test_one_joint_and_few_points(network):
    weights = network.predict(*random_body(points=3, joints=1))
    torch.testing.assert_close(weights, torch.ones(2, 3, 1))


@pytest.mark.parametrize("coincident", [False, True])
def test_every_parameter_gets_a_finite_gradient(coincident):
    """Also when all joints, and points on them, are in one place."""
    torch.manual_seed(0)
    network = SkinningNetwork(SMALL)
    torch.nn.init.normal_(network.logit.weight)
    points, joints, parents, valid, heat = random_body()
    if coincident:
        joints, points = joints * 0, points * torch.tensor([0.0, 0, 0, 1, 1, 1])
    valid[1, 6:] = False
    parents = torch.where(valid & (parents < 6), parents, -1)
    network(points, joints, parents, valid, heat).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not coincident:
            assert parameter.grad.abs().max() > 0, name


def test_size_of_the_default():
    parameters = sum(p.numel() for p in SkinningNetwork().parameters())
    assert 1e5 < parameters < 2e5


def test_half_precision_stays_close(network):
    """Mixed precision, as in training: weights come out in float32, their rows still sum to 1."""
    body = random_body()
    with torch.autocast("cpu", torch.bfloat16):
        weights = network.predict(*body)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 200))
    torch.testing.assert_close(weights, network.predict(*body), atol=0.02, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same(network):
    body = random_body()
    expected = network.predict(*body)
    found = network.to("cuda").predict(*(part.to("cuda") for part in body)).cpu()
    network.to("cpu")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


# ---- learning


def rig(bones, seed, count=256):
    """A tube that bends in `bones` places, as points, joints, parents and the true weights of the points."""
    sequence, joints, weights, _motion = chain(bones=bones, frames=2)
    vertices = sequence.vertices[0] + sequence.origin
    cube = UnitCube.of(vertices)
    sampled = sample_surface(vertices, sequence.faces, count, seed)
    points = sampled.at(cube.to_cube(vertices), sequence.faces)
    heat = heat_features(vertices, sequence.faces, joints, np.arange(bones) - 1)
    return points, cube.to_cube(joints), *(sampled.blend(values, sequence.faces) for values in (weights, heat))


def test_it_learns_two_rigs_by_heart():
    """And weights points of them that it has not seen."""
    torch.manual_seed(0)
    parents = torch.tensor([[-1, 0, 1, 2], [-1, 0, -1, -1]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])

    def batch(seed):
        points, joints = torch.zeros(2, 256, 6), torch.zeros(2, 4, 3)
        truth, heat = torch.zeros(2, 256, 4), torch.zeros(2, 256, 4, 2)
        for i, bones in enumerate((4, 2)):
            p, j, w, h = map(torch.as_tensor, rig(bones, seed))
            points[i], joints[i, :bones], truth[i, :, :bones], heat[i, :, :bones] = p, j, w, h
        return points, joints, truth, heat

    network = SkinningNetwork(SMALL)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=200)
    points, joints, truth, heat = batch(0)
    for _ in range(200):
        loss = (network(points, joints, parents, valid, heat) - truth).abs().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert (network.predict(points, joints, parents, valid, heat) - truth).abs().sum(-1).mean() < 0.02
    points, joints, truth, heat = batch(1)
    error = (network.predict(points, joints, parents, valid, heat) - truth).abs().sum(-1).mean()
    assert error < 0.1  # the largest possible is 2
