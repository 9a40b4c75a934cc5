"""Fine-tuning on one sequence, and students on disk. The networks are small and untrained, the clip is a short tube."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest

from sprig.backend.checkpoint import kinds_in, load_checkpoint, read_provenance
from sprig.backend.device import load_torch
from sprig.backend.errors import Cancelled, SprigError
from sprig.backend.finetune import students
from sprig.backend.finetune.clip import make_clip
from sprig.backend.finetune.per_sequence import STAGES, fine_tune_on, fine_tune_report, kept, summary
from sprig.backend.finetune.students import networks_for, sequence_fingerprint, student_name
from sprig.backend.finetune.train import FineTuneConfig
from sprig.backend.learned import load_networks
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.sequence import MeshSequence

from .creatures import chain

torch = load_torch()
QUICK = FineTuneConfig(epochs=1, least_steps=1)


@pytest.fixture(scope="module")
def networks(network_files):
    return load_networks(*network_files.values())


@pytest.fixture(scope="module")
def sequence():
    return chain(3, 4)[0]


@pytest.fixture(scope="module")
def clip(sequence):
    return make_clip(sequence, held_out=2)


@pytest.fixture(scope="module")
def tuned(networks, clip):
    """Both networks, fine-tuned at rates with which three epochs show."""
    return fine_tune_on(clip, networks, FineTuneConfig(epochs=3, warm_up=1, skeleton_rate=5e-3, skinning_rate=5e-3))


def weights(network):
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


# ---- what a student is


def test_students_differ_from_their_teachers_but_for_the_encoder(networks, network_files, tuned):
    for stage in STAGES:
        teacher, student = getattr(networks, stage), getattr(tuned.networks, stage)
        untouched = load_checkpoint(network_files[f"checkpoint_{stage}"], stage)
        assert same(weights(teacher), weights(untouched))
        assert all(parameter.requires_grad for parameter in teacher.parameters())
        assert type(student) is type(teacher) and not student.training
        changed = {
            name.split(".")[0] for name, tensor in weights(student).items() if not same_tensor(teacher, name, tensor)
        }
        assert changed and not changed & set(teacher.encoder_parts)
    assert networks.skeleton.config.many_views and not tuned.networks.skeleton.config.many_views


def same_tensor(network, name, tensor):
    return torch.equal(network.state_dict()[name], tensor)


def test_history_begins_with_the_teacher_and_falls(tuned):
    assert set(tuned.history) == set(STAGES)
    for stage, figure in (("skeleton", "pjdd"), ("skinning", "skin_error")):
        epochs = tuned.history[stage]
        assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2, 3]
        assert all(math.isfinite(epoch[figure]) for epoch in epochs)
        told = tuned.networks.checkpoints[stage]
        assert set(told) == {"file", "fingerprint", "finetuned"}
        assert told["finetuned"][f"{figure}_teacher"] == epochs[0][figure]
        assert told["finetuned"][f"{figure}_student"] == epochs[told["finetuned"]["kept_epoch"]][figure]
    assert tuned.history["skeleton"][-1]["loss"] < 0.95 * tuned.history["skeleton"][0]["loss"]
    assert tuned.history["skinning"][-1]["skin_error"] < tuned.history["skinning"][0]["skin_error"]


def test_the_skeleton_alone_needs_no_other_network(networks, clip):
    alone = replace(networks, skinning=None, checkpoints={"skeleton": networks.checkpoints["skeleton"]})
    found = fine_tune_on(clip, alone, QUICK, ("skeleton",))
    assert found.networks.skinning is None and set(found.history) == {"skeleton"}
    assert not same(weights(found.networks.skeleton), weights(networks.skeleton))


def test_the_skinning_network_learns_with_the_teachers_skeleton(networks, clip):
    """So it learns the same whether the skeleton decoder was trained before it or not."""
    both = fine_tune_on(clip, networks, QUICK)
    alone = fine_tune_on(clip, networks, QUICK, ("skinning",))
    assert alone.networks.skeleton is networks.skeleton
    assert same(weights(alone.networks.skinning), weights(both.networks.skinning))


def test_the_seed_decides_and_nobody_elses_numbers_are_drawn(networks, clip):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fine_tune_on(clip, networks, QUICK, ("skinning",)).networks.skinning
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = fine_tune_on(clip, networks, QUICK, ("skinning",)).networks.skinning
    other = fine_tune_on(clip, networks, replace(QUICK, seed=1), ("skinning",)).networks.skinning
    assert same(weights(first), weights(again)) and not same(weights(first), weights(other))


def test_progress_rises_and_tells_the_figures(networks, clip):
    told = []
    config = replace(QUICK, frames=2)  # several steps
    found = fine_tune_on(clip, networks, config, progress=lambda share, text: told.append((share, text)))
    shares = [share for share, _ in told]
    assert (np.diff(shares) > -1e-6).all() and shares[0] == 0 and shares[-1] == pytest.approx(1)
    texts = [text for _, text in told]
    for stage, name, key in (("skeleton", "PJDD", "pjdd"), ("skinning", "skin error", "skin_error")):
        before, after = (found.history[stage][epoch][key] for epoch in (0, 1))
        assert f"Epoch 1: {name} {before:.3g}" in texts
        assert f"Learned: {name} {after:.3g} (was {before:.3g})" in texts
    assert max(map(len, texts)) <= 40  # a progress bar shows 34


@pytest.mark.parametrize("words", ["Rigging", "Epoch 1: PJDD", "Weighting the anchor", "Epoch 1: skin"])
def test_cancelled_at_every_stage_it_keeps_nothing(words, networks, sequence, clip, tmp_path):
    def cancel(_share, text):
        if text.startswith(words):
            raise Cancelled

    before = weights(networks.skeleton), weights(networks.skinning)
    with pytest.raises(Cancelled):
        networks_for(sequence, clip, networks, QUICK, tmp_path / "students", progress=cancel)
    assert not (tmp_path / "students").exists()
    assert same(before[0], weights(networks.skeleton)) and same(before[1], weights(networks.skinning))


def test_clips_without_poses_are_refused(networks, sequence):
    with pytest.raises(SprigError, match="single frame"):
        fine_tune_on(make_clip(MeshSequence(sequence.vertices[:1], sequence.faces)), networks, QUICK)
    travelling = sequence.vertices[:1] + np.arange(4, dtype=np.float32)[:, None, None]
    for vertices in (sequence.vertices[[0, 0, 0]], travelling):
        with pytest.raises(SprigError, match="same pose"):
            fine_tune_on(make_clip(MeshSequence(vertices, sequence.faces)), networks, QUICK)


def test_two_frames_are_enough(networks, sequence):
    found = fine_tune_on(make_clip(MeshSequence(sequence.vertices[:2], sequence.faces)), networks, QUICK)
    for stage in STAGES:
        assert math.isnan(found.history[stage][1]["loss"])  # nothing is held out
        assert not same(weights(getattr(found.networks, stage)), weights(getattr(networks, stage)))


def test_the_kept_epoch():
    history = [
        {"epoch": epoch, "loss": loss, "pjdd": 9.0 - epoch} for epoch, loss in enumerate((0.5, 3.0, 1.0, 1.0, 2.0))
    ]
    assert kept(history)["epoch"] == 2  # the first of the best; the teacher itself is no student
    for epoch in history:
        epoch["loss"] = math.nan
    assert kept(history)["epoch"] == 4
    history[4]["pjdd"] = math.nan
    expected = {"epochs": 7, "kept_epoch": 4, "seed": 3, "pjdd_teacher": 9.0}
    assert summary("skeleton", history, FineTuneConfig(epochs=7, seed=3)) == expected


def test_the_report_names_frames_by_their_numbers(tuned, sequence):
    sequence = replace(sequence, frame_numbers=np.arange(10, 18, 2))
    clip = make_clip(sequence, anchor=2, held_out=2)
    report = fine_tune_report(tuned, sequence, clip, QUICK, source="a.npz", seconds={"read": 1}, peak_memory=None)
    assert report["anchor_frame"] == 14 and report["frames"] == 4
    assert report["held_out_frames"] == [12, 16] and report["learned_frames"] == [10, 14]
    assert report["history"]["skeleton"][0]["epoch"] == 0


# ---- on disk


def test_a_sequence_is_known_by_its_shapes(sequence):
    known = sequence_fingerprint(sequence)
    assert sequence_fingerprint(replace(sequence, origin=[1, 2, 3], fps=60, name="other")) == known
    moved = sequence.vertices.copy()
    moved[3, 7, 1] = np.nextafter(moved[3, 7, 1], np.float32(1))
    turned = np.roll(sequence.faces, 1, axis=1)
    for other in (replace(sequence, vertices=moved), replace(sequence, faces=turned)):
        assert sequence_fingerprint(other) != known
    assert sequence_fingerprint(MeshSequence(sequence.vertices[:3], sequence.faces)) != known


def test_a_students_name_depends_on_everything_it_was_made_from(sequence, clip, networks):
    other_teacher = {**networks.checkpoints, "skeleton": {"file": "skeleton.safetensors", "fingerprint": "0" * 16}}
    names = [
        student_name(sequence, clip, networks, QUICK),
        student_name(sequence, clip, networks, replace(QUICK, epochs=2)),
        student_name(sequence, clip, networks, replace(QUICK, seed=1)),
        student_name(sequence, clip, networks, QUICK, ("skeleton",)),
        student_name(sequence, clip, replace(networks, checkpoints=other_teacher), QUICK),
        student_name(sequence, clip, replace(networks, device="cuda"), QUICK),
        student_name(sequence, make_clip(sequence, anchor=(clip.anchor + 1) % 4, held_out=2), networks, QUICK),
    ]
    assert len(set(names)) == len(names)
    assert {name[:16] for name in names} == {sequence_fingerprint(sequence)}
    assert student_name(sequence, make_clip(sequence, held_out=2), networks, replace(QUICK)) == names[0]


def test_students_are_found_again(networks, sequence, clip, tmp_path):
    folder = tmp_path / "cache" / "students"
    made, warnings = networks_for(sequence, clip, networks, QUICK, folder)
    (path,) = folder.iterdir()
    assert path.name == student_name(sequence, clip, networks, QUICK) and warnings == ()
    assert kinds_in(path) == STAGES
    provenance = read_provenance(path)
    assert provenance["sequence"] == sequence_fingerprint(sequence)
    assert provenance["teachers"] == {stage: networks.checkpoints[stage]["fingerprint"] for stage in STAGES}

    def silent(_share, text):
        raise AssertionError(f"trained again: {text}")

    found, _ = networks_for(sequence, clip, networks, QUICK, folder, progress=silent)
    for stage in STAGES:
        assert same(weights(getattr(found, stage)), weights(getattr(made, stage)))
        told = dict(found.checkpoints[stage]["finetuned"])
        assert told.pop("reused") is True and told == made.checkpoints[stage]["finetuned"]

    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    networks_for(sequence, clip, networks, QUICK, folder)
    assert path.read_bytes() == good  # made anew, the same


def test_a_folder_that_cannot_be_written_costs_a_warning(networks, sequence, clip, tmp_path):
    (tmp_path / "file").write_text("no folder")
    made, (warning,) = networks_for(sequence, clip, networks, QUICK, tmp_path / "file", ("skinning",))
    assert "could not be kept" in warning and warning.count("\n") == 0
    assert "finetuned" in made.checkpoints["skinning"] and "finetuned" not in made.checkpoints["skeleton"]


def test_the_folder_is_bounded(tuned, networks, tmp_path, monkeypatch):
    def put(name):
        students.store(tmp_path, f"{name}.safetensors", tuned, {}, ("skinning",))
        os.utime(tmp_path / f"{name}.safetensors", (put.clock, put.clock))
        put.clock += 1

    def there():
        return sorted(path.stem for path in tmp_path.iterdir())

    put.clock = 1
    monkeypatch.setattr(students, "MOST_FILES", 3)
    for name in "abc":
        put(name)
    students.find(tmp_path, "a.safetensors", networks, ("skinning",))  # used, so it stays
    put("d")
    assert there() == ["a", "c", "d"]
    monkeypatch.setattr(students, "MOST_BYTES", 1)
    put("e")
    assert there() == ["e"]  # the newest is kept whatever its size
    students.forget(tmp_path, "e.safetensors")
    students.forget(tmp_path, "e.safetensors")
    assert there() == []


# ---- in the pipeline


def test_a_rig_of_fine_tuned_networks(network_files, sequence, tmp_path):
    options = RigOptions(skeleton="learned", finetune=1, students=str(tmp_path), **network_files)
    rig = rig_sequence(sequence, options)
    assert rig.provenance["skeleton_source"] == "learned" and rig.seconds["finetune"] > 0
    (path,) = tmp_path.iterdir()
    student = {name: str(path) for name in network_files}
    as_learned = rig_sequence(sequence, RigOptions(skeleton="learned", **student))
    np.testing.assert_array_equal(as_learned.skeleton.joints, rig.skeleton.joints)
    np.testing.assert_array_equal(as_learned.weights, rig.weights)
    checkpoints = rig_sequence(sequence, options).provenance["checkpoints"]
    assert all(checkpoints[stage]["finetuned"]["reused"] for stage in STAGES)


def test_the_motion_has_no_networks_to_tune():
    with pytest.raises(SprigError, match="no networks"):
        RigOptions(skeleton="motion", finetune=3)
    with pytest.raises(SprigError, match="0 or more"):
        RigOptions(finetune=-1)
