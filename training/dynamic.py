"""How stable the networks are over a sequence, before and after fine-tuning: `sprig evaluate dynamic`.

The teacher is the pair of networks as it was, the student the pair after SPRig's fine-tuning. Three protocols, kept
apart, say what the student has learned from and what it is measured on:

* a: the very frames that it was fine-tuned on. One student learns from the named clips and as many other characters as
  make 20;
* b: one student per clip, fine-tuned on every second frame (the anchor among them): measured on the frames left out,
  and beside them on other clips of the same character;
* c: one student that learned from 20 characters, none of them related to those that it is measured on.

Both networks see every frame by itself, about its own box's centre at the anchor's scale. The skeleton network writes
it freely and greedily, without a prefix. The metrics are those of backend/metrics.py.

Choices that a reader would question:
* The one student of a and c learns with replay, as the students of `sprig.training.finetune` do; those of b, as the
  artist's, without.
* Characters that are learned from and not measured show a few frames (`--teaching-frames`), so that the whole stays
  within minutes on a CPU; a student that learned longer, from more frames and characters, comes from
  `sprig.training.finetune` (`--student`).
* In a and b no frame is held out to stop early by: the frames that are measured must not choose the epoch. In c the
  clips that are learned from hold out every eighth.
* The student is taught what the teacher writes for the anchor greedily, as in the paper, and not what is made of
  several views (`consensus`): so fidelity is that of the figures' own skeletons.
* Skin weights of all frames, the teacher's and the student's, are for one skeleton, the teacher's best of the anchor
  (`find_skeleton`), carried along by the motion fit as in fine-tuning: so the error is the skinning network's alone.
* LBS RMSE is that of the rig of this skeleton and each network's weights of the anchor, poses solved.
* Other clips of a character have an anchor of their own, and 24 of their frames are measured.
* Relatives (protocol c) are told as in the rig bank: most joint names in common, or the same triangles. The same
  triangles are one character.
* A table gives medians over clips, and the geometric mean of the clips' ratios teacher/student. A ratio counts between
  1/1000 and 1000: students that do not drift at all have no ratio.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..backend import metrics
from ..backend.checkpoint import kinds_in
from ..backend.device import half_pays, resolve_device
from ..backend.errors import SprigError, no_progress
from ..backend.finetune.clip import Clip, SkinningTarget, frame_weights, make_clip, skeleton_target, skinning_target
from ..backend.finetune.train import FineTuneConfig
from ..backend.formats import read_sequence_file
from ..backend.formats.whole_file import whole_file
from ..backend.learned import KINDS, SKELETON_POINTS, SKINNING_POINTS, Networks, load_networks, weigh
from ..backend.motion.poses import fit_poses
from ..backend.puppeteer.repair import greedy_tree
from ..backend.report import version
from ..backend.sequence import MeshSequence
from ..backend.skeleton.generate import generate_each
from ..backend.skeleton.tokens import BINS
from ..backend.surface import weld
from . import evaluate, finetune, loop
from .finetune import train_student
from .rigbank import read_rigbank, rig_families, split, validation_clips

SCHEMA = "sprig-dynamic-1"  # raised whenever a key changes its name, unit or meaning
PROTOCOLS = {
    "a": "the frames that were fine-tuned on",
    "b": "unseen frames of clips that were fine-tuned on",
    "c": "characters that were never fine-tuned on",
}
HELD_OUT = 8  # every so many frames of a clip that only teaches
TEACHING_FRAMES = {"a": 5, "b": 0, "c": 12}  # at most, of such a clip
CHUNK = 1024  # tracked points weighed together, of one frame
BATCH = 16  # frames decoded together: a third of the time that they take one by one
OTHER_FRAMES = 24  # at most, of another clip of the character
FEW = 12  # validation characters that static figures are about; all of them take minutes
LIMIT = 1000.0  # a ratio counts no more than this
MOST_TRACKED = 1024  # rows of a heat map
WHO = ("teacher", "student")
STATIC_TEXT = tuple(f"Static quality of the {who}" for who in WHO)

FIGURES = {  # heading and format; all of them are better when smaller
    "pjdd": ("PJDD", ".3f"), "pjdd_matched": ("PJDD matched", ".3f"), "tree_changed": ("other tree", ".1%"),
    "gsd": ("GSD", ".4f"), "skin_error": ("skin error", ".1f"), "skin_error_per_point": ("per point", ".4f"),
    "lbs_rmse": ("LBS RMSE %", ".3f"),
}  # fmt: skip
RATIOS = tuple(key for key in FIGURES if key not in ("tree_changed", "gsd"))  # those are often zero
STATIC = {"cd_j2j": ("CD-J2J", ".4f"), "skin_l1": ("skin L1", ".3f")}


# ---- clips, and whose they are


@dataclass(frozen=True, eq=False)
class Source:
    """Where a clip is, and what says whose it is: its triangles, its joints' names (none without a rig), its motion."""

    name: str
    path: Path
    mesh: str
    joint_names: frozenset[str]
    motion: str

    def read(self) -> MeshSequence:
        return read_sequence_file(self.path)


def source_of(path: Path) -> Source:
    """Look at a file that a reader of backend/formats takes; SprigError for what it does not."""
    joint_names, motion = frozenset(), ""
    if path.suffix.lower() == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                faces = arrays["faces"]
                if "joint_names" in arrays:
                    joint_names = frozenset(arrays["joint_names"].tolist())
                if "clip" in arrays:
                    motion = str(arrays["clip"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SprigError(f"{path.name} is no sequence that can be read ({error}); give another clip.") from error
    else:
        faces = read_sequence_file(path).faces
    mesh = hashlib.sha256(np.ascontiguousarray(faces, dtype=np.int64).tobytes()).hexdigest()
    return Source(path.stem if path.is_file() else path.name, path, mesh, joint_names, motion)


def find_clips(asked: list[str], folders: list[Path]) -> list[Source]:
    """The clips that were named: files, or names of .npz files in the folders. SprigError for one that is not there."""
    found = []
    for name in asked:
        places = [Path(name), *(folder / f"{name}.npz" for folder in folders)]
        path = next((place for place in places if place.exists()), None)
        if path is None:
            raise SprigError(f"There is no clip {name}; give a file, or the name of a clip in {_listed(folders)}.")
        found.append(source_of(path))
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SprigError(f"Two clips are called {twice[0]}; rename one, or give it once.")
    return found


def _listed(folders) -> str:
    return " or ".join(map(str, folders)) or "a folder named by --sequences"


def pool_of(folder: Path | None) -> list[Source]:
    """All clips of a folder of .npz files, by name; files that are none are passed over."""
    found = []
    for path in sorted(folder.glob("*.npz")) if folder else []:
        with contextlib.suppress(SprigError):
            found.append(source_of(path))
    return found


def families(sources: list[Source]) -> list[int]:
    """A number for each source, the same for relatives: characters with one skeleton or one mesh."""
    keys = [f"{k:06d}" for k in range(len(sources))]
    names = {key: set(source.joint_names) or {f"no rig {key}"} for key, source in zip(keys, sources, strict=True)}
    models = {key: {key} for key in keys}
    meshes = {key: {source.mesh.encode()} for key, source in zip(keys, sources, strict=True)}
    number = {key: k for k, family in enumerate(rig_families(names, models, meshes)) for key in family}
    return [number[key] for key in keys]


def learned_from(protocol: str, evaluated: list[Source], pool: list[Source], count: int, seed: int) -> list[Source]:
    """What the one student of protocol a or c learns from: `count` characters, or as many as there are.

    a: the evaluated clips, filled up from the pool; c: from the pool alone, without their relatives. Which ones of the
    pool depends on the seed.
    """
    chosen = list(evaluated) if protocol == "a" else []
    number = families([*evaluated, *pool])
    related = {number[k] for k in range(len(evaluated))}
    order = np.random.default_rng(seed).permutation(len(pool))
    for k in order:
        if len({source.mesh for source in chosen}) >= count:
            break
        known = pool[k].mesh in {source.mesh for source in chosen}
        if not known and (protocol == "a" or number[len(evaluated) + k] not in related):
            chosen.append(pool[k])
    return chosen


def other_clips(source: Source, pool: list[Source]) -> list[Source]:
    """Clips of the same character that show another motion."""
    same = [other for other in pool if other.mesh == source.mesh and other.path.resolve() != source.path.resolve()]
    return [other for other in same if not other.motion or other.motion != source.motion]


# ---- what is measured


@dataclass(frozen=True, eq=False)
class Subject:
    """A clip to be measured: its frames, which of them (F,) bool the student has not seen, and the welded vertex (V,)
    of every vertex of the file. `clip` holds no frames out."""

    clip: Clip
    unseen: np.ndarray
    vertex_map: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        """Positions of the frames that figures are about: the unseen ones, or all where there is none."""
        return np.flatnonzero(self.unseen) if self.unseen.any() else np.arange(len(self.unseen))


def subject_of(source: Source, protocol: str, frames: int, anchor: int | None = None, other: bool = False) -> Subject:
    """Read a clip for a protocol; `other`: one of the same character, of which nothing is learned."""
    sequence = source.read()
    frames = min(frames, OTHER_FRAMES) if other else frames
    clip = make_clip(sequence, source.name, anchor=anchor, most_frames=frames, held_out=0)
    unseen = np.full(len(clip.frames), protocol == "c" or other)
    if protocol == "b" and not other:
        unseen[metrics.left_out_split(len(unseen), clip.anchor)[1]] = True
    return Subject(clip, unseen, weld(sequence.vertices))


def seen_part(subject: Subject) -> Clip:
    """The frames of a clip that a student may learn from."""
    clip, seen = subject.clip, np.flatnonzero(~subject.unseen)
    return replace(
        clip,
        vertices=clip.vertices[seen],
        anchor=int(np.flatnonzero(seen == clip.anchor)[0]),
        frames=clip.frames[seen],
        held_out=clip.held_out[seen],
    )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a pair of networks makes of a clip.

    skeletons: of every frame (joints (J,3) in the cube, parents (J,)); weights (F,N,J) of tracked points, lbs_rmse in
    per cent: both None where skinning is not asked for.
    """

    skeletons: list
    weights: np.ndarray | None
    lbs_rmse: float | None


def observe(subject: Subject, networks: Networks, target: SkinningTarget | None) -> Outcome:
    """Run both networks on every frame; target: tracked points with the skeleton that they are weighed for, or None."""
    skeletons = decode_frames(subject.clip, networks)
    if target is None:
        return Outcome(skeletons, None, None)
    rmse = lbs_rmse(subject, networks, target.joints[subject.clip.anchor].numpy(), target.parents.numpy())
    return Outcome(skeletons, tracked_weights(networks, target), rmse)


@torch.no_grad()
def decode_frames(clip: Clip, networks: Networks) -> list:
    """The skeleton that a network writes for every frame: joints (J,3) in the cube and parents (J,).

    Every frame has surface points of its own; the anchor's are those of `find_skeleton`.
    """
    found = []
    for start in range(0, len(clip.vertices), BATCH):
        frames = range(start, min(start + BATCH, len(clip.vertices)))
        seeds = [0 if frame == clip.anchor else frame + 1 for frame in frames]
        drawn = [clip.points(frame, SKELETON_POINTS, seed) for frame, seed in zip(frames, seeds, strict=True)]
        points = torch.as_tensor(np.stack(drawn), device=networks.device)
        if "skeleton" in networks.released:
            found += [greedy_tree(networks.skeleton, one[None]) for one in points]
        else:
            found += [(one.joints, one.parents) for (one,) in generate_each(networks.skeleton, points)]
    return found


@torch.no_grad()
def tracked_weights(networks: Networks, target: SkinningTarget) -> np.ndarray:
    """The skinning network's weights (F,N,J) float32 of a clip's tracked points, every frame by itself.

    Products are in bfloat16 where that is faster: errors change by less than a hundredth, and it takes half as long.
    """
    count = target.points.shape[1]
    parts = [None] if target.heat is None else torch.arange(count).split(CHUNK)  # Puppeteer's weighs all or none
    device = torch.device(networks.device).type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cpu" and half_pays()):
        found = [
            [
                frame_weights(networks.skinning, target, [frame], networks.device, part)[0].float().cpu()
                for part in parts
            ]
            for frame in range(len(target.points))
        ]
    return np.stack([torch.cat(frame).numpy() for frame in found])


def lbs_rmse(subject: Subject, networks: Networks, joints, parents) -> float:
    """LBS RMSE, per cent, over the measured frames and every vertex of the file, of a skeleton of the anchor, joints
    (J,3) and parents (J,), with the skinning network's weights."""
    clip = subject.clip
    rest = clip.vertices[clip.anchor]
    weights = weigh(rest, clip.faces, joints, parents, networks, seed=1)
    frames = np.union1d(subject.measured, [clip.anchor])
    motion = fit_poses(
        clip.vertices[frames], clip.edges, int(np.flatnonzero(frames == clip.anchor)[0]), weights,
        np.asarray(joints, dtype=np.float64), parents,
    )  # fmt: skip
    vertices, places = subject.vertex_map, np.flatnonzero(np.isin(frames, subject.measured))
    return metrics.rmse_percent(
        rest[vertices],
        weights[vertices],
        motion[places],
        clip.vertices[subject.measured][:, vertices],
        metrics.diagonal(rest),
    )


def figures(outcome: Outcome, subject: Subject) -> dict:
    """The stability of one pair of networks on the measured frames; None where there is no value."""
    others = subject.measured[subject.measured != subject.clip.anchor]
    skeletons = [outcome.skeletons[frame] for frame in (subject.clip.anchor, *others)]
    drift = metrics.pjdd(skeletons, 0)
    distances = [metrics.gsd(parents, skeletons[0][1]) for _, parents in skeletons[1:]]
    found = {
        "pjdd": drift.index,
        "pjdd_matched": drift.matched,
        "tree_changed": drift.changed,
        "gsd": float(np.mean(distances)) if distances else 0.0,
        "skin_error": None,
        "skin_error_per_point": None,
        "lbs_rmse": outcome.lbs_rmse,
        "failed_frames": drift.failed,
        "joints": len(skeletons[0][1]),
    }
    if outcome.weights is not None:
        error = metrics.temporal_skin_error(outcome.weights[[subject.clip.anchor, *others]], 0)
        found |= {"skin_error": error.total, "skin_error_per_point": error.per_point}
    return {key: None if value is None or not math.isfinite(value) else value for key, value in found.items()}


def row_of(subject: Subject, teacher: Outcome, student: Outcome) -> dict:
    """One clip's figures: each with _teacher and _student; and how far the student's skeleton of the anchor is from the
    teacher's, in bins."""
    anchor = subject.clip.anchor
    theirs, own = (outcome.skeletons[anchor][0] for outcome in (teacher, student))
    by = {who: figures(outcome, subject) for who, outcome in zip(WHO, (teacher, student), strict=True)}
    return {
        "clip": subject.clip.name,
        "frames": len(subject.unseen),
        "measured_frames": len(subject.measured),
        "anchor_frame": anchor,
        "fidelity_bins": BINS * metrics.chamfer(theirs, own),
        **{f"{key}_{who}": by[who][key] for key in by["teacher"] for who in WHO},
    }


# ---- students


@dataclass(frozen=True, eq=False)
class Variant:
    """A way of fine-tuning: the stages that it is about, what is changed in the losses, the anchor's position, None for
    the frame of greatest area, and what the skin's W* is made from (clip.TARGETS)."""

    label: str
    stages: tuple[str, ...] = KINDS
    losses: dict = field(default_factory=dict)
    anchor: int | None = None
    target: str = "sequence"


WHOLE = Variant("everything")
ABLATIONS = (
    Variant("without token loss (eqs. 1, 2)", ("skeleton",), {"token": 0.0}),
    Variant("without geometry loss (3)", ("skeleton",), {"direction": 0.0, "length": 0.0, "endpoint": 0.0}),
    Variant("without parent weight", ("skeleton",), {"parent_weight": 1.0}),
    Variant("without symmetric KL (8)", ("skinning",), {"divergence": 0.0}),
    Variant("without L1 (9)", ("skinning",), {"difference": 0.0}),
    Variant("without anchor term (10)", ("skinning",), {"anchor": 0.0}),
    Variant("without entropy (11)", ("skinning",), {"entropy": 0.0}),
    Variant("without prior (12)", ("skinning",), {"prior": 0.0}),
    Variant("W* of the anchor alone (5)", ("skinning",), target="anchor"),
    Variant("anchor = first frame", anchor=0),
)


def train(
    variant: Variant, clips: list[Clip], networks: Networks, config: FineTuneConfig, replay, progress=no_progress
) -> Networks:
    """The networks with the variant's students in place of what it is about; `replay` as for `train_student`."""
    config = replace(config, target=variant.target, losses=replace(config.losses, **variant.losses))
    return train_student(clips, networks, config, variant.stages, replay=replay, progress=progress).networks


def replay_of(options, teacher: Networks):
    """What keeps the one student of many clips near its teacher on other characters, as `sprig.training.finetune` has
    it; nothing in protocol b, whose students are for one clip."""
    if options.protocol == "b" or options.replay == 0:
        return None
    bank = ["--bank", str(options.bank)] if options.bank else []
    asked = finetune.arguments().parse_args(["none", *bank, "--seed", str(options.seed)])
    place = loop.Place(torch.device(teacher.device), 0, 1, False)
    source = loop.Source(asked, place)
    return finetune.Replay(source, teacher.skeleton, place, options.replay, options.seed)


def load_student(path: Path, teacher: Networks) -> Networks:
    """The networks of a file that fine-tuning wrote, the teacher's own in place of what it does not hold."""
    kinds = kinds_in(path)
    loaded = load_networks(path, path, teacher.device, kinds)
    return replace(
        teacher,
        **{kind: getattr(loaded, kind) for kind in kinds},
        checkpoints=teacher.checkpoints | loaded.checkpoints,
        released=(teacher.released - set(kinds)) | loaded.released,
    )


# ---- the evaluation


@dataclass(frozen=True, eq=False)
class Task:
    """One student: what it is measured on (each with whether it is another clip of the character that was learned
    from), and what it learns from."""

    measured: list[tuple[Source, bool]]
    teaching: list[Source]


def dynamic(options, progress=no_progress) -> dict:
    """All figures in JSON types; options as the command line has them. SprigError for what cannot be read."""
    device = resolve_device(options.device)
    teacher = load_networks(options.skeleton, options.skinning, device)
    given = load_student(options.student, teacher) if options.student else None
    notes = list(teacher.warnings)
    tasks = tasks_of(options, notes)
    shapes = static_shapes(options)
    if not shapes:
        notes.append("There are no static figures: no characters of a rig bank (--bank, --static).")
    before, afterwards = static_figures(shapes, teacher, options.seed, partial(progress, 0.0, STATIC_TEXT[0])), []
    rows = {}
    for k, task in enumerate(tasks):

        def told(share, text, k=k):
            progress((k + share) / len(tasks), text)

        students = {WHOLE: given} if given else train_variants(task, teacher, options, told, notes)
        if isinstance(students[WHOLE], Networks):
            tick = partial(told, 0.7, STATIC_TEXT[1])
            afterwards.append(static_figures(shapes, students[WHOLE], options.seed, tick))
        for variant, found in measure(task, teacher, students, options, told).items():
            rows.setdefault(variant.label, []).extend(found)
    if all("error" in row for row in rows[WHOLE.label]):
        raise SprigError(f"No clip could be measured ({rows[WHOLE.label][0]['error']}); give others.")
    progress(1.0, "Done")

    clips, others = ([row for row in rows[WHOLE.label] if row["other_clip"] == other] for other in (False, True))
    return {
        "schema": SCHEMA,
        "sprig_version": version(),
        "protocol": options.protocol,
        "epochs": options.epochs,
        "seed": options.seed,
        "device": device,
        "checkpoints": teacher.checkpoints,
        "student": options.student.name if given else None,
        "replay": None if given or options.protocol == "b" else options.replay,
        "trained_on": None if given else [source.name for task in tasks for source in task.teaching],
        **summarise(clips),
        **{f"{key}_teacher": before[key] for key in STATIC},
        **{f"{key}_student": median([after[key] for after in afterwards]) for key in STATIC},
        "static_characters": len(shapes),
        "static_failed_teacher": before["failed"],
        "static_failed_student": max((after["failed"] for after in afterwards), default=0),
        "other_clips": summarise(others) if others else None,
        "ablations": {
            label: summarise([row for row in found if not row["other_clip"]])
            for label, found in (rows if options.ablate else {}).items()
        },
        "rows": rows[WHOLE.label],
        "notes": notes,
    }


def tasks_of(options, notes: list[str]) -> list[Task]:
    """What is trained and measured: one task in protocols a and c, one for each clip in b. Adds to the notes."""
    pool = pool_of(options.sequences)
    same = pool_of(options.multiclip) if options.protocol == "b" else []
    if options.clips:
        chosen = find_clips(options.clips, [folder for folder in (options.sequences, options.multiclip) if folder])
    elif options.protocol == "a":
        chosen = pool
    elif options.protocol == "b":
        chosen = [source for source in pool if other_clips(source, same)]
    else:
        chosen = [source for source in pool if source.name in validation_clips()]
    if not chosen:
        raise SprigError("There are no clips for evaluate dynamic; name some, or give --sequences, a folder of clips.")
    measured = [(source, False) for source in chosen]
    if options.protocol == "b":
        return [Task([one, *((other, True) for other in other_clips(one[0], same))], [one[0]]) for one in measured]
    if options.student:
        return [Task(measured, [])]
    teaching = learned_from(options.protocol, chosen, pool, options.characters, options.seed)
    if not teaching:
        raise SprigError(
            "There is no character to learn from; give --sequences, a folder of clips of other characters."
        )
    characters = len({source.mesh for source in teaching})
    if characters < options.characters:
        notes.append(f"The student learned from {characters} characters; {options.characters} were asked for.")
    return [Task(measured, teaching)]


def lesson(source: Source, options, anchor: int | None, measured: bool) -> Clip:
    """What a student learns from a clip, one that is `measured` too or one that only teaches."""
    if measured and options.protocol != "c":
        return seen_part(subject_of(source, options.protocol, options.frames, anchor))
    few = options.teaching_frames or TEACHING_FRAMES[options.protocol]
    held_out = HELD_OUT if options.protocol == "c" else 0
    return make_clip(source.read(), source.name, anchor=anchor, most_frames=few, held_out=held_out)


def train_variants(task: Task, teacher: Networks, options, progress, notes: list[str]) -> dict[Variant, object]:
    """The student, and those of the ablations where they are asked for; a text says why there is none.

    Clips that cannot be learned from are left out and noted.
    """
    config = FineTuneConfig(epochs=options.epochs, seed=options.seed)
    if options.protocol != "b":  # as sprig.training.finetune does
        many_views = options.replay > 0
        config = replace(config, skeleton_rate=finetune.SKELETON_RATE, many_views=many_views)
        if options.protocol == "a":  # nothing is held out, so no epoch is better than the last: it is only to be seen
            config = replace(config, validated=1)
    variants = (WHOLE, *(ABLATIONS if options.ablate else ()))
    lessons, measured = {}, [source for source, _ in task.measured]
    for anchor in {variant.anchor: None for variant in variants}:
        made = {
            source.name: evaluate.attempt(
                lambda source=source, anchor=anchor: {"clip": lesson(source, options, anchor, source in measured)}
            )
            for source in task.teaching
        }
        lessons[anchor] = [one["clip"] for one in made.values() if "clip" in one]
        notes += [f"{name} was not learned from: {one['error']}" for name, one in made.items() if "error" in one]
    replay, students = replay_of(options, teacher), {}
    for k, variant in enumerate(variants):

        def told(share, text, k=k, variant=variant):
            told_text = text if variant is WHOLE else f"{variant.label}: {text}"
            progress(0.7 * (k + share) / len(variants), told_text)

        made = evaluate.attempt(
            lambda variant=variant, told=told: {
                "networks": train(variant, lessons[variant.anchor], teacher, config, replay, told)
            }
        )
        if "error" in made:
            students[variant] = made["error"]
            continue
        whole = students.get(WHOLE)
        beside = whole if isinstance(whole, Networks) else teacher  # a network that an ablation is not about
        students[variant] = replace(beside, **{kind: getattr(made["networks"], kind) for kind in variant.stages})
    return students


def measure(task: Task, teacher: Networks, students: dict, options, progress) -> dict[Variant, list[dict]]:
    """A row for each variant and clip; one that failed holds its error."""
    rows = {variant: [] for variant in students}
    for k, (source, other) in enumerate(task.measured):
        progress(0.7 + 0.3 * k / len(task.measured), f"Measuring {source.name}")
        about = {"clip": source.name, "other_clip": other}
        for anchor in {variant.anchor: None for variant in students}:
            alike = {variant: student for variant, student in students.items() if variant.anchor == anchor}
            trained = {variant: student for variant, student in alike.items() if isinstance(student, Networks)}
            found = evaluate.attempt(
                lambda source=source, anchor=anchor, other=other, trained=trained: compare(
                    subject_of(source, options.protocol, options.frames, anchor, other), teacher, trained, options
                )
            )
            for variant, student in alike.items():
                error = found.get("error") if variant in trained else student
                rows[variant].append({**about, **({"error": error} if error else found[variant])})
    return rows


def compare(subject: Subject, teacher: Networks, students: dict[Variant, Networks], options) -> dict[Variant, dict]:
    """The rows of one clip; those of the whole student are dumped and plotted, too, where that is asked for."""
    if not students:
        return {}
    clip = subject.clip
    target = None
    if any("skinning" in variant.stages for variant in students):
        rig = skeleton_target(clip, teacher)
        joints, parents = rig.joints.numpy(), rig.parents.numpy()
        target = skinning_target(
            clip, joints, parents, teacher, target="anchor", points=SKINNING_POINTS, seed=options.seed + 1
        )  # what it would teach is not asked for, and with one frame soonest made
    before = observe(subject, teacher, target)
    found = {}
    for variant, student in students.items():
        after = observe(subject, student, target if "skinning" in variant.stages else None)
        found[variant] = row_of(subject, before, after)
        if variant is WHOLE and options.dump:
            dump(options.dump / f"{clip.name}.npz", subject, before, after)
        if variant is WHOLE and options.plots:
            plot_joints(options.plots / f"{clip.name}_joints.png", subject, before, after)
            plot_skin(options.plots / f"{clip.name}_skin.png", subject, before, after)
    return found


# ---- static quality, before and after


def static_shapes(options) -> dict[str, list]:
    """One pose of validation characters of the bank, those of different skeletons first: FEW, or so many as are asked
    for. Empty without a bank."""
    if options.bank is None:
        return {}
    characters = split(read_rigbank(options.bank))[1]
    seen = [sum(other.rig_id == one.rig_id for other in characters[:k]) for k, one in enumerate(characters)]
    order = np.argsort(seen, kind="stable")
    count = FEW if options.static is None else options.static
    chosen = [characters[k] for k in order[:count]]
    return {one.name: evaluate.posed_shapes(one, 1, options.seed) for one in chosen}


def static_figures(shapes: dict[str, list], networks: Networks, seed: int, tick=lambda: None) -> dict:
    """Medians over the characters: CD-J2J of the skeleton network, L1 of the skinning network for the artist's joints;
    None where there is no value. failed: figures that could not be had. tick() before each; it may raise Cancelled."""
    rows = []
    for own in shapes.values():
        tick()
        rows.append(evaluate.network_rows(own, networks, seed))
    j2j, l1 = ([row[kind].get(key) for row in rows] for kind, key in (("skeleton", "cd_j2j"), ("skinning", "l1")))
    return {"cd_j2j": median(j2j), "skin_l1": median(l1), "failed": j2j.count(None) + l1.count(None)}


# ---- many clips


def summarise(rows: list[dict]) -> dict:
    """Medians over the clips that have values, geometric means of the ratios teacher/student, and what failed."""
    good = [row for row in rows if "error" not in row]
    ratios = {key: [ratio(row[f"{key}_teacher"], row[f"{key}_student"]) for row in good] for key in RATIOS}
    return {
        "clips": len(rows),
        "failed_clips": len(rows) - len(good),
        "measured_frames": sum(row["measured_frames"] for row in good),
        **{f"failed_frames_{who}": sum(row[f"failed_frames_{who}"] for row in good) for who in WHO},
        "fidelity_bins": median([row["fidelity_bins"] for row in good]),
        **{f"{key}_{who}": median([row[f"{key}_{who}"] for row in good]) for key in FIGURES for who in WHO},
        "ratios": {key: geometric_mean(values) for key, values in ratios.items()},
    }


def ratio(teacher: float | None, student: float | None) -> float | None:
    """How many times smaller the student's figure is, between 1/LIMIT and LIMIT; 1 where both are the same."""
    if teacher is None or student is None:
        return None
    if teacher == student:
        return 1.0
    return float(np.clip(teacher / student if student else LIMIT, 1 / LIMIT, LIMIT))


def median(values) -> float | None:
    """Of the values that are not None."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def geometric_mean(values) -> float | None:
    """Of the values that are not None."""
    known = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else None


# ---- what is written


def dump(path: Path, subject: Subject, teacher: Outcome, student: Outcome) -> None:
    """One clip as .npz: *_joints (F,Jmax,3) in the cube, NaN beyond *_count (F,), *_parents (F,Jmax), -1 there;
    unseen (F,), anchor_frame; *_weights (F,N,J) of the tracked points, for the skeleton that both networks get."""
    most = max(len(parents) for outcome in (teacher, student) for _, parents in outcome.skeletons)
    arrays = {"unseen": subject.unseen, "anchor_frame": np.int64(subject.clip.anchor)}
    for who, outcome in zip(WHO, (teacher, student), strict=True):
        arrays[f"{who}_joints"], arrays[f"{who}_parents"] = padded(outcome.skeletons, most)
        arrays[f"{who}_count"] = np.array([len(parents) for _, parents in outcome.skeletons], dtype=np.int32)
        arrays[f"{who}_weights"] = outcome.weights
    with whole_file(path) as pending, pending.open("wb") as file:
        np.savez_compressed(file, **arrays)


def padded(skeletons, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Joints (F,most,3) float32, NaN where there is none, and parents (F,most) int32, -1 there."""
    joints = np.full((len(skeletons), most, 3), np.nan, dtype=np.float32)
    parents = np.full((len(skeletons), most), -1, dtype=np.int32)
    for frame, (places, above) in enumerate(skeletons):
        joints[frame, : len(above)], parents[frame, : len(above)] = places, above
    return joints, parents


def plot_joints(path: Path, subject: Subject, teacher: Outcome, student: Outcome) -> None:
    """Where joint j of the sequence is, over time: a column for each network, a row for each axis."""
    plt = _pyplot()
    most = max(len(parents) for outcome in (teacher, student) for _, parents in outcome.skeletons)
    figure, axes = plt.subplots(3, 2, figsize=(12, 8), sharex=True, sharey=True)
    for column, (who, outcome) in enumerate(zip(WHO, (teacher, student), strict=True)):
        joints, _ = padded(outcome.skeletons, most)
        for row, axis in enumerate("xyz"):
            axes[row, column].plot(subject.clip.frames, joints[:, :, row], linewidth=0.8)
            axes[row, column].axvline(subject.clip.frames[subject.clip.anchor], color="black", linestyle=":")
            axes[row, 0].set_ylabel(axis)
        axes[0, column].set_title(who)
        axes[2, column].set_xlabel("frame (dotted: the anchor)")
    _save(figure, path, f"{subject.clip.name}: joints as decoded frame by frame, in the unit cube")


def plot_skin(path: Path, subject: Subject, teacher: Outcome, student: Outcome) -> None:
    """How far the weights of tracked points are from the anchor's, in every frame: points by the joint that moves them
    most, one scale for both networks."""
    plt = _pyplot()
    anchor = subject.clip.anchor
    rows = np.argsort(teacher.weights[anchor].argmax(axis=1), kind="stable")
    rows = rows[:: -(-len(rows) // MOST_TRACKED)]
    changes = [
        np.abs(outcome.weights[:, rows] - outcome.weights[anchor, rows]).sum(axis=2).T for outcome in (teacher, student)
    ]
    most = max(float(np.percentile(changes[0], 99)), 1e-3)
    figure, axes = plt.subplots(1, 2, figsize=(12, 6), sharey=True, layout="constrained")
    for axis, who, change in zip(axes, WHO, changes, strict=True):
        shown = axis.imshow(change, aspect="auto", interpolation="nearest", vmin=0, vmax=most, cmap="magma")
        axis.set_title(f"{who}: {change.mean():.4f}")
        axis.set_xlabel("place among the frames")
    axes[0].set_ylabel("tracked points, by joint")
    figure.colorbar(shown, ax=axes, label="|W(frame) - W(anchor)|, summed over joints")
    _save(figure, path, f"{subject.clip.name}: flicker of the skin weights")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure, path: Path, title: str) -> None:
    figure.suptitle(title)
    with whole_file(path) as pending:
        figure.savefig(pending, format="png", dpi=80)
    _pyplot().close(figure)


def to_markdown(report: dict) -> str:
    """The tables as Markdown: the paper's, every clip, static quality, ablations."""
    learned = "a student that was given" if report["trained_on"] is None else f"{report['epochs']} epochs"
    lines = [
        f"# Dynamic evaluation, protocol {report['protocol']}: {PROTOCOLS[report['protocol']]}",
        "",
        f"{learned}, seed {report['seed']}, {report['device']}; SPRig {report['sprig_version']}. Medians over clips; "
        "teacher/student is the geometric mean over clips. Failed: frames without a skeleton, of the teacher and the "
        "student. Fidelity: Chamfer distance of the student's skeleton of the anchor from the teacher's, in bins.",
    ]
    for kind, checkpoint in report["checkpoints"].items():
        lines.append(f"- {kind} network: {checkpoint['file']}, {checkpoint['fingerprint']}")
    if report["student"]:
        lines.append(f"- student: {report['student']}")
    if report["trained_on"] and report["protocol"] != "b":
        lines.append(f"- learned from {len(report['trained_on'])} clips: {', '.join(report['trained_on'])}")
    lines += [f"- {note}" for note in report["notes"]]
    lines += ["", *_summary_table(report)]
    if report["other_clips"]:
        lines += ["", "## Other clips of the same characters", "", *_summary_table(report["other_clips"])]
    if report["static_characters"]:
        lines += ["", "## Static quality", "", *_static_table(report)]
    if report["ablations"]:
        lines += ["", "## Ablations", "", *_ablation_table(report["ablations"])]
    lines += ["", "## Every clip", "", "Teacher / student.", "", *_clip_table(report["rows"])]
    failures = [f"- {row['clip']}: {row['error']}" for row in report["rows"] if "error" in row]
    return "\n".join([*lines, *(["", "Failures:", "", *failures] if failures else [])]) + "\n"


def _summary_table(found: dict) -> list[str]:
    lines = evaluate.table_head(["", "clips", "failed", "fidelity", *(heading for heading, _ in FIGURES.values())])
    clips = f"{found['clips']}" + (f", {found['failed_clips']} failed" if found["failed_clips"] else "")
    for who in WHO:
        frames = f"{found[f'failed_frames_{who}']} of {found['measured_frames']}"
        values = [_told(found[f"{key}_{who}"], form) for key, (_, form) in FIGURES.items()]
        lines.append(evaluate.table_line([who, clips, frames, _fidelity(found, who), *values]))
    values = [_told(found["ratios"].get(key), ".3g") for key in FIGURES]
    return [*lines, evaluate.table_line(["teacher/student", clips, "", "", *values])]


def _fidelity(found, who="student") -> str:
    return _told(found["fidelity_bins"], ".2f") if who == "student" else ""


def _static_table(report: dict) -> list[str]:
    headings = ["", "characters", "without a value", *(heading for heading, _ in STATIC.values())]
    return evaluate.table_head(headings) + [
        evaluate.table_line(
            [
                who,
                str(report["static_characters"]),
                str(report[f"static_failed_{who}"]),
                *(_told(report[f"{key}_{who}"], form) for key, (_, form) in STATIC.items()),
            ]
        )
        for who in WHO
    ]


def _ablation_table(ablations: dict[str, dict]) -> list[str]:
    headings = [f"{heading} (teacher/student)" for heading, _ in FIGURES.values()]
    lines = evaluate.table_head(["", "clips", "failed", "fidelity", *headings])
    for label, found in ablations.items():
        values = [
            f"{_told(found[f'{key}_student'], form)} ({_told(found['ratios'].get(key), '.3g')})"
            if found[f"{key}_student"] is not None
            else "–"
            for key, (_, form) in FIGURES.items()
        ]
        failed = f"{found['failed_clips']} clips, {found['failed_frames_student']} frames"
        lines.append(evaluate.table_line([label, str(found["clips"]), failed, _fidelity(found), *values]))
    return lines


def _clip_table(rows: list[dict]) -> list[str]:
    headings = ["clip", "frames", "joints", "failed", "fidelity", *(heading for heading, _ in FIGURES.values())]
    lines = evaluate.table_head(headings)
    for row in rows:
        if "error" in row:
            lines.append(evaluate.table_line([row["clip"], "failed", *["–"] * (len(headings) - 2)]))
            continue
        pairs = {key: [row[f"{key}_{who}"] for who in WHO] for key in (*FIGURES, "joints", "failed_frames")}
        cells = [row["clip"], str(row["measured_frames"]), _pair(pairs["joints"]), _pair(pairs["failed_frames"])]
        values = [_pair(pairs[key], form) for key, (_, form) in FIGURES.items()]
        lines.append(evaluate.table_line([*cells, _fidelity(row), *values]))
    return lines


def _pair(values, form: str = "d") -> str:
    return " / ".join(_told(value, form) for value in values)


def _told(value, form: str) -> str:
    return "–" if value is None else format(value, form)
