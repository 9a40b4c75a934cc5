"""Low-rank updates: the student starts as its teacher, only updates learn, and merging gives a network as before."""

import copy
import itertools

import pytest
import torch

from sprig.backend.checkpoint import load_checkpoint, save_checkpoint
from sprig.backend.errors import SprigError
from sprig.backend.finetune.clip import make_clip, skeleton_target, skinning_target
from sprig.backend.finetune.lora import LowRankLinear, merged, with_lora
from sprig.backend.finetune.train import FineTuneConfig, SkeletonStage, SkinningStage, begin, fine_tune, student_of
from sprig.backend.learned import Networks, load_networks, rig_shape
from sprig.backend.puppeteer.skinning import NON_COMMERCIAL
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skinning.network import SkinningConfig, SkinningNetwork

from .creatures import chain
from .small_puppeteer import small_puppeteer


def small(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "skinning":
        network = SkinningNetwork(SkinningConfig(width=24, blocks=1, support=256))
        torch.nn.init.normal_(network.logit.weight)  # at zero it hides what comes before
        return network.eval()
    config = SkeletonConfig(
        width=32, heads=2, seeds=32, neighbours=8, encoder_blocks=1, decoder_blocks=1, most_joints=12
    )
    return SkeletonNetwork(config).eval()


TEACHERS = {
    "skeleton": lambda seed=0: small("skeleton", seed),
    "skinning": lambda seed=0: small("skinning", seed),
    "puppeteer skeleton": lambda seed=0: small_puppeteer("skeleton", seed),
    "puppeteer skinning": lambda seed=0: small_puppeteer("skinning", seed),
}
every_network = pytest.mark.parametrize("name", TEACHERS)


def answer(network) -> torch.Tensor:
    """What a network says about a cloud of 64 points and three joints."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(1, 64, 6, generator=generator) - 0.5
    points[..., 3:] = torch.nn.functional.normalize(points[..., 3:], dim=-1)
    if network.kind == "skeleton":
        ids = torch.tensor([[0, 67, 67, 67, 3, 90, 40, 67, 4, 60, 61, 62, 5]])
        return network(network.condition(points), ids)
    seen = [points, torch.rand(1, 3, 3, generator=generator) - 0.5, torch.tensor([[-1, 0, 1]])]
    seen.append(torch.ones(1, 3, dtype=torch.bool))
    if isinstance(network, SkinningNetwork):
        seen.append(torch.rand(1, 64, 3, 2, generator=generator).softmax(2))
    return network(*seen)


def state_of(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def updates_of(network) -> dict[str, LowRankLinear]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LowRankLinear)}


def stirred(network):
    """The network with updates that do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in updates_of(network).values():
            layer.up.normal_(std=0.3, generator=generator)
    return network


@every_network
@pytest.mark.parametrize("rank", [1, 3, 1000])
def test_the_student_starts_as_its_teacher(name, rank):
    teacher = TEACHERS[name]()
    before = state_of(teacher)
    student = student_of(teacher, FineTuneConfig(lora=rank))
    with torch.no_grad():
        torch.testing.assert_close(answer(student), answer(teacher), atol=1e-5, rtol=1e-5)
        changed = answer(stirred(student))
        assert (changed - answer(teacher)).abs().max() > 1e-3
    assert_same(state_of(teacher), before)
    layers = updates_of(student)
    assert layers and not any(name.startswith(tuple(f"{part}." for part in teacher.encoder_parts)) for name in layers)
    for layer in layers.values():
        assert len(layer.down) == layer.up.shape[1] == min(rank, *layer.weight.shape)


@every_network
def test_only_updates_have_gradients(name):
    student = stirred(student_of(TEACHERS[name](), FineTuneConfig(lora=2)))
    answer(student).square().mean().backward()
    learned = {key for key, parameter in student.named_parameters() if parameter.grad is not None}
    assert learned == {key for key, parameter in student.named_parameters() if parameter.requires_grad}
    assert learned == {f"{layer}.{part}" for layer in updates_of(student) for part in ("down", "up")}
    assert all(student.get_parameter(key).grad.isfinite().all() for key in learned)
    moved = sum(student.get_parameter(key).grad.abs().max() > 0 for key in learned)
    assert moved > 0.7 * len(learned)  # what only shifts all logits alike has none


@every_network
def test_merged_is_the_same_network_in_the_original_class(name, tmp_path):
    teacher = TEACHERS[name]()
    student = stirred(with_lora(copy.deepcopy(teacher), 2))
    before = state_of(student)
    plain = merged(student)
    assert type(plain) is type(teacher) and not updates_of(plain)
    assert [*plain.state_dict()] == [*teacher.state_dict()]
    assert {type(module) for module in plain.modules()} == {type(module) for module in teacher.modules()}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    with torch.no_grad():
        expected, found = answer(student), answer(plain)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (found - answer(teacher)).abs().max() > 1e-3
    assert_same(state_of(student), before)
    for part in teacher.encoder_parts:
        assert_same(state_of(plain.get_submodule(part)), state_of(teacher.get_submodule(part)))
    save_checkpoint(tmp_path / "student.safetensors", plain.eval(), {})
    assert_same(state_of(load_checkpoint(tmp_path / "student.safetensors", teacher.kind)), state_of(plain))
    with pytest.raises(AssertionError, match="down"):  # what was not merged could not be read back
        save_checkpoint(tmp_path / "student.safetensors", student, {})


def test_the_update_by_hand():
    layer = torch.nn.Linear(2, 3, bias=False)
    update = LowRankLinear(layer, 1, torch.Generator())
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
        update.down[:], update.up[:] = torch.tensor([[2.0, 1]]), torch.tensor([[1.0], [0], [3]])
    assert update(torch.tensor([5.0, 7])).tolist() == [5 + 17, 7, 3 * 17]
    assert update.merged().weight.tolist() == [[3, 1], [0, 1], [6, 3]] and update.merged().bias is None


def test_the_seed_draws_the_updates_and_nothing_else():
    before = torch.get_rng_state()
    first, again, other = (student_of(small("skinning"), FineTuneConfig(lora=2, seed=seed)) for seed in (1, 1, 2))
    assert_same(state_of(first), state_of(again))
    assert not torch.equal(first.logit.down, other.logit.down)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with_lora(first, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_in_two_places_has_no_update():
    student = with_lora(small_puppeteer("skeleton"), 2)
    assert "cond_proj" in updates_of(student) and "transformer.lm_head" not in updates_of(student)
    plain = merged(stirred(student))
    assert plain.transformer.lm_head.weight is plain.transformer.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("lora", [0, 2])
@every_network
def test_what_is_frozen_is_in_memory_once(name, lora):
    teacher = TEACHERS[name]()
    state = begin(teacher, FineTuneConfig(lora=lora))
    theirs = {key: parameter.data_ptr() for key, parameter in teacher.named_parameters()}
    for network in (state.student, state.average):
        for key, parameter in network.named_parameters():
            frozen = lora or key.split(".")[0] in teacher.encoder_parts
            assert (parameter.data_ptr() == theirs.get(key)) == bool(frozen and key in theirs), key
            assert parameter is not teacher.state_dict(keep_vars=True).get(key)
    pointers = [{parameter.data_ptr() for parameter in network.parameters() if parameter.requires_grad}
                for network in (state.student, state.average, teacher)]  # fmt: skip
    assert all(not first & second for first, second in itertools.combinations(pointers, 2))
    state.student.half()  # gives the student other memory, not the teacher
    assert all(parameter.dtype == torch.float32 for parameter in teacher.parameters())


def test_a_rank_below_zero_is_refused():
    with pytest.raises(SprigError, match="rank"):
        FineTuneConfig(lora=-1)


# ---- the loop


@pytest.fixture(scope="module")
def clip():
    sequence, *_ = chain(3, 10)
    return make_clip(sequence, held_out=3)


@pytest.mark.parametrize("lora", [0, 4])
@every_network
def test_a_student_is_taught(name, lora, clip):
    teacher, other = TEACHERS[name](), TEACHERS[name](seed=1)
    released = frozenset({teacher.kind} if name.startswith("puppeteer") else ())
    networks = Networks(other, other, "cpu", {}, (), released)  # an untrained network agrees with itself too well
    config = FineTuneConfig(
        epochs=3, frames=3, lora=lora, skeleton_rate=1e-2, skinning_rate=1e-2, warm_up=2, many_views=True
    )
    if teacher.kind == "skeleton":
        stage = SkeletonStage([skeleton_target(clip, networks, greedy=True)], config, "cpu")
    else:
        joints, parents = [[-0.4, 0, 0], [-0.1, 0, 0], [0.2, 0, 0]], [-1, 0, 1]
        taught = skinning_target(clip, joints, parents, networks, target="anchor", points=128)
        stage = SkinningStage([taught], config, "cpu")
    before = state_of(teacher)
    flags = [parameter.requires_grad for parameter in teacher.parameters()]
    student, history = fine_tune(teacher, stage, config)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert type(student) is type(teacher) and student.config == teacher.config and not student.training
    assert [parameter.requires_grad for parameter in student.parameters()] == flags
    assert stage.validate(student)["loss"] == pytest.approx(min(row["loss"] for row in history), rel=1e-3)
    assert_same(state_of(teacher), before)
    assert {*state_of(student)} == {*before}
    changed = {key for key, tensor in state_of(student).items() if not torch.equal(tensor, before[key])}
    assert changed and not {key.split(".")[0] for key in changed} & {*teacher.encoder_parts}
    if lora:
        assert changed <= {f"{layer}.weight" for layer in updates_of(with_lora(copy.deepcopy(teacher), 1))}


# ---- students on disk


@pytest.mark.parametrize(
    "names",
    [("skeleton", "skinning"), ("puppeteer skeleton", "skinning"), ("puppeteer skeleton", "puppeteer skinning")],
)
def test_one_file_is_good_for_both_options(names, tmp_path):
    """What is Puppeteer's is known by the network and not by the file: its licence, and that it takes no heat."""
    file = tmp_path / "student.safetensors"
    students = [merged(stirred(with_lora(TEACHERS[name](), 2))).eval() for name in names]
    save_checkpoint(file, students, {"command": "made by a test"})
    networks = load_networks(file, file)
    released = {name.split()[1] for name in names if name.startswith("puppeteer")}
    assert networks.released == released
    assert networks.warnings == ((NON_COMMERCIAL,) if "skinning" in released else ())
    for found, student in zip((networks.skeleton, networks.skinning), students, strict=True):
        assert type(found) is type(student)
        assert_same(state_of(found), state_of(student))
    sequence, *_ = chain(3, 2)
    rig = rig_shape(sequence.vertices[0], sequence.faces, networks)
    assert len(rig.joints) and rig.weights.sum(1) == pytest.approx(1, abs=1e-5)
    assert set(networks.warnings) <= set(rig.warnings)
