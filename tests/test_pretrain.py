"""Pre-training: what the scripts draw, whether they learn, and that nothing is lost when they are stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch

from sprig.backend.checkpoint import load_checkpoint, read_provenance
from sprig.backend.errors import SprigError
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skeleton.tokens import EOS, FIRST_BIN, PAD, VOCABULARY
from sprig.backend.skinning.network import SkinningConfig, SkinningNetwork
from sprig.training import loop, pretrain_skeleton, pretrain_skinning
from sprig.training.augment import OFF, Store, draw, in_order, in_pieces, to_tokens
from sprig.training.rigbank import validation_rigs
from sprig.training.synthesize import creature

from .small_banks import write_bank

CPU = loop.Place(torch.device("cpu"), 0, 1, False)
TINY_SKELETON = SkeletonConfig(width=64, heads=2, seeds=48, neighbours=8, encoder_blocks=1, decoder_blocks=2)
TINY_SKINNING = SkinningConfig(width=32, blocks=2, dropout=0.0)


def options(**changes) -> Namespace:
    given = loop.arguments("", batch=4, rate=1e-3).parse_args(["unused"])
    assert all(hasattr(given, name) for name in changes), changes
    return Namespace(**(vars(given) | changes))


def drawn(kinds=("quadruped", "snake", "biped"), count=4, points=256):
    store = Store([creature(seed, kind) for seed, kind in enumerate(kinds)], heat=True)
    return draw(store, count, torch.Generator().manual_seed(0), points, OFF)


# ---- what is learned from


def test_the_validation_list_is_never_drawn_from(tmp_path):
    never = sorted(validation_rigs())[0]
    made = [
        replace(creature(0, "quadruped"), name="quat_horse", rig_id="aaaa0000"),
        replace(creature(1, "quadruped"), name="quat_wolf", rig_id=never),
        replace(creature(2, "vehicle"), name="cart", rig_id="bbbb0000", category="machine"),
        replace(creature(3, "quadruped"), name="0ad_bear", rig_id="cccc0000", licence="CC-BY-SA-3.0"),
        replace(creature(4, "biped"), name="quat_knight", rig_id="dddd0000", licence="CC-BY-SA-3.0"),
    ]
    write_bank(tmp_path, *made)
    source = loop.Source(options(bank=[tmp_path], synthetic=0.25), CPU)
    assert source.counts == {"people": 1, "animals": 2, "machines": 1, "synthetic": loop.SYNTHETIC}
    assert [store.names for store in source.held_out] == [["quat_wolf"]]
    assert all(never not in store.rig_ids for _, store in source.parts)
    assert [share for share, _ in source.parts] == pytest.approx(
        [0.75 * 0.85 * 0.4, 0.75 * 0.85 * 0.6, 0.75 * 0.15, 0.25]
    )
    free = loop.Source(options(bank=[tmp_path], synthetic=0.0, licence="CC0"), CPU)
    assert free.counts == {"people": 0, "animals": 1, "machines": 1, "synthetic": 0}
    assert [share for share, _ in free.parts] == pytest.approx([0.85 * 0.6 / 0.66, 0.15 / 0.66])


def test_a_run_needs_something_to_learn_from():
    with pytest.raises(SprigError, match="nothing to learn from"):
        loop.Source(options(synthetic=0.0), CPU)


def test_shares_are_kept_over_many_small_batches():
    """Shares of a half, a third and a sixth in batches of 2: what a batch cannot hold is owed to the next ones."""
    source = object.__new__(loop.Source)
    stores = [Store([creature(0, kind)]) for kind in ("snake", "biped", "fish")]
    source.parts = list(zip((1 / 2, 1 / 3, 1 / 6), stores, strict=True))
    source.augment = OFF
    source.debts, source.generator = [0.0] * 3, torch.Generator().manual_seed(0)
    most = [int(store.joint_count) for store in stores]
    counts = dict.fromkeys(most, 0)
    assert len(counts) == 3
    for _ in range(30):
        batches = source.draw(2, 4)
        assert sum(len(batch.joints) for batch in batches) == 2
        for batch in batches:
            counts[batch.joints.shape[1]] += len(batch.joints)
    assert sum(counts.values()) == 60
    again = object.__new__(loop.Source)
    again.parts, again.augment, again.generator = source.parts, OFF, torch.Generator()
    again.restore(source.state())
    expected, found = source.draw(2, 4), again.draw(2, 4)
    assert all(torch.equal(a.points, b.points) for a, b in zip(expected, found, strict=True))


def test_pieces_hold_the_same_characters_with_less_padding():
    batches = [drawn(("quadruped", "snake"), 3), drawn(("biped", "fish"), 4)]
    pieces = in_pieces(batches, 3)
    assert [len(piece.joints) for piece in pieces] == [3, 3, 1]
    counts = [piece.valid.sum(1) for piece in pieces]
    assert (torch.cat(counts).diff() >= 0).all()
    assert all(piece.valid.shape[1] == count.max() for piece, count in zip(pieces, counts, strict=True))
    before = sorted(float(one.points.sum()) for batch in batches for one in rows(batch))
    after = sorted(float(one.points.sum()) for piece in pieces for one in rows(piece))
    assert before == after
    for piece in pieces:
        assert torch.allclose(piece.weights.sum(2), torch.ones(piece.weights.shape[:2]))
        assert (piece.parents[~piece.valid] == -1).all() and (piece.joints[~piece.valid] == 0).all()


def rows(batch):
    for row in range(len(batch.joints)):
        yield replace(batch, **{name: value[row : row + 1] for name, value in vars(batch).items()})


# ---- the losses


@torch.no_grad()
def test_votes_of_the_truth_cost_nothing_and_others_do():
    """A network whose votes are put where they should be has no vote loss; moved by a unit each, they lose that."""
    torch.manual_seed(0)
    network, batch = SkeletonNetwork(TINY_SKELETON), in_order(drawn())
    condition = network.condition(batch.points)
    weights = batch.weights.gather(1, condition.seeds[..., None].expand(-1, -1, batch.weights.shape[2]))
    truth = condition.votes.detach().clone()
    for b in range(len(truth)):
        for s in range(truth.shape[1]):
            own = int(weights[b, s].argmax())
            truth[b, s, 0] = batch.joints[b, own]
            children = [j for j in range(batch.valid[b].sum()) if batch.parents[b, j] == own]
            if children:
                place = batch.points[b, condition.seeds[b, s], :3]
                truth[b, s, 1] = min((batch.joints[b, j] for j in children), key=lambda p: float((p - place).norm()))
    for shift, expected in ((0.0, 0.0), (0.1, 3 * (0.1 - pretrain_skeleton.CLOSE / 2))):
        given = replace(condition, votes=truth + shift)
        network.condition = lambda points, given=given: given
        total, count = pretrain_skeleton.losses(network, batch)["vote"]
        assert float(total / count) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_padding_changes_no_loss_of_the_skeleton():
    torch.manual_seed(0)
    network, batch = SkeletonNetwork(TINY_SKELETON).eval(), in_order(drawn(("snake", "biped"), 4))
    whole = pretrain_skeleton.losses(network, batch, corrupt=False)
    parts = [pretrain_skeleton.losses(network, piece, corrupt=False) for piece in in_pieces([batch], 1)]
    for name, (total, count) in whole.items():
        assert float(total) == pytest.approx(sum(float(part[name][0]) for part in parts), rel=1e-4), name
        assert int(count) == sum(int(part[name][1]) for part in parts), name


def test_validation_gives_the_losses_of_what_was_held_out_as_well():
    """The mean over characters, of skeletons that nothing was hidden of: nothing is drawn, so it is the same twice."""
    torch.manual_seed(0)
    network = SkeletonNetwork(replace(TINY_SKELETON, most_joints=101)).eval()
    held_out = [Store([creature(seed, "snake")]) for seed in (1, 2)]
    found = pretrain_skeleton.validate(network, held_out, 64)
    assert found == pretrain_skeleton.validate(network, held_out, 64)
    tokens = []
    for store in held_out:
        batch = in_order(draw(store, 1, torch.Generator().manual_seed(0), 64, replace(OFF, clip=1.0)))
        with torch.no_grad():
            total, count = pretrain_skeleton.losses(network, batch, corrupt=False)["token"]
        tokens.append(float(total / count))
    assert found["held_out_token"] == pytest.approx(np.mean(tokens))
    assert found["cd_j2j"] > 0 and found.keys() >= {"topology_f1", "held_out_vote", "held_out_parent"}


def test_what_the_decoder_looks_back_at_is_moved_and_hidden():
    torch.manual_seed(0)
    ids = to_tokens(in_order(drawn(("quadruped", "biped"), 400, 8)))
    seen = pretrain_skeleton.corrupted(ids)
    place = torch.arange(ids.shape[1])
    real = (ids >= FIRST_BIN) & (place > 0)
    coordinate = real & (place % 4 > 0)
    assert (seen[~coordinate] == ids[~coordinate]).all()  # BOS, parents, EOS and PAD stay
    hidden = (seen == PAD) & coordinate
    assert hidden.float().sum() / coordinate.sum() == pytest.approx(0.25, abs=0.05)
    assert ((hidden.sum(1) == 0).float().mean() - 0.5).abs() < 0.1
    whole = hidden[:, 1:-1].unflatten(1, (-1, 4))[:, :, :3]
    assert (whole.all(2) == whole.any(2)).all()  # x, y and z of a joint together
    moved = (seen - ids)[coordinate & ~hidden]
    assert moved.abs().max() <= 5 * pretrain_skeleton.JITTER and 0.8 < moved.float().std() < 2.2
    assert seen[coordinate & ~hidden].min() >= FIRST_BIN and seen.max() < VOCABULARY


def test_coordinates_are_spread_over_the_bins_around_them():
    ids = torch.tensor([[FIRST_BIN + 60, FIRST_BIN, FIRST_BIN + 127, FIRST_BIN + 2, EOS, PAD]])
    wanted = pretrain_skeleton._targets(ids)[0]
    torch.testing.assert_close(wanted.sum(1), torch.ones(6))
    assert (wanted[:, :FIRST_BIN].sum(1) == torch.tensor([0, 0, 0, 0, 1, 1])).all()
    assert wanted[3, FIRST_BIN + 2] == wanted[4, EOS] == wanted[5, PAD] == 1  # a parent, an end and padding are exact
    bins = torch.arange(128.0)
    mean = wanted[0, FIRST_BIN:] @ bins
    assert mean == pytest.approx(60) and wanted[0, FIRST_BIN + 60] == wanted[0].max()
    spread = ((wanted[0, FIRST_BIN:] @ (bins - mean).square()) ** 0.5).item()
    assert spread == pytest.approx(pretrain_skeleton.SPREAD, rel=0.01)


@pytest.mark.parametrize(
    ("make", "losses", "name"),
    [
        (lambda: SkeletonNetwork(TINY_SKELETON), pretrain_skeleton, "token"),
        (lambda: SkinningNetwork(TINY_SKINNING), pretrain_skinning, "l1"),
    ],
)
def test_a_network_learns_one_character_by_heart(make, losses, name):
    torch.manual_seed(0)
    network, batch = make().train(), in_order(drawn(("quadruped",), 2))
    optimisers = loop.make_optimisers(network, 3e-3)
    told = []
    for _ in range(60):
        figures = loop.add_gradients([batch], 2, CPU, lambda piece: losses.losses(network, piece), losses.WEIGHTS)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        told.append(float(figures[name][0] / figures[name][1]))
    assert told[-1] < 0.5 * told[0]


def test_a_step_in_pieces_has_the_gradient_of_the_whole():
    torch.manual_seed(0)
    network = SkinningNetwork(TINY_SKINNING)
    batch = drawn(("snake", "biped"), 4)

    def losses(piece):  # without the jitter of the joints, which is drawn
        found = network(piece.points, piece.joints, piece.parents, piece.valid, piece.heat)
        return {"l1": ((found - piece.weights).abs().sum(), found.shape[0] * found.shape[1])}

    gradients = []
    for size in (4, 1):
        loop.add_gradients(in_pieces([batch], size), 4, CPU, losses, {"l1": 2.0})
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        network.zero_grad()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
    assert gradients[0].abs().max() > 1e-3


# ---- the loop


def test_the_learning_rate_warms_up_and_ends_at_zero():
    assert loop.learning_rate(1.0, 0, 10, 0.0) == pytest.approx(0.1)
    assert loop.learning_rate(1.0, 9, 10, 0.0) == 1.0
    assert loop.learning_rate(2.0, 100, 10, 0.5) == pytest.approx(1.0)
    assert loop.learning_rate(2.0, 100, 10, 0.25) == pytest.approx(1 + math.sqrt(0.5))
    assert loop.learning_rate(1.0, 100, 10, 1.0) == loop.learning_rate(1.0, 100, 10, 1.7) == 0.0


def test_the_average_follows_the_weights():
    network, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    average.weight.data.fill_(0.0)
    loop.follow(average, network, keep=0.9, step=0)  # at first a tenth of the average is kept
    assert average.weight.item() == pytest.approx(0.9)
    loop.follow(average, network, keep=0.5, step=1000)
    assert average.weight.item() == pytest.approx(0.95)


def test_every_parameter_has_one_optimiser():
    for network in (SkeletonNetwork(TINY_SKELETON), SkinningNetwork(TINY_SKINNING)):
        optimisers = loop.make_optimisers(network, 1e-3)
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        held = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(held) == sorted(map(id, network.parameters()))


def run(module, folder, *more, **settings):
    command = [sys.executable, "-m", f"sprig.training.{module}", str(folder), "--synthetic", "1", "--made", "16", *more]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)


@pytest.mark.parametrize("kind", [pytest.param("skeleton", marks=pytest.mark.slow), "skinning"])
def test_a_run_that_is_stopped_goes_on_where_it_was(kind, tmp_path):
    folder, small = tmp_path / "run", ("--batch", "2", "--points", "256", "--device", "cpu", "--threads", "1")
    with run(f"pretrain_{kind}", folder, *small, "--minutes", "60") as process:
        while "parameters" not in (line := process.stdout.readline()):
            assert line, "the run ended by itself"
        time.sleep(4)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    first = torch.load(folder / loop.STATE, weights_only=True)
    assert first["done"]["steps"] > 0 and first["done"]["worked"] > 0
    assert load_checkpoint(folder / f"{kind}.safetensors", kind).kind == kind
    assert read_provenance(folder / f"{kind}.safetensors")["characters drawn"] == first["done"]["drawn"]

    with run(f"pretrain_{kind}", folder, *small) as refused:
        assert "already; go on with --resume" in refused.communicate(timeout=60)[0]
    assert refused.returncode == 1

    minutes = first["done"]["worked"] / 60 + 0.03
    with run(f"pretrain_{kind}", folder, *small, "--resume", "--minutes", str(minutes)) as resumed:
        said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    last = torch.load(folder / loop.STATE, weights_only=True)
    assert last["done"]["steps"] > first["done"]["steps"]
    assert last["done"]["worked"] >= 60 * minutes
    entries = [json.loads(entry) for entry in (folder / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["drawn"] == last["done"]["drawn"]


@pytest.mark.slow
def test_two_processes_learn_one_network(tmp_path):
    """torchrun: both add their gradients, and the first one writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["sprig.training.pretrain_skinning", str(tmp_path / "run"), "--synthetic", "1", "--made", "16"]
    command += ["--batch", "1", "--points", "128", "--device", "cpu", "--threads", "1", "--minutes", "0.03"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "run" / loop.STATE, weights_only=True)
    assert state["done"]["drawn"] == 2 * state["done"]["steps"] > 0


def test_there_is_no_run_to_resume(tmp_path):
    with pytest.raises(SprigError, match="no run to resume"):
        loop.load_state(tmp_path / loop.STATE, "cpu")


def test_curves_show_every_figure(tmp_path):
    pytest.importorskip("matplotlib")
    for minute in range(3):
        loop.log(tmp_path, minutes=float(minute), step=minute, token=3.0 - minute, cd_j2j=0.1)
    loop.plot_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert np.isclose(json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])["token"], 2.0)


def test_dropout_is_asked_for_and_off_in_what_is_used(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(pretrain_skeleton.loop, "settle", lambda options: CPU)
    monkeypatch.setattr(pretrain_skeleton.loop, "Source", lambda options, place: None)
    monkeypatch.setattr(
        pretrain_skeleton.loop, "train", lambda options, place, source, network, *_: made.append(network)
    )
    for given in ([], ["--dropout", "0.25"]):
        pretrain_skeleton.main([str(tmp_path), *given])
    assert [network.config.dropout for network in made] == [0.0, 0.25]
    assert {layer.p for layer in made[1].modules() if isinstance(layer, torch.nn.Dropout)} == {0.25}
