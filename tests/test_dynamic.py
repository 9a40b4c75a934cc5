"""The dynamic evaluation: protocols kept apart, figures from known inputs, and whole runs on small clips."""

import copy
import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch

from sprig.backend import metrics
from sprig.backend.checkpoint import save_checkpoint
from sprig.backend.finetune.train import FineTuneConfig
from sprig.backend.learned import Networks, load_networks
from sprig.backend.skeleton.generate import generate
from sprig.training import dynamic, evaluate, rigbank

from .creatures import chain
from .small_banks import write_bank
from .test_evaluate import tube_character

PER_NETWORK = (
    "pjdd", "pjdd_matched", "tree_changed", "gsd", "skin_error", "skin_error_per_point", "lbs_rmse",
    "cd_j2j", "skin_l1",
)  # fmt: skip
KEYS = {f"{key}_{who}" for key in PER_NETWORK for who in ("teacher", "student")} | {"fidelity_bins"}
ARRAYS = {f"{who}_{what}" for who in ("teacher", "student") for what in ("joints", "count", "parents", "weights")}


@pytest.fixture(scope="module")
def networks(network_files):
    return load_networks(*network_files.values())


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """Hundreds instead of thousands of tracked points; several chunks still."""
    monkeypatch.setattr(dynamic, "SKINNING_POINTS", 200)
    monkeypatch.setattr(dynamic, "CHUNK", 64)


def write_clip(folder, name, bones=3, frames=9, seed=0, motion="walk", joint_names=None, extra=0):
    """A tube in motion; `extra` triangles, given twice, make it another mesh."""
    folder.mkdir(exist_ok=True)
    sequence, *_ = chain(bones, frames, seed)
    faces = np.concatenate([sequence.faces, sequence.faces[:extra]])
    names = {"joint_names": np.array(joint_names)} if joint_names else {}
    np.savez(folder / f"{name}.npz", vertices=sequence.vertices, faces=faces, fps=24.0, clip=motion, **names)
    return folder / f"{name}.npz"


@pytest.fixture
def folders(tmp_path):
    """Clips of five characters, two of them with one skeleton; and two more clips of the first."""
    sequences, multiclip = tmp_path / "sequences", tmp_path / "multiclip"
    names = {
        "worm": ["a", "b", "c"],
        "eel": ["a", "b", "d", "c"],
        "arm": ["shoulder", "elbow"],
        "bare": None,
        "rod": None,
    }
    for k, (name, joint_names) in enumerate(names.items()):
        write_clip(sequences, f"{name}_walk", seed=k, joint_names=joint_names, extra=k)
    write_clip(multiclip, "worm__walk", seed=0, joint_names=names["worm"])
    write_clip(multiclip, "worm__run", seed=7, motion="run", joint_names=names["worm"])
    write_clip(multiclip, "arm__run", seed=8, motion="run", joint_names=names["arm"], extra=2)
    return sequences, multiclip


# ---- whose a clip is


def test_relatives_are_never_learned_from_in_protocol_c(folders):
    pool = dynamic.pool_of(folders[0])
    by_name = {source.name: source for source in pool}
    number = dict(zip(by_name, dynamic.families(pool), strict=True))
    assert number["worm_walk"] == number["eel_walk"] and len(set(number.values())) == 4
    named = [by_name["worm_walk"]]
    for seed in range(5):
        learned = [source.name for source in dynamic.learned_from("c", named, pool, 20, seed)]
        assert sorted(learned) == ["arm_walk", "bare_walk", "rod_walk"]
    again = dynamic.pool_of(folders[1])  # the same character in other clips
    learned = dynamic.learned_from("c", [source for source in again if source.name == "arm__run"], pool, 20, 0)
    assert "arm_walk" not in {source.name for source in learned} and len(learned) == 4


def test_protocol_a_fills_up_to_so_many_characters(folders):
    pool, again = dynamic.pool_of(folders[0]), dynamic.pool_of(folders[1])
    named = [source for source in again if source.name.startswith("worm")]  # two clips of one character
    learned = dynamic.learned_from("a", named, pool, 3, 0)
    assert learned[:2] == named and len({source.mesh for source in learned}) == 3 and len(learned) == 4
    assert "worm_walk" not in {source.name for source in learned}  # it is one of the characters already
    assert len(dynamic.learned_from("a", named, pool, 20, 0)) == 6  # all that there are


def test_the_real_clips_leave_20_characters_for_protocol_c(shared):
    pool = dynamic.pool_of(shared / "data" / "sequences")
    held_out = [source for source in pool if source.name in rigbank.validation_clips()]
    learned = dynamic.learned_from("c", held_out, pool, 20, 0)
    assert len(held_out) == 18 and len({source.mesh for source in learned}) == 20
    number = dynamic.families([*held_out, *learned])
    assert not set(number[:18]) & set(number[18:])
    others = dynamic.pool_of(shared / "data" / "multiclip")
    bear = next(source for source in pool if source.name == "0ad_bear_attack")
    assert [one.name for one in dynamic.other_clips(bear, others)] == ["0ad_bear__death", "0ad_bear__walk"]


def test_other_clips_show_another_motion_of_the_same_character(folders):
    pool, others = map(dynamic.pool_of, folders)
    worm = next(source for source in pool if source.name == "worm_walk")
    assert [other.name for other in dynamic.other_clips(worm, others)] == ["worm__run"]
    unnamed = replace(worm, motion="")  # a file that does not say
    assert [other.name for other in dynamic.other_clips(unnamed, others)] == ["worm__run", "worm__walk"]
    assert dynamic.other_clips(others[1], others) == [others[2]] and others[1].name == "worm__run"


def test_clips_that_only_teach_show_a_few_frames(tmp_path):
    source = dynamic.source_of(write_clip(tmp_path, "tube", frames=40))

    def frames(protocol, measured, **changes):
        options = Namespace(**{"protocol": protocol, "frames": 30, "teaching_frames": None, **changes})
        clip = dynamic.lesson(source, options, None, measured)
        return len(clip.frames), int(clip.held_out.sum())

    assert frames("a", True) == (30, 0) and frames("b", True) == (15, 0)
    assert frames("a", False) == (5, 0) and frames("a", False, teaching_frames=20) == (20, 0)
    assert frames("c", False) == (12, 1) == frames("c", True)  # nothing that is measured is learned from


# ---- figures from known inputs


def subject(folder, protocol="a", **changes) -> dynamic.Subject:
    return dynamic.subject_of(dynamic.source_of(write_clip(folder, "tube", **changes)), protocol, 64)


def test_a_student_of_protocol_b_sees_no_frame_that_it_is_measured_on(tmp_path):
    found = subject(tmp_path, "b")
    assert found.unseen.sum() == 4 and not found.unseen[found.clip.anchor] and found.measured.size == 4
    seen = dynamic.seen_part(found)
    assert seen.frames.tolist() == np.flatnonzero(~found.unseen).tolist() and not seen.held_out.any()
    np.testing.assert_array_equal(seen.vertices[seen.anchor], found.clip.vertices[found.clip.anchor])
    for frame in found.measured:
        assert not (seen.vertices == found.clip.vertices[frame]).all(axis=(1, 2)).any()


def test_what_is_unseen_in_the_other_protocols(tmp_path):
    assert not subject(tmp_path, "a").unseen.any() and subject(tmp_path, "a").measured.size == 9
    assert subject(tmp_path, "c").unseen.all()
    assert not dynamic.seen_part(subject(tmp_path, "a")).held_out.any()


def skeletons(stretch, anchor):
    """Three joints in a row in the anchor frame, the last one farther away by `stretch` in all others."""
    joints = np.array([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]])
    others = joints + [[0, 0, 0], [0, 0, 0], [stretch, 0, 0]]
    return [(joints if frame == anchor else others, np.array([-1, 0, 1])) for frame in range(9)]


def test_figures_by_hand(tmp_path):
    one = subject(tmp_path)
    anchor = one.clip.anchor
    weights = np.zeros((9, 10, 3), dtype=np.float32)
    weights[:, :, 0] = 1
    flicker = weights.copy()
    flicker[(anchor + 1) % 9, :4] = [0, 1, 0]  # one frame of eight, four points of ten, a distance of 2 each
    teacher = dynamic.Outcome(skeletons(0.03, anchor), flicker, 4.0)
    row = dynamic.row_of(one, teacher, dynamic.Outcome(skeletons(0.003, anchor), weights, 2.0))
    assert row["pjdd_teacher"] == pytest.approx(100 * (0 + 0.03 + 0.03) / 3)
    assert row["pjdd_student"] == pytest.approx(row["pjdd_teacher"] / 10) == row["pjdd_matched_student"]
    assert row["tree_changed_teacher"] == row["gsd_teacher"] == row["fidelity_bins"] == row["skin_error_student"] == 0
    assert row["skin_error_teacher"] == pytest.approx(8 / 8)
    assert row["skin_error_per_point_teacher"] == pytest.approx(0.1) and row["lbs_rmse_student"] == 2

    summary = dynamic.summarise([row, {**row, "pjdd_student": row["pjdd_teacher"] / 1000}, {"error": "no"}])
    assert (summary["clips"], summary["failed_clips"]) == (3, 1)
    assert summary["ratios"]["pjdd"] == pytest.approx(100) and summary["ratios"]["lbs_rmse"] == pytest.approx(2)
    assert summary["pjdd_teacher"] == pytest.approx(2)


def test_failures_and_other_trees_are_counted(tmp_path):
    one = subject(tmp_path)
    found = skeletons(0.0, one.clip.anchor)
    first, second = [frame for frame in range(9) if frame != one.clip.anchor][:2]
    found[first] = (np.zeros((1, 3)), np.array([-1]))  # no bone
    found[second] = (found[second][0], np.array([-1, 0, 0]))
    values = dynamic.figures(dynamic.Outcome(found, None, None), one)
    assert values["failed_frames"] == 1 and values["tree_changed"] == pytest.approx(2 / 8)
    assert values["pjdd"] == 0 and values["skin_error"] is None
    assert values["gsd"] == pytest.approx(metrics.gsd([-1], [-1, 0, 1]) / 8, abs=1e-9)  # a star of 3 is a path, too


def test_unseen_frames_alone_count_where_there_are_some(tmp_path):
    one = subject(tmp_path, "b")
    found = skeletons(0.0, one.clip.anchor)
    drifted = skeletons(0.03, one.clip.anchor)
    mixed = [drifted[frame] if one.unseen[frame] else found[frame] for frame in range(9)]
    assert dynamic.figures(dynamic.Outcome(mixed, None, None), one)["pjdd"] == pytest.approx(2)


def test_ratios_are_limited_and_equal_ones_are_one():
    assert dynamic.ratio(6.0, 2.0) == 3
    assert dynamic.ratio(6.0, 0.0) == 1000 and dynamic.ratio(0.0, 6.0) == 1 / 1000 and dynamic.ratio(0.0, 0.0) == 1
    assert dynamic.ratio(None, 1.0) is None and dynamic.ratio(1.0, None) is None
    assert dynamic.geometric_mean([2.0, None, 8.0]) == pytest.approx(4) and dynamic.geometric_mean([None]) is None
    assert dynamic.median([1, None, 3]) == 2 and dynamic.median([]) is None


# ---- the networks


def test_frames_decoded_together_are_what_generate_gives(tmp_path, networks, monkeypatch):
    monkeypatch.setattr(dynamic, "BATCH", 4)
    clip = subject(tmp_path).clip
    together = dynamic.decode_frames(clip, networks)
    for frame, (joints, parents) in enumerate(together):
        seed = 0 if frame == clip.anchor else frame + 1
        alone = generate(networks.skeleton, clip.points(frame, dynamic.SKELETON_POINTS, seed))[0]
        np.testing.assert_array_equal(joints, alone.joints)
        np.testing.assert_array_equal(parents, alone.parents)


def test_the_ablations_change_what_they_say(tmp_path, networks):
    clip = dynamic.seen_part(subject(tmp_path, frames=4))
    config = FineTuneConfig(epochs=1, least_steps=1)
    for variant in dynamic.ABLATIONS[:1] + dynamic.ABLATIONS[3:4]:
        tuned = dynamic.train(variant, [clip], networks, config, None)
        for kind in ("skeleton", "skinning"):
            before, after = (getattr(pair, kind).state_dict() for pair in (networks, tuned))
            same = all(torch.equal(before[name], after[name]) for name in before)
            assert same == (kind not in variant.stages), (variant.label, kind)
    assert {variant.anchor for variant in dynamic.ABLATIONS} == {None, 0}


def test_replay_keeps_the_one_student_near_its_teacher(networks, monkeypatch):
    monkeypatch.setattr(dynamic.finetune, "MADE", 3)
    asked = Namespace(protocol="c", replay=2.0, bank=None, seed=0)
    replay = dynamic.replay_of(asked, networks)
    other = copy.deepcopy(networks.skeleton)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    near, far = (float(replay(network, 0).detach()) for network in (networks.skeleton, other))
    assert near == pytest.approx(0, abs=1e-5) and far > 1e-4
    for without in ({"protocol": "b"}, {"replay": 0}):
        assert dynamic.replay_of(Namespace(**{**vars(asked), **without}), networks) is None


def test_a_students_file_may_hold_one_network(tmp_path, networks):
    save_checkpoint(tmp_path / "student.safetensors", networks.skinning, {"command": "a test"})
    found = dynamic.load_student(tmp_path / "student.safetensors", networks)
    assert isinstance(found, Networks) and found.skeleton is networks.skeleton
    assert found.skinning is not networks.skinning and found.released == frozenset()


# ---- whole runs


def test_files_that_are_no_clips_are_passed_over(folders):
    before = [source.name for source in dynamic.pool_of(folders[0])]
    (folders[0] / "notes.npz").write_text("no archive")
    np.savez(folders[0] / "weights.npz", weights=np.ones(3))
    assert [source.name for source in dynamic.pool_of(folders[0])] == before


def run(arguments, capsys):
    assert evaluate.main(["dynamic", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def given(network_files, folders):
    skeleton, skinning = network_files["checkpoint_skeleton"], network_files["checkpoint_skinning"]
    places = ["--sequences", folders[0], "--multiclip", folders[1]]
    return ["--skeleton", skeleton, "--skinning", skinning, "--device", "cpu", *places]


@pytest.fixture
def nothing_beside(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "DATA", tmp_path / "nowhere")


def test_protocol_b(network_files, folders, nothing_beside, tmp_path, capsys):
    bank = write_bank(tmp_path / "bank", tube_character("long"))
    places = ["--dump", tmp_path / "dump", "--plots", tmp_path / "plots", "--bank", bank]
    text, report = run(
        ["worm_walk", "--protocol", "b", "--epochs", 1, *places, *given(network_files, folders)], capsys
    )  # fmt: skip
    assert report.keys() >= KEYS and all(report[key] is not None for key in KEYS)
    assert report["trained_on"] == ["worm_walk"] and report["static_characters"] == 1
    assert [row["clip"] for row in report["rows"]] == ["worm_walk", "worm__run"]
    assert report["other_clips"]["clips"] == 1 and report["clips"] == 1 and report["failed_clips"] == 0
    assert "Other clips of the same characters" in text and "| worm__run | " in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}_{what}.png" for name in ("worm_walk", "worm__run") for what in ("joints", "skin")
    }

    with np.load(tmp_path / "dump" / "worm_walk.npz") as arrays:
        assert set(arrays.files) == ARRAYS | {"unseen", "anchor_frame"}
        anchor, unseen, found = int(arrays["anchor_frame"]), arrays["unseen"], dict(arrays)
    frames = [anchor, *np.flatnonzero(unseen)]
    assert unseen.sum() == 4 and not unseen[anchor]
    for who in ("teacher", "student"):
        joints, counts, parents = (found[f"{who}_{what}"] for what in ("joints", "count", "parents"))
        assert joints.shape == (9, parents.shape[1], 3) and counts.shape == (9,) and np.abs(joints[0, 0]).max() <= 0.5
        assert (np.isfinite(joints).all(axis=2).sum(axis=1) == counts).all()
        drift = metrics.pjdd([(joints[f, : counts[f]], parents[f, : counts[f]]) for f in frames], 0)
        assert report[f"pjdd_{who}"] == pytest.approx(drift.index)
        assert report[f"pjdd_matched_{who}"] == pytest.approx(drift.matched)
        weights = found[f"{who}_weights"]
        assert weights.shape[:2] == (9, 200) and np.allclose(weights.sum(axis=2), 1, atol=1e-5)
        assert report[f"skin_error_{who}"] == pytest.approx(metrics.temporal_skin_error(weights[frames], 0).total)
    with np.load(tmp_path / "dump" / "worm__run.npz") as arrays:
        assert arrays["unseen"].all()


def test_protocol_c_with_a_student_and_without_a_bank(
    network_files, folders, networks, nothing_beside, tmp_path, capsys
):
    student = tmp_path / "student.safetensors"
    save_checkpoint(student, [networks.skeleton, networks.skinning], {"command": "a test"})
    (folders[0] / "broken_walk.npz").write_bytes((folders[0] / "worm_walk.npz").read_bytes())
    with np.load(folders[0] / "worm_walk.npz") as arrays:
        np.savez(folders[0] / "broken_walk.npz", **{**arrays, "vertices": arrays["vertices"] * np.nan})
    named = ["worm_walk", "broken_walk", "--protocol", "c", "--student", student]
    text, report = run([*named, *given(network_files, folders)], capsys)
    assert report["student"] == student.name and report["trained_on"] is None
    assert (report["clips"], report["failed_clips"], report["measured_frames"]) == (2, 1, 9)
    assert "Failures:" in text and "broken_walk" in text
    assert report["cd_j2j_teacher"] is None and report["skin_l1_student"] is None and report.keys() >= KEYS
    for key in PER_NETWORK[:7]:  # the student is the teacher
        assert report[f"{key}_teacher"] == report[f"{key}_student"], key
    assert set(report["ratios"].values()) == {1.0} and report["fidelity_bins"] == 0


def test_one_student_of_many_clips_and_its_ablations(network_files, folders, nothing_beside, monkeypatch, capsys):
    chosen = [dynamic.ABLATIONS[k] for k in (0, 7, 8, 9)]  # tokens, the prior, W*, the anchor
    monkeypatch.setattr(dynamic, "ABLATIONS", chosen)
    options = ["--protocol", "a", "--epochs", 1, "--characters", 2, "--frames", 3, "--replay", 0, "--ablate"]
    text, report = run(["worm_walk", *options, *given(network_files, folders)], capsys)
    assert report["trained_on"][0] == "worm_walk" and len(report["trained_on"]) == 2
    assert report["measured_frames"] == 3 and len(report["rows"]) == 1 and "learned from 2 clips" in text
    assert report["other_clips"] is None and report["replay"] == 0
    found = report["ablations"]
    assert list(found) == [variant.label for variant in (dynamic.WHOLE, *chosen)]
    assert all(entry["clips"] == 1 and entry["failed_clips"] == 0 for entry in found.values())
    assert found["everything"]["pjdd_student"] == report["pjdd_student"] is not None
    without_tokens, without_prior, papers, first = (found[variant.label] for variant in chosen)
    assert without_tokens["skin_error_student"] is None  # that is not its business
    assert without_prior["pjdd_student"] == report["pjdd_student"]  # nor that
    for other in (without_prior, papers):
        assert other["skin_error_student"] not in (None, report["skin_error_student"])
    assert without_tokens["pjdd_teacher"] == report["pjdd_teacher"] and first["skin_error_student"] is not None
    assert "| without prior (12) | 1 |" in text


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "--protocol"),
        (["--protocol", "d"], "--protocol"),
        (["--protocol", "a", "--epochs", "0"], "--epochs"),
        (["--protocol", "a", "--student", "nothing.safetensors"], "no file"),
        (["--protocol", "a", "--sequences", "nowhere"], "no folder"),
        (["--protocol", "a", "--replay", "-1"], "--replay"),
        (["--protocol", "a", "--teaching-frames", "1"], "--teaching-frames"),
        (["--protocol", "a", "nobody"], "no clip nobody"),
        (["--protocol", "c"], "no clips"),
    ],
)
def test_bad_usage(arguments, expected, network_files, nothing_beside, capsys):
    networks = ["--skeleton", network_files["checkpoint_skeleton"], "--skinning", network_files["checkpoint_skinning"]]
    assert evaluate.main(["dynamic", *arguments, *networks]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.startswith("evaluate: ") and said.count("\n") == 1
