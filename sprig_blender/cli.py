"""The command line: `sprig rig`, `inspect`, `demo`, `finetune`, `evaluate`; inside Blender `blender -c sprig …`.

Here are the options, the checks that cost nothing, and the one place where errors become an exit status:
0 success, 2 bad input or usage (one line on standard error), 130 cancelled, 1 a bug of ours (the line names a log).
The work itself is in headless.py and backend/; torch and bpy are imported once the arguments have been found good.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ..backend.errors import Cancelled, SprigError
from .console import Console, Interrupts, PendingFiles, writing_error

if TYPE_CHECKING:  # numpy and torch wait until the arguments have been found good
    from ..backend.pipeline import RigOptions
    from ..backend.sequence import MeshSequence

SUCCESS, BUG, BAD_INPUT, CANCELLED = 0, 1, 2, 130
CANCEL_SENTENCE = "cancelled; nothing was written"
SCENE_SUFFIXES = (".fbx", ".glb", ".gltf", ".usd", ".usda", ".usdc", ".dae", ".blend")  # read through Blender
OUT_SUFFIXES = (".blend", ".glb", ".fbx", ".usdc", ".npz")
SKELETON_SOURCES = ("auto", "learned", "motion")  # the pipeline's, which loads numpy
FITS = ("both", "weights", "motion")  # backend/armature.py's, likewise
NAMES = ("sprig", "unity", "unreal", "mixamo", "rigify")  # backend/name_presets.py's, for the same reason
ROOT_MOTIONS = ("hips", "root", "object")  # backend/root_motion.py's
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "elephant_walk.abc"
MAX_SEED = 2**32 - 1  # what every random generator accepts
MAX_EPOCHS = 1000  # a slip of the finger is more

# Options of the networks, with the values that ask for nothing.
OF_THE_NETWORKS = {
    "--candidates": 1, "--temperature": 0.0, "--checkpoint-skeleton": None, "--checkpoint-skinning": None,
    "--finetune": 0,
}  # fmt: skip
OF_MADE_SKELETONS = {  # options that mean nothing for bones that are there, with the values that ask for nothing
    "--joints": None, "--tolerance": 0.1, "--stretch": "off", "--names": "sprig", "--candidates": 1,
    "--root-motion": "hips", "--temperature": 0.0, "--finetune": 0, "--checkpoint-skeleton": None,
}  # fmt: skip
OF_GIVEN_SKELETONS = {"--fit": "both", "--rest-frame": None}
EPOCHS = 12  # of `sprig finetune`, FineTuneConfig's own

DESCRIPTION = "Turn an animated mesh sequence into one rig: a skeleton, skin weights, and bones that replay the motion."
EXAMPLES = """
examples:
  sprig demo                                   rig the embedded example, see demo/
  sprig rig horse.abc -o horse.blend           an Alembic cache becomes a Blender scene
  sprig rig wolf.glb -o wolf.fbx --joints 30   with 30 joints, for a game engine
  sprig inspect scan_frames/                   what is in a folder of OBJ or PLY frames
  sprig finetune wolf.glb -o wolf.safetensors  teach the networks this wolf in all its poses
"""
RIG_EXAMPLES = """
examples:
  sprig rig horse.abc -o horse.blend
  sprig rig dance.fbx -o dance.glb --frames 10:80 --report dance.json --preview dance.png
  sprig rig cloth.pc2 --rest cloth.obj -o cloth.usdc --stretch auto
  sprig rig scan_frames/ -o scan.npz --fps 30 --up y --joints 24
  sprig rig walk.abc run.abc -o wolf.blend --same-character
  sprig rig wolf.blend -o fitted.blend --skeleton Armature

INPUT is read by its suffix: .abc .fbx .glb .gltf .usd .usda .usdc .dae .blend .npz .anime .bin, .mdd or .pc2 with
--rest, or a folder of OBJ or PLY frames. OUT is written by its suffix: .blend .glb .fbx .usdc .npz.
Several INPUTs show one character (the same vertices in the same order) and get one rig, with an animation for each,
called like its file; options for reading apply to each of them, and --anchor N is a frame of the first.
--skeleton ARMATURE is an armature in INPUT, FILE.npz one that SPRig wrote: its bones stay as they are, and weights and
motion are fitted to the sequence. The mesh's shape in its rest pose is that of the bound mesh, the file's, or frame
--rest-frame. Weights that are there are where the fit starts, and locked vertex groups keep theirs.
Frame numbers are the file's; a file that has none counts from 1. Write a negative start as --frames=-10:20.
--finetune first teaches the networks to give one rig for all frames of this sequence (minutes); what they learned is
kept in your cache folder and used again for the same sequence, networks, epochs and seed.
--skeleton auto lets the networks propose skeletons and the motion decide; learned is the networks' rig as it is, motion
does without networks.
Exit status: 0 done, 2 bad input or usage, 130 cancelled, 1 a bug (a log file is named).
"""
FINETUNE_EXAMPLES = """
examples:
  sprig finetune wolf.abc -o wolf.safetensors
  sprig finetune scan_frames/ -o scan.safetensors --frames 1:200:4 --epochs 6 --report scan.json
  sprig rig wolf.abc -o wolf.blend --skeleton learned --checkpoint-skeleton wolf.safetensors \\
      --checkpoint-skinning wolf.safetensors

CLIP is read as sprig rig reads its INPUT. OUT.safetensors holds every network that was trained.
PJDD is how far the skeleton's joints drift from frame to frame when every frame is rigged by itself, the skin error
how much the weights do; both fall, and the epoch that did best on frames held out is kept.
Exit status: 0 done, 2 bad input or usage, 130 cancelled, 1 a bug (a log file is named).
"""


def main(argv=None) -> int:
    """Run the command line with `argv` and return the exit status; None means this process's own command line."""
    with Interrupts() as interrupts:
        try:
            status = _run(sys.argv[1:] if argv is None else list(argv), interrupts)
        except (KeyboardInterrupt, Cancelled):
            status = _fail(CANCEL_SENTENCE, CANCELLED)
    if argv is None and "bpy" in sys.modules:
        _leave(status)
    return status


def _leave(status: int):
    """End this process without tearing down Blender's module.

    That prints about memory and, where torch is loaded and a glTF file was written, waits for ever in a destructor
    (bpy 4.5.15, torch 2.13). Blender's folder of temporary files is all there is to tidy up.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    application = getattr(sys.modules["bpy"], "app", None)  # an interrupted import may not have come that far
    if application is not None:
        shutil.rmtree(application.tempdir, ignore_errors=True)
    os._exit(status)


def _run(arguments: list[str], interrupts: Interrupts) -> int:
    """Parse and run; what goes wrong becomes a status and one line on standard error."""
    try:
        options = _parse(arguments)
    except SystemExit:  # --help and --version have been answered
        return SUCCESS
    except SprigError as error:
        return _fail(str(error), BAD_INPUT)
    with Console(options.quiet, interrupts) as console:
        failure = _attempt(options, console)
    if failure is None:
        return SUCCESS
    status, sentence, details = failure
    if status == BUG:
        try:
            log = _write_log(f"arguments: {arguments}\n{details}\nprinted during the run:\n{console.printed}")
            sentence = f"{sentence}; {log} has the details, please report it"
        except OSError as error:
            sentence = f"{sentence}; its details could not be logged ({error.strerror}), free some space and try again"
    return _fail(sentence, status)


def _attempt(options, console: Console) -> tuple[int, str, str] | None:
    """Run the command; None, or the exit status, a sentence, and for a bug its traceback.

    The exception ends here, while output is captured: what it kept alive (half-written archives) may print as it goes.
    """
    try:
        options.run(options, console)
        return None
    except BaseException as error:
        if console.interrupts.happened or isinstance(error, KeyboardInterrupt | Cancelled):
            return CANCELLED, CANCEL_SENTENCE, ""  # whatever an interrupted library made of the interrupt
        if isinstance(error, SprigError):
            return BAD_INPUT, str(error), ""
        if isinstance(error, MemoryError):
            return BAD_INPUT, "There is not enough memory for this sequence; use fewer frames with --frames.", ""
        return BUG, f"unexpected {type(error).__name__}", "".join(traceback.format_exception(error))


def _fail(sentence: str, status: int) -> int:
    """Print one line, whatever the sentence holds."""
    print("sprig:", " ".join(sentence.split()), file=sys.stderr)
    return status


def _write_log(details: str) -> str:
    """Write what is needed to find a bug into a file of the temporary folder and return its path."""
    from ..backend.report import version

    with tempfile.NamedTemporaryFile(
        "w", prefix="sprig-error-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as log:
        log.write(f"SPRig {version()}, Python {platform.python_version()}, {platform.platform()}\n{details}")
    return log.name


# ---- options


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are SprigErrors, so that usage errors leave by the same door."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message):
        raise SprigError(f"{message}; see {self.prog} --help")


def _number(kind, least, most=math.inf, word: str | None = None, above: bool = False):
    """An argparse type: a finite number within bounds, or the given word (which stands for None)."""

    def parse(text: str):
        if text == word:
            return None
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value > least if above else value >= least) or not value <= most or math.isinf(value):
            wanted = f"{'a whole number' if kind is int else 'a number'} {'above' if above else 'of at least'} {least}"
            if most < math.inf:
                wanted += f" and at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r} should be {wanted}{f' or {word}' if word else ''}")
        return value

    return parse


def _frame_range(text: str) -> tuple[int, int, int]:
    """START:END or START:END:STEP as three whole numbers."""
    if not re.fullmatch(r"[+-]?\d{1,9}:[+-]?\d{1,9}(:\d{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be START:END or START:END:STEP in whole frame numbers")
    start, end, step = [*map(int, text.split(":")), 1][:3]
    if step < 1:
        raise argparse.ArgumentTypeError(f"the step of {text!r} should be at least 1")
    if end < start:
        raise argparse.ArgumentTypeError(f"{text!r} is reversed; give the first frame before the last")
    return start, end, step


def _frame_number(text: str) -> int | None:
    """A frame number, or auto for None."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[+-]?\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a frame number or auto")
    return int(text)


def _add_reading(parser):
    """The options that say how INPUT is read."""
    parser.add_argument(
        "--frames", type=_frame_range, metavar="START:END[:STEP]", help="frame numbers, END inclusive (all)"
    )
    rate = _number(float, 0, 1000, above=True)
    parser.add_argument("--fps", type=rate, help="frames a second (from the file, or 24 where it does not say)")
    parser.add_argument("--up", choices=("y", "z"), help="which axis points up (from the file, or z)")
    parser.add_argument(
        "--object", action="append", metavar="NAME", help="take this mesh; repeat for several (all animated meshes)"
    )
    parser.add_argument("--rest", type=Path, metavar="FILE", help="the mesh (.obj, .ply) that an .mdd or .pc2 moves")


def _add_rigging(parser):
    """The options that say how the rig is made; they mirror RigOptions."""
    _add_anchor(parser)
    parser.add_argument(
        "--skeleton", default="auto", metavar="auto|learned|motion|FILE.npz|ARMATURE", help="where it comes from (auto)"
    )
    parser.add_argument(
        "--fit", choices=FITS, default="both", help="what of a given skeleton is found; the other is its own (both)"
    )
    parser.add_argument(
        "--rest-frame",
        type=_frame_number,
        metavar="N",
        help="frame in which the mesh has the given armature's rest pose (where it is not bound to it)",
    )
    parser.add_argument(
        "--joints", type=_number(int, 2, word="auto"), metavar="N", help="how many (auto: by --tolerance)"
    )
    parser.add_argument(
        "--tolerance",
        type=_number(float, 0, 100, above=True),
        default=0.1,
        metavar="PERCENT",
        help="error to reach when joints are counted automatically, %% of the bounding-box diagonal (0.1)",
    )
    parser.add_argument(
        "--influences", type=_number(int, 1), default=4, metavar="N", help="joints that may move one vertex (4)"
    )
    parser.add_argument(
        "--rest-correction",
        choices=("on", "off"),
        default="on",
        help="let the rest shape move by hundredths of a per cent (on)",
    )
    parser.add_argument(
        "--stretch",
        choices=("off", "auto"),
        default="off",
        help="off: rotations and one root translation; auto: the few bones that need it may also move (off)",
    )
    parser.add_argument(
        "--names", choices=NAMES, default="sprig", help="of the joints; all but sprig are for humanoids (sprig)"
    )
    parser.add_argument(
        "--root-motion",
        choices=ROOT_MOTIONS,
        default="hips",
        help="what carries the horizontal travel: hips, the root joint; root, one more bone on the ground below it; "
        "object, the armature itself (hips)",
    )
    parser.add_argument(
        "--candidates", type=_number(int, 1), default=1, metavar="N", help="skeletons to choose from (1)"
    )
    parser.add_argument("--temperature", type=_number(float, 0), default=0.0, metavar="T", help="of the decoder (0)")
    parser.add_argument(
        "--finetune",
        type=_number(int, 0, MAX_EPOCHS),
        default=0,
        metavar="EPOCHS",
        help="teach the networks this sequence first; with --skeleton auto, too, the rig is then the networks' (0)",
    )
    parser.add_argument("--same-character", action="store_true", help="several INPUTs, one rig, one animation each")
    _add_networks(parser)


def _add_anchor(parser):
    parser.add_argument("--anchor", type=_frame_number, metavar="auto|N", help="frame of the rest pose (auto: largest)")


def _add_networks(parser):
    """Which networks, where they run, and what they draw by chance."""
    parser.add_argument("--checkpoint-skeleton", type=Path, metavar="FILE", help="weights of the skeleton decoder")
    parser.add_argument("--checkpoint-skinning", type=Path, metavar="FILE", help="weights of the skinning network")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (auto)"
    )
    parser.add_argument(
        "--seed", type=_number(int, 0, MAX_SEED), default=0, metavar="N", help="of every random choice (0)"
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    options, unknown = _parser().parse_known_args(arguments)
    if options.run is _evaluate:  # its options are its own
        options.evaluation = _evaluation().parse(unknown, "sprig evaluate")
    elif unknown:
        raise SprigError(f"unrecognized arguments: {' '.join(unknown)}; see sprig --help")
    return options


def _parser() -> _Parser:
    parser = _Parser(prog="sprig", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    rig = commands.add_parser("rig", help="rig a sequence", description=DESCRIPTION, epilog=RIG_EXAMPLES)
    rig.add_argument("input", nargs="+", metavar="INPUT", help="the animated mesh: a file, or a folder of frames")
    rig.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="the rig; its suffix says the format")
    _add_reading(rig.add_argument_group("reading"))
    _add_rigging(rig.add_argument_group("rigging"))
    extra = rig.add_argument_group("also")
    extra.add_argument("--report", type=Path, metavar="R.json", help="write figures of the run")
    extra.add_argument("--preview", type=Path, metavar="P.png", help="write a picture of the rig (needs Blender)")
    extra.add_argument("-q", "--quiet", action="store_true", help="print nothing on standard output")
    rig.set_defaults(run=_rig)

    about = "Say what a sequence holds and how it would be prepared, without rigging it."
    inspect = commands.add_parser("inspect", help="say what is in a sequence", description=about)
    inspect.add_argument("input", metavar="INPUT", help="the animated mesh: a file, or a folder of frames")
    _add_reading(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON instead of text")
    inspect.set_defaults(run=_inspect, quiet=False)

    about = "Rig the embedded walking elephant and write scene, glTF file, report and picture into a folder."
    demo = commands.add_parser("demo", help="rig the embedded example", description=about)
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="where to write (demo)")
    demo.add_argument("-q", "--quiet", action="store_true", help="print nothing on standard output")
    demo.set_defaults(run=_demo)

    about = "Teach the networks to give one rig for every frame of a sequence."
    finetune = commands.add_parser(
        "finetune", help="teach the networks a sequence", description=about, epilog=FINETUNE_EXAMPLES
    )
    finetune.add_argument("input", metavar="CLIP", help="the animated mesh: a file, or a folder of frames")
    finetune.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT", help="the fine-tuned networks, a .safetensors file"
    )
    _add_reading(finetune.add_argument_group("reading"))
    training = finetune.add_argument_group("training")
    _add_anchor(training)
    training.add_argument(
        "--epochs", type=_number(int, 1, MAX_EPOCHS), default=EPOCHS, metavar="N", help=f"at most ({EPOCHS})"
    )
    training.add_argument(
        "--stage", choices=("skeleton", "skinning", "both"), default="both", help="which network (both)"
    )
    _add_networks(training)
    extra = finetune.add_argument_group("also")
    extra.add_argument("--report", type=Path, metavar="R.json", help="write figures of every epoch")
    extra.add_argument("-q", "--quiet", action="store_true", help="print nothing on standard output")
    finetune.set_defaults(run=_finetune)

    evaluate = commands.add_parser("evaluate", help="score the networks on a benchmark", add_help=False)
    evaluate.set_defaults(run=_evaluate, quiet=False)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        from ..backend.report import version

        print(f"sprig {version()}")
        parser.exit()


# ---- checks that cost nothing


def _check_skeleton(options):
    """The skeleton source is one that there is, and the options are its own."""
    if options.skeleton not in SKELETON_SOURCES:
        _check_given(options)
        return
    for option in _asked(options, OF_GIVEN_SKELETONS):
        raise SprigError(f"{option} belongs to a given skeleton; name it with --skeleton, or leave it out.")
    if options.skeleton == "motion":
        for option in _asked(options, OF_THE_NETWORKS):
            raise SprigError(f"{option} belongs to the networks; use --skeleton auto or learned, or leave it out.")
    _check_checkpoints(options)


def _check_given(options):
    """A skeleton in a file or in the first INPUT, and no option that would change its bones."""
    for option in _asked(options, OF_MADE_SKELETONS):
        raise SprigError(f"{option} does not apply to a skeleton that is given, whose bones stay; leave it out.")
    if _is_skeleton_file(options):
        if not Path(options.skeleton).is_file():
            raise SprigError(f"There is no file {options.skeleton}; check the name of the skeleton.")
    elif Path(options.input[0]).suffix.lower() not in SCENE_SUFFIXES:
        raise SprigError(
            f"--skeleton {options.skeleton}: {options.input[0]} holds no armatures; give "
            f"{', '.join(SKELETON_SOURCES)}, a FILE.npz, or an INPUT of {' '.join(SCENE_SUFFIXES)}."
        )
    elif options.fit == "weights" and len(options.input) > 1:
        raise SprigError("--fit weights takes the armature's poses in one INPUT; give one, or leave it out.")
    _check_checkpoints(options)


def _is_skeleton_file(options) -> bool:
    return options.skeleton.lower().endswith(".npz")


def _check_checkpoints(options):
    """Files that are named are there."""
    for option in ("--checkpoint-skeleton", "--checkpoint-skinning"):
        path = _value(options, option)
        if path is not None and not path.is_file():
            raise SprigError(f"{path} is no file; give {option} the file of a network.")


def _asked(options, nothing: dict) -> list[str]:
    return [option for option, unasked in nothing.items() if _value(options, option) != unasked]


def _value(options, option: str):
    return getattr(options, option.removeprefix("--").replace("-", "_"))


def _check_input(options) -> bool:
    """Check the input's name and the options that belong to its format; say whether only Blender can read it."""
    from ..backend.formats import READERS, is_native

    path = Path(options.input)
    try:
        there = path.exists()
    except OSError as error:
        raise SprigError(f"{path} cannot be read ({error.strerror}); check the name.") from error
    if not there:
        raise SprigError(f"{path} does not exist; check the name.")
    native = is_native(path)
    if path.suffix.lower() == ".abc" and importlib.util.find_spec("alembic3d") is None:
        native = False  # a Blender that brings only what it needs reads archives itself
    if not native and path.suffix.lower() not in (".abc", *SCENE_SUFFIXES):
        known = " ".join([*READERS, *SCENE_SUFFIXES])
        raise SprigError(
            f"{path.name} has a suffix that is not read; give one of {known}, or a folder of OBJ or PLY frames."
        )
    for option in ("rest", "up"):
        if not native and getattr(options, option) is not None:
            raise SprigError(
                f"--{option} does not apply to {path.suffix} files, which say it themselves; leave it out."
            )
    return not native


def _check_outputs(sources, outputs):
    """Every output is a file of its own, and none of them an input."""
    seen = {os.path.realpath(source): "the input" for source in sources}
    for purpose, path in outputs:
        real = os.path.realpath(path)
        if real in seen:
            raise SprigError(f"{path} is {seen[real]} as well as {purpose}; give another name.")
        seen[real] = purpose


def _headless():
    """The Blender side, imported when a run is known to need it."""
    if importlib.util.find_spec("bpy") is None:
        raise SprigError(
            "Only .npz, .abc, .mdd, .pc2, .anime, .bin and folders to .npz work without Blender; for the rest "
            "install SPRig with its extra bpy, or run it inside Blender as blender -c sprig."
        )
    from . import headless

    return headless


def _check_libraries():
    """torch and scipy come with pip, but inside Blender the user installs them, and may not have yet."""
    missing = [name for name in ("torch", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise SprigError(
            f"SPRig needs {' and '.join(missing)}; pip install {' '.join(missing)}, or inside Blender install the "
            "libraries in the add-on's preferences."
        )


# ---- commands


def _rig(options, console: Console):
    _check_skeleton(options)
    several = len(options.input) > 1
    if several and not options.same_character:
        raise SprigError("Several INPUTs need --same-character, which gives them one rig; add it, or give one INPUT.")
    if options.out.suffix.lower() not in OUT_SUFFIXES:
        raise SprigError(f"{options.out} has no suffix that can be written; give one of {' '.join(OUT_SUFFIXES)}.")
    if several and options.out.suffix.lower() == ".usdc":
        raise SprigError(f"{options.out} could hold one animation only; give .blend, .glb, .fbx or .npz for several.")
    if options.root_motion == "object" and options.out.suffix.lower() == ".npz":
        raise SprigError(f"{options.out} holds no objects, so --root-motion object does not apply; give hips or root.")
    if options.preview and options.preview.suffix.lower() != ".png":
        raise SprigError(f"{options.preview} should be a .png file; the preview is written as PNG.")
    report = _rig_and_write(options, [options.out], console)
    _say_summary(console, report, [options.out, options.report, options.preview])


def _demo(options, console: Console):
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(error, options.out) from error
    scene, gltf = options.out / "elephant.blend", options.out / "elephant.glb"
    report, preview = options.out / "report.json", options.out / "preview.png"
    arguments = ["rig", EXAMPLE, "-o", scene, "--report", report, "--preview", preview]
    rigging = _parse([str(argument) for argument in arguments])
    _say_summary(console, _rig_and_write(rigging, [scene, gltf], console), [scene, gltf, report, preview])
    console.say(f"Open {scene} in Blender and press the space bar, or look at {preview}.")


def _rig_and_write(options, outputs: list[Path], console: Console) -> dict:
    """Read, rig once, write every output together with report and preview, and return the report."""
    clips = [argparse.Namespace(**{**vars(options), "input": path}) for path in options.input]
    only_blender_reads = [_check_input(clip) for clip in clips]
    extra = {purpose: path for purpose, path in (("report", options.report), ("preview", options.preview)) if path}
    _check_outputs(options.input, [*(("the output", path) for path in outputs), *extra.items()])
    arrays = [path for path in outputs if path.suffix.lower() == ".npz"]
    scenes = [path for path in outputs if path not in arrays]
    wants_scene = bool(scenes or options.preview)
    _check_libraries()
    with PendingFiles() as files:
        pending = {path: files.add(path) for path in (*outputs, *extra.values())}
        console.progress(0.0, "Starting")
        headless = _headless() if any(only_blender_reads) or wants_scene else None
        from ..backend.armature import rig_with
        from ..backend.device import load_torch
        from ..backend.formats.npz import write_rig
        from ..backend.pipeline import rig_sequence
        from ..backend.report import peak_memory_mb, rig_report
        from ..backend.root_motion import with_root_bone

        load_torch()  # the pipeline's own import comes later, but is no part of the run's memory
        imports = peak_memory_mb()
        started = time.perf_counter()
        sequence, sources = _read_clips(clips, only_blender_reads, headless, wants_scene, console.part(0.05, 0.2))
        read = time.perf_counter() - started

        given, own = _given_skeleton(options, headless, sequence, sources)
        solving = console.part(0.2, 0.85)
        if given is None:
            rig = rig_sequence(sequence, _rig_options(options), solving)
        else:
            rig = rig_with(sequence, given, _rig_options(options), solving, fit=options.fit)

        started = time.perf_counter()
        console.progress(0.85, "Writing")
        carried = with_root_bone(rig) if options.root_motion == "root" else rig
        for path in arrays:
            write_rig(pending[path], carried)
        if wants_scene:
            scene = headless.RiggedScene.build(rig, sequence, sources, own, options.root_motion)
            for path in scenes:
                scene.export(pending[path])
            if options.preview:
                console.progress(0.95, "Drawing the preview")
                scene.render(pending[options.preview])
        report = rig_report(
            carried,
            source=", ".join(map(str, options.input)),
            clip_sources=options.input,
            object_names=sequence.object_names,
            influences=options.influences,
            seconds={"read": read, **rig.seconds, "write": time.perf_counter() - started},
            warnings=sequence.warnings,
            peak_memory=None if imports is None else peak_memory_mb() - imports,
        )
        _commit(files, pending, report, options.report, console)
    return report


def _commit(files: PendingFiles, pending: dict, report: dict, report_path: Path | None, console: Console):
    """Write the report, if one is asked for, and let all pending files appear; from then on nothing interrupts."""
    from ..backend.report import write_report

    if report_path:
        try:
            write_report(pending[report_path], report)
        except OSError as error:
            raise writing_error(error, report_path) from error
    console.interrupts.ignore_from_now_on()
    files.commit()


def _read_clips(clips, only_blender_reads, headless, wants_scene: bool, progress) -> tuple[MeshSequence, list | None]:
    """The sequence of one INPUT or of several, and the first one's objects, None where Blender has not read it.

    clips: the options of each INPUT. The first one is read last: only the scene read last is still there.
    """
    sequences, sources = [], None
    for k, (clip, only_blender) in enumerate(reversed(list(zip(clips, only_blender_reads, strict=True)))):

        def part(share, text, k=k):
            progress((k + share) / len(clips), text)

        try:
            if only_blender:
                sequence, sources = headless.read_scene(clip, part)
            else:
                sequence, sources = _read_native(clip, part), None
                if wants_scene and Path(clip.input).suffix.lower() == ".abc":
                    sequence, sources = headless.read_archive(clip, sequence, part)
        except SprigError as error:
            if len(clips) == 1 or Path(clip.input).name in str(error):
                raise
            raise SprigError(f"{clip.input}: {error}") from error
        sequences.insert(0, sequence)
    if len(clips) == 1:
        return sequences[0], sources
    from ..backend.clips import join_clips

    paths = [Path(clip.input).resolve() for clip in clips]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    named = [dataclasses.replace(sequence, name=name) for sequence, name in zip(sequences, names, strict=True)]
    return join_clips(named, [str(clip.input) for clip in clips]), sources


def _given_skeleton(options, headless, sequence: MeshSequence, sources: list | None) -> tuple:
    """The skeleton to fit and the armature it was read from, None for what there is none of."""
    if options.skeleton in SKELETON_SOURCES:
        return None, None
    if not _is_skeleton_file(options):
        return headless.own_armature(options, sequence, sources)
    from ..backend.formats.npz import read_skeleton

    given = read_skeleton(options.skeleton)
    if options.rest_frame is not None:
        given = dataclasses.replace(given, rest_frame=options.rest_frame)
    return given, None


def _read_native(options, progress) -> MeshSequence:
    """Read a format that needs no Blender, cut to the meshes and frames asked for."""
    from ..backend.formats import read_sequence_file

    progress(0.0, f"Reading {Path(options.input).name}")
    sequence = read_sequence_file(options.input, rest=options.rest, fps=options.fps, up=options.up)
    if options.object:
        sequence = sequence.with_objects(options.object)
    if options.frames:
        sequence = sequence.with_frames(*options.frames)
    return sequence


def _rig_options(options) -> RigOptions:
    from ..backend.pipeline import RigOptions
    from .students import students_folder

    return RigOptions(
        skeleton=options.skeleton if options.skeleton in SKELETON_SOURCES else "auto",  # a given one is no source
        joints=options.joints,
        tolerance=options.tolerance,
        influences=options.influences,
        rest_correction=options.rest_correction == "on",
        stretch=options.stretch,
        anchor=options.anchor,
        candidates=options.candidates,
        temperature=options.temperature,
        names=options.names,
        checkpoint_skeleton=options.checkpoint_skeleton,
        checkpoint_skinning=options.checkpoint_skinning,
        finetune=options.finetune,
        students=students_folder() if options.finetune else None,
        seed=options.seed,
        device=options.device,
    )


def _say_summary(console: Console, report: dict, written):
    """A few lines a person can check: what went in, what came out, how well it replays, where it is."""
    clips = report.get("clips", [])
    names = ", ".join(Path(one["input"]).name for one in clips or [report])
    rates = ", ".join(dict.fromkeys(f"{one['fps']:g}" for one in clips or [report]))
    console.say(f"{names}: {report['vertices']} vertices, {report['frames']} frames at {rates} fps")
    whose = next((f" of {clip['name']}" for clip in clips if clip["anchor_frame"] is not None), "")
    console.say(
        f"Rig: {len(report['joints'])} joints, rest pose from frame {report['anchor_frame']}{whose}, "
        f"{sum(report['seconds'].values()):.1f} s"
    )
    worst = f"; worst frame {report['worst_frame']} with {max(report['rmse_percent_per_frame']):.4f} %"
    console.say(f"RMSE: {report['rmse_percent']:.4f} % of the bounding-box diagonal{'' if clips else worst}")
    for clip in clips:
        console.say(f"  {clip['name']}: {clip['rmse_percent']:.4f} %, worst frame {clip['worst_frame']}")
    for warning in report["warnings"]:
        console.say(f"Warning: {warning}")
    console.say(f"Written: {', '.join(str(path) for path in written if path)}")


def _finetune(options, console: Console):
    _check_checkpoints(options)
    if options.stage == "skeleton" and options.checkpoint_skinning:
        raise SprigError("--stage skeleton needs no skinning network; leave --checkpoint-skinning out.")
    if options.out.suffix.lower() != ".safetensors":
        raise SprigError(f"{options.out} should be a .safetensors file; networks are written as such.")
    only_blender_reads = _check_input(options)
    outputs = {"the output": options.out, **({"report": options.report} if options.report else {})}
    _check_outputs([options.input], outputs.items())
    _check_libraries()
    with PendingFiles() as files:
        pending = {path: files.add(path) for path in outputs.values()}
        console.progress(0.0, "Starting")
        headless = _headless() if only_blender_reads else None
        from ..backend.device import load_torch, resolve_device
        from ..backend.report import peak_memory_mb

        load_torch()
        from ..backend.checkpoint import save_checkpoint
        from ..backend.finetune.clip import make_clip
        from ..backend.finetune.per_sequence import STAGES, fine_tune_on, fine_tune_report
        from ..backend.finetune.students import provenance
        from ..backend.finetune.train import FineTuneConfig
        from ..backend.learned import load_networks

        imports = peak_memory_mb()
        clock = [time.perf_counter()]
        stages = STAGES if options.stage == "both" else (options.stage,)
        networks = load_networks(
            options.checkpoint_skeleton,
            options.checkpoint_skinning,
            resolve_device(options.device),
            kinds=STAGES if "skinning" in stages else stages,  # weights are learned for the skeleton that is found
        )
        clock.append(time.perf_counter())
        if only_blender_reads:
            sequence, _ = headless.read_scene(options, console.part(0.02, 0.1))
        else:
            sequence = _read_native(options, console.part(0.02, 0.1))
        clock.append(time.perf_counter())
        anchor = None if options.anchor is None else sequence.position_of(options.anchor)
        clip = make_clip(sequence, sequence.name, anchor=anchor)
        config = FineTuneConfig(epochs=options.epochs, seed=options.seed)
        tuned = fine_tune_on(clip, networks, config, stages, console.part(0.1, 0.98))
        clock.append(time.perf_counter())
        console.progress(0.98, "Writing")
        students = [getattr(tuned.networks, stage) for stage in stages]
        save_checkpoint(pending[options.out], students, provenance(sequence, clip, networks, tuned, stages))
        clock.append(time.perf_counter())
        spent = [end - start for start, end in itertools.pairwise(clock)]
        report = fine_tune_report(
            tuned,
            sequence,
            clip,
            config,
            source=str(options.input),
            seconds=dict(zip(("networks", "read", "finetune", "write"), spent, strict=True)),
            peak_memory=None if imports is None else peak_memory_mb() - imports,
        )
        _commit(files, pending, report, options.report, console)
    _say_students(console, report, options.out)
    console.say(f"Written: {', '.join(map(str, outputs.values()))}")


def _say_students(console: Console, report: dict, out: Path):
    """What has been learned, and how to use it."""
    from ..backend.finetune.train import FIGURES

    console.say(f"{Path(report['input']).name}: {report['vertices']} vertices, {report['frames']} frames")
    for stage, epochs in report["history"].items():
        key, name = FIGURES[stage]
        kept = report["checkpoints"][stage]["finetuned"]["kept_epoch"]
        before, after = (
            f"{epoch[key]:.3g}" if epoch[key] is not None else "none" for epoch in (epochs[0], epochs[kept])
        )
        console.say(f"The {stage} network: {name} from {before} to {after} in epoch {kept} of {len(epochs) - 1}")
    for warning in report["warnings"]:
        console.say(f"Warning: {warning}")
    options = " ".join(f"--checkpoint-{stage} {out}" for stage in report["history"])
    console.say(f"To use it: sprig rig {report['input']} -o OUT --skeleton learned {options}")


def _inspect(options, console: Console):
    console.quiet = options.json  # the JSON alone
    if _check_input(options):
        sequence = _headless().read_scene(options, console.part(0.0, 0.9))[0]
    else:
        sequence = _read_native(options, console.part(0.0, 0.9))
    found = _inspection(sequence, options.input)
    if options.json:
        console.result(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    frames, box = found["frames"], " x ".join(f"{side:.4g}" for side in found["size"])
    console.say(f"{found['input']}: {len(found['meshes'])} mesh{'es' if len(found['meshes']) > 1 else ''}")
    for mesh in found["meshes"]:
        moves = f"moves by up to {mesh['motion_percent']:.3g} % of the diagonal" if mesh["moves"] else "does not move"
        console.say(f"  {mesh['name']}: {mesh['vertices']} vertices, {mesh['faces']} triangles, {moves}")
    console.say(f"Frames: {frames['first']} to {frames['last']}, {frames['count']} in all, {frames['fps']:g} a second")
    console.say(f"Topology: the same {found['faces']} triangles in every frame")
    console.say(
        f"Welding: {found['vertices']} vertices are {found['welded_vertices']} places, "
        f"in {found['islands']} connected parts"
    )
    console.say(f"Anchor: frame {found['anchor_frame']} has the largest surface; its size is {box}")
    for warning in found["warnings"]:
        console.say(f"Warning: {warning}")


def _inspection(sequence: MeshSequence, source) -> dict:
    """What `sprig inspect` says, in JSON types; lengths in scene units, motion in % of the anchor's diagonal."""
    import numpy as np

    from ..backend import surface
    from ..backend.anchor import anchor_frame

    vertices, numbers = sequence.vertices, sequence.frame_numbers
    anchor = anchor_frame(surface.surface_areas(vertices, sequence.faces))
    box = np.ptp(vertices[anchor].astype(np.float64), axis=0)
    diagonal = float(np.linalg.norm(box))
    vertex_map = surface.weld(vertices)
    edges = surface.edges(surface.weld_faces(sequence.faces, vertex_map))
    moved = np.zeros(sequence.vertex_count)  # the furthest each vertex gets from its place in the first frame
    for frame in vertices:
        np.maximum(moved, np.linalg.norm(np.subtract(frame, vertices[0], dtype=np.float64), axis=1), out=moved)
    meshes = []
    for index, name in enumerate(sequence.object_names):
        own = sequence.object_id == index
        furthest = float(moved[own].max(initial=0.0))
        meshes.append(
            {
                "name": name,
                "vertices": int(own.sum()),
                "faces": int(own[sequence.faces[:, 0]].sum()),
                "moves": furthest > surface.STILL_TOLERANCE * surface.size(vertices),
                "motion_percent": 100 * furthest / diagonal if diagonal > 0 else 0.0,
            }
        )
    try:
        warnings = surface.prepare(sequence).warnings
    except SprigError as refusal:  # what `sprig rig` would say is worth knowing here, and no failure
        warnings = (*sequence.warnings, str(refusal))
    return {
        "input": str(source),
        "meshes": meshes,
        "frames": {
            "count": sequence.frame_count,
            "first": int(numbers[0]),
            "last": int(numbers[-1]),
            "fps": sequence.fps,
        },
        "vertices": sequence.vertex_count,
        "faces": len(sequence.faces),
        "welded_vertices": int(vertex_map.max()) + 1,
        "islands": int(surface.islands(int(vertex_map.max()) + 1, edges).max()) + 1,
        "anchor_frame": int(numbers[anchor]),
        "size": box.tolist(),
        "warnings": list(warnings),
    }


def _evaluation():
    """The module behind `sprig evaluate`; SprigError where it is not installed."""
    if importlib.util.find_spec("..training", __package__) is None:
        raise SprigError(
            "sprig evaluate needs the training package, which the add-on lacks; install SPRig from its checkout."
        )
    _check_libraries()
    from ..training import evaluate

    return evaluate


def _evaluate(options, console: Console):
    _evaluation().run(options.evaluation, console.say, console.progress)


if __name__ == "__main__":
    sys.exit(main())
