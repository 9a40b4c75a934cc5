"""The add-on in a real Blender window: the modal operator, Esc, undo, and what the panel looks like.

`tools/blender_window.py` opens the window of the Blender on the PATH, or of the executable named in BLENDER. Where
Blender lives in a root or on a machine of its own, SPRIG_BLENDER_GUI names a program that is called in the same way,

    PROGRAM screenshot SCRIPT.py OUT.png -- BLENDER-ARGUMENTS

and offers scripts the same module, `blender_gui`. BLENDER_GUI_BIND then holds the folders that the script needs,
separated by colons.
"""

import shutil

import pytest

from sprig.sprig_blender.pinned_wheels import PINNED

from ..small_wheels import make_wheel
from .play import play as play_in_window
from .play import save_animal, window_opener

pytestmark = pytest.mark.window

LARGEST_GROWTH = 20.0  # megabytes that 10 runs, and opening files, may add after the first ten, which fill caches


@pytest.fixture
def play(tmp_path):
    """Play a scenario in a window; returns what it returned and the folder with its pictures."""
    if window_opener() is None:
        pytest.skip("there is no Blender on the PATH or in BLENDER to open windows with")

    def play_scenario(name):
        return play_in_window(name, tmp_path), tmp_path

    return play_scenario


@pytest.fixture
def animal(tmp_path):
    """The embedded example as scratch/animal.npz."""
    save_animal(tmp_path)


@pytest.fixture
def wheels(tmp_path):
    """Stand-ins of the pinned versions in scratch/wheels; importing one waits for as long as scratch/slow is there."""
    folder, slow = tmp_path / "wheels", tmp_path / "slow"
    folder.mkdir()
    slow.touch()
    waits = f"import os, time\nwhile os.path.exists({str(slow)!r}):\n    time.sleep(0.1)\n"
    for wheel in PINNED:
        make_wheel(folder, wheel.project, wheel.version, waits if wheel.project == "trimesh" else "")


def test_panel(play, animal):
    result, pictures = play("panel")
    assert 0 < result["rmse"] < 1 and result["joints"] >= 2
    assert 0.3 < result["at"] < 1
    assert result["frame"] == result["worst_frame"]
    assert result["undone"] and result["redone"] and result["replaced"]
    for name in ("idle.png", "running.png", "result.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_sections(play, animal):
    result, pictures = play("sections")
    assert result.pop("German") in (None, ["Eigene Armature", "Sequenz automatisch riggen", "Streckbar"])
    assert result == {"still": False, "dropped": True, "time left": True}
    for name in ("closed.png", "open.png", "still.png", "german.png", "time_left.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_esc_in_every_phase(play):
    result, _pictures = play("cancel")
    assert result.pop("reading").startswith("Reading frame")
    assert result.pop("solving") not in ("Stopping", "Writing the armature")
    assert result == {
        "unchanged after reading": True,
        "unchanged after solving": True,
        "stopping": "Stopping",
        "unchanged after the button": True,
        "complaint": None,
        "threads": [],
    }


def test_separate_process(play):
    result, _pictures = play("separate")
    assert result == {
        "torch before": False,
        "children after Esc": 0,
        "torch then": False,
        "problem": None,
        "same": True,
        "children at last": 0,
    }


def test_the_user_works_on_meanwhile(play):
    result, _pictures = play("meanwhile")
    assert result == {
        "edited": "The mesh of 'Bar' was edited while it was rigged; run the rigging again.",
        "deleted": "'Bar' was deleted while it was rigged; undo that and run the rigging again.",
        "waiting": "Ready; waiting for Object Mode in the scene Scene",
        "written after waiting": 1,
        "renamed": ["Renamed", "Renamed Rig", "Renamed Skin"],
        "undo meanwhile": [3.0, None],
        "after disabling": True,
        "threads": [],
        "after opening a file": True,
        "threads then": [],
        "armatures then": 1,
    }


def test_trouble(play):
    result, _pictures = play("trouble")
    assert not result["without torch"]
    assert result["greyed out"] and result["mistake"] == (
        "Bar has other vertices at frame 1 than its own mesh has, because of the modifier Mirror; "
        "apply that modifier or switch it off."
    )
    assert "a bug of ours (KeyError)" in result["bug"] and result["unchanged"]
    assert "KeyError: 'a bug'" in result["report"] and "Blender" in result["report"]
    assert result["dismissed"]


def test_fine_tuning(play):
    result, pictures = play("finetune")
    assert "PJDD" in result["told"] and result["cancelled"] == ["", True, None]
    assert result["student"].endswith(".safetensors") and result["joints"] >= 2 and result["forgotten"] == ""
    assert "fine-tuned" not in result["warnings"]  # the student fits the sequence
    for name in ("offered.png", "learning.png", "learned.png", "rigged.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_preview(play, animal):
    result, pictures = play("preview")
    print(f"The overlay takes {result['milliseconds']:.2f} ms a redraw with {result['joints']} joints.")
    assert 10 < result["joints"] <= 24 and result["milliseconds"] < 2  # 0.5 where nothing else runs
    assert result["unchanged"] and result["kept by undo"] and result["undone"]
    assert result["applied"] == [result["joints"], None]
    assert "The preview met a bug of ours (TypeError)" in result["failed"]
    for name in ("sticks.png", "octahedra.png", "joint.png", "joints.png", "error.png", "applied.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_adjusting(play, animal):
    result, pictures = play("adjust")
    joints = result["joints"], result["raw joints"]
    print(
        f"The overlay takes {result['milliseconds']:.2f} ms a redraw with {joints} joints; shifts {result['shifts']} %"
    )
    assert result["milliseconds"] < 2  # 1 where nothing else runs
    assert result["shifts"][0] > result["shifts"][1] > 0
    assert result["unchanged"] and result["undone"] and result["editing"] == result["again"] == "EDIT_ARMATURE"
    assert result["fitted"] == [True, "OBJECT"] and result["applied"] == [True, False]
    assert result["left"] == ["OBJECT", None]
    for name in ("raw.png", "editing.png", "fitted.png", "again.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_handing_over(play):
    result, pictures = play("hand_over")
    assert (result["rigged"], result["SOURCE"], result["BOTH"]) == (
        [False, True, True],
        [True, False, True],
        [True, True, True],
    )
    assert result["ready"] == "" and "uneven scale of 1 x 1 x 2" in result["findings"]
    assert result["written"] and result["left"] == ["Bar"] and result["undone"]
    for name in ("source.png", "both.png", "ready.png", "findings.png", "cleaned.png", "dialog.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_the_whole_path_by_mouse(play, extension_zip, tmp_path):
    shutil.copy(extension_zip, tmp_path / "sprig.zip")
    result, pictures = play("whole_path")
    assert result.pop("moved") > 1
    assert result == {
        "previewed": 2,
        "redone": True,
        "cancelled": True,
        "replaced": True,
        "reloaded": True,
        "exported": [".fbx"],
        "removed": True,
    }
    for name in ("previewed.png", "reloaded.png", "browser.png", "exported.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_repeated_runs(play):
    result, _pictures = play("repeated")
    print(f"Megabytes after every five runs: {result['megabytes']}")
    assert result["runs"] == 20 and result["changes"] == {}
    assert result["megabytes"][-1] - result["megabytes"][1] < LARGEST_GROWTH
    assert result["timer at work"] and result["timer events at rest"] == 0


def test_install(play, wheels):
    result, _pictures = play("install")
    assert result.pop("offline").startswith("Blender may not use the network; allow Online Access")
    assert result == {"left behind": [], "problem": None, "installed": True, "removed": True}
