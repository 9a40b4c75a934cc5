"""`sprig` without Blender: what a run writes and prints, every refusal, Ctrl-C, and what happens when the disk is full.

Most tests call `main([...])`; what only a process of its own can show (signals, limits, quick starts) runs in children.
"""

import contextlib
import importlib.util
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sprig.backend.checkpoint import kinds_in, read_provenance
from sprig.backend.finetune.train import FineTuneConfig
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.sequence import MeshSequence
from sprig.sprig_blender import cli
from sprig.sprig_blender.students import students_folder

from .command_line import COMMAND, OUTSIDE, listing, one_line, start
from .small_files import WRITERS, write_clip

RIG_SHAPES = {  # DESIGN 5; V, J, F, M as letters
    "rest_vertices": ("V", 3), "faces": ("M", 3), "joint_names": ("J",), "parents": ("J",), "joints_rest": ("J", 3),
    "tails_rest": ("J", 3), "weights": ("V", "J"), "bone_rest": ("J", 4, 4), "bone_world": ("F", "J", 4, 4),
    "frame_index": ("F",), "anchor_frame": (), "fps": (),
}  # fmt: skip


def bending_bar(frames=12, rings=14, sides=8):
    """A tube along X whose right half bends upwards: vertices (F,V,3) and triangles (M,3)."""
    along, around = np.meshgrid(np.linspace(-1, 1, rings), np.arange(sides) * 2 * np.pi / sides, indexing="ij")
    x, y, z = along.ravel(), 0.2 * np.cos(around).ravel(), 0.2 * np.sin(around).ravel()
    angle = np.linspace(0, 1, frames)[:, None] * np.clip(x / 0.3, 0, 1)
    vertices = np.stack(
        [x * np.cos(angle) - z * np.sin(angle), y + 0 * angle, x * np.sin(angle) + z * np.cos(angle)], 2
    )
    ring, side = np.meshgrid(np.arange(rings - 1) * sides, np.arange(sides), indexing="ij")
    a, b = ring + side, ring + (side + 1) % sides
    quads = np.stack([a, b, b + sides, a + sides], axis=-1).reshape(-1, 4)
    return vertices.astype(np.float32), np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


@pytest.fixture
def bar(tmp_path):
    """A good clip, beside an empty folder `out`."""
    vertices, faces = bending_bar()
    path = tmp_path / "bar.npz"
    np.savez(path, vertices=vertices, faces=faces, fps=30.0)
    (tmp_path / "out").mkdir()
    return path


# ---- what a run gives


def test_a_skeleton_in_a_file_keeps_its_bones(bar):
    """The rig of every second frame is fitted to all of them."""
    given, out = bar.parent / "out" / "given.npz", bar.parent / "out" / "rig.npz"
    common = ["rig", str(bar)]
    assert cli.main([*common, "-o", str(given), "-q", "--joints", "3", "--frames", "1:12:2"]) == 0
    with np.load(given) as rig:
        arrays = {key: rig[key] for key in rig}
    arrays["joint_names"] = np.array(["Hüfte", "b", "a"])
    np.savez(given, **arrays)
    report = out.with_suffix(".json")
    assert cli.main([*common, "-o", str(out), "-q", "--skeleton", str(given), "--report", str(report)]) == 0
    with np.load(out) as rig:
        for key in ("joint_names", "parents", "joints_rest", "tails_rest", "bone_rest"):
            np.testing.assert_array_equal(rig[key], arrays[key])
        assert len(rig["bone_world"]) == 12
    told = json.loads(report.read_text())
    assert told["skeleton_source"] == "given" and told["rmse_percent"] < 0.5


def test_rig_writes_the_table_of_the_design(bar, capsys):
    out, report = bar.parent / "out" / "rig.npz", bar.parent / "out" / "rig.json"
    status = cli.main(["rig", str(bar), "-o", str(out), "--joints", "3", "--report", str(report)])
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    assert listing(out.parent) == ["rig.json", "rig.npz"]

    with np.load(out, allow_pickle=False) as rig:
        assert set(rig) == set(RIG_SHAPES)
        size = {"V": rig["rest_vertices"].shape[0], "M": len(rig["faces"]), "J": len(rig["parents"]), "F": 12}
        for key, shape in RIG_SHAPES.items():
            assert rig[key].shape == tuple(size.get(side, side) for side in shape), key
        relative = rig["bone_world"].astype(float) @ np.linalg.inv(rig["bone_rest"].astype(float))
        blended = np.einsum("vj,fjik->fvik", rig["weights"].astype(float), relative)
        rest = np.c_[rig["rest_vertices"], np.ones(size["V"])]
        posed = np.einsum("fvik,vk->fvi", blended, rest)[..., :3]
    vertices, faces = bending_bar()
    assert (size["V"], size["M"]) == (vertices.shape[1], len(faces))
    told = json.loads(report.read_text())
    diagonal = np.linalg.norm(np.ptp(vertices[told["anchor_frame"] - 1], axis=0))
    per_frame = 100 / diagonal * np.sqrt(((posed - vertices) ** 2).sum(-1).mean(1))
    assert told["rmse_percent_per_frame"] == pytest.approx(per_frame, abs=1e-3)
    assert told["rmse_percent"] < 1  # a bar with one bend and three joints
    assert set(told["seconds"]) >= {"read", "write"}
    assert told["object"] == "bar" and told["fps"] == 30
    summary = printed.out.splitlines()
    assert any(line == "bar.npz: 112 vertices, 12 frames at 30 fps" for line in summary)
    assert any(f"RMSE: {told['rmse_percent']:.4f} %" in line for line in summary)
    assert summary[-1] == f"Written: {out}, {report}"


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_is_rigged(kind, tmp_path):
    vertices, faces = bending_bar()
    path, rest = write_clip(kind, tmp_path, vertices, faces)
    out, report = tmp_path / "rig.npz", tmp_path / "rig.json"
    options = ["--skeleton", "motion", "--joints", "3", "-q", "--report", str(report)]
    options += ["--rest", str(rest)] if rest else []
    assert cli.main(["rig", str(path), "-o", str(out), *options]) == 0
    plain = rig_sequence(MeshSequence(vertices, faces), RigOptions(joints=3, skeleton="motion"))
    assert json.loads(report.read_text())["rmse_percent"] == pytest.approx(plain.rmse, rel=0.02)
    with np.load(out) as rig:
        assert rig["parents"].tolist() == plain.skeleton.parents.tolist()
        np.testing.assert_allclose(rig["joints_rest"], plain.skeleton.joints, atol=1e-3)


def test_frames_keep_their_numbers_and_positions(bar, tmp_path):
    out, report = tmp_path / "out" / "rig.npz", tmp_path / "out" / "rig.json"
    options = ["--frames", "3:9:2", "--anchor", "7", "--joints", "2", "--influences", "1", "--report", str(report)]
    assert cli.main(["rig", str(bar), "-o", str(out), "-q", *options]) == 0
    with np.load(out) as rig:
        assert rig["frame_index"].tolist() == [2, 4, 6, 8]  # 0-based positions in the input
        assert rig["anchor_frame"] == 2  # 0-based position among this file's frames
        assert (rig["weights"] > 0).sum(axis=1).max() == 1
    told = json.loads(report.read_text())
    assert (told["frames"], told["anchor_frame"], told["influences"]) == (4, 7, 1)
    assert told["worst_frame"] in (3, 5, 7, 9)


def test_defaults_may_be_spelled_out(bar, tmp_path, capsys):
    out = tmp_path / "out" / "rig.npz"
    defaults = (
        "--anchor auto --skeleton auto --joints auto --tolerance 0.1 --influences 4 --rest-correction on --stretch off "
        "--candidates 1 --temperature 0 --finetune 0 --device auto --seed 0"
    ).split()
    assert cli.main(["rig", str(bar), "-o", str(out), "-q", *defaults]) == 0
    assert capsys.readouterr() == ("", "")  # quiet is silent


def test_objects_can_be_chosen(tmp_path):
    vertices, faces = bending_bar()
    both = np.concatenate([vertices, vertices * [1, 1, -1] + [0, 2, 0]], axis=1)
    object_id = np.repeat([3, 8], vertices.shape[1])
    np.savez(tmp_path / "two.npz", vertices=both, faces=np.concatenate([faces, faces + 112]), object_id=object_id)
    arguments = ["rig", str(tmp_path / "two.npz"), "-o", str(tmp_path / "rig.npz"), "-q", "--joints", "2"]
    assert cli.main([*arguments, "--object", "object_8"]) == 0
    with np.load(tmp_path / "rig.npz") as rig:
        assert len(rig["rest_vertices"]) == 112
        assert rig["rest_vertices"][:, 1].mean() == pytest.approx(2, abs=0.01)
    assert cli.main([*arguments, "--object", "object_8", "--object", "object_3"]) == 0
    with np.load(tmp_path / "rig.npz") as rig:
        assert len(rig["rest_vertices"]) == 224


def test_an_existing_file_is_replaced_only_by_a_finished_one(bar, tmp_path, capsys):
    out = tmp_path / "out" / "rig.npz"
    out.write_bytes(b"precious")
    assert cli.main(["rig", str(bar), "-o", str(out), "-q", "--anchor", "99"]) == 2
    assert out.read_bytes() == b"precious" and listing(out.parent) == ["rig.npz"]
    one_line(capsys.readouterr().err)
    assert cli.main(["rig", str(bar), "-o", str(out), "-q", "--joints", "2"]) == 0
    with np.load(out) as rig:
        assert "bone_world" in rig


# ---- fine-tuning


@pytest.fixture(scope="module")
def networks(network_files):
    """The options that name two small networks."""
    return [f"--{name.replace('_', '-')}={file}" for name, file in network_files.items()]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where this user's students are: nowhere else, and not yet."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    students = {"darwin": "Library/Caches/sprig/students"}.get(sys.platform, "sprig/students")
    return tmp_path / "home" / students


def test_finetune_writes_students_that_rig_takes(bar, networks, capsys):
    out, told = bar.parent / "out" / "student.safetensors", bar.parent / "out" / "student.json"
    arguments = ["finetune", str(bar), "-o", str(out), "--epochs", "2", "--frames", "1:12:2", "--anchor", "5"]
    assert cli.main([*arguments, "--report", str(told), "--seed", "3", *networks]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and listing(out.parent) == ["student.json", "student.safetensors"]
    assert kinds_in(out) == ("skeleton", "skinning")

    report = json.loads(told.read_text())
    assert report["schema"] == "sprig-finetune-1" and report["input"] == str(bar)
    assert (report["frames"], report["anchor_frame"], report["epochs"], report["seed"]) == (6, 5, 2, 3)
    assert report["learned_frames"] + report["held_out_frames"] == [1, 3, 5, 7, 11, 9]
    assert set(report["seconds"]) == {"networks", "read", "finetune", "write"}
    for stage, key in (("skeleton", "pjdd"), ("skinning", "skin_error")):
        epochs = report["history"][stage]
        assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2] and all(epoch[key] >= 0 for epoch in epochs)
        tuned = report["checkpoints"][stage]["finetuned"]
        assert read_provenance(out)["finetuned"][stage] == tuned and tuned["epochs"] == 2

    lines = printed.out.splitlines()
    first = report["history"]["skeleton"][0]["pjdd"]
    assert f"Epoch 1: PJDD {first:.3g}" in lines
    assert any(line.startswith("Epoch 2: PJDD ") and line.endswith(f" (was {first:.3g})") for line in lines)
    assert lines[-1] == f"Written: {out}, {told}"

    student = [f"--checkpoint-skeleton={out}", f"--checkpoint-skinning={out}", "--skeleton", "learned"]
    rig = bar.parent / "out" / "rig.npz"
    assert cli.main(["rig", str(bar), "-o", str(rig), "-q", *student]) == 0


@pytest.mark.parametrize("stage", ["skeleton", "skinning"])
def test_finetune_of_one_network(stage, bar, networks, capsys):
    out = bar.parent / "out" / "student.safetensors"
    given = [option for option in networks if stage == "skinning" or "skeleton" in option]
    arguments = ["finetune", str(bar), "-o", str(out), "-q", "--epochs", "1", "--frames", "1:4", "--stage", stage]
    assert cli.main([*arguments, *given]) == 0
    assert capsys.readouterr() == ("", "") and kinds_in(out) == (stage,)


def test_rig_with_finetune_keeps_its_student(bar, networks, cache):
    report = bar.parent / "out" / "rig.json"
    arguments = ["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "-q", "--report", str(report)]
    arguments += ["--frames", "1:4", "--finetune", "1", *networks]
    assert cli.main(arguments) == 0
    first = json.loads(report.read_text())
    assert first["skeleton_source"] == "auto" and first["seconds"]["finetune"] > 0
    (kept,) = cache.iterdir()
    student = kept.read_bytes()
    assert cli.main(arguments) == 0
    again = json.loads(report.read_text())
    assert [again[key] for key in ("joints", "rmse_percent")] == [first[key] for key in ("joints", "rmse_percent")]
    for stage in ("skeleton", "skinning"):
        tuned = first["checkpoints"][stage]["finetuned"]
        assert tuned["epochs"] == 1
        assert again["checkpoints"][stage] == {**first["checkpoints"][stage], "finetuned": {**tuned, "reused": True}}
    assert [path.read_bytes() for path in cache.iterdir()] == [student]


@pytest.mark.parametrize(
    "system, variables, expected",
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/sprig/students"),
        ("linux", {"XDG_CACHE_HOME": "caches"}, "/home/me/.cache/sprig/students"),
        ("linux", {}, "/home/me/.cache/sprig/students"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "/home/me/Library/Caches/sprig/students"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/sprig/students"),
    ],
)
def test_students_are_kept_where_the_system_keeps_caches(system, variables, expected, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert students_folder() == Path(expected)


def test_the_default_number_of_epochs_is_the_same_everywhere():
    assert FineTuneConfig().epochs == cli.EPOCHS


@pytest.mark.parametrize(
    "options",
    [["rig", "--skeleton", "learned"], ["rig", "--finetune", "2"], ["finetune"], ["finetune", "--stage", "skeleton"]],
    ids=" ".join,
)
def test_without_networks_it_says_so(options, bar, cache, capsys, monkeypatch):
    from sprig.backend import learned

    monkeypatch.setattr(learned, "SHIPPED", bar.parent / "nowhere")
    out = bar.parent / "out" / ("rig.npz" if options[0] == "rig" else "student.safetensors")
    assert cli.main([*options, str(bar), "-o", str(out), "-q"]) == 2
    assert "without a skeleton network; give one with --checkpoint-skeleton" in one_line(capsys.readouterr().err)
    assert listing(out.parent) == [] and not cache.exists()


BAD_FINETUNE_OPTIONS = {
    "-o out/student.npz": ".safetensors",
    "-o out": ".safetensors",
    "-o nowhere/s.safetensors": "nowhere",
    "--epochs 0": "at least 1",
    "--epochs 1001": "at most 1000",
    "--stage all": "'all'",
    "--stage skeleton --checkpoint-skinning bar.npz": "leave --checkpoint-skinning out",
    "--checkpoint-skeleton nowhere.safetensors": "nowhere.safetensors is no file",
    "--checkpoint-skeleton bar.npz": "bar.npz",
    "--report out/s.safetensors": "the output",
    "--report bar.npz": "the input",
    "--anchor 13": "Frame 13",
    "--frames 3:3": "single frame",
    "--frames 40:50": "frames 1 to 12",
    "--joints 5": "--joints",
    "--device tpu": "'tpu'",
}


@pytest.mark.parametrize("options, expected", BAD_FINETUNE_OPTIONS.items(), ids=list(BAD_FINETUNE_OPTIONS))
def test_bad_finetune_options(options, expected, bar, networks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    given = [] if "--checkpoint" in options else networks
    assert cli.main(["finetune", "bar.npz", "-q", "-o", "out/s.safetensors", *given, *options.split()]) == 2
    printed = capsys.readouterr()
    assert expected.lower() in one_line(printed.err).lower() and printed.out == ""
    assert listing(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to children")
@pytest.mark.parametrize("command", [["finetune"], ["rig", "--finetune", "50"]], ids=["finetune", "rig"])
def test_finetune_interrupted(command, bar, networks, cache):
    out = bar.parent / "out" / ("student.safetensors" if command == ["finetune"] else "rig.npz")
    with start(*command, bar, "-o", out, *networks) as run:
        while not run.stdout.readline().startswith("Epoch 2: PJDD"):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "cancelled" in one_line(error)
    assert listing(out.parent) == [] and not cache.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_finetune_on_a_full_disk(bar, networks):
    import resource

    out = bar.parent / "out" / "student.safetensors"
    out.write_bytes(b"precious")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    with start("finetune", bar, "-o", out, "--epochs", 1, "--frames", "1:3", "-q", *networks, preexec_fn=limit) as run:
        printed, error = run.communicate(timeout=120)
    assert run.returncode == 2, error
    assert str(out) in one_line(error) and ".sprig-" not in error and printed == ""
    assert listing(out.parent) == [out.name] and out.read_bytes() == b"precious"


# ---- inspect


def test_inspect_counts_what_is_there(tmp_path, capsys):
    vertices, faces = bending_bar()
    torn = np.concatenate([vertices, vertices[:, :8]], axis=1)  # the first ring a second time, as along a texture seam
    still = np.repeat(np.add(vertices[:1], [0, 3, 0]), 12, axis=0)
    everything = np.concatenate([torn, still], axis=1).astype(np.float32)
    object_id = np.r_[np.zeros(120), np.ones(112)].astype(int)
    seam = np.where((faces < 8) & (faces[:, :1] % 2 == 0), faces + 112, faces)
    np.savez(
        tmp_path / "parts.npz",
        vertices=everything,
        faces=np.concatenate([seam, faces + 120]),
        object_id=object_id,
        fps=25.0,
    )
    assert cli.main(["inspect", str(tmp_path / "parts.npz"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(mesh["vertices"], mesh["faces"], mesh["moves"]) for mesh in told["meshes"]] == [
        (120, 208, True),
        (112, 208, False),
    ]
    assert told["frames"] == {"count": 12, "first": 1, "last": 12, "fps": 25.0}
    assert (told["vertices"], told["welded_vertices"], told["islands"], told["faces"]) == (232, 224, 2, 416)
    areas = [np.linalg.norm(np.cross(*(np.diff(v[faces], axis=1).transpose(1, 0, 2))), axis=1).sum() for v in vertices]
    assert areas[told["anchor_frame"] - 1] == pytest.approx(max(areas), rel=2e-3)

    assert cli.main(["inspect", str(tmp_path / "parts.npz")]) == 0
    text = capsys.readouterr().out
    assert "Frames: 1 to 12, 12 in all, 25 a second" in text
    assert "232 vertices are 224 places, in 2 connected parts" in text
    assert "object_1: 112 vertices, 208 triangles, does not move" in text


def test_inspect_says_what_rig_would_refuse(tmp_path, capsys):
    vertices, faces = bending_bar(frames=3)
    np.savez(tmp_path / "still.npz", vertices=vertices[[0, 0, 0]], faces=faces)
    assert cli.main(["inspect", str(tmp_path / "still.npz")]) == 0
    assert "Warning: Nothing moves" in capsys.readouterr().out


# ---- refusals


def spoiled(**changes):
    """A maker of an .npz like the good one but for some arrays."""

    def make(folder):
        vertices, faces = bending_bar()
        arrays = {"vertices": vertices, "faces": faces, "fps": 30.0}
        arrays |= {key: change(arrays[key]) for key, change in changes.items()}
        np.savez(folder / "in.npz", **{key: value for key, value in arrays.items() if value is not None})
        return folder / "in.npz"

    return make


def with_value(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def written(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def truncated_archive(folder):
    path = spoiled()(folder)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def claims_absurd_size(folder):
    """A tiny .npz whose header says 4e12 vertices."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 4000000, 3), }"
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    with zipfile.ZipFile(folder / "in.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vertices.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("faces.npy", b"")
    return folder / "in.npz"


class Intruder:
    """What it unpickles to would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile_pickle(folder):
    (folder / "in.bin").write_bytes(pickle.dumps(Intruder(folder / "out" / "intruded")))
    return folder / "in.bin"


def growing_folder(folder):
    (folder / "in").mkdir()
    for frame, extra in enumerate(["", "", "v 1 1 1\n"], 1):
        text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n" + extra + "f 1 2 3\nf 1 3 4\n"
        (folder / "in" / f"f{frame}.obj").write_text(text)
    return folder / "in"


BAD_INPUTS = {
    "missing": (lambda folder: folder / "nothing.npz", "nothing.npz does not exist"),
    "suffix": (written("in.stl", b"solid"), "in.stl has a suffix that is not read"),
    "no suffix": (written("in", b"x"), "in has a suffix that is not read"),
    "empty file": (written("in.npz", b""), "in.npz"),
    "truncated npz": (truncated_archive, "in.npz"),
    "truncated abc": (written("in.abc", b"Ogawa\xff\x00\x01" + bytes(40)), "in.abc"),
    "not an abc": (written("in.abc", b"hello"), "in.abc"),
    "object arrays": (spoiled(faces=lambda f: np.array([{}, []], dtype=object)), "in.npz"),
    "no vertices": (spoiled(vertices=lambda v: None), "vertices"),
    "absurd size": (claims_absurd_size, "in.npz"),
    "hostile pickle": (hostile_pickle, "in.bin"),
    "single frame": (spoiled(vertices=lambda v: v[:1]), "frame"),
    "no motion": (spoiled(vertices=lambda v: v[[0] * 5]), "--skeleton learned"),
    "NaN": (spoiled(vertices=with_value((3, 5), np.nan)), "1 vertices of frame 4"),
    "infinite": (spoiled(vertices=with_value((0, slice(0, 7)), np.inf)), "7 vertices of frame 1"),
    "no faces": (spoiled(faces=lambda f: f[:0]), "faces"),
    "zero area": (spoiled(faces=lambda f: f[:, [0, 0, 0]]), "area"),
    "three vertices": (spoiled(vertices=lambda v: v[:, :3], faces=lambda f: f[:1] * 0 + [0, 1, 2]), "at least 4"),
    "index too large": (spoiled(faces=with_value((0, 0), 112)), "112"),
    "negative index": (spoiled(faces=with_value((0, 0), -1)), "-1"),
    "no rest mesh": (written("in.pc2", b"POINTCACHE2\0" + bytes(60)), "--rest"),
    "topology changes": (growing_folder, "f3"),
}


@pytest.mark.parametrize("make, expected", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input(make, expected, tmp_path, capsys):
    source = make(tmp_path)
    (tmp_path / "out").mkdir()
    before = listing(tmp_path)
    assert cli.main(["rig", str(source), "-o", str(tmp_path / "out" / "rig.npz"), "-q"]) == 2
    printed = capsys.readouterr()
    assert expected in one_line(printed.err)
    assert printed.out == ""
    assert listing(tmp_path) == before


BAD_OPTIONS = {
    "--frames 9:3": "reversed",
    "--frames 40:50": "frames 1 to 12",
    "--frames 5:5": "frame",
    "--frames 1-9": "START:END",
    "--frames 1:9:0": "step",
    "--frames 1:99999999999": "START:END",
    "--joints 1": "at least 2",
    "--joints 113": "112",
    "--joints many": "'many'",
    "--influences 0": "at least 1",
    "--tolerance 0": "above 0",
    "--tolerance nan": "'nan'",
    "--anchor 13": "Frame 13 is not in the sequence",
    "--anchor first": "auto",
    "--frames 1:5 --anchor 9": "Frame 9 is not in the sequence",
    "--device tpu": "'tpu'",
    "--object Horse": "'Horse'",
    "--fps 0": "above 0",
    "--fps inf": "'inf'",
    "--up x": "'x'",
    "--rest bar.obj": "--rest",
    "--seed -1": "at least 0",
    "--seed 4294967296": "at most",
    "--stretch on": "'on'",
    "--rest-correction yes": "'yes'",
    "--skeleton other.npz": "no file other.npz",
    "--skeleton Armature": "holds no armatures",
    "--skeleton bar.npz": "lacks the array 'joint_names'",
    "--skeleton bar.npz --joints 4": "--joints does not apply",
    "--skeleton bar.npz --finetune 3": "--finetune does not apply",
    "--fit both --rest-frame 1": "--rest-frame belongs to a given skeleton",
    "--fit all": "invalid choice",
    "--candidates 5 --skeleton motion": "--candidates belongs to the networks",
    "--temperature 0.5 --skeleton motion": "--temperature belongs to the networks",
    "--finetune 3 --skeleton motion": "--finetune belongs to the networks",
    "--finetune -1": "at least 0",
    "--finetune 3 --checkpoint-skeleton a.safetensors": "a.safetensors is no file",
    "--checkpoint-skeleton a.safetensors": "a.safetensors is no file",
    "--skeleton learned --checkpoint-skinning a.safetensors": "a.safetensors is no file",
    "--join 3": "--join",  # no abbreviations: what they mean would change with new options
    "--report bar.npz": "the input",
    "--report out/rig.npz": "the output",
    "--report nowhere/r.json": "nowhere",
    "--report out": "folder",
    "--preview p.jpg": ".png",
    "other.npz": "--same-character",
    "-o out/rig.obj": "rig.obj",
    "-o out/rig": "suffix",
    "-o nowhere/rig.npz": "nowhere",
    "-o bar.npz": "the input",
    "-o folder.npz": "folder.npz is a folder",
    f"-o {'long' * 80}.npz": "name too long",
}


@pytest.mark.parametrize("options, expected", BAD_OPTIONS.items(), ids=[options[:40] for options in BAD_OPTIONS])
def test_bad_options(options, expected, bar, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    good = bar.read_bytes()
    before = listing(tmp_path)
    assert cli.main(["rig", "-q", "-o", "out/rig.npz", "bar.npz", *options.split()]) == 2
    printed = capsys.readouterr()
    assert expected.lower() in one_line(printed.err).lower()
    assert printed.out == ""
    assert listing(tmp_path) == before and bar.read_bytes() == good


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], "COMMAND"),
        (["dance"], "'dance'"),
        (["rig"], "INPUT"),
        (["rig", "a.npz"], "-o"),
        (["finetune", "clips/", "--epochs", "3"], "-o"),
        (["finetune", "-o", "student.safetensors"], "CLIP"),
        (["finetune", "nothing.abc", "-o", "student.safetensors"], "does not exist"),
        (["evaluate"], "COMMAND"),
        (["evaluate", "static", "--bank", "bank", "--poses", "0"], "--poses"),
        (["inspect", "nothing.abc"], "does not exist"),
        (["inspect", "long" * 80 + ".npz"], "name too long"),
    ],
)
def test_bad_usage(arguments, expected, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert expected.lower() in one_line(printed.err).lower() and printed.out == ""


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(device, bar, capsys):
    import torch

    if {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip(f"{device} is there")
    assert cli.main(["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "-q", "--device", device]) == 2
    assert repr(device) in one_line(capsys.readouterr().err)
    assert listing(bar.parent / "out") == []


@pytest.mark.parametrize("what", ["folder", "file"])
def test_read_only_places_are_respected(what, bar, capsys):
    out = bar.parent / "out" / "rig.npz"
    out.write_bytes(b"precious")
    place = out if what == "file" else out.parent
    place.chmod(0o444 if what == "file" else 0o555)
    try:
        assert cli.main(["rig", str(bar), "-o", str(out), "-q"]) == 2
        assert "read-only" in one_line(capsys.readouterr().err)
        assert listing(out.parent) == ["rig.npz"] and out.read_bytes() == b"precious"
    finally:
        place.chmod(0o755)


def test_needs_blender_is_one_sentence(bar, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bpy" else find(name))
    assert cli.main(["rig", str(bar), "-o", str(bar.parent / "out" / "rig.glb"), "-q"]) == 2
    assert "install SPRig with its extra bpy" in one_line(capsys.readouterr().err)
    assert listing(bar.parent / "out") == []


# ---- the terminal


def test_help_and_version(capsys):
    commands = (["rig", "--help"], ["inspect", "-h"], ["demo", "--help"], ["finetune", "--help"])
    for arguments in (["--help"], *commands, ["--version"]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().err == ""
    cli.main(["rig", "--help"])
    text = capsys.readouterr().out
    for option in (
        "--frames --fps --up --object --rest --anchor --skeleton --joints --tolerance --influences --rest-correction "
        "--stretch --candidates --temperature --finetune --checkpoint-skeleton --checkpoint-skinning --same-character "
        "--device --seed --report --preview -q"
    ).split():
        assert option in text, option


@pytest.mark.parametrize(
    "arguments", [["--help"], ["rig", "--help"], ["rig", "nothing.abc", "-o", "out.glb"], ["finetune", "--help"]]
)
def test_quick_answers_load_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from sprig.sprig_blender import cli\n"
        f"cli.main({arguments})\n"
        "print([name for name in ('torch', 'bpy', 'scipy', 'alembic3d', 'tqdm') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=OUTSIDE)
    assert run.stdout.splitlines()[-1] == "[]"


def test_what_libraries_print_is_captured(bar, capfd, monkeypatch):
    """From Python and from C, to both streams; it neither hides nor doubles what the command says."""
    from sprig.backend import pipeline

    rig_sequence = pipeline.rig_sequence

    def noisy(*arguments):
        print("noise from Python")
        print("noise from Python", file=sys.stderr)
        os.write(1, b"noise from C\n")
        os.write(2, b"noise from C\n")
        return rig_sequence(*arguments)

    monkeypatch.setattr(pipeline, "rig_sequence", noisy)
    assert cli.main(["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "--joints", "2"]) == 0
    printed = capfd.readouterr()
    assert "noise" not in printed.out + printed.err and printed.err == ""
    assert "Written:" in printed.out
    print("after")
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("after\n", "after\n")  # the streams are back


def test_a_bug_names_its_log(bar, capsys, monkeypatch):
    from sprig.backend import pipeline

    def broken(*_):
        print("last words")
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr(pipeline, "rig_sequence", broken)
    assert cli.main(["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "-q"]) == 1
    line = one_line(capsys.readouterr().err)
    log = Path(re.search(r"(\S+\.log)", line)[1])
    text = log.read_text()
    log.unlink()
    assert "ZeroDivisionError: in the middle" in text and "last words" in text and "bar.npz" in text
    assert listing(bar.parent / "out") == []


def test_no_memory_is_one_sentence(bar, capsys, monkeypatch):
    from sprig.backend import pipeline

    def hungry(*_):
        raise MemoryError

    monkeypatch.setattr(pipeline, "rig_sequence", hungry)
    assert cli.main(["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "-q"]) == 2
    assert "--frames" in one_line(capsys.readouterr().err)


# ---- processes


@pytest.fixture
def long_clip(tmp_path):
    """A clip that takes long enough to be interrupted in the middle."""
    vertices, faces = bending_bar(frames=60, rings=400, sides=16)
    np.savez(tmp_path / "long.npz", vertices=vertices, faces=faces)
    (tmp_path / "out").mkdir()
    return tmp_path / "long.npz"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to children")
@pytest.mark.parametrize("lines", [1, 2, 4], ids=["importing", "reading", "solving"])
def test_interrupted(lines, long_clip):
    """Ctrl-C once the run has said so many lines: "Starting" comes before torch is imported."""
    out = long_clip.parent / "out"
    with start("rig", long_clip, "-o", out / "rig.npz", "--joints", "30") as run:
        for _ in range(lines):
            assert run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "cancelled" in one_line(error)
    assert listing(out) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_full_disk(bar):
    """The system refuses to let any file grow: what a full disk does, without filling one."""
    import resource

    out = bar.parent / "out"
    (out / "rig.npz").write_bytes(b"precious")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    with start("rig", bar, "-o", out / "rig.npz", "--joints", "2", "-q", preexec_fn=limit) as run:
        printed, error = run.communicate(timeout=120)
    assert run.returncode == 2, error
    assert str(out / "rig.npz") in one_line(error)
    assert printed == ""
    assert listing(out) == ["rig.npz"] and (out / "rig.npz").read_bytes() == b"precious"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_a_bar(bar):
    import pty

    ours, theirs = pty.openpty()
    arguments = ["rig", str(bar), "-o", str(bar.parent / "out" / "rig.npz"), "--joints", "2"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=OUTSIDE) as run:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the run is
            while chunk := os.read(ours, 4096):
                shown += chunk
        assert run.stderr.read() == ""
    os.close(ours)
    assert run.returncode == 0
    text = shown.decode().replace("\r\n", "\n")
    assert re.search(r"\r[^\r]* \d+% \|", text)  # a bar that redraws itself
    assert "Written:" in text.rsplit("\r", 1)[1]  # and is gone in the end


def test_a_reader_that_leaves_does_not_stop_the_run(bar):
    out = bar.parent / "out" / "rig.npz"
    with start("rig", bar, "-o", out, "--joints", "2") as run:
        assert run.stdout.readline()
        run.stdout.close()
        error = run.stderr.read()
    assert (run.returncode, error) == (0, "")
    assert out.exists()
