"""The evaluation: baselines and medians by hand, failures that are counted, and whole runs on a small bank."""

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

from sprig.backend.anchor import anchor_frame
from sprig.backend.errors import SprigError
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.learned import find_skeleton, load_networks
from sprig.backend.surface import surface_areas
from sprig.sprig_blender import cli
from sprig.training import evaluate, rigbank
from sprig.training.character import Character

from .command_line import OUTSIDE, one_line
from .creatures import chain, tube
from .small_banks import write_bank


def tube_character(name="tube", poses=12, seed=0) -> Character:
    """The tube of `creatures` with its chain of three joints."""
    vertices, faces = tube()
    _, joints, weights, motion = chain(3, max(poses, 1), seed)
    return Character(
        name, rigbank.validation_rigs()[0], "snake", "", "",
        vertices.astype(np.float32), faces.astype(np.int32), weights.astype(np.float32), joints.astype(np.float32),
        np.array([-1, 0, 1], np.int32), motion[:poses].astype(np.float32),
    )  # fmt: skip


def write_clip(folder):
    """A real clip's file, under the name of one on the validation list, with a helper above the root and a leaf."""
    folder.mkdir()
    sequence, joints, weights, motion = chain(3, 12)
    rest = np.tile(np.eye(4), (5, 1, 1))
    rest[1:4, :3, 3] = joints
    motion = np.concatenate([motion[:, :1], motion, motion[:, 2:]], axis=1)
    np.savez(
        folder / f"{rigbank.validation_clips()[3]}.npz",
        vertices=sequence.vertices + sequence.origin, faces=sequence.faces, fps=24.0, category="snake",
        weights=np.pad(weights, ((0, 0), (1, 1))).astype(np.float16), parents=np.array([-1, 0, 1, 2, 3]),
        bone_world=motion @ rest,
    )  # fmt: skip
    return folder


# ---- shapes


def test_poses_are_the_characters_own_and_the_same_for_a_seed():
    character = tube_character()
    shapes = evaluate.posed_shapes(character, 3, seed=0)
    places = [linear_blend_skinning(character.vertices, character.weights, motion) for motion in character.motion]
    found = [next(k for k, place in enumerate(places) if np.array_equal(place, shape.vertices)) for shape in shapes]
    assert len(set(found)) == 3
    for k, shape in zip(found, shapes, strict=True):
        heads = np.c_[character.joints, np.ones(3)].astype(float)
        np.testing.assert_allclose(shape.joints, np.einsum("jik,jk->ji", character.motion[k], heads)[:, :3], atol=1e-6)
    again = evaluate.posed_shapes(character, 3, seed=0)
    assert all(np.array_equal(a.vertices, b.vertices) for a, b in zip(shapes, again, strict=True))
    others = [evaluate.posed_shapes(character, 3, seed=seed)[0].vertices for seed in range(5)]
    assert any(not np.array_equal(shapes[0].vertices, other) for other in others)


def test_a_character_without_poses_stands_at_rest():
    (shape,) = evaluate.posed_shapes(tube_character(poses=0), 2, seed=0)
    np.testing.assert_allclose(shape.vertices, tube()[0], atol=1e-6)
    assert len(evaluate.posed_shapes(tube_character(poses=1), 2, seed=0)) == 1


def test_the_truth_of_a_clip_lies_in_its_anchor_and_holds_the_ancestors(tmp_path):
    folder = write_clip(tmp_path / "clips")
    (path,) = folder.iterdir()
    shape = evaluate.clip_shape(path)
    assert shape.parents.tolist() == [-1, 0, 1, 2] and shape.category == "snake"  # the helper stays, the leaf does not
    with np.load(path) as arrays:
        frame = np.argmin(np.abs(arrays["vertices"] - shape.vertices).max(axis=(1, 2)))
        np.testing.assert_allclose(shape.vertices, arrays["vertices"][frame], atol=1e-5)
        np.testing.assert_allclose(shape.joints, arrays["bone_world"][frame, :4, :3, 3])


# ---- scores and baselines by hand


def test_nearest_bone_by_hand():
    #   joint 0 at the origin with children at x = 2 and y = 2; the child at x = 2 has one at x = 4
    joints, parents = [[0, 0, 0], [2, 0, 0], [0, 2, 0], [4, 0, 0]], [-1, 0, 0, 1]
    owners = {
        (1, 0.1, 0): 0, (0.1, 1, 0): 0,  # both bones of joint 0
        (3, 0, 1): 1,
        (0, 5, 0): 2, (9, 1, 0): 3,  # beyond a leaf, which is where its parent's bone ends too
        (2, 1, 0): 1,  # above joint 1, where a bone ends and the next begins
        (-1, 0, 0): 0,
    }  # fmt: skip
    weights = evaluate.nearest_bone_weights(list(owners), joints, parents)
    assert weights.argmax(axis=1).tolist() == list(owners.values())
    np.testing.assert_array_equal(weights, np.eye(4)[list(owners.values())])


def test_nearest_bone_with_joints_in_one_place():
    weights = evaluate.nearest_bone_weights([[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]], [-1, 0])
    np.testing.assert_array_equal(weights, [[0, 1], [0, 1]])


def test_scores_of_the_truth_and_of_a_known_error():
    (shape,) = evaluate.posed_shapes(tube_character(poses=0), 1, seed=0)
    perfect = evaluate.skeleton_scores(shape.joints, shape.parents, shape)
    assert perfect["cd_j2j"] == perfect["cd_j2b"] == perfect["cd_b2b"] == perfect["gsd"] == 0
    assert perfect["topology_f1"] == 1 and perfect["joints"] == perfect["artist_joints"] == 3
    moved = evaluate.skeleton_scores(shape.joints + [0, 0, 0.2], shape.parents, shape)  # the tube is 2 long
    assert moved["cd_j2j"] == pytest.approx(0.1) and moved["topology_f1"] == 0 and moved["gsd"] == 0

    rigid = np.eye(3)[shape.weights.argmax(axis=1)]
    scores = evaluate.weight_scores(rigid, shape)
    assert scores["l1"] == pytest.approx(np.abs(rigid - shape.weights).sum(axis=1).mean()) and scores["unweighted"] == 0
    rigid[: len(rigid) // 2] = 0
    assert evaluate.weight_scores(rigid, shape)["unweighted"] == pytest.approx(0.5, abs=0.01)
    assert evaluate.weight_scores(0 * rigid, shape)["l1"] == pytest.approx(1)


@pytest.mark.parametrize("parents", [[-1, -1, 0], [-1, 2, 1], [-1, 0, 2], [0, 0, 1], [-1, 0]])
def test_what_is_no_tree_has_no_scores(parents):
    (shape,) = evaluate.posed_shapes(tube_character(poses=0), 1, seed=0)
    with pytest.raises(ValueError, match="no valid tree"):
        evaluate.skeleton_scores(shape.joints, parents, shape)
    with pytest.raises(ValueError, match="no valid tree"):
        evaluate.skeleton_scores(np.full((3, 3), np.nan), shape.parents, shape)


def test_weight_centroids_by_hand():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [4, 0, 0.0]])
    weights = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]
    centroids = evaluate.weight_centroids(weights, vertices, np.full((3, 3), 7.0))
    np.testing.assert_allclose(centroids, [[1 / 3, 0, 0], [3, 0, 0], [7, 7, 7]])


def test_the_motion_finds_a_chain_from_its_poses():
    """Both joints between the three parts. The root shows in no motion: the solver's lies between them, the true one
    a bone of 2/3 away from its nearest."""
    character = tube_character(poses=24)
    posed = np.stack([evaluate.posed(character, motion).vertices for motion in character.motion])
    side = np.ptp(posed[anchor_frame(surface_areas(posed, character.faces))], axis=0).max()
    found = evaluate.motion_skeletons(character, "cpu")
    assert set(found) == {"motion joints", "motion centroids"}
    assert found["motion joints"]["cd_j2j"] == pytest.approx((1 / 3 / 3 + 2 / 3 / 3) / 2 / side, rel=0.05)
    assert found["motion joints"]["joints"] == 3
    # centroids lie in the middle of the parts: half a bone from two joints, or from one and the tip
    assert found["motion centroids"]["cd_j2j"] == pytest.approx(1 / 3 / side, rel=0.1)


# ---- rows and medians


def test_medians_are_over_characters_and_failures_are_counted():
    def row(name, category, *values):
        return evaluate.mean_row(name, category, "m", [{"error": "no"} if v is None else {"l1": v} for v in values])

    rows = [row("a", "x", 1, 3), row("b", "x", 4, None), row("c", "x", 9, 9), row("d", "y", None, None)]
    assert [r.get("l1") for r in rows] == [2, 4, 9, None]
    assert rows[1]["failed_poses"] == 1 and rows[1]["errors"] == ["no"] and rows[0]["errors"] == []
    found = evaluate.summaries(rows, {"l1": ("L1", ".3f")})["m"]
    assert found["all"] == {
        "characters": 4, "failed": 1, "poses": 8, "failed_poses": 3, "incomplete_poses": 0, "valid": 5 / 8, "l1": 4,
    }  # fmt: skip
    assert found["categories"]["x"]["l1"] == 4 and found["categories"]["y"]["l1"] is None
    assert found["worst_category"] == "y"


def test_the_share_of_better_characters_is_of_those_that_both_have():
    values = {"network": {"a": 1, "b": 5, "c": 1}, "bone heat": {"a": 2, "b": 3, "d": 9}}
    rows = [
        evaluate.mean_row(name, "x", method, [{"l1": value}])
        for method, by_name in values.items()
        for name, value in by_name.items()
    ]
    assert evaluate.better_than(rows, "bone heat") == {"better": 1, "characters": 2, "share": 0.5}
    assert evaluate.better_than(rows, "nearest bone") is None


def test_an_error_is_a_row_and_not_the_end():
    assert evaluate.attempt(lambda: {"l1": 1}) == {"l1": 1}
    assert evaluate.attempt(lambda: 1 / 0) == {"error": "ZeroDivisionError: division by zero"}


# ---- whole runs


def options(**changes):
    values = {"bank": None, "clips": None, "skeleton": None, "skinning": None, "device": "cpu", "poses": 2, "seed": 0,
              "no_bone_heat": True, "output": None, "json": False}  # fmt: skip
    return Namespace(**{**values, **changes})


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Three characters: with poses, with too few for the motion, and one whose triangles have no area."""
    flat = tube_character("flat")
    flat = Character(**{**vars(flat), "vertices": flat.vertices * np.float32([1, 0, 0])})
    return write_bank(
        tmp_path_factory.mktemp("data") / "bank", tube_character("long"), tube_character("short", 3), flat
    )


def test_a_whole_run(bank, network_files, tmp_path):
    clips = write_clip(tmp_path / "clips")
    asked = {"skeleton": network_files["checkpoint_skeleton"], "skinning": network_files["checkpoint_skinning"]}
    report = evaluate.static(options(bank=bank, clips=clips, **asked))
    assert report["characters"] == 3
    methods = {key: list(report[key]) for key in ("skeleton", "skinning", "clips")}
    assert methods["skeleton"] == ["network", "motion joints", "motion centroids"]
    assert methods["skinning"] == ["network", "nearest bone"] and methods["clips"] == ["network"]
    for key in ("skeleton", "skinning"):
        network = report[key]["network"]["all"]  # of three characters, one has no surface
        assert (network["characters"], network["failed"], network["poses"], network["failed_poses"]) == (3, 1, 6, 2)
    assert report["skinning"]["nearest bone"]["all"]["failed"] == 0
    assert report["skeleton"]["motion joints"]["all"]["characters"] == 2  # "short" has too few poses
    assert any("short" in note for note in report["notes"]) and any("Bone heat" in note for note in report["notes"])
    assert report["skeleton"]["network"]["all"]["seconds"] > 0
    assert report["clips"]["network"]["all"]["artist_joints"] == 4
    assert report["better_than"]["bone heat"] is None and report["better_than"]["nearest bone"]["characters"] == 2
    (row,) = (row for row in report["rows"]["skeleton"] if (row["character"], row["method"]) == ("long", "network"))
    loaded = load_networks(*network_files.values(), kinds=("skeleton",))
    scores = []
    for shape in evaluate.posed_shapes(rigbank.read_rigbank(bank)[1], 2, 0):
        found = find_skeleton(shape.vertices, shape.faces, loaded)
        scores.append(evaluate.skeleton_scores(found.joints, found.parents, shape)["cd_j2j"])
    assert row["cd_j2j"] == pytest.approx(np.mean(scores))

    text = evaluate.to_markdown(report, with_rows=True)
    assert "no area" in text and "| short | " in text and "4 of 6" in text


def test_without_networks_there_are_baselines(bank, monkeypatch, tmp_path):
    from sprig.backend import learned

    monkeypatch.setattr(learned, "SHIPPED", tmp_path)
    report = evaluate.static(options(bank=bank))
    assert list(report["skinning"]) == ["nearest bone"] and "network" not in report["skeleton"]
    assert sum("left out" in note for note in report["notes"]) == 3  # both networks and bone heat


def test_the_last_line_is_json(bank, network_files, tmp_path):
    command = [sys.executable, "-m", "sprig.training.evaluate", "static", "--bank", str(bank), "--no-bone-heat"]
    command += [
        "--skinning",
        network_files["checkpoint_skinning"],
        "--poses",
        "1",
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=OUTSIDE)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["schema"] == evaluate.SCHEMA and "rows" not in summary
    assert summary["skinning"]["network"]["all"]["failed"] == 1 and summary["checkpoints"]["skinning"]["file"]
    written = json.loads((tmp_path / "out" / "static.json").read_text(encoding="utf-8"))
    assert {**summary, "rows": written["rows"]} == written
    assert len(written["rows"]["skinning"]) == 6
    assert (tmp_path / "out" / "static.md").read_text(encoding="utf-8").startswith("# Static evaluation")


def test_sprig_evaluate_hands_its_arguments_on(bank, tmp_path, capsys):
    arguments = ["static", "--json", "--no-bone-heat", "--poses", "1", "--bank", str(bank), "--output", str(tmp_path)]
    assert cli.main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["poses"] == 1 and printed.err == ""
    assert (tmp_path / "static.md").is_file()
    assert cli.main(["evaluate", "static", "--help"]) == 0
    assert "--no-bone-heat" in capsys.readouterr().out


def test_sprig_evaluate_needs_the_training_package(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if "training" in name else find(name, package)
    )
    assert cli.main(["evaluate", "static", "--bank", "bank"]) == 2
    assert "training" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["static"], "--bank"),
        (["static", "--bank", "bank", "--poses", "0"], "--poses"),
        (["static", "--bank", "bank", "--skeleton", "nothing.safetensors"], "no file"),
        (["static", "--bank", "nowhere"], "CATALOGUE.csv"),
        (["static", "--clips", "nowhere"], "validation clips"),
        (["dynamic"], "dynamic"),
    ],
)
def test_bad_usage(arguments, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "DATA", tmp_path)  # without data beside the checkout
    assert evaluate.main(arguments) == 2
    assert expected in capsys.readouterr().err
    with pytest.raises(SprigError, match=expected):
        evaluate.run(evaluate.parse(arguments))


def test_no_bone_heat_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "BONE_HEAT", tmp_path / "bone_heat.py")
    assert "checkout" in evaluate.why_no_bone_heat()


def test_a_process_that_dies_costs_one_shape(monkeypatch, tmp_path):
    """In Blender's place a program that ends on the second file, whoever gives it, and writes the others."""
    program = tmp_path / "bone_heat.py"
    program.write_text(
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "*files, _, folder = sys.argv[1:]\n"
        "for file in map(Path, files):\n"
        "    if file.stem == '00001':\n"
        "        sys.exit('out of heat')\n"
        "    given = np.load(file)\n"
        "    weights = np.zeros((len(given['vertices']), len(given['joints'])))\n"
        "    np.savez(Path(folder) / file.name, weights=weights + np.abs(given['vertices']).max())\n"
    )
    monkeypatch.setattr(evaluate, "BONE_HEAT", program)
    shapes = evaluate.posed_shapes(tube_character(), 3, seed=0)
    first, second, third = evaluate.bone_heat(shapes)
    assert "out of heat" in second
    for weights in (first, third):
        np.testing.assert_allclose(weights, np.full(shapes[0].weights.shape, evaluate.HEAT_SIZE / 2))


# ---- the real bank


def test_real_baselines_are_in_their_usual_place(shared):
    """The nearest bone is a poor guess, and the same one in every run: all validation characters."""
    characters = rigbank.split(rigbank.read_rigbank(shared / "data" / "rigbank"))[1]
    scores = [
        evaluate.nearest_weights(shape)["l1"]
        for character in characters
        for shape in evaluate.posed_shapes(character, 1, seed=0)
    ]
    assert len(scores) == 49 and 0.7 < np.median(scores) < 0.95
