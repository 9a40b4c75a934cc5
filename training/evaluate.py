"""How good the networks are, next to baselines on the same characters: `python -m sprig.training.evaluate static`.

Static: one shape at a time. Every validation character of the rig bank stands in a few of its own poses, as linear
blend skinning makes them, and for each pose

* the skeleton network's rig is compared with the artist's posed joints in the unit cube of the posed mesh; beside it
  stands what the motion solver finds from all poses of the character, with the artist's number of joints: its joints,
  and the centroids of its weights;
* the skinning network's weights for the artist's joints are compared with the artist's weights, beside those of the
  nearest bone and of Blender's automatic weights (bone heat).

How stable they are over sequences, before and after fine-tuning, is `evaluate dynamic` (dynamic.py); how good rigs are
on motions that they were not made from is `evaluate cross` (cross.py).

The metrics are those of backend/metrics.py. A character counts once, with the mean over its poses, and tables give
medians over characters. What has no value (an error, no valid tree) is in no median and counted beside each.

Choices that a reader would question:
* Vertices that bone heat finds no weights for keep rows of zeros and count in its L1 as they are (1 each, where rows
  that share nothing count 2); the poses that have any are counted as incomplete.
* Bone heat needs tails. They are those of our exporter (`bone_tails`) with the nearest bone's weights instead of the
  artist's, which would tell it where a limb ends.
* The network's rows are sharpened as METRICS has it, the baselines' are not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import metrics
from ..backend.anchor import anchor_frame
from ..backend.device import DEVICES, load_torch, resolve_device
from ..backend.errors import Cancelled, SprigError, no_progress
from ..backend.formats import npz
from ..backend.formats.whole_file import whole_file
from ..backend.kinematics import linear_blend_skinning
from ..backend.learned import KINDS, Networks, find_skeleton, load_networks, shipped_file, weigh
from ..backend.pipeline import SKELETON_SOURCES, RigOptions, rig_sequence
from ..backend.report import version
from ..backend.sequence import MeshSequence
from ..backend.skeletons import bone_tails
from ..backend.surface import prepare
from .character import Character
from .rigbank import read_rigbank, split, validation_clips

SCHEMA = "sprig-static-1"  # raised whenever a key changes its name, unit or meaning
FEWEST_POSES = 8  # a motion needs a few
TIE = 1e-9  # of the diagonal: bones whose distances from a vertex differ by less are equally near
CHECKOUT = Path(__file__).resolve().parents[1]
BONE_HEAT = CHECKOUT / "benchmarks" / "bone_heat.py"
DATA = CHECKOUT.parent / "shared" / "data"  # rigbank/ and sequences/, where they lie beside the checkout
HEAT_SIZE = 100.0  # longest side for bone heat: of 98 poses it gave up on 3 altogether, on 8 where the side is 1
HEAT_START, HEAT_EACH = 120, 20  # seconds that Blender may take to start, and for each shape, on a busy machine

# Metrics with their headings and formats; the first one says which category is worst (largest).
SKELETON = {
    "cd_j2j": ("CD-J2J", ".4f"), "cd_j2b": ("CD-J2B", ".4f"), "cd_b2b": ("CD-B2B", ".4f"),
    "topology_f1": ("topology F1", ".3f"), "gsd": ("GSD", ".3f"), "joints": ("joints", ".0f"),
    "artist_joints": ("artist's", ".0f"), "seconds": ("seconds", ".2f"),
}  # fmt: skip
SKINNING = {
    "l1": ("L1", ".3f"), "precision": ("precision", ".3f"), "recall": ("recall", ".3f"),
    "unweighted": ("vertices without weights", ".3f"), "seconds": ("seconds", ".2f"),
}  # fmt: skip


# ---- shapes with their truth


@dataclass(frozen=True, eq=False)
class Shape:
    """One mesh in one pose, with the artist's rig: vertices (V,3), joints (J,3) and weights (V,J) float64."""

    name: str
    category: str
    vertices: np.ndarray
    faces: np.ndarray  # (M,3)
    joints: np.ndarray
    parents: np.ndarray  # (J,), parents first
    weights: np.ndarray | None = None  # None where the truth is a skeleton alone


def posed_shapes(character: Character, count: int, seed: int) -> list[Shape]:
    """The character in up to `count` different poses of its own, or in the rest pose if it has none.

    The draw depends on the seed and the character's name, not on which others there are.
    """
    rng = np.random.default_rng([seed, zlib.crc32(character.name.encode())])
    chosen = rng.choice(len(character.motion), min(count, len(character.motion)), replace=False)
    still = np.tile(np.eye(4), (len(character.joints), 1, 1))
    return [posed(character, motion) for motion in character.motion[np.sort(chosen)]] or [posed(character, still)]


def posed(character: Character, motion) -> Shape:
    """The character in the pose motion (J,4,4)."""
    return Shape(
        name=character.name,
        category=character.category,
        vertices=linear_blend_skinning(character.vertices, character.weights, motion),
        faces=character.faces,
        joints=moved_joints(character.joints, motion),
        parents=character.parents,
        weights=character.weights.astype(np.float64),
    )


def moved_joints(joints, motion) -> np.ndarray:
    """Joints (J,3) float64 in the pose motion (J,4,4)."""
    motion = np.asarray(motion, dtype=np.float64)
    return np.einsum("jik,jk->ji", motion[:, :3, :3], np.asarray(joints, dtype=np.float64)) + motion[:, :3, 3]


def clip_shape(path: Path) -> Shape | None:
    """The anchor frame of a real clip, welded as the pipeline does, with the artist's joints; None without a rig.

    The joints that count are those of METRICS: with weight, and their ancestors.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "weights" not in arrays:
            return None
        keep = metrics.weighted_joints(arrays["weights"], arrays["parents"])
        parents = metrics.parents_among(arrays["parents"], keep)
        places, category = arrays["bone_world"][:, :, :3, 3][:, keep].astype(np.float64), str(arrays["category"])
    sequence = npz.read(path)
    prepared = prepare(sequence, may_be_still=True)
    anchor = anchor_frame(prepared.areas)
    vertices = prepared.trajectories[anchor].astype(np.float64) + sequence.origin
    return Shape(path.stem, category, vertices, prepared.faces, places[anchor], parents)


# ---- skeletons: the network's and the motion's


def skeleton_scores(joints, parents, shape: Shape) -> dict:
    """Metrics of a skeleton, joints (J,3) and parents (J,), against the shape's own. ValueError if it is no tree."""
    joints, parents = np.asarray(joints, dtype=np.float64), np.asarray(parents)
    check_tree(joints, parents)
    centre, side = metrics.unit_cube(shape.vertices)
    ours, truth = (joints - centre) / side, (shape.joints - centre) / side
    distances = metrics.chamfer_distances(ours, metrics.bones_of(parents), truth, metrics.bones_of(shape.parents))
    return {
        "cd_j2j": distances.j2j,
        "cd_j2b": distances.j2b,
        "cd_b2b": distances.b2b,
        "topology_f1": metrics.topology_f1(ours, parents, truth, shape.parents),
        "gsd": metrics.gsd(parents, shape.parents),
        "joints": len(joints),
        "artist_joints": len(truth),
    }


def check_tree(joints, parents) -> None:
    """ValueError unless joints (J,3) and parents (J,) are finite and one tree of two joints or more, parents first."""
    count = len(parents)
    if count < 2 or joints.shape != (count, 3) or not np.isfinite(joints).all():
        raise ValueError(f"no valid tree: {count} parents, joints of shape {joints.shape}, or not finite")
    if parents[0] != -1 or (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, count)).any():
        raise ValueError(f"no valid tree: parents {parents.tolist()}")


def network_skeleton(shape: Shape, networks: Networks, seed: int) -> dict:
    """The network's skeleton for one shape, measured."""
    start = time.perf_counter()
    found = find_skeleton(shape.vertices, shape.faces, networks, seed=seed)
    seconds = time.perf_counter() - start
    return {**skeleton_scores(found.joints, found.parents, shape), "seconds": seconds}


def motion_skeletons(character: Character, device: str) -> dict[str, dict]:
    """The motion solver's skeleton from all poses of a character as one clip, measured in the solver's anchor.

    "motion joints": its joints; "motion centroids": c_j = sum_v w_vj x_v / sum_v w_vj of its weights on the posed
    anchor, with its tree.
    """
    shapes = [posed(character, motion) for motion in character.motion]
    sequence = MeshSequence.from_world(np.stack([shape.vertices for shape in shapes]), character.faces)
    start = time.perf_counter()
    rig = rig_sequence(sequence, RigOptions(skeleton="motion", joints=len(character.joints), device=device))
    seconds = time.perf_counter() - start
    anchor = shapes[rig.anchor]
    joints = moved_joints(rig.skeleton.joints, rig.motion[rig.anchor]) + rig.origin
    places = {"motion joints": joints, "motion centroids": weight_centroids(rig.weights, anchor.vertices, joints)}
    return {
        method: {**skeleton_scores(found, rig.skeleton.parents, anchor), "seconds": seconds}
        for method, found in places.items()
    }


def weight_centroids(weights, vertices, joints) -> np.ndarray:
    """Centroids (J,3) of vertices (V,3) by the weights (V,J); joints (J,3) for columns without weight."""
    weights = np.asarray(weights, dtype=np.float64)
    mass = weights.sum(axis=0)[:, None]
    return np.where(mass > 0, weights.T @ vertices / np.where(mass > 0, mass, 1), joints)


# ---- skin weights: the network's, the nearest bone's, bone heat


def weight_scores(weights, shape: Shape) -> dict:
    """Metrics of skin weights (V,J) for the artist's joints against the artist's. ValueError if they are not finite."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != shape.weights.shape or not np.isfinite(weights).all():
        raise ValueError(f"weights of shape {weights.shape} for {shape.weights.shape}, or not finite")
    scores = metrics.skin_scores(weights, shape.weights)
    unweighted = float(np.mean(weights.sum(axis=1) <= 0))
    return {"l1": scores.l1, "precision": scores.precision, "recall": scores.recall, "unweighted": unweighted}


def network_weights(shape: Shape, networks: Networks, seed: int) -> dict:
    """The network's weights for the artist's joints, measured."""
    start = time.perf_counter()
    weights = weigh(shape.vertices, shape.faces, shape.joints, shape.parents, networks, seed=seed)
    seconds = time.perf_counter() - start
    return {**weight_scores(metrics.sharpened(weights), shape), "seconds": seconds}


def nearest_weights(shape: Shape) -> dict:
    """The nearest bone's weights, measured."""
    start = time.perf_counter()
    weights = nearest_bone_weights(shape.vertices, shape.joints, shape.parents)
    seconds = time.perf_counter() - start
    return {**weight_scores(weights, shape), "seconds": seconds}


def nearest_bone_weights(vertices, joints, parents) -> np.ndarray:
    """Rigid weights (V,J) float64: every vertex (V,3) belongs to the joint of its nearest bone.

    Joint j owns the bones from joints[j] to each of its children, a leaf the point where it is. Many vertices are
    nearest to a joint itself, where its parent's bone ends and its own begins: of equally near bones the one whose
    joint comes last, the lower one, is taken.
    """
    vertices, joints, parents = np.asarray(vertices, np.float64), np.asarray(joints, np.float64), np.asarray(parents)
    leaves = np.setdiff1d(np.arange(len(parents)), parents)
    bones = np.concatenate([metrics.bones_of(parents), np.stack([leaves, leaves], axis=1)])
    distance = np.empty((len(vertices), len(bones)))
    for b, (start, end) in enumerate(joints[bones]):
        along = end - start
        length = along @ along
        share = np.clip((vertices - start) @ along / length, 0, 1) if length > 0 else np.zeros(len(vertices))
        distance[:, b] = np.linalg.norm(vertices - start - share[:, None] * along, axis=1)
    least = distance.min(axis=1, keepdims=True) + TIE * metrics.diagonal(vertices)
    owner = np.where(distance <= least, bones[:, 0], -1).max(axis=1)
    return np.eye(len(parents))[owner]


def why_no_bone_heat() -> str | None:
    """Why Blender's weights cannot be had here, or None."""
    if not BONE_HEAT.is_file():
        return "benchmarks/bone_heat.py is only in a checkout"
    if importlib.util.find_spec("bpy") is None:
        return "the bpy module is not installed"
    return None


def bone_heat(shapes: list[Shape]) -> list[np.ndarray | str]:
    """Blender's automatic weights (V,J) of each shape, from a process of its own; or why there are none.

    A shape on which that process dies is given up, and another process goes on with the next one.
    """
    with tempfile.TemporaryDirectory(prefix="sprig-evaluate-") as folder:
        given, made = Path(folder) / "given", Path(folder) / "made"
        given.mkdir()
        made.mkdir()
        files = [given / f"{k:05d}.npz" for k in range(len(shapes))]
        for file, shape in zip(files, shapes, strict=True):
            _write_for_heat(file, shape)
        reasons, left = {}, files
        while left:
            said = _run_bone_heat(left, made, folder)
            left = [file for file in left if not (made / file.name).is_file()]
            if left:
                reasons[left[0].name] = said
                left = left[1:]
        found = []
        for file in files:
            if file.name in reasons:
                found.append(reasons[file.name])
                continue
            with np.load(made / file.name, allow_pickle=False) as arrays:
                found.append(arrays["weights"])
        return found


def _write_for_heat(file: Path, shape: Shape) -> None:
    """The shape around the origin at HEAT_SIZE, with tails, for benchmarks/bone_heat.py."""
    rough = nearest_bone_weights(shape.vertices, shape.joints, shape.parents)
    tails = bone_tails(shape.joints, shape.parents, rough, shape.vertices)
    centre, side = metrics.unit_cube(shape.vertices)
    positions = {"vertices": shape.vertices, "joints": shape.joints, "tails": tails}
    positions = {key: HEAT_SIZE / side * (value - centre) for key, value in positions.items()}
    np.savez(file, faces=shape.faces, parents=shape.parents, **positions)


def _run_bone_heat(files: list[Path], made: Path, folder: str) -> str:
    """Run the child process, without the user's Blender settings; the last thing that it said."""
    command = [sys.executable, str(BONE_HEAT), *map(str, files), "--output", str(made)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HEAT_START + HEAT_EACH * len(files),
            env={**os.environ, "BLENDER_USER_RESOURCES": folder},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "Blender took too long"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"Blender ended with status {done.returncode}" + (f": {said[-1]}" if said else "")


# ---- rows and their medians


def attempt(measure: Callable[[], dict]) -> dict:
    """What `measure` returns, or {"error": why it failed}."""
    try:
        return measure()
    except Cancelled:
        raise
    except Exception as error:  # one character must not cost the others; every failure is counted and named
        return {"error": f"{type(error).__name__}: {error}"}


def mean_row(name: str, category: str, method: str, results: list[dict]) -> dict:
    """One character's row: the means over its poses that have values, and what happened to the others."""
    good = [result for result in results if "error" not in result]
    return {
        "character": name,
        "category": category,
        "method": method,
        "poses": len(results),
        "failed_poses": len(results) - len(good),
        "incomplete_poses": sum(result.get("unweighted", 0) > 0 for result in good),
        "errors": sorted({result["error"] for result in results if "error" in result}),
        **{key: float(np.mean([result[key] for result in good])) for key in (good[0] if good else ())},
    }


def summarise(rows: list[dict], columns) -> dict:
    """Medians of `columns` over characters; how many have no value in them, and of how many poses."""
    good = [row for row in rows if row["poses"] > row["failed_poses"]]
    poses, failed = (sum(row[key] for row in rows) for key in ("poses", "failed_poses"))
    medians = {column: [row[column] for row in good if column in row] for column in columns}
    return {
        "characters": len(rows),
        "failed": len(rows) - len(good),
        "poses": poses,
        "failed_poses": failed,
        "incomplete_poses": sum(row["incomplete_poses"] for row in rows),
        "valid": 1 - failed / poses,
        **{column: float(np.median(values)) if values else None for column, values in medians.items()},
    }


def summaries(rows: list[dict], columns) -> dict[str, dict]:
    """For each method in `rows`: "all", "categories" and "worst_category", by the largest median of the first column.

    A category of which nothing has a value is worse than any other.
    """
    headline = next(iter(columns))
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        categories = {
            category: summarise([row for row in own if row["category"] == category], columns)
            for category in sorted({row["category"] for row in own})
        }
        worst = max(categories, key=lambda c: np.inf if categories[c][headline] is None else categories[c][headline])
        found[method] = {"all": summarise(own, columns), "categories": categories, "worst_category": worst}
    return found


def better_than(rows: list[dict], baseline: str) -> dict | None:
    """On how many of the characters that both have a value for the network's L1 is smaller; None if there are none."""
    l1 = {(row["character"], row["method"]): row["l1"] for row in rows if "l1" in row}
    both = [name for name, method in l1 if method == "network" and (name, baseline) in l1]
    if not both:
        return None
    better = sum(l1[name, "network"] < l1[name, baseline] for name in both)
    return {"better": better, "characters": len(both), "share": better / len(both)}


# ---- the evaluation


def static(options, progress=no_progress) -> dict:
    """All static figures in JSON types; options as the command line has them. SprigError for what cannot be read."""
    device = resolve_device(options.device)
    files = dict(zip(KINDS, (options.skeleton, options.skinning), strict=True))
    kinds = [kind for kind in KINDS if files[kind] or shipped_file(kind).is_file()]
    networks = load_networks(*files.values(), device, kinds)
    notes = [f"No {kind} network is given, and SPRig has none: left out." for kind in KINDS if kind not in kinds]
    notes += networks.warnings
    clips = [] if options.clips is None else read_clips(options.clips, notes)
    characters = [] if options.bank is None else split(read_rigbank(options.bank))[1]
    rows = {"skeleton": [], "skinning": [], "clips": []}

    shapes = {}
    for k, character in enumerate(characters):
        progress(0.8 * k / len(characters), f"Measuring {character.name}")
        shapes[character.name] = posed_shapes(character, options.poses, options.seed)
        _measure(character, shapes[character.name], networks, options.seed, device, rows)
    short = [character.name for character in characters if len(character.motion) < FEWEST_POSES]
    if short:
        notes.append(f"Fewer than {FEWEST_POSES} poses, so no skeleton from the motion: {', '.join(short)}.")
    if characters:
        progress(0.8, "Blender's automatic weights")
        reason = "not asked for" if options.no_bone_heat else why_no_bone_heat()
        if reason:
            notes.append(f"Bone heat was left out: {reason}.")
        else:
            _measure_bone_heat(shapes, rows)
    if "skeleton" in kinds:
        for k, shape in enumerate(clips):
            progress(0.9 + 0.1 * k / len(clips), f"Measuring {shape.name}")
            result = attempt(lambda shape=shape: network_skeleton(shape, networks, options.seed))
            rows["clips"].append(mean_row(shape.name, shape.category, "network", [result]))
    progress(1.0, "Done")
    return {
        "schema": SCHEMA,
        "sprig_version": version(),
        "characters": len(characters),
        "poses": options.poses,
        "seed": options.seed,
        "device": device,
        "checkpoints": networks.checkpoints,
        "notes": notes,
        "skeleton": summaries(rows["skeleton"], SKELETON),
        "skinning": summaries(rows["skinning"], SKINNING),
        "better_than": {name: better_than(rows["skinning"], name) for name in ("bone heat", "nearest bone")},
        "clips": summaries(rows["clips"], SKELETON),
        "rows": rows,
    }


def _measure(character: Character, shapes: list[Shape], networks: Networks, seed: int, device: str, rows) -> None:
    """Add the rows of one character: everything but bone heat."""

    def add(table: str, method: str, results: list[dict]):
        rows[table].append(mean_row(character.name, character.category, method, results))

    own = network_rows(shapes, networks, seed)
    if "skeleton" in own:
        rows["skeleton"].append(own["skeleton"])
    if len(character.motion) >= FEWEST_POSES:
        found = attempt(lambda: motion_skeletons(character, device))
        for method in ("motion joints", "motion centroids"):
            add("skeleton", method, [found if "error" in found else found[method]])
    if "skinning" in own:
        rows["skinning"].append(own["skinning"])
    add("skinning", "nearest bone", [attempt(lambda shape=shape: nearest_weights(shape)) for shape in shapes])


def network_rows(shapes: list[Shape], networks: Networks, seed: int) -> dict[str, dict]:
    """The networks' own rows of one character, "skeleton" and "skinning", as far as there are networks."""
    measures = {"skeleton": network_skeleton, "skinning": network_weights}
    return {
        kind: mean_row(
            shapes[0].name,
            shapes[0].category,
            "network",
            [attempt(lambda shape=shape, measure=measure: measure(shape, networks, seed)) for shape in shapes],
        )
        for kind, measure in measures.items()
        if getattr(networks, kind) is not None
    }


def _measure_bone_heat(shapes: dict[str, list[Shape]], rows) -> None:
    """Add the rows of bone heat for the shapes of each character."""
    found = iter(bone_heat([shape for poses in shapes.values() for shape in poses]))
    for name, poses in shapes.items():
        results = []
        for shape in poses:
            weights = next(found)
            failed = isinstance(weights, str)
            results.append({"error": weights} if failed else weight_scores(weights, shape))
        rows["skinning"].append(mean_row(name, poses[0].category, "bone heat", results))


def read_clips(folder: Path, notes: list[str]) -> list[Shape]:
    """The validation clips with a rig; adds to the notes which others there are. SprigError if there is none."""
    shapes, without, missing = [], [], []
    for name in validation_clips():
        path = folder / f"{name}.npz"
        if not path.is_file():
            missing.append(name)
            continue
        shape = clip_shape(path)
        shapes.append(shape) if shape else without.append(name)
    if not shapes:
        raise SprigError(f"{folder} holds none of the validation clips that have a rig; give the folder of the clips.")
    if without:
        notes.append(f"Clips without a rig to compare with: {', '.join(without)}.")
    if missing:
        notes.append(f"Clips that are not there: {', '.join(missing)}.")
    return shapes


# ---- Markdown


def to_markdown(report: dict, with_rows: bool = False) -> str:
    """The tables as Markdown, with one row for each character on request."""
    lines = [
        "# Static evaluation",
        "",
        f"{report['characters']} validation characters of the rig bank, up to {report['poses']} poses each, seed "
        f"{report['seed']}, {report['device']}; SPRig {report['sprig_version']}. Medians over characters, each the "
        "mean over its poses. Valid: poses with a value, of all. Distances are in the unit cube.",
    ]
    for kind, checkpoint in report["checkpoints"].items():
        lines.append(f"- {kind} network: {checkpoint['file']}, {checkpoint['fingerprint']}")
    lines += [f"- {note}" for note in report["notes"]]
    for key, title, columns in (
        ("skeleton", "Skeletons", SKELETON),
        ("skinning", "Skin weights for the artist's joints", SKINNING),
        ("clips", "Skeletons on the anchor frames of real clips", SKELETON),
    ):
        if not report[key]:
            continue
        lines += ["", f"## {title}", "", *_summary_table(report[key], columns)]
        if key == "skinning":
            lines += ["", *_comparisons(report)]
        rows = report["rows"][key]
        if with_rows:
            lines += ["", "Each one:", "", *_row_table(rows, columns)]
        failures = [
            f"- {row['character']}, {row['method']}: {'; '.join(row['errors'])}" for row in rows if row["errors"]
        ]
        if failures:
            lines += ["", "Failures:", "", *failures]
    return "\n".join(lines) + "\n"


def _summary_table(found: dict[str, dict], columns) -> list[str]:
    counts = ["characters", "valid", *(["incomplete poses"] if columns is SKINNING else [])]
    lines = table_head(["method", "category", *counts, *(heading for heading, _ in columns.values())])
    for method, summary in found.items():
        for category, figures in {"**all**": summary["all"], **summary["categories"]}.items():
            worst = len(summary["categories"]) > 1 and category == summary["worst_category"]
            cells = [
                method,
                f"{category} (worst)" if worst else category,
                str(figures["characters"]) + (f", {figures['failed']} without a value" if figures["failed"] else ""),
                f"{figures['poses'] - figures['failed_poses']} of {figures['poses']}",
                *([str(figures["incomplete_poses"])] if columns is SKINNING else []),
            ]
            lines.append(table_line([*cells, *_figures(figures, columns)]))
    return lines


def _row_table(rows: list[dict], columns) -> list[str]:
    lines = table_head(["character", "category", "method", "valid", *(heading for heading, _ in columns.values())])
    for row in sorted(rows, key=lambda row: row["character"]):  # stable: methods keep their order
        valid = f"{row['poses'] - row['failed_poses']} of {row['poses']}"
        lines.append(table_line([row["character"], row["category"], row["method"], valid, *_figures(row, columns)]))
    return lines


def _comparisons(report: dict) -> list[str]:
    return [
        f"The network's L1 is smaller than that of {baseline} on {found['better']} of {found['characters']} characters."
        for baseline, found in report["better_than"].items()
        if found
    ]


def _figures(row: dict, columns) -> list[str]:
    values = ((row.get(column), form) for column, (_, form) in columns.items())
    return ["–" if value is None else format(value, form) for value, form in values]


def table_head(headings: list[str]) -> list[str]:
    """The two lines that a Markdown table begins with."""
    return [table_line(headings), table_line(["---"] * len(headings))]


def table_line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


# ---- the command line


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are SprigErrors."""

    def error(self, message):
        raise SprigError(f"{message}; see {self.prog} --help")


def parse(arguments: list[str], program: str = "python -m sprig.training.evaluate") -> argparse.Namespace:
    """The options of a command line; SprigError for bad usage, SystemExit after --help."""
    parser = _Parser(prog=program, description="Score the networks, next to baselines.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_dynamic(commands)
    _add_cross(commands)
    about = "Skeletons and skin weights of single shapes: the validation characters, and the anchors of real clips."
    one = commands.add_parser("static", help="one shape at a time", description=about, allow_abbrev=False)
    one.add_argument("--bank", type=Path, metavar="FOLDER", help="the rig bank (../shared/data/rigbank)")
    one.add_argument(
        "--clips", type=Path, metavar="FOLDER", help="real clips with rigs, as .npz (../shared/data/sequences)"
    )
    one.add_argument("--skeleton", type=Path, metavar="FILE", help="skeleton network (the one that comes with SPRig)")
    one.add_argument("--skinning", type=Path, metavar="FILE", help="skinning network (the one that comes with SPRig)")
    one.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto)")
    one.add_argument("--poses", type=int, default=2, metavar="N", help="poses of each character (2)")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of poses and surface points (0)")
    one.add_argument("--no-bone-heat", action="store_true", help="leave Blender's automatic weights out")
    one.add_argument("--output", type=Path, metavar="FOLDER", help="write static.md and static.json there")
    one.add_argument("--json", action="store_true", help="the last line printed is the summary as JSON")
    options = parser.parse_args(arguments)
    if options.command == "dynamic":
        return _checked_dynamic(options)
    if options.command == "cross":
        return _checked_cross(options)
    if options.bank is None and options.clips is None:  # those beside the checkout, as far as they are there
        options.bank, options.clips = (
            folder if folder.is_dir() else None for folder in (DATA / "rigbank", DATA / "sequences")
        )
    if options.bank is None and options.clips is None:
        raise SprigError("There is nothing to measure on; give --bank, --clips or both.")
    if options.poses < 1 or options.seed < 0:
        raise SprigError("--poses is 1 or more and --seed 0 or more; change them.")
    for file in (options.skeleton, options.skinning):
        if file is not None and not file.is_file():
            raise SprigError(f"{file} is no file; give the file of a network.")
    return options


def _add_dynamic(commands) -> None:
    about = (
        "How stable both networks are over sequences, before (teacher) and after (student) fine-tuning. Protocol a: "
        "the frames that were fine-tuned on; b: every second frame, left out, and other clips of the same character; "
        "c: characters that were never fine-tuned on."
    )
    one = commands.add_parser("dynamic", help="a sequence frame by frame", description=about, allow_abbrev=False)
    one.add_argument("clips", nargs="*", metavar="CLIP", help="sequence files, or names of clips in the two folders")
    one.add_argument("--protocol", choices=("a", "b", "c"), required=True, help="what the student has seen")
    one.add_argument("--epochs", type=int, default=12, metavar="N", help="of fine-tuning (12)")
    one.add_argument("--replay", type=float, default=1.0, metavar="TIMES", help="protocols a and c; 0 is without (1)")
    one.add_argument("--student", type=Path, metavar="FILE", help="fine-tuned networks, instead of training some")
    one.add_argument("--ablate", action="store_true", help="also without each part of the losses")
    one.add_argument("--skeleton", type=Path, metavar="FILE", help="skeleton network to start from (SPRig's own)")
    one.add_argument("--skinning", type=Path, metavar="FILE", help="skinning network to start from (SPRig's own)")
    one.add_argument("--sequences", type=Path, metavar="FOLDER", help="clips as .npz (../shared/data/sequences)")
    one.add_argument("--multiclip", type=Path, metavar="FOLDER", help="more clips of them (../shared/data/multiclip)")
    one.add_argument("--bank", type=Path, metavar="FOLDER", help="the rig bank (../shared/data/rigbank)")
    one.add_argument("--static", type=int, metavar="N", help="its characters for static figures (12)")
    one.add_argument("--characters", type=int, default=20, metavar="N", help="to learn from, protocols a and c (20)")
    one.add_argument("--frames", type=int, default=48, metavar="N", help="at most so many of a clip (48)")
    one.add_argument(
        "--teaching-frames", type=int, metavar="N", help="of a clip that only teaches (5 in protocol a, 12 in c)"
    )
    one.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto)")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    one.add_argument("--dump", type=Path, metavar="FOLDER", help="write skeletons and weights of every clip there")
    one.add_argument("--plots", type=Path, metavar="FOLDER", help="write pictures of every clip there")
    one.add_argument("--json", action="store_true", help="the last line printed is the report as JSON")


def _checked_dynamic(options: argparse.Namespace) -> argparse.Namespace:
    for name, folder in (("sequences", "sequences"), ("multiclip", "multiclip"), ("bank", "rigbank")):
        given = getattr(options, name)
        if given is not None and not given.is_dir():
            raise SprigError(f"{given} is no folder; give another --{name}.")
        if given is None and (DATA / folder).is_dir():  # those beside the checkout, as far as they are there
            setattr(options, name, DATA / folder)
    if min(options.epochs, options.characters, options.frames) < 1 or min(options.seed, options.static or 0) < 0:
        raise SprigError("--epochs, --characters and --frames start at 1, --static and --seed at 0; change them.")
    if options.teaching_frames is not None and options.teaching_frames < 2:
        raise SprigError("--teaching-frames starts at 2: a single pose teaches nothing; change it.")
    if not 0 <= options.replay < float("inf"):
        raise SprigError(f"--replay is {options.replay}; give a number from 0 on.")
    if options.student and options.ablate:
        raise SprigError("--ablate trains students of its own; leave --student out.")
    for file in (options.skeleton, options.skinning, options.student):
        if file is not None and not file.is_file():
            raise SprigError(f"{file} is no file; give the file of a network.")
    return options


def _add_cross(commands) -> None:
    about = "Rigs made from one clip, posed on other clips of the same character; beside them the artist's rig."
    one = commands.add_parser("cross", help="a rig on other motions", description=about, allow_abbrev=False)
    one.add_argument("--multiclip", type=Path, metavar="FOLDER", help="CHARACTER__CLIP.npz (../shared/data/multiclip)")
    one.add_argument("--characters", type=int, metavar="N", help="so many of them, evenly spread (all)")
    one.add_argument("--skeleton", choices=SKELETON_SOURCES, default="auto", help="where the rig comes from (auto)")
    one.add_argument("--stretch", choices=("off", "auto"), default="off", help="of the rig (off)")
    one.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (auto)")
    one.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU; 0 leaves it to torch")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    one.add_argument("--output", type=Path, metavar="FOLDER", help="write cross.md and cross.json there")
    one.add_argument("--json", action="store_true", help="the last line printed is the summary as JSON")


def _checked_cross(options: argparse.Namespace) -> argparse.Namespace:
    options.multiclip = options.multiclip or DATA / "multiclip"
    if not options.multiclip.is_dir():
        raise SprigError(f"{options.multiclip} is no folder; give the folder of the clips with --multiclip.")
    if min(options.threads, options.seed) < 0 or (options.characters is not None and options.characters < 1):
        raise SprigError("--characters starts at 1, --threads and --seed at 0; change them.")
    return options


def run(options: argparse.Namespace, say=print, progress=no_progress) -> None:
    """Evaluate, say the tables, and write the files; raises SprigError."""
    if options.command == "dynamic":
        _run_dynamic(options, say, progress)
    elif options.command == "cross":
        _run_cross(options, say, progress)
    else:
        _run_static(options, say, progress)


def _run_dynamic(options, say, progress) -> None:
    for folder in (options.dump, options.plots):
        if folder:
            _make_folder(folder)
    load_torch()
    from . import dynamic  # torch, with the settings of load_torch

    report = dynamic.dynamic(options, progress)
    say(dynamic.to_markdown(report))
    if options.json:
        say(json.dumps(report, ensure_ascii=False, allow_nan=False))


def _run_cross(options, say, progress) -> None:
    if options.output:
        _make_folder(options.output)
    torch = load_torch()
    if options.threads:
        torch.set_num_threads(options.threads)
    from . import cross  # torch, with the settings of load_torch

    report = cross.cross(options, progress)
    _tell("cross", report, cross.to_markdown(report), cross.to_markdown(report), ("rows", "own"), options, say)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SprigError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error


def _run_static(options, say, progress) -> None:
    if options.output:
        _make_folder(options.output)
    load_torch()
    report = static(options, progress)
    _tell("static", report, to_markdown(report), to_markdown(report, with_rows=True), ("rows",), options, say)


def _tell(name: str, report: dict, tables: str, all_tables: str, details, options, say) -> None:
    """Write the whole report and all tables into the output folder, say the tables, and the report without details."""
    if options.output:
        whole = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for file, text in ((f"{name}.md", all_tables), (f"{name}.json", whole)):
            with whole_file(options.output / file) as pending:
                pending.write_text(text, encoding="utf-8")
    say(tables)
    if options.json:
        summary = {key: value for key, value in report.items() if key not in details}
        say(json.dumps(summary, ensure_ascii=False, allow_nan=False))


def main(arguments=None) -> int:
    """`python -m sprig.training.evaluate --help`; the exit status: 0 done, 2 bad input or usage."""
    told = ""

    def progress(share, text):
        nonlocal told
        line = f"{share:4.0%} {text}"
        if line != told:
            print(line, file=sys.stderr, flush=True)
        told = line

    try:
        run(parse(sys.argv[1:] if arguments is None else arguments), progress=progress)
    except SprigError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
