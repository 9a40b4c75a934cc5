"""Fine-tune both networks on many sequences at once (SPRig 3 to 6).

    python -m sprig.training.finetune RUN SEQUENCES... --bank FOLDER --bank-clips 60
    torchrun --nproc-per-node 8 -m sprig.training.finetune RUN SEQUENCES...

Losses, stages and the loop are those of backend/finetune. What is added here: folders of sequences, of which bad ones
are passed over; rig-bank characters and generated creatures as further sequences; state and log of a long run; several
processes; and replay.

Replay keeps what the networks know of other characters. Fine-tuning shows them a few characters, each with one right
answer; nothing in the paper's losses asks that all the others get the rigs they got before. So every other step of the
skeleton decoder also shows it characters that pre-training drew from, and the teacher's own probabilities for them are
what it should give. No label is used, and the frozen encoder sees every character once for both networks. The skinning
network forgets nothing: what it learns of a few characters makes its weights for others better, too (LOG.md).

RUN gets state.pt (to resume), student.safetensors (both networks, of each the best average so far), log.jsonl,
curves.png, and in targets/ the teacher's rigs of the anchors, which a run that goes on need not make again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..backend.device import load_torch

torch = load_torch()  # before torch comes in by another way: its threads wait as we like it
import torch.nn.functional as F  # noqa: E402

from ..backend.checkpoint import save_checkpoint  # noqa: E402
from ..backend.errors import Cancelled, SprigError, no_progress  # noqa: E402
from ..backend.finetune.bends import random_motion  # noqa: E402
from ..backend.finetune.clip import (  # noqa: E402
    TARGETS,
    Clip,
    SkeletonTarget,
    SkinningTarget,
    make_clip,
    skeleton_target,
    skinning_target,
)
from ..backend.finetune.per_sequence import FineTuned, summary  # noqa: E402
from ..backend.finetune.train import (  # noqa: E402
    FineTuneConfig,
    FineTuneState,
    SkeletonStage,
    SkinningStage,
    begin,
    fine_tune,
    student_so_far,
    trained,
)
from ..backend.formats import NEEDS_REST, READERS, read_sequence_file  # noqa: E402
from ..backend.formats.mesh_folder import SUFFIXES as MESHES  # noqa: E402
from ..backend.kinematics import linear_blend_skinning  # noqa: E402
from ..backend.learned import KINDS, SKELETON_POINTS, Networks, load_networks  # noqa: E402
from ..backend.sequence import MeshSequence  # noqa: E402
from ..backend.skeleton.tokens import EOS, PAD  # noqa: E402
from . import loop, pretrain_skeleton, pretrain_skinning  # noqa: E402
from .augment import in_order, in_pieces, to_tokens  # noqa: E402
from .character import Character  # noqa: E402
from .rigbank import read_rigbank, split, validation_clips  # noqa: E402
from .synthesize import creature  # noqa: E402

STUDENT, TARGET_FILES = "student.safetensors", "targets"
STAGES = {"skeleton": SkeletonStage, "skinning": SkinningStage}
NEED_BLENDER = (".fbx", ".glb", ".gltf", ".usd", ".usda", ".usdc", ".dae", ".blend")
REPLAYED = 4  # characters that a step looks back at
REPLAY_SHARE = 4.0  # of its loss in the stage's
REPLAY_EVERY = 2  # steps; with more, or more characters, replay takes most of the time
MADE = 256  # different characters made on the spot for it
SKELETON_RATE = 8e-4  # highest; at 2e-4 twenty clips are not learned in a dozen epochs, at this rate in nine


# ---- options


def arguments() -> argparse.ArgumentParser:
    default = FineTuneConfig()
    parser = loop.run_arguments(__doc__.splitlines()[0])
    parser.add_argument("sequences", type=Path, nargs="*", help="files, folders of frames, or folders of these")
    parser.add_argument("--stage", choices=(*KINDS, "both"), default="both", help="which network is fine-tuned")
    parser.add_argument("--skeleton", type=Path, metavar="FILE", help="teacher; SPRig's own without it")
    parser.add_argument("--skinning", type=Path, metavar="FILE", help="teacher; SPRig's own without it")
    parser.add_argument("--training-only", action="store_true", help="leave out the clips of validation_clips.txt")
    parser.add_argument("--anchor", choices=("largest", "first"), default="largest", help="the frame that teaches")
    parser.add_argument("--target", choices=TARGETS, default=default.target, help="what the skin is to be, from where")
    parser.add_argument("--most-frames", type=int, default=64, help="of a sequence, evenly spread")
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--frames", type=int, default=default.frames, help="of one sequence in a step of the skeleton")
    parser.add_argument("--bends", type=int, default=default.bends, help="poses beside them that it does not show")
    parser.add_argument("--skinning-frames", type=int, default=default.skinning_frames, help="the same for the skin")
    parser.add_argument("--skeleton-rate", type=float, default=SKELETON_RATE, help="highest learning rate")
    parser.add_argument("--skinning-rate", type=float, default=default.skinning_rate, help="highest learning rate")
    parser.add_argument("--patience", type=int, default=default.patience, help="epochs without a gain until it ends")
    parser.add_argument("--lora", type=int, default=default.lora, metavar="RANK", help="of updates; 0: all weights")
    parser.add_argument(
        "--replay", type=float, default=1.0, metavar="TIMES", help="how much replay counts for the skeleton; 0: none"
    )
    parser.add_argument("--bank-clips", type=int, default=0, metavar="N", help="characters of the banks as sequences")
    parser.add_argument("--made-clips", type=int, default=0, metavar="N", help="generated creatures as sequences")
    loop.data_arguments(parser, made=MADE)
    return parser


# ---- sequences


def find_sequences(path: Path) -> list[Path]:
    """The sequences at a path: itself, or those in the folder and below, in order of name.

    A folder of .obj or .ply files is one sequence, unless it has files of another kind: then they are rest meshes.
    Hidden files and kinds that nothing reads are passed over; what only Blender reads is named.
    """
    if not path.is_dir():
        return [path]
    found = []
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        known = [file for file in files if file.suffix.lower() in (*READERS, *NEED_BLENDER)]
        if not known and sum(file.suffix.lower() in MESHES for file in files) > 1:
            found.append(Path(folder))
            below.clear()
        found += known
    return sorted(found)


def read_clip(path: Path, options) -> Clip:
    """A sequence's frames. Raises SprigError where they cannot be read or teach nothing."""
    rest = None
    if path.suffix.lower() in NEEDS_REST:
        beside = [path.with_suffix(suffix) for suffix in MESHES]
        rest = next((mesh for mesh in beside if mesh.is_file()), None)
        if rest is None:
            raise SprigError(f"{path.name} holds positions alone; put the mesh it moves beside it as {beside[0].name}.")
    return teaching(_clip(read_sequence_file(path, rest=rest), path.stem, options))


def _clip(sequence: MeshSequence, name: str, options) -> Clip:
    anchor = {"largest": None, "first": 0}[options.anchor]
    return make_clip(sequence, name, anchor=anchor, most_frames=options.most_frames)


def teaching(clip: Clip) -> Clip:
    """The clip, if it shows more than one pose; else a SprigError."""
    if not clip.has_poses:
        raise SprigError(f"{clip.name} shows a single pose, so it has nothing to teach.")
    return clip


def bank_characters(banks: list[Path], count: int, licence: str | None, seed: int) -> list[Character]:
    """Up to `count` characters to learn from, drawn at random: every rig once, then every rig once more, and so on;
    machines and accessories come after the others each time.

    None of the validation list, and none with fewer than two poses.
    """
    rigs: dict[str, list[Character]] = {}
    for bank in banks:
        for one in split(read_rigbank(bank))[0]:
            if len(one.motion) > 1 and one.licence.startswith(licence or ""):
                rigs.setdefault(one.rig_id, []).append(one)
    random = np.random.default_rng(seed)
    order = []
    for rig in sorted(rigs):
        for turn, k in enumerate(random.permutation(len(rigs[rig]))):
            one = rigs[rig][k]
            order.append((turn, one.category in loop.MACHINES, random.random(), one))
    return [one for *_, one in sorted(order, key=lambda entry: entry[:3])[:count]]


def character_clip(character: Character, options) -> Clip:
    """A character's own poses as frames, evenly spread if there are many, the rest pose first. Raises SprigError."""
    poses = np.unique(np.linspace(0, len(character.motion) - 1, max(options.most_frames - 1, 1)).round().astype(int))
    posed = [linear_blend_skinning(character.vertices, character.weights, pose) for pose in character.motion[poses]]
    sequence = MeshSequence.from_world(np.stack([character.vertices, *posed]), character.faces)
    return teaching(_clip(sequence, character.name, options))


def made_clip(seed: int, options) -> Clip:
    """A generated creature: at rest, then in random poses. Raises SprigError."""
    made = creature(seed)
    random = np.random.default_rng(seed)
    motion = random_motion(made.joints, made.parents, max(options.most_frames - 1, 1), random)
    return character_clip(replace(made, motion=motion), options)


# ---- what the teacher says of them


@dataclass(frozen=True, eq=False)
class Taught:
    """A clip, the teacher's rig of its anchor as each network's losses want it, and what both are made from."""

    clip: Clip
    targets: dict[str, SkeletonTarget | SkinningTarget]


def teach(
    clip: Clip, networks: Networks, stages, seed: int = 0, target: str = "sequence", progress=no_progress
) -> Taught:
    """Rig the anchor: greedily for the skeleton decoder, which is to write just that in every frame; as well as the
    teacher can for the skinning network. Raises SprigError where that is impossible."""
    targets = {"skeleton": skeleton_target(clip, networks, greedy=True, progress=progress)}
    if "skinning" in stages:
        rig = skeleton_target(clip, networks, progress=progress)
        joints, parents = rig.joints.numpy(), rig.parents.numpy()
        targets["skinning"] = skinning_target(
            clip, joints, parents, networks, target=target, seed=seed, progress=progress
        )
    return Taught(clip, targets)


def train_student(
    clips: list[Clip],
    networks: Networks,
    config: FineTuneConfig,
    stages=KINDS,
    *,
    replay: Callable | None = None,
    progress=no_progress,
) -> FineTuned:
    """One student of many clips, in memory and in one process; the networks themselves are not changed.

    replay: what `fine_tune` adds to the skeleton stage's loss. Clips that cannot be rigged are left out. progress may
    raise Cancelled. Raises SprigError where nothing is left.
    """
    taught, problems = [], []
    for place, clip in enumerate(clips):
        share = 0.2 * place / len(clips)
        try:
            taught.append(
                teach(
                    clip, networks, stages, config.seed, config.target,
                    progress=lambda _share, text, share=share: progress(share, text),
                )
            )  # fmt: skip
        except SprigError as problem:
            problems.append(f"{clip.name}: {problem}")
    if not taught:
        raise SprigError(f"No clip could be rigged ({problems[0] if problems else 'there is none'}); give others.")
    history = {}
    for place, kind in enumerate(kind for kind in KINDS if kind in stages):
        start, width = 0.2 + 0.8 * place / len(stages), 0.8 / len(stages)
        stage = STAGES[kind]([one.targets[kind] for one in taught], config, networks.device)
        student, history[kind] = fine_tune(
            getattr(networks, kind), stage, config, replay=replay if kind == "skeleton" else None,
            progress=lambda share, text, start=start, width=width: progress(start + width * share, text),
        )  # fmt: skip
        networks = with_student(networks, kind, student, history[kind], config)
    return FineTuned(networks, history)


def with_student(networks: Networks, kind: str, student, history: list[dict], config: FineTuneConfig) -> Networks:
    """The networks with a student in place of its teacher."""
    told = {**networks.checkpoints.get(kind, {}), "finetuned": summary(kind, history, config)}
    return replace(networks, **{kind: student}, checkpoints={**networks.checkpoints, kind: told})


# ---- the same on disk, one file for a sequence


@dataclass(frozen=True, eq=False)
class Job:
    """A sequence to be taught from: how to get it, and what its targets depend on, in JSON types."""

    name: str
    made_from: dict
    clip: Callable[[], Clip]


def jobs_of(options, networks: Networks) -> tuple[list[Job], list[Path]]:
    """All sequences that the options name, and the files that would need Blender."""
    shared = {
        "anchor": options.anchor,
        "most_frames": options.most_frames,
        "seed": options.seed,
        "target": options.target,
        "teachers": networks.checkpoints,
    }
    paths = list(dict.fromkeys(found for path in options.sequences for found in find_sequences(path)))
    if options.training_only:
        never = set(validation_clips())
        paths = [path for path in paths if path.stem not in never]
    jobs = [
        Job(path.stem, {"file": _identity(path), **shared}, lambda path=path: read_clip(path, options))
        for path in paths
        if path.suffix.lower() not in NEED_BLENDER
    ]
    if options.bank_clips:
        for one in bank_characters(options.bank, options.bank_clips, options.licence, options.seed):
            made_from = {"character": one.name, "poses": len(one.motion), **shared}
            jobs.append(Job(one.name, made_from, lambda one=one: character_clip(one, options)))
    for seed in range(options.made_clips):
        jobs.append(Job(f"creature_{seed}", {"creature": seed, **shared}, lambda seed=seed: made_clip(seed, options)))
    return jobs, [path for path in paths if path.suffix.lower() in NEED_BLENDER]


def _identity(path: Path) -> list:
    """Where a file or a folder of frames is, and size and time of what it holds."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    status = [file.stat() for file in files]
    return [
        str(path.resolve()),
        sum(one.st_size for one in status),
        max((one.st_mtime_ns for one in status), default=0),
    ]


def prepare(jobs: list[Job], networks: Networks, stages, options, place: loop.Place, stop: loop.Stop) -> None:
    """Write the targets of all sequences that have none yet into the run's folder; every process takes its part.

    Leaves early when asked to stop. What is wrong with a sequence is written in place of its targets.
    """
    folder = options.output / TARGET_FILES
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(place.rank, len(jobs), place.processes):
        job, file = jobs[number], folder / f"{number:05}.pt"
        if stop.asked:
            return
        if file.is_file() and _read(file, job, stages) is not None:
            continue
        made_from, start = json.dumps(job.made_from), time.monotonic()
        try:
            taught = teach(job.clip(), networks, stages, options.seed, options.target)
        except SprigError as problem:
            loop.save_state(file, made_from=made_from, problem=str(problem))
            continue
        loop.save_state(file, made_from=made_from, **_pack(taught))
        joints, frames = len(taught.targets["skeleton"].parents), len(taught.clip.vertices)
        print(
            f"{job.name}: {frames} frames, {joints} joints, {time.monotonic() - start:.1f} s "
            f"({number + 1} of {len(jobs)})", flush=True,
        )  # fmt: skip


def read_targets(jobs: list[Job], stages, folder: Path) -> tuple[list[Taught], list[str]]:
    """What `prepare` has written: the targets, and a line for every sequence that is left out."""
    taught, problems = [], []
    for number, job in enumerate(jobs):
        found = _read(folder / TARGET_FILES / f"{number:05}.pt", job, stages)
        if isinstance(found, Taught):
            taught.append(found)
        else:
            problems.append(f"left out {job.name}: {found}")
    return taught, problems


def _pack(taught: Taught) -> dict:
    """Tensors, numbers and strings, as `torch.load` takes them from a file without running code."""
    clip = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in vars(taught.clip).items()
    }
    targets = {
        kind: {one.name: getattr(target, one.name) for one in fields(target) if one.name != "clip"}
        for kind, target in taught.targets.items()
    }
    return {"clip": clip, "targets": targets}


def _read(file: Path, job: Job, stages) -> Taught | str | None:
    """The targets in a file, or what was wrong with the sequence; None where they were made from something else."""
    try:
        content = loop.load_state(file, "cpu")
    except SprigError:
        return None
    if content["made_from"] != json.dumps(job.made_from):
        return None
    if "problem" in content:
        return content["problem"]
    if "skinning" in stages and "skinning" not in content["targets"]:
        return None
    clip = Clip(
        **{name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in content["clip"].items()}
    )
    classes = {"skeleton": SkeletonTarget, "skinning": SkinningTarget}
    return Taught(clip, {kind: classes[kind](clip, **parts) for kind, parts in content["targets"].items()})


# ---- replay


class Replay:
    """The loss that keeps a skeleton student near its teacher on characters that it is not fine-tuned on, `times`
    REPLAY_SHARE: the mean over tokens of KL(teacher || student), both given the characters' own skeletons.

    The characters of a step follow from the seed, the step and the process.
    """

    def __init__(self, source: loop.Source, teacher, place: loop.Place, times: float, seed: int):
        self.source, self.teacher, self.place = source, teacher, place
        self.times, self.seed = times, seed

    def __call__(self, student, step: int):
        """Of a student in a step; None in most steps."""
        if step % REPLAY_EVERY:
            return None
        self.source.generator.manual_seed(hash((self.seed, step, self.place.rank)))
        drawn = [in_order(batch) for batch in self.source.draw(REPLAYED, SKELETON_POINTS)]
        (batch,) = in_pieces(drawn, REPLAYED)
        ids = to_tokens(batch)[:, : 4 * self.teacher.most_joints + 1]  # as far as they go
        with torch.no_grad():
            condition = self.teacher.condition(batch.points)
            told = self.teacher(condition, ids).float().log_softmax(-1)
        found = student(condition, ids).float().log_softmax(-1)
        each = F.kl_div(found, told, reduction="none", log_target=True).sum(-1)
        asked = (ids != EOS) & (ids != PAD)  # what follows these means nothing
        return REPLAY_EVERY * self.times * REPLAY_SHARE * (each * asked).sum() / asked.sum()


class Watched:
    """A stage whose figures have beside them how good the network is on the banks' validation characters."""

    def __init__(self, stage, held_out: list):
        self.stage, self.held_out = stage, held_out
        self.kind, self.targets, self.loss = stage.kind, stage.targets, stage.loss

    def validate(self, network, tick) -> dict:
        looks = {"skeleton": pretrain_skeleton.validate, "skinning": pretrain_skinning.validate}
        figures = self.stage.validate(network, tick)
        return {**figures, **looks[self.kind](network, self.held_out, SKELETON_POINTS)}


# ---- the run


def pack(state: FineTuneState) -> dict:
    """A state as `restore` wants it; what is frozen is the teacher's and left out."""
    return {
        "student": {name: value.detach() for name, value in trained(state.student).items()},
        "average": {name: value.detach() for name, value in trained(state.average).items()},
        "optimiser": state.optimiser.state_dict(),
        **{name: getattr(state, name) for name in PLAIN},
    }


PLAIN = ("half", "best", "best_loss", "epoch", "done", "sums", "step", "without_gain", "history")  # parts of a state


def restore(state: FineTuneState, packed: dict) -> None:
    """Into a new state of the same teacher and config."""
    with torch.no_grad():
        for part in ("student", "average"):
            for name, value in trained(getattr(state, part)).items():
                value.copy_(packed[part][name])
    state.optimiser.load_state_dict(packed["optimiser"])
    for name in PLAIN:
        setattr(state, name, packed[name])


def main(command: list[str] | None = None) -> None:
    options = arguments().parse_args(command)
    place, stop, folder = loop.settle(options), loop.Stop(), options.output
    stages = KINDS if options.stage == "both" else (options.stage,)
    config = FineTuneConfig(
        epochs=options.epochs,
        frames=options.frames,
        bends=options.bends,
        skinning_frames=options.skinning_frames,
        skeleton_rate=options.skeleton_rate,
        skinning_rate=options.skinning_rate,
        patience=options.patience,
        target=options.target,
        many_views=options.replay > 0,
        lora=options.lora,
        seed=options.seed,
    )
    has_state = (folder / loop.STATE).is_file()
    if options.resume and not (folder / TARGET_FILES).is_dir():
        raise SprigError(f"There is no run to resume in {folder}; leave --resume away to start one.")
    teachers = load_networks(options.skeleton, options.skinning, place.device.type)
    tell = print if place.rank == 0 else lambda *_, **__: None

    # what is learned from
    jobs, need_blender = jobs_of(options, teachers)
    if need_blender:
        names = ", ".join(path.name for path in need_blender)
        tell(f"left out, because only Blender reads them (save them as .abc or .npz there): {names}")
    prepare(jobs, teachers, stages, options, place, stop)
    if place.agree(stop.asked)[0]:
        tell("stopped before training; go on with --resume", flush=True)
        return place.leave()
    place.wait()
    taught, problems = read_targets(jobs, stages, folder)
    for line in problems:
        tell(line)
    if not taught:
        raise SprigError(
            "There is nothing left to fine-tune on; give sequences that can be read, --bank-clips or --made-clips."
        )
    source = replay = None
    replays = options.replay > 0 and "skeleton" in stages
    if replays or options.bank:  # a bank also says what becomes of static quality
        source = loop.Source(options, place, heat="skinning" in stages)
    if replays:
        replay = Replay(source, teachers.skeleton, place, options.replay, options.seed)
    replayed = source.counts if replays else "nothing"
    tell(f"fine-tuning on {len(taught)} sequences; replay of {replayed}; {place}", flush=True)

    # what there is of an earlier run
    settings = [[job.made_from for job in jobs], config.frames, config.bends, config.skinning_frames, config.lora]
    settings += [config.seed, options.replay]
    of = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    states, worked, saved = {}, 0.0, time.monotonic()
    if has_state:
        before = loop.load_state(folder / loop.STATE, place.device)
        if before["of"] != of:
            raise SprigError(
                f"The run in {folder} began with other sequences, teachers or settings; give the same ones, or name "
                "another folder."
            )
        states, worked = before["states"], before["worked"]
        if source and before["source"]:
            source.restore(before["source"])
    start = saved - worked
    tuned, validating = teachers, False

    def save():
        nonlocal saved
        saved = time.monotonic()
        drawn = source.state() if source else None
        packed = {kind: pack(state) if isinstance(state, FineTuneState) else state for kind, state in states.items()}
        loop.save_state(folder / loop.STATE, of=of, states=packed, worked=saved - start, source=drawn)

    def write(networks: Networks):
        students = [copy.deepcopy(getattr(networks, kind)) for kind in KINDS]
        for student in students:
            if student.kind not in networks.released:  # half the size, and no worse
                student.half()
        provenance = {
            "command": "python -m sprig.training.finetune " + " ".join(sys.argv[1:] if command is None else command),
            "commit": loop.commit(),
            "minutes": round((time.monotonic() - start) / 60, 1),
            "networks": networks.checkpoints,
            "sequences": [one.clip.name for one in taught],
        }
        save_checkpoint(folder / STUDENT, students, provenance)

    def progress(_share, _text):
        asked = stop.asked
        if not validating:  # that is the first process's alone
            asked = place.agree(stop.asked)[0]
            if place.rank == 0 and time.monotonic() - saved > loop.SAVE_EVERY:
                save()
        if asked:
            raise Cancelled

    def on_first(validate):
        nonlocal validating
        validating = True
        try:
            return place.on_first(validate)
        finally:
            validating = False

    try:
        for kind in stages:
            teacher = getattr(teachers, kind)
            stage = STAGES[kind]([one.targets[kind] for one in taught], config, place.device.type)
            if source and source.held_out and kind not in teachers.released:
                stage = Watched(stage, source.held_out)
            state = begin(teacher, config)
            if kind in states:
                restore(state, states[kind])
            states[kind] = state

            def after_epoch(state, kind=kind, teacher=teacher, tuned=tuned):
                if place.rank == 0:
                    tell_epoch(folder, kind, state, (time.monotonic() - start) / 60)
                    write(with_student(tuned, kind, student_so_far(teacher, state), state.history, config))
                    save()

            student, history = fine_tune(
                teacher, stage, config, progress=progress, state=state, after_epoch=after_epoch,
                replay=replay if kind == "skeleton" else None, average_gradients=place.average_gradients,
                part=(place.rank, place.processes), on_first=on_first,
            )  # fmt: skip
            tuned = with_student(tuned, kind, student, history, config)
    except Cancelled:
        tell("stopped; go on with --resume", flush=True)
    else:
        if place.rank == 0:
            write(tuned)
    if place.rank == 0:
        save()
    place.leave()


def tell_epoch(folder: Path, kind: str, state: FineTuneState, minutes: float) -> None:
    """One line of the log, after the first epoch one for the teacher before it; and the curves."""
    for figures in state.history[-1:] if state.epoch > 1 else state.history:
        known = {f"{kind} {name}": value for name, value in figures.items() if name != "epoch" and value == value}
        loop.log(folder, minutes=minutes, stage=kind, epoch=figures["epoch"], step=state.step, **known)
    loop.plot_curves(folder)


if __name__ == "__main__":
    try:
        main()
    except SprigError as problem:
        sys.exit(str(problem))
