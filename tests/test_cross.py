"""Cross-motion: rigs of one clip posed on another, the artist's beside them, and what becomes of failures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sprig.backend.formats import npz
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.sprig_blender import cli
from sprig.training import evaluate
from sprig.training.cross import GivenRig, characters_in, geometric_mean, posed_rmse, summaries

from .command_line import listing, one_line
from .creatures import chain, tube

PLACE = np.array([3.0, -2.0, 1.0])  # where the tube stands in the world


def write_clip(folder, name: str, bones: int, moving, frames: int = 10, roots=()):
    """A clip of the chain with its rig: only the `moving` bones turn, against the bones before them; a joint of `roots`
    is one. An unused joint comes along."""
    sequence, joints, weights, _ = chain(bones, 2)
    motion = np.empty((frames, bones, 4, 4))
    for f, phase in enumerate(np.linspace(0, 2 * np.pi, frames)):
        above = np.eye(4)
        for b in range(bones):
            turn = 0.8 * np.sin(phase + b) * (b in moving)
            local = np.eye(4)
            local[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
            local[:3, 3] = joints[b] - local[:3, :3] @ joints[b]
            above = above @ local
            motion[f, b] = above
    rest = tube()[0]
    posed = np.stack([linear_blend_skinning(rest, weights, pose) for pose in motion])
    parents = np.array([-1 if b in roots else b - 1 for b in range(bones)] + [0])
    np.savez(
        folder / f"{name}.npz",
        vertices=(posed + PLACE).astype(np.float32),
        faces=sequence.faces,
        rest_vertices=(rest + PLACE).astype(np.float32),
        weights=np.c_[weights, np.zeros(len(rest))].astype(np.float32),
        joints_rest=(np.vstack([joints, [9, 9, 9]]) + PLACE).astype(np.float32),
        parents=parents.astype(np.int32),
    )
    return folder / f"{name}.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A worm that bends at one joint, or at both, or not at all; and an animal with one clip."""
    made = tmp_path_factory.mktemp("clips")
    write_clip(made, "worm__bend", 3, (1,))
    write_clip(made, "worm__wave", 3, (0, 1, 2))
    write_clip(made, "worm__rest", 3, ())
    write_clip(made, "snail__crawl", 2, (1,))
    return made


@pytest.mark.parametrize("roots", [(), (0, 2)])
def test_the_artists_rig_takes_any_pose(roots, tmp_path):
    path = write_clip(tmp_path, "worm__wave", 3, (0, 1, 2), roots=roots)
    artist = GivenRig.of_artist(path)
    assert artist.weights.shape[1] == 3 and artist.parents.tolist() == [-1 if b in roots else b - 1 for b in range(3)]
    assert posed_rmse(artist, npz.read(path)) < 1e-3  # float32


def test_a_rig_finds_its_own_poses_again(folder):
    sequence = npz.read(folder / "worm__wave.npz")
    rig = rig_sequence(sequence, RigOptions(joints=3, skeleton="motion"))
    given = GivenRig.of(rig)
    assert given.located == ()
    assert posed_rmse(given, sequence) == pytest.approx(rig.rmse, rel=0.05)
    moved = replace(sequence, origin=sequence.origin + [5, 0, 0], vertices=sequence.vertices - np.float32([5, 0, 0]))
    assert posed_rmse(given, moved) == pytest.approx(posed_rmse(given, sequence), rel=1e-2)


def test_joints_that_stretch_are_located(folder):
    rig = rig_sequence(npz.read(folder / "worm__wave.npz"), RigOptions(joints=3, skeleton="motion"))
    last = len(rig.skeleton) - 1
    motion = rig.motion.copy()
    motion[:, last, 0, 3] += np.linspace(0, 0.2, len(motion))
    assert GivenRig.of(replace(rig, motion=motion)).located == (last,)


def test_characters_have_two_clips_or_more(folder, tmp_path):
    assert {name: len(paths) for name, paths in characters_in(folder, None).items()} == {"worm": 3}
    for name in "abcde":
        for clip in "xy":
            (tmp_path / f"{name}__{clip}.npz").touch()
    assert list(characters_in(tmp_path, 3)) == ["a", "c", "e"] and len(characters_in(tmp_path, 9)) == 5


def test_summaries_by_hand():
    def row(character, source, target, method, value):
        result = {"error": "failed"} if value is None else {"rmse_percent": value}
        return {"character": character, "source": source, "target": target, "method": method, **result}

    rows = [
        row("a", "x", "y", "motion", 1.0), row("a", "y", "x", "motion", 4.0), row("b", "x", "y", "motion", 8.0),
        row("a", "x", "y", "auto", 0.5), row("a", "y", "x", "auto", None), row("b", "x", "y", "auto", 2.0),
        row("a", "x", "y", "artist", 0.25), row("a", "y", "x", "artist", 1.0), row("b", "x", "y", "artist", None),
    ]  # fmt: skip
    found = summaries(rows)
    assert found["motion"]["rmse_percent"] == pytest.approx(4)  # of 2 and 8
    assert found["motion"]["median_rmse_percent"] == pytest.approx(5)
    assert found["motion"]["to_motion"] == 1 and found["motion"]["to_artist"] == pytest.approx(4)  # b has no value
    assert found["auto"]["to_motion"] == pytest.approx(np.sqrt(0.5 * 0.25))  # the pair without a value is in neither
    assert found["auto"]["to_artist"] == pytest.approx(2)
    assert (found["auto"]["pairs"], found["auto"]["failed_pairs"], found["artist"]["failed_pairs"]) == (3, 1, 1)
    assert geometric_mean([]) is None and geometric_mean([2, 8]) == pytest.approx(4)


def test_evaluate_cross(folder, tmp_path, capsys):
    arguments = ["evaluate", "cross", "--multiclip", str(folder), "--skeleton", "motion", "--threads", "1"]
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and listing(tmp_path / "out") == ["cross.json", "cross.md"]
    report = json.loads((tmp_path / "out" / "cross.json").read_text())
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary == {key: value for key, value in report.items() if key not in ("rows", "own")}
    assert (report["schema"], report["characters"], report["clips"], report["pairs"]) == ("sprig-cross-1", 1, 3, 6)

    value = {(row["source"], row["target"], row["method"]): row.get("rmse_percent") for row in report["rows"]}
    assert len(value) == 12
    assert all(value["rest", other, "motion"] is None for other in ("bend", "wave"))  # nothing moves in it
    assert all(value[source, "wave", "artist"] < 1e-3 for source in ("bend", "rest"))
    assert value["wave", "bend", "motion"] < 0.5 < value["bend", "wave", "motion"]  # one joint is no worm
    assert report["methods"]["motion"]["failed_pairs"] == 2 and report["methods"]["artist"]["failed_pairs"] == 0
    assert report["own_clips"]["motion"]["failed"] == 1
    text = (tmp_path / "out" / "cross.md").read_text()
    assert "- worm, rest on bend, motion: SprigError: Nothing moves" in text and "| 2 of 6 |" in text


@pytest.mark.parametrize(
    "options, words",
    [
        (["--multiclip", "nowhere"], "nowhere is no folder"),
        (["--multiclip", "."], "no two clips"),
        (["--multiclip", ".", "--characters", "0"], "--characters starts at 1"),
        (["--multiclip", ".", "--skeleton", "mine"], "'mine'"),
    ],
)
def test_bad_options(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "cross", *options]) == 2
    assert words in one_line(capsys.readouterr().err)


@pytest.mark.slow
def test_real_clips(shared, tmp_path):
    folder = shared / "data" / "multiclip"
    clips = [folder / f"0ad_chicken__{clip}.npz" for clip in ("run", "walk")]
    for clip in clips:
        (tmp_path / clip.name).symlink_to(clip)
    options = evaluate.parse(["cross", "--multiclip", str(tmp_path), "--skeleton", "motion", "--output", str(tmp_path)])
    evaluate.run(options, say=lambda text: None)
    methods = json.loads((tmp_path / "cross.json").read_text())["methods"]
    assert methods["motion"]["failed_pairs"] == 0
    assert methods["artist"]["rmse_percent"] < methods["motion"]["rmse_percent"] < 3
