"""The preview picture: drawn on the sheet it should be, for any size and place, without a trace in the scene."""

import os
import subprocess
import sys

import bpy
import numpy as np
import pytest

from sprig.backend.errors import SprigError
from sprig.sprig_blender import preview_picture
from sprig.sprig_blender.preview_picture import HEIGHT, WIDTH, render_preview

from .rigs import mesh_object, random_rig, replay, tube


def draw(path, *, size=1.0, origin=(0, 0, 0)):
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(1), vertices, faces, size=size, origin=origin, frames=6)
    mesh_object(vertices, faces)
    before = set(bpy.data.user_map()), bpy.context.scene.frame_current
    render_preview(path, rig, replay(rig))
    assert (set(bpy.data.user_map()), bpy.context.scene.frame_current) == before


def pixels(path) -> np.ndarray:
    """Rows from the top (H,W,3)."""
    image = bpy.data.images.load(str(path))
    values = np.empty(4 * WIDTH * HEIGHT, dtype=np.float32)
    image.pixels.foreach_get(values)
    bpy.data.images.remove(image)
    return values.reshape(HEIGHT, WIDTH, 4)[::-1, :, :3]


@pytest.fixture
def low_resolution(monkeypatch):
    """The layout is the same with fewer samples per pixel; software rendering takes most of the time."""
    monkeypatch.setattr(preview_picture, "WORKBENCH_SAMPLES", "OFF")


def test_the_sheet_is_the_same_for_any_size_and_place(tmp_path, low_resolution):
    """Three characters that differ in size and place only give one picture: framing is automatic."""
    pictures = []
    for k, (size, origin) in enumerate([(1.0, (0, 0, 0)), (1e-4, (0.3, 0, 0)), (1e4, (1e7, -1e7, 5))]):
        draw(tmp_path / f"{k}.png", size=size, origin=origin)
        pictures.append(pixels(tmp_path / f"{k}.png"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]
    for other in pictures[1:]:
        differs = np.abs(other - pictures[0]).max(axis=2) > 0.1
        assert differs.mean() < 0.001  # outlines may shift by a pixel
    background = pictures[0][5, 5]
    drawn = np.abs(pictures[0] - background).max(axis=2) > 0.1
    left, right = drawn[200:950, : WIDTH // 2 - 100], drawn[200:950, WIDTH // 2 - 50 :]
    assert 0.05 < left.mean() < 0.8 and 0.05 < right.mean() < 0.8
    assert drawn[60:160].any(axis=1).sum() > 40  # title and caption
    assert not drawn[:, -8:].any() and not drawn[-8:].any()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(SprigError, match="does not exist"):
        draw(tmp_path / "nowhere" / "preview.png")


WITHOUT_OPENGL = """
import sys
from pathlib import Path
import bpy
from sprig.sprig_blender import preview_picture
from sprig.sprig_blender.preview_picture import _set_up_render, _Sheet, _sheet_scene
preview_picture.CYCLES_SAMPLES = 1
with _sheet_scene() as scene:
    _Sheet(scene).text("no OpenGL", 200, 400, 300, "#FFFFFF", 1500)
    _set_up_render(scene, Path(sys.argv[1]))
    assert scene.render.engine == "CYCLES"
    scene.render.resolution_percentage = 10
    bpy.ops.render.render(write_still=True, scene=scene.name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can OpenGL be taken away for one process")
def test_without_opengl_cycles_draws(tmp_path):
    """Where no EGL driver is found Blender aborts the process on the first drawing; ours must not."""
    environment = os.environ | {"__EGL_VENDOR_LIBRARY_FILENAMES": str(tmp_path / "none.json")}
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-c", WITHOUT_OPENGL, str(picture)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    image = bpy.data.images.load(str(picture))
    values = np.array(image.pixels[:]).reshape(-1, 4)[:, :3]
    assert values.max() > 0.9 and values.min() < 0.2
