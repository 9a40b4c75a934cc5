"""Several clips of one character: what joins and what is refused, one rig for all, and every clip's own share of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sprig.backend.clips import join_clips, unique_names
from sprig.backend.errors import SprigError
from sprig.backend.formats import npz
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.report import rig_report
from sprig.backend.sequence import ClipSpan, MeshSequence
from sprig.backend.surface import weld
from sprig.sprig_blender import cli

from .command_line import listing, one_line
from .creatures import chain, tube

CUBE = np.array([[x, y, z] for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))], dtype=np.float64)
QUADS = np.array([[3, 2, 1, 0], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])


def cut(quads, other=()):
    """Two triangles for each quad (Q,4), those in `other` along the other diagonal."""
    corners = [[1, 2, 3, 1, 3, 0] if q in other else [0, 1, 2, 0, 2, 3] for q in range(len(quads))]
    return np.array([quad[row] for quad, row in zip(quads, corners, strict=True)]).reshape(-1, 3)


def cube(frames=2, name="cube", **fields):
    positions = np.stack([CUBE + [0, 0, f] for f in range(frames)])
    return MeshSequence(positions, fields.pop("faces", cut(QUADS)), name=name, **fields)


def clip_of(turning: int, frames: int = 12, fps: float = 24.0, first: int = 1, name="clip") -> MeshSequence:
    """The chain of three bones, of which one turns against the bone before it by up to a radian; numbered from `first`,
    somewhere else for each bone."""
    sequence, joints, weights, _ = chain(3, 2)
    angle = np.linspace(0, 1, frames)
    rest, moved = tube()[0], weights[:, turning:].sum(axis=1, keepdims=True)
    arm = rest - joints[turning]
    across = np.stack([-arm[:, 2], 0 * arm[:, 1], arm[:, 0]], axis=1)
    turned = [joints[turning] + np.cos(a) * arm + np.sin(a) * across + (1 - np.cos(a)) * arm * [0, 1, 0] for a in angle]
    world = np.stack([rest + moved * (shape - rest) for shape in turned]) + [0, 0, 5 * turning]
    numbers = first + np.arange(frames)
    return MeshSequence.from_world(world, sequence.faces, fps=fps, frame_numbers=numbers, name=name)


def world_positions(rig, frame: int) -> np.ndarray:
    """What the rig shows on a frame (0-based): (V,3)."""
    blended = np.einsum("vj,jik->vik", rig.weights.astype(float), rig.motion[frame])
    return (
        np.einsum("vik,vk->vi", blended, np.c_[rig.rest_vertices, np.ones(len(rig.rest_vertices))])[:, :3] + rig.origin
    )


# ---- joining


def test_frames_follow_each_other_in_the_world():
    first = cube(2, "walk", fps=30, origin=[10, 0, 0], frame_numbers=[7, 8], warnings=("w",))
    second = cube(3, "run", fps=25, origin=[-1, 2, 0], frame_index=[4, 6, 8], warnings=("w", "v"))
    joined = join_clips([first, second])
    world = [one.world_vertices(f) for one in (first, second) for f in range(one.frame_count)]
    np.testing.assert_allclose([joined.world_vertices(f) for f in range(5)], world, atol=1e-5)
    assert joined.frame_numbers.tolist() == [7, 8, 1, 2, 3] and joined.frame_index.tolist() == [0, 1, 4, 6, 8]
    assert joined.clips == (ClipSpan("walk", 30, 0, 2), ClipSpan("run", 25, 2, 5))
    assert (joined.fps, joined.name, joined.warnings) == (30, "walk, run", ("w", "v"))
    assert joined.position_of(8) == 1
    with pytest.raises(SprigError, match="Frame 3 is not in the first clip, walk; choose one from 7 to 8"):
        joined.position_of(3)  # of the second clip


def test_names_are_unique():
    assert unique_names(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]


@pytest.mark.parametrize("other", [(0,), (2, 3), range(6)])
def test_quads_may_be_cut_differently(other):
    first = cube()
    joined = join_clips([first, cube(faces=cut(QUADS, other))])
    assert joined.faces.tolist() == first.faces.tolist()


@pytest.mark.parametrize(
    "fields, difference",
    [
        ({"vertices": np.pad(cube().vertices, ((0, 0), (0, 1), (0, 0)))}, "it has 9 vertices where that has 8"),
        ({"faces": cut(QUADS)[:-1]}, "it has 11 triangles where that has 12"),
        ({"faces": cut(QUADS[:, [0, 2, 1, 3]])}, "its faces join other vertices"),
        ({"faces": cut(QUADS[:, ::-1])}, "its faces join other vertices"),  # inside out
        ({"faces": cut(QUADS[[1, 2, 3, 4, 5, 0]])}, "its faces join other vertices"),  # in another order
    ],
)
def test_another_mesh_is_refused(fields, difference):
    other = replace(cube(), **{"object_id": None, **fields})
    with pytest.raises(SprigError, match=f"^b.abc is not the character of a.abc: {difference}; give clips of one mesh"):
        join_clips([cube(), other], ["a.abc", "b.abc"])


def test_other_meshes_are_refused():
    halves = cube(object_id=[0] * 4 + [1] * 4, object_names=("body", "hat"), name="a")
    for fields, words in (
        ({"object_names": ("hat", "body")}, r"its meshes are in another order \(2 meshes \(hat, body\)\)"),
        ({"object_id": [0] * 3 + [1] * 5}, "its meshes have other numbers of vertices"),
        ({"object_id": [0] * 8, "object_names": ("body",)}, r"it has 1 mesh \(body\) where that has 2 meshes"),
    ):
        with pytest.raises(SprigError, match=words):
            join_clips([halves, replace(halves, **fields)])
    renamed = replace(halves, object_names=("body.001", "hat.001"))
    assert join_clips([halves, renamed]).object_names == ("body", "hat")


def test_vertices_weld_that_stay_together_in_every_clip():
    apart = cube(2)
    apart.vertices[1, 1] += [0.5, 0, 0]
    together = replace(apart, vertices=np.stack([np.where(np.arange(8)[:, None] == 1, CUBE[0], CUBE)] * 2))
    assert weld(together.vertices)[1] == weld(together.vertices)[0]
    assert len(set(weld(join_clips([together, apart]).vertices))) == 8


# ---- one rig


def test_one_rig_has_every_joint_that_any_clip_moves():
    clips = [clip_of(1, name="bend"), clip_of(2, 20, name="wave")]
    options = RigOptions(tolerance=0.3, skeleton="motion")
    alone = [len(rig_sequence(clip, options).skeleton) for clip in clips]
    rig = rig_sequence(join_clips(clips), options)
    assert len(rig.skeleton) > max(alone) and rig.rmse < 0.3
    shown = np.array([world_positions(rig, f) for f in range(32)])
    wanted = [clip.world_vertices(f) for clip in clips for f in range(clip.frame_count)]
    diagonal = np.linalg.norm(np.ptp(wanted[rig.anchor], axis=0))
    error = 100 / diagonal * np.sqrt(((shown - wanted) ** 2).sum(axis=2).mean())
    assert error == pytest.approx(rig.rmse, rel=1e-3)


def test_a_clip_in_two_pieces_gets_the_rig_of_the_whole():
    whole = chain(3, 20)[0]
    pieces = [replace(whole.with_frames(1, 8), name="a"), replace(whole.with_frames(9, 20), name="b")]
    options = RigOptions(joints=5, skeleton="motion")
    rig, one = rig_sequence(join_clips(pieces), options), rig_sequence(whole, options)
    assert rig.anchor == one.anchor and rig.skeleton.names == one.skeleton.names
    np.testing.assert_array_equal(rig.motion, one.motion)
    np.testing.assert_array_equal(rig.weights, one.weights)
    assert [clip.rows for clip in rig.clips] == [slice(0, 8), slice(8, 20)] and one.clips == ()


def test_the_anchor_may_lie_in_any_clip_and_a_number_means_the_first():
    small = cube(3, "small")
    large = replace(small, vertices=2 * small.vertices, name="large", frame_numbers=[4, 5, 6])
    for clips, position in (([small, large], (3, 4, 5)), ([large, small], (0, 1, 2))):
        assert rig_sequence(join_clips(clips), RigOptions(joints=2, skeleton="motion")).anchor in position
    assert rig_sequence(join_clips([small, large]), RigOptions(joints=2, skeleton="motion", anchor=2)).anchor == 1
    with pytest.raises(SprigError, match="not in the first clip"):
        rig_sequence(join_clips([small, large]), RigOptions(joints=2, skeleton="motion", anchor=5))


# ---- files


@pytest.fixture(scope="module")
def rigged():
    """A rig of two clips: twelve frames from 1 at 24 fps, eight from 101 at 30."""
    clips = [clip_of(1, name="bend"), clip_of(2, 8, 30.0, 101, name="wave")]
    return rig_sequence(join_clips(clips), RigOptions(joints=3, skeleton="motion"))


def test_a_report_has_every_clips_own_figures(rigged):
    report = rig_report(
        rigged, source="a/x.abc, x.abc", clip_sources=["a/x.abc", "x.abc"], object_names=("x",), influences=4
    )
    errors = report["rmse_percent_per_frame"]
    assert len(errors) == report["frames"] == 20 and report["fps"] == 24
    first, second = report["clips"]
    assert (first["input"], first["name"], first["frames"], first["fps"]) == ("a/x.abc", "bend", 12, 24)
    assert (second["input"], second["name"], second["frames"], second["fps"]) == ("x.abc", "wave", 8, 30)
    assert first["rmse_percent"] == pytest.approx(np.sqrt(np.mean(np.square(errors[:12]))))
    assert second["worst_frame"] == 101 + int(np.argmax(errors[12:]))
    anchors = [clip["anchor_frame"] for clip in report["clips"]]
    assert sorted(anchors, key=str) == [report["anchor_frame"], None]
    json.dumps(report, allow_nan=False)


def test_an_npz_says_whose_frames_are_whose(rigged, tmp_path):
    npz.write_rig(tmp_path / "rig.npz", rigged)
    with np.load(tmp_path / "rig.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*npz.RIG_KEYS, "clip_names", "clip_start", "clip_fps"}
        assert arrays["clip_names"].tolist() == ["bend", "wave"]
        assert arrays["clip_start"].tolist() == [0, 12] and arrays["clip_fps"].tolist() == [24, 30]
        assert arrays["frame_index"].tolist() == [*range(12), *range(8)]
        assert arrays["anchor_frame"] == rigged.anchor and arrays["fps"] == 24
        assert len(arrays["bone_world"]) == 20
    assert len(npz.read_rig(tmp_path / "rig.npz")["frame_index"]) == 20


# ---- the command line


@pytest.fixture
def files(tmp_path):
    """Two clips of the chain, and one of something else, beside an empty folder `out`."""
    found = []
    for clip in (clip_of(1, name="bend"), clip_of(2, 8, 30.0, name="wave"), cube(name="cube")):
        found.append(tmp_path / f"{clip.name}.npz")
        vertices = np.stack([clip.world_vertices(f) for f in range(clip.frame_count)])
        np.savez(found[-1], vertices=vertices, faces=clip.faces, fps=clip.fps)
    (tmp_path / "out").mkdir()
    return found


def test_several_inputs_are_one_character(files, capsys):
    bend, wave, _ = files
    out, told = bend.parent / "out" / "rig.npz", bend.parent / "out" / "rig.json"
    options = ["--same-character", "--joints", "3", "--frames", "2:99:2", "--anchor", "4", "--report", str(told)]
    assert cli.main(["rig", str(bend), str(wave), "-o", str(out), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    with np.load(out, allow_pickle=False) as rig:
        assert rig["clip_start"].tolist() == [0, 6] and rig["anchor_frame"] == 1
        assert rig["frame_index"].tolist() == [1, 3, 5, 7, 9, 11, 1, 3, 5, 7]  # --frames is for each
    report = json.loads(told.read_text())
    assert report["input"] == f"{bend}, {wave}"
    assert [(clip["input"], clip["frames"], clip["anchor_frame"]) for clip in report["clips"]] == [
        (str(bend), 6, 4),
        (str(wave), 4, None),
    ]
    lines = printed.out.splitlines()
    assert "bend.npz, wave.npz: 212 vertices, 10 frames at 24, 30 fps" in lines
    assert any(line.startswith("Rig: 3 joints, rest pose from frame 4 of bend, ") for line in lines)
    wave_error = report["clips"][1]
    assert f"  wave: {wave_error['rmse_percent']:.4f} %, worst frame {wave_error['worst_frame']}" in lines


def test_one_input_may_be_the_same_character(files, tmp_path):
    out = tmp_path / "out" / "rig.npz"
    assert cli.main(["rig", str(files[0]), "-o", str(out), "-q", "--joints", "2", "--same-character"]) == 0
    with np.load(out) as rig:
        assert set(rig) == set(npz.RIG_KEYS)


@pytest.mark.parametrize(
    "inputs, options, words",
    [
        ("bend wave", "", "Several INPUTs need --same-character"),
        ("bend cube", "--same-character", "cube.npz is not the character of .*bend.npz: it has 8 vertices where"),
        (
            "bend wave",
            "--same-character --frames 10:12",
            r"wave.npz: No frame lies in 10:12; the input has frames 1 to 8",
        ),
        ("bend wave", "--same-character --anchor 99", "Frame 99 is not in the first clip, bend"),
        ("bend nowhere", "--same-character", "nowhere.npz does not exist"),
        ("bend wave", "--same-character -o wave.npz", "wave.npz is the input as well as the output"),
        ("bend wave", "--same-character -o rig.usdc", "could hold one animation only"),
    ],
)
def test_what_does_not_go_together_is_refused(inputs, options, words, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["rig", *(f"{name}.npz" for name in inputs.split()), "-o", "out/rig.npz", *options.split()]
    before = files[1].read_bytes()
    assert cli.main(arguments) == 2
    assert listing(tmp_path / "out") == [] and files[1].read_bytes() == before
    assert re.search(words, one_line(capsys.readouterr().err))
