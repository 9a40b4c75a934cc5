"""Fine-tuning on many sequences: what is read, what is learned, and that nothing is lost when it is stopped."""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from sprig.backend import learned
from sprig.backend.checkpoint import load_checkpoint, read_provenance
from sprig.backend.errors import Cancelled, SprigError
from sprig.backend.finetune import clip as clips
from sprig.backend.finetune import train
from sprig.backend.finetune.bends import BEND_LEAF, bent_vertices, random_motion
from sprig.backend.finetune.clip import make_clip, skeleton_target, skinning_target
from sprig.backend.finetune.losses import LossConfig
from sprig.backend.finetune.train import FineTuneConfig, SkeletonStage, begin, fine_tune
from sprig.backend.learned import Networks, load_networks
from sprig.backend.puppeteer.skeleton import PuppeteerSkeleton
from sprig.backend.puppeteer.skinning import PuppeteerSkinning
from sprig.training import finetune, loop
from sprig.training.rigbank import validation_rigs
from sprig.training.synthesize import creature

from .creatures import chain
from .small_banks import write_bank
from .small_files import tumbling_cube, write_folder, write_npz, write_obj, write_pc2
from .small_puppeteer import small_puppeteer

CPU = loop.Place(torch.device("cpu"), 0, 1, False)
REPLAY_FROM = Namespace(
    bank=[], synthetic=1.0, made=4, machines=0.0, people=0.0, augment=[], licence=None, seed=0, threads=1, device="cpu"
)


@pytest.fixture(scope="module")
def teachers(network_files):
    return load_networks(network_files["checkpoint_skeleton"], network_files["checkpoint_skinning"])


@pytest.fixture(scope="module")
def short():
    """A clip of six frames, one of them held out."""
    return make_clip(chain(frames=6, seed=1)[0], "short", held_out=4)


@pytest.fixture(autouse=True)
def the_same_numbers(monkeypatch):
    """Full precision (what a busy machine finds to be faster may change), less work, and pytest's own Ctrl-C."""
    monkeypatch.setattr(train, "half_pays", lambda: False)
    monkeypatch.setattr(loop, "half_pays", lambda: False)
    monkeypatch.setattr(learned, "SKINNING_POINTS", 512)
    monkeypatch.setattr(train, "DECODED", 2)
    monkeypatch.setattr(train, "WEIGHED", 64)
    monkeypatch.setattr(finetune, "MADE", 4)
    monkeypatch.setattr(finetune, "REPLAYED", 2)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(*networks):
    return [value.clone() for network in networks for value in network.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- clips


def test_a_clip_keeps_its_anchor_and_never_holds_it_out():
    sequence = chain(frames=20)[0]
    for anchor in (0, 7, 19):
        clip = make_clip(sequence, anchor=anchor, most_frames=6, held_out=2)
        assert len(clip.frames) == 6 and (np.diff(clip.frames) > 0).all()
        assert clip.frames[clip.anchor] == anchor and not clip.held_out[clip.anchor] and clip.held_out.any()
        side = np.ptp(clip.vertices[clip.anchor], axis=0).max()
        assert side == pytest.approx(1, abs=1e-5)
    with pytest.raises(SprigError, match="no frame 20 among 20"):
        make_clip(sequence, anchor=20)


def test_two_frames_are_enough(teachers):
    clip = make_clip(chain(frames=2)[0])
    assert not clip.held_out.any()
    tuned = finetune.train_student([clip], teachers, FineTuneConfig(epochs=1), ("skeleton",))
    (_teacher, epoch) = tuned.history["skeleton"]
    assert np.isnan(epoch["loss"]) and np.isfinite(epoch["pjdd"])
    assert not same(weights(tuned.networks.skeleton), weights(teachers.skeleton))  # the last epoch is kept


@pytest.mark.parametrize("degenerate", ["one joint", "one place"])
def test_a_teacher_without_bones_is_refused(teachers, short, degenerate, monkeypatch):
    joints = 1 if degenerate == "one joint" else 3
    found = Namespace(joints=np.zeros((joints, 3)), parents=np.arange(joints) - 1)
    monkeypatch.setattr(clips, "find_skeleton", lambda *_, **__: found)
    with pytest.raises(SprigError, match="finds no bones"):
        skeleton_target(short, teachers)


def test_bones_instead_of_joints_are_refused(short):
    bones = small_puppeteer("skeleton", tokens_per_slot=6, slots=4)
    with pytest.raises(SprigError, match="writes bones"):
        skeleton_target(short, Networks(bones, None, "cpu", {}, (), frozenset({"skeleton"})))


def test_some_points_have_the_weights_that_all_have(teachers, short):
    joints, parents = np.array([[-0.4, 0, 0], [0, 0, 0], [0.4, 0, 0]]), np.array([-1, 0, 1])
    target = skinning_target(short, joints, parents, teachers, points=96)
    with torch.no_grad():
        every = clips.frame_weights(teachers.skinning, target, [0, 2], "cpu")
        some = clips.frame_weights(teachers.skinning, target, [0, 2], "cpu", torch.tensor([5, 90]))
    torch.testing.assert_close(some, every[:, [5, 90]])
    assert target.weights.shape == (96, 3) and target.heat.shape == (6, 96, 3, 2)


def test_what_the_skin_is_taught(teachers):
    """The teacher's mean over the frames that are learned from, and some of what the motion itself tells."""
    clip = make_clip(chain(frames=8, seed=1)[0], held_out=4)
    held_out = int(np.flatnonzero(clip.held_out)[0])
    rings = len(clip.vertices[0]) // 3

    def taught(clip, **options):
        joints = clip.vertices[clip.anchor][[0, rings, 2 * rings]]
        return skinning_target(clip, joints, np.arange(3) - 1, teachers, points=96, **options)

    papers, ours = taught(clip, target="anchor"), taught(clip)
    with torch.no_grad():
        every = clips.frame_weights(teachers.skinning, papers, range(len(clip.frames)), "cpu")
    torch.testing.assert_close(papers.weights, every[clip.anchor])
    torch.testing.assert_close(ours.weights.sum(1), torch.ones(96))
    rest = ours.weights - (1 - clips.MOTION_SHARE) * every[~clip.held_out].mean(0)
    assert rest.min() > -1e-6  # the motion's part
    torch.testing.assert_close(rest.sum(1), torch.full((96,), clips.MOTION_SHARE))
    moved = clip.vertices.copy()
    moved[held_out] = moved[held_out][::-1]
    torch.testing.assert_close(taught(replace(clip, vertices=moved)).weights, ours.weights)  # nothing is learned there


# ---- the loop


@pytest.fixture(scope="module")
def skeleton_stage(teachers, short):
    return SkeletonStage([skeleton_target(short, teachers)], FineTuneConfig(frames=2, bends=0), "cpu")


def test_without_the_token_loss_geometry_is_left(teachers, skeleton_stage):
    target = skeleton_stage.targets[0]
    whole, terms = skeleton_stage.loss(teachers.skeleton, target, [target.clip.anchor, 1], 0)
    alone = SkeletonStage([target], FineTuneConfig(bends=0, losses=LossConfig(token=0.0)), "cpu")
    geometry, _ = alone.loss(teachers.skeleton, target, [target.clip.anchor, 1], 0)
    expected = terms["direction"] + terms["length"] + terms["endpoint"]  # their weights are 1
    torch.testing.assert_close(geometry, expected)
    assert whole > geometry


def test_bends_are_part_of_what_is_learned_and_follow_from_the_seed(teachers, skeleton_stage):
    target, frames = skeleton_stage.targets[0], [skeleton_stage.targets[0].clip.anchor]
    stage = SkeletonStage([target], FineTuneConfig(bends=3), "cpu")

    def token(stage, seed):
        return float(stage.loss(teachers.skeleton, target, frames, seed)[1]["cross"].detach())

    assert token(skeleton_stage, 1) == 0  # the anchor alone agrees with itself
    assert token(stage, 1) == token(stage, 1) > 0
    assert token(stage, 1) != token(stage, 2)


@pytest.mark.parametrize("kept", [False, True])
def test_a_student_is_decoded_in_many_views_where_replay_shows_them(teachers, short, kept):
    config = FineTuneConfig(epochs=1, many_views=kept, least_steps=1)
    tuned = finetune.train_student([short], teachers, config, ("skeleton",))
    assert tuned.networks.skeleton.config.many_views is kept and teachers.skeleton.config.many_views


def test_every_frame_is_seen_once_and_all_processes_take_as_many_steps(skeleton_stage):
    clip = skeleton_stage.targets[0].clip
    stage = Namespace(kind="skeleton", targets=skeleton_stage.targets * 3)
    config = FineTuneConfig(frames=2, skinning_frames=1, least_steps=1)
    assert len(train._epoch(Namespace(kind="skinning", targets=stage.targets), config, 0, (0, 1))) == 12
    steps = train._epoch(stage, config, 0, (0, 1))
    assert len(steps) == 6 and all(frames[0] == clip.anchor for _, frames in steps)
    seen = sorted(frame for _, frames in steps for frame in frames[1:])
    learned = [frame for frame in range(6) if frame != clip.anchor and not clip.held_out[frame]]
    assert seen == sorted(3 * learned)
    for processes in (2, 4, 7):
        parts = [train._epoch(stage, config, 0, (which, processes)) for which in range(processes)]
        assert len({len(part) for part in parts}) == 1
        taken = {id(frames) for part in parts for _, frames in part}
        assert len(taken) >= 6 and len(parts[0]) * processes < 6 + processes
    often = train._epoch(stage, replace(config, least_steps=7), 0, (0, 1))
    assert len(often) == 12
    assert sorted(frame for _, frames in often for frame in frames[1:]) == sorted(6 * learned)


def test_a_tiny_clip_is_learned_by_heart(teachers, short):
    before = weights(teachers.skeleton, teachers.skinning)
    config = FineTuneConfig(
        epochs=9, frames=1, bends=0, least_steps=1, skeleton_rate=1e-2, skinning_rate=1e-2, patience=9
    )
    tuned = finetune.train_student([short], teachers, config)
    assert same(before, weights(teachers.skeleton, teachers.skinning)), "the teacher has changed"
    skeleton, skinning = (tuned.history[kind] for kind in ("skeleton", "skinning"))
    assert min(epoch["loss"] for epoch in skeleton) < 0.5 * skeleton[0]["loss"]
    assert min(epoch["pjdd"] for epoch in skeleton) < 0.5 * skeleton[0]["pjdd"]
    assert skinning[-1]["skin_error"] < skinning[0]["skin_error"]
    for kind in ("skeleton", "skinning"):
        teacher, student = getattr(teachers, kind), getattr(tuned.networks, kind)
        changed = {n for n, value in student.state_dict().items() if not torch.equal(value, teacher.state_dict()[n])}
        assert changed and not {name.split(".")[0] for name in changed} & set(teacher.encoder_parts)
        assert tuned.networks.checkpoints[kind]["finetuned"]["epochs"] == 9


def test_a_run_that_stops_in_the_middle_of_an_epoch_goes_on_there(teachers, skeleton_stage):
    config = FineTuneConfig(epochs=2, frames=2, least_steps=1, patience=9)

    def run(most=None):
        state, calls = begin(teachers.skeleton, config), iter(range(10**6))

        def progress(_share, _text):
            if most is not None and next(calls) >= most:
                raise Cancelled

        try:
            return fine_tune(teachers.skeleton, skeleton_stage, config, state=state, progress=progress)
        except Cancelled:
            fresh = begin(teachers.skeleton, config)
            finetune.restore(fresh, finetune.pack(state))
            return fine_tune(teachers.skeleton, skeleton_stage, config, state=fresh)

    whole, history = run()
    steps = 2  # of an epoch; before them the teacher is validated: a look at the clip and three decoded frames
    for stopped in (0, 4 + 1, 4 + steps + 2):
        student, again = run(stopped)
        assert same(weights(whole), weights(student)) and history == again, stopped


def test_gradients_that_are_no_numbers_change_nothing(teachers, skeleton_stage):
    config = FineTuneConfig(epochs=1, frames=2)
    nothing = torch.tensor(torch.nan)

    def replay(student, _step):
        return nothing * student.head.bias.sum()

    student, _ = fine_tune(teachers.skeleton, skeleton_stage, config, replay=replay)
    assert same(weights(student), weights(teachers.skeleton))


@pytest.mark.parametrize("rank", [0, 2])
def test_networks_of_puppeteers_architecture_learn(rank, short):
    skeleton, skinning = small_puppeteer("skeleton"), small_puppeteer("skinning")
    large = Networks(skeleton, skinning, "cpu", {}, (), frozenset({"skeleton", "skinning"}))
    config = FineTuneConfig(epochs=2, frames=2, least_steps=1, warm_up=1, lora=rank)
    tuned = finetune.train_student([short], large, config)
    losses = [epoch["loss"] for epoch in tuned.history["skeleton"]]
    assert losses[-1] < losses[0]
    assert type(tuned.networks.skeleton) is PuppeteerSkeleton and type(tuned.networks.skinning) is PuppeteerSkinning
    assert not same(weights(tuned.networks.skinning), weights(skinning))


# ---- replay


def replay_of(teachers, times):
    return finetune.Replay(loop.Source(REPLAY_FROM, CPU), teachers.skeleton, CPU, times, seed=0)


def test_a_student_that_is_the_teacher_has_no_distance_and_others_do(teachers):
    replay, teacher = replay_of(teachers, 2.0), teachers.skeleton
    other = train.student_of(teacher, FineTuneConfig())
    assert float(replay(other, 2).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in train.trained(other).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    away = replay(other, 2)
    away.backward()
    away = float(away.detach())
    assert away > 1e-3
    assert all(parameter.grad is None for parameter in teacher.parameters())
    replay.times = 1.0
    assert float(replay(other, 2).detach()) == pytest.approx(away / 2, rel=1e-5)  # the same characters again
    assert float(replay(other, 4).detach()) != pytest.approx(away / 2, rel=1e-5)
    assert replay(other, 3) is None


def test_replay_keeps_the_student_near_the_teacher(teachers, short):
    config = FineTuneConfig(epochs=3, frames=2, least_steps=1, skeleton_rate=1e-2, warm_up=2)
    never_seen = replay_of(teachers, 1.0)
    never_seen.seed = 99
    away = []
    for share in (0, 20):
        made = replay_of(teachers, share) if share else None
        tuned = finetune.train_student([short], teachers, config, ("skeleton",), replay=made)
        with torch.no_grad():
            away.append(float(never_seen(tuned.networks.skeleton, 0)))
    assert away[1] < 0.7 * away[0], away


# ---- what is read


def test_folders_of_sequences(tmp_path):
    box = tumbling_cube(3)
    write_npz(tmp_path / "b.npz", box)
    write_folder(tmp_path / "frames", box)
    write_folder(tmp_path / "frames" / "more", box)  # belongs to the frames
    inner = tmp_path / "a character" / "walk"
    inner.mkdir(parents=True)
    write_pc2(inner / "walk.pc2", box)
    write_obj(inner / "walk.obj", box[0])
    write_obj(inner / "other.obj", box[0])
    for name in ("scene.FBX", ".hidden.npz", "README.md"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    write_npz(tmp_path / ".git" / "c.npz", box)
    expected = [inner / "walk.pc2", tmp_path / "b.npz", tmp_path / "frames", tmp_path / "scene.FBX"]
    assert finetune.find_sequences(tmp_path) == sorted(expected)
    assert finetune.find_sequences(tmp_path / "frames") == [tmp_path / "frames"]
    assert finetune.find_sequences(tmp_path / "no such") == [tmp_path / "no such"]
    given = Namespace(anchor="first", most_frames=2)
    clip = finetune.read_clip(inner / "walk.pc2", given)
    assert clip.anchor == 0 and clip.frames.tolist() == [0, 2]
    write_npz(tmp_path / "still.npz", np.repeat(box[:1], 4, axis=0) + np.arange(4)[:, None, None])
    with pytest.raises(SprigError, match="single pose"):
        finetune.read_clip(tmp_path / "still.npz", given)


def moving(seed, **changes):
    made = creature(seed, "snake")
    random = np.random.default_rng(seed)
    motion = np.tile(np.eye(4, dtype=np.float32), (5, len(made.joints), 1, 1))
    motion[:, :, :3, :3] += 0.05 * random.standard_normal((5, len(made.joints), 3, 3)).astype(np.float32)
    return replace(made, motion=motion, **changes)


def test_generated_creatures_as_sequences():
    clip = finetune.made_clip(7, Namespace(anchor="first", most_frames=5))
    made = creature(7)
    assert len(clip.frames) == 5 and clip.anchor == 0 and clip.has_poses
    motion = random_motion(made.joints, made.parents, 40, np.random.default_rng(0))
    np.testing.assert_array_equal(motion[:, 0], np.tile(np.eye(4), (40, 1, 1)))  # the root stays
    for joint, parent in enumerate(made.parents[1:], 1):
        place = np.append(made.joints[joint], 1)
        np.testing.assert_allclose(motion[:, joint] @ place, motion[:, parent] @ place, atol=1e-5)  # no joint comes off
        turn = np.swapaxes(motion[:, parent, :3, :3], 1, 2) @ motion[:, joint, :3, :3]
        angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)))
        assert angle.max() < BEND_LEAF + 0.1


def test_bent_vertices_are_the_character_bent_and_centred():
    made = creature(7)
    own = made.weights.argmax(axis=1)
    weights = np.eye(len(made.parents))[own]  # rigid parts
    bent = bent_vertices(made.vertices, weights, made.joints, made.parents, np.random.default_rng(3))
    assert bent.dtype == np.float32 and bent.shape == made.vertices.shape
    np.testing.assert_allclose(bent.min(axis=0) + bent.max(axis=0), 0, atol=1e-5)
    for joint in np.unique(own):
        before, after = made.vertices[own == joint], bent[own == joint]
        np.testing.assert_allclose(pdist(after), pdist(before), atol=1e-5)
    assert np.abs(pdist(bent[::7]) - pdist(made.vertices[::7])).max() > 0.01


def test_bank_characters_as_sequences(tmp_path):
    never = sorted(validation_rigs())[0]
    made = [moving(k, name=f"snake_{k}", rig_id="aaaa0000", licence="CC0-1.0") for k in range(3)]
    made += [
        moving(3, name="snake_3", rig_id="bbbb0000", licence="CC-BY-SA-3.0"),
        moving(4, name="snake_4", rig_id=never),
    ]
    made.append(replace(creature(5, "snake"), name="snake_5", rig_id="cccc0000"))  # without poses
    made.append(moving(6, name="crane", rig_id="dddd0000", category="machine", licence="none"))
    write_bank(tmp_path, *made)
    for seed in range(3):
        drawn = finetune.bank_characters([tmp_path], 10, None, seed)
        assert {one.rig_id for one in drawn[:2]} == {"aaaa0000", "bbbb0000"}
        assert drawn[2].name == "crane"
        assert sorted(one.name for one in drawn) == ["crane", "snake_0", "snake_1", "snake_2", "snake_3"]
    assert len(finetune.bank_characters([tmp_path], 2, None, 0)) == 2
    assert {one.rig_id for one in finetune.bank_characters([tmp_path], 9, "CC0", 0)} == {"aaaa0000"}
    clip = finetune.character_clip(drawn[0], Namespace(anchor="largest", most_frames=4))
    assert clip.frames.tolist() == [0, 1, 2, 3] and clip.name == drawn[0].name


# ---- runs


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Two chains, and what has to be passed over."""
    folder = tmp_path_factory.mktemp("sequences")
    for k in range(2):
        made = chain(bones=2 + k, frames=6, seed=k)[0]
        write_npz(folder / f"chain_{k}.npz", made.vertices + made.origin.astype(np.float32), made.faces)
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "scene.glb").touch()
    write_pc2(folder / "cache.pc2", tumbling_cube(3))
    return folder


def command(folder, sequences, network_files, *more):
    return [
        str(folder), str(sequences), "--skeleton", network_files["checkpoint_skeleton"], "--skinning",
        network_files["checkpoint_skinning"], "--epochs", "1", "--frames", "2", "--device", "cpu", *more,
    ]  # fmt: skip


def students(folder):
    return [load_checkpoint(folder / finetune.STUDENT, kind) for kind in ("skeleton", "skinning")]


def test_a_run_that_is_interrupted_and_goes_on_gives_the_same(sequences, network_files, tmp_path, monkeypatch, capsys):
    finetune.main(command(tmp_path / "whole", sequences, network_files))
    said = capsys.readouterr().out
    assert "left out broken: broken.npz is damaged" in said and "put the mesh it moves beside it as cache.obj" in said
    assert "only Blender reads them" in said and "scene.glb" in said and "on 2 sequences" in said
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "state.pt", "student.safetensors", "log.jsonl", "curves.png", "targets",
    }  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["epoch"]) for entry in entries] == [
        (kind, epoch) for kind in ("skeleton", "skinning") for epoch in range(2)
    ]
    assert entries[1]["skeleton replay"] > 0 and "skinning skin_error" in entries[-1]
    told = read_provenance(tmp_path / "whole" / finetune.STUDENT)
    assert told["sequences"] == ["chain_0", "chain_1"]
    assert told["networks"]["skinning"]["finetuned"]["epochs"] == 1

    calls = 0

    def ended(*given, progress, **more):
        def ask(share, text):
            nonlocal calls
            calls += 1
            if calls in (10, 28):  # steps of the first epochs
                os.kill(os.getpid(), signal.SIGINT if calls == 10 else signal.SIGTERM)
            progress(share, text)

        return fine_tune(*given, progress=ask, **more)

    monkeypatch.setattr(finetune, "fine_tune", ended)
    folder = tmp_path / "parts"
    finetune.main(command(folder, sequences, network_files))
    assert "stopped; go on with --resume" in capsys.readouterr().out
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / finetune.TARGET_FILES).iterdir()}
    with pytest.raises(SprigError, match="already; go on with --resume"):
        finetune.main(command(folder, sequences, network_files))
    with pytest.raises(SprigError, match="other sequences, teachers or settings"):
        finetune.main(command(folder, sequences, network_files, "--frames", "3", "--resume"))
    for _ in range(2):
        finetune.main(command(folder, sequences, network_files, "--resume"))
    assert calls > 28
    assert kept == {path.name: path.stat().st_mtime_ns for path in (folder / finetune.TARGET_FILES).iterdir()}
    assert same(weights(*students(folder)), weights(*students(tmp_path / "whole")))
    again = torch.load(folder / loop.STATE, weights_only=True)["states"]
    before = torch.load(tmp_path / "whole" / loop.STATE, weights_only=True)["states"]
    assert [again[kind]["history"] for kind in again] == [before[kind]["history"] for kind in before]


def test_a_run_needs_sequences(network_files, tmp_path, sequences, capsys):
    with pytest.raises(SprigError, match="nothing left to fine-tune on"):
        finetune.main(command(tmp_path / "run", sequences / "broken.npz", network_files))
    assert "left out broken" in capsys.readouterr().out
    with pytest.raises(SprigError, match="no run to resume"):
        finetune.main(command(tmp_path / "other", sequences, network_files, "--resume"))


@pytest.mark.slow
def test_two_processes_make_one_student(sequences, network_files, tmp_path):
    """torchrun: half of the sequences and half of the steps each, and the first one writes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    more = ("--stage", "skeleton", "--replay", "0", "--threads", "1")
    done = subprocess.run(
        [*launch, "sprig.training.finetune", *command(tmp_path / "run", sequences, network_files, *more)],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("left out broken") == 1
    state = torch.load(tmp_path / "run" / loop.STATE, weights_only=True)["states"]["skeleton"]
    assert state["epoch"] == 1 and state["step"] == 8  # sixteen in all
    assert sorted(path.stem for path in (tmp_path / "run" / finetune.TARGET_FILES).iterdir()) == [
        f"{k:05}" for k in range(4)
    ]
    skeleton, skinning = students(tmp_path / "run")
    teacher = load_checkpoint(network_files["checkpoint_skinning"], "skinning")
    assert same(weights(skinning.half()), weights(teacher.half()))
    assert not same(weights(skeleton), weights(load_checkpoint(network_files["checkpoint_skeleton"], "skeleton")))
