"""Take the pictures of docs/: play the window tests' scenario `tutorial` in Blender and make its pictures small.

python tools/make_screenshots.py        writes docs/images/*.png and prints their sizes

Needs what the window tests need, see tests/window/test_window.py. The elephant comes from a point cache, since a
Blender may be built without Alembic; look at every picture before you keep it.
"""

import os
import tempfile
from pathlib import Path

from PIL import Image, ImageChops  # Pillow comes with matplotlib

from sprig.tests.window.play import CHECKOUT, play, save_animal, window_opener

IMAGES = CHECKOUT / "docs" / "images"
PICTURES = ("libraries", "ready", "sections", "preview", "result", "compare")
WINDOW = "1280x960"  # small enough to be shown without being scaled down
LARGEST = 150_000  # bytes of one file
COLOURS = (256, 128, 64)
MARGIN, TABS = 12, 30  # pixels: around the panel, and of the tabs beside it


def save_small(picture: Image.Image, path: Path) -> None:
    """Write a picture with as many colours as LARGEST allows."""
    picture.save(path, optimize=True)
    for colours in COLOURS:
        if path.stat().st_size > LARGEST:
            picture.quantize(colours, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"make_screenshots.py: {path} is larger than {LARGEST} bytes; crop it")


def without_ground(picture: Image.Image) -> Image.Image:
    """A picture of the sidebar, cut off where only the viewport's even ground is left below the panel."""
    ground = Image.new("RGB", picture.size, picture.getpixel((MARGIN, picture.height - MARGIN)))
    below_tabs = picture.width - TABS
    end = ImageChops.difference(picture, ground).crop((0, 0, below_tabs, picture.height - MARGIN)).getbbox()[3]
    return picture.crop((0, 0, picture.width, end + MARGIN))


def main() -> None:
    if window_opener() is None:
        raise SystemExit("make_screenshots.py: there is no Blender on the PATH; name its executable in BLENDER")
    os.environ.setdefault("BLENDER_GUI_SIZE", WINDOW)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        save_animal(scratch)
        alone = play("tutorial", scratch)["alone"]
        for name in PICTURES:
            picture = Image.open(scratch / f"{name}.png").convert("RGB")
            if name in alone:
                picture = without_ground(picture.crop(alone[name]))
            path = IMAGES / f"{name}.png"
            save_small(picture, path)
            print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
