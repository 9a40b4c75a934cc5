"""What a rig made from one clip is worth on another clip of the same character: `sprig evaluate cross`.

For every ordered pair of a character's clips the rig is made from the first one alone, and on the second one only its
poses are solved: the cross-motion RMSE of METRICS. Beside it stand, with poses solved in the same way,

* the rig that the motion alone gives with SPRig's own settings, made from the first clip as well;
* the artist's rig: weights, joints and bind pose out of the file, which know the character and not the clip.

Choices that a reader would question:
* Poses are solved on the user's vertices, not on welded ones: rest shape and weights come from one clip, and what
  welds in another need not weld in this one. The error is over the same vertices.
* "Poses" are joint rotations and the roots' translations; of our own rigs also the location of joints that stretch.
* The artist's joints without weight, which move nothing, are left out.
* A character counts once, with the geometric mean over its pairs, and tables give medians and geometric means over
  characters. A ratio is the geometric mean over the characters' ratios on the pairs that both have a value for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import metrics
from ..backend.anchor import anchor_frame
from ..backend.device import resolve_device
from ..backend.errors import SprigError, no_progress
from ..backend.formats import npz
from ..backend.motion.poses import fit_poses
from ..backend.pipeline import RigOptions, rig_sequence
from ..backend.report import version
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from ..backend.surface import edges, surface_areas
from . import evaluate

SCHEMA = "sprig-cross-1"  # raised whenever a key changes its name, unit or meaning
MOTION, ARTIST = "motion", "artist"
SHIFT = 1e-6  # of the diagonal: a joint that moves less against its parent only rounds
COLUMNS = {"rmse_percent": "RMSE %", "to_motion": "to motion's", "to_artist": "to the artist's"}


@dataclass(frozen=True, eq=False)
class GivenRig:
    """A rig whose poses are to be solved, in the world: rest (V,3), weights (V,J), joints (J,3), parents (J,).

    The `located` joints may move against their parents.
    """

    rest: np.ndarray
    weights: np.ndarray
    joints: np.ndarray
    parents: np.ndarray
    located: tuple[int, ...] = ()

    @classmethod
    def of(cls, rig: Rig) -> GivenRig:
        """Without the poses that it has."""
        skeleton = rig.skeleton
        size = metrics.diagonal(rig.rest_vertices)
        heads = np.column_stack([skeleton.joints, np.ones(len(skeleton))])
        own, carried = (
            np.einsum("fjik,jk->fji", rig.motion[:, which, :3], heads)
            for which in (np.arange(len(skeleton)), np.maximum(skeleton.parents, 0))
        )
        moves = np.linalg.norm(own - carried, axis=2).max(axis=0) > SHIFT * size
        located = tuple(np.flatnonzero(moves & (skeleton.parents >= 0)).tolist())
        rest = rig.rest_vertices.astype(np.float64) + rig.origin
        return cls(rest, rig.weights, skeleton.joints + rig.origin, skeleton.parents, located)

    @classmethod
    def of_artist(cls, path: Path) -> GivenRig:
        """The rig that a clip of the data carries."""
        with np.load(path, allow_pickle=False) as arrays:
            keep = metrics.weighted_joints(arrays["weights"], arrays["parents"])
            parents = metrics.parents_among(arrays["parents"], keep)
            weights = arrays["weights"][:, keep].astype(np.float64)
            return cls(
                arrays["rest_vertices"].astype(np.float64),
                weights / weights.sum(axis=1, keepdims=True),
                arrays["joints_rest"][keep].astype(np.float64),
                parents,
            )


def posed_rmse(rig: GivenRig, sequence: MeshSequence, device: str = "cpu") -> float:
    """RMSE, per cent of the sequence's anchor frame's diagonal, of a rig that takes the best poses of its own."""
    rest = rig.rest - sequence.origin
    motion = fit_poses(
        sequence.vertices,
        edges(sequence.faces),
        0,
        rig.weights,
        rig.joints - sequence.origin,
        rig.parents,
        rest=rest,
        located=rig.located,
        device=device,
    )
    anchor = anchor_frame(surface_areas(sequence.vertices, sequence.faces))
    diagonal = metrics.diagonal(sequence.vertices[anchor])
    return metrics.rmse_percent(rest, rig.weights, motion, sequence.vertices, diagonal)


# ---- the clips


def characters_in(folder: Path, count: int | None) -> dict[str, list[Path]]:
    """The clips of each character with two or more, files called CHARACTER__CLIP.npz; of more characters than `count`
    those that spread evenly over their names. SprigError if there is none."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*__*.npz")):
        files.setdefault(path.stem.split("__")[0], []).append(path)
    names = [name for name, clips in files.items() if len(clips) > 1]
    if not names:
        raise SprigError(f"{folder} holds no two clips CHARACTER__CLIP.npz of one character; give another --multiclip.")
    if count is not None and count < len(names):
        names = [names[k] for k in np.linspace(0, len(names) - 1, count).round().astype(int)]
    return {name: files[name] for name in names}


# ---- the evaluation


def cross(options, progress=no_progress) -> dict:
    """All figures in JSON types; options as the command line has them. SprigError for what cannot be read."""
    device = resolve_device(options.device, double_precision=True)
    common = {"device": options.device, "seed": options.seed}
    tested = RigOptions(skeleton=options.skeleton, stretch=options.stretch, **common)
    name = options.skeleton + (" with stretch" if options.stretch == "auto" else "")
    makers = {MOTION: RigOptions(skeleton=MOTION, **common), name: tested}
    characters = characters_in(options.multiclip, options.characters)
    rows, own, done = [], [], 0
    clips = sum(len(paths) for paths in characters.values())
    for character, paths in characters.items():
        sequences = {path.stem.split("__", 1)[1]: npz.read(path) for path in paths}
        rigs: dict[str, dict] = {method: {} for method in makers}  # method -> clip -> rig, or why there is none
        for clip, sequence in sequences.items():
            for method, choices in makers.items():
                progress(done / clips, f"Rigging {character} {clip}")
                rigs[method][clip] = evaluate.attempt(lambda s=sequence, c=choices: {"rig": rig_sequence(s, c)})
                own.append({"character": character, "clip": clip, "method": method, **_own(rigs[method][clip])})
            done += 1
        artist = GivenRig.of_artist(paths[0])
        for target, sequence in sequences.items():
            progress(done / clips, f"Posing {character} on {target}")
            at_best = _measured(lambda s=sequence, rig=artist: posed_rmse(rig, s, device))
            for source in sequences:
                if source == target:
                    continue
                pair = {"character": character, "source": source, "target": target}
                for method in makers:
                    made = rigs[method][source]
                    found = made if "error" in made else _measured(lambda s=sequence, m=made: _posed(m, s, device))
                    rows.append({**pair, "method": method, **found})
                rows.append({**pair, "method": ARTIST, **at_best})
    progress(1.0, "Done")
    return {
        "schema": SCHEMA,
        "sprig_version": version(),
        "characters": len(characters),
        "clips": clips,
        "pairs": sum(len(paths) * (len(paths) - 1) for paths in characters.values()),
        "skeleton": options.skeleton,
        "stretch": options.stretch,
        "seed": options.seed,
        "device": device,
        "methods": summaries(rows),
        "own_clips": own_summaries(own),
        "rows": rows,
        "own": own,
    }


def _own(made: dict) -> dict:
    """What a rig is on the clip that it was made from."""
    if "error" in made:
        return made
    rig = made["rig"]
    return {"rmse_percent": rig.rmse, "joints": len(rig.skeleton), "seconds": float(sum(rig.seconds.values()))}


def _posed(made: dict, sequence: MeshSequence, device: str) -> float:
    return posed_rmse(GivenRig.of(made["rig"]), sequence, device)


def _measured(measure: Callable[[], float]) -> dict:
    """{"rmse_percent": …}, or {"error": …}; a value that is not finite is an error as well."""
    found = evaluate.attempt(lambda: {"rmse_percent": float(measure())})
    if "error" not in found and not math.isfinite(found["rmse_percent"]):
        return {"error": "the RMSE is not finite"}
    return found


def geometric_mean(values) -> float | None:
    """None of none. Errors of nothing count as 1e-9 %, less than float32 can tell."""
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-9))))) if len(values) else None


def summaries(rows: list[dict]) -> dict[str, dict]:
    """For each method over the characters: median and geometric mean of the RMSE, ratios to the motion's and the
    artist's, and how many pairs have no value."""
    errors: dict[str, dict[str, dict]] = {}  # method -> character -> pair -> RMSE
    for row in rows:
        pairs = errors.setdefault(row["method"], {}).setdefault(row["character"], {})
        if "error" not in row:
            pairs[row["source"], row["target"]] = row["rmse_percent"]
    found = {}
    for method, characters in errors.items():
        values = [geometric_mean(list(pairs.values())) for pairs in characters.values() if pairs]
        own = [row for row in rows if row["method"] == method]
        found[method] = {
            "rmse_percent": geometric_mean(values),
            "median_rmse_percent": float(np.median(values)) if values else None,
            "to_motion": _ratio(characters, errors[MOTION]),
            "to_artist": _ratio(characters, errors[ARTIST]),
            "pairs": len(own),
            "failed_pairs": sum("error" in row for row in own),
        }
    return found


def _ratio(characters: dict[str, dict], others: dict[str, dict]) -> float | None:
    """Geometric mean over characters of one method's RMSE by another's, on the pairs that both have."""
    ratios = []
    for name, pairs in characters.items():
        both = [pair for pair in pairs if pair in others[name]]
        if both:
            ours, theirs = (geometric_mean([which[pair] for pair in both]) for which in (pairs, others[name]))
            ratios.append(ours / theirs)
    return geometric_mean(ratios)


def own_summaries(own: list[dict]) -> dict[str, dict]:
    """For each method over the clips that rigs were made from: RMSE there, number of joints, seconds."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in own):
        good = [row for row in own if row["method"] == method and "error" not in row]
        found[method] = {
            "rmse_percent": geometric_mean([row["rmse_percent"] for row in good]),
            "joints": float(np.median([row["joints"] for row in good])) if good else None,
            "seconds": float(np.median([row["seconds"] for row in good])) if good else None,
            "failed": sum(row["method"] == method and "error" in row for row in own),
        }
    return found


# ---- Markdown


def to_markdown(report: dict) -> str:
    """The tables as Markdown: all characters, the clips that rigs were made from, each character."""
    lines = [
        "# Cross-motion evaluation",
        "",
        f"{report['characters']} characters, {report['clips']} clips, {report['pairs']} ordered pairs; seed "
        f"{report['seed']}, {report['device']}; SPRig {report['sprig_version']}. A rig is made from one clip, and on "
        "another only its poses are solved. Geometric means and medians over characters.",
        "",
        *evaluate.table_head(["rig", *COLUMNS.values(), "median RMSE %", "pairs without a value"]),
    ]
    for method, figures in report["methods"].items():
        values = [_told(figures[key], ".4f" if key == "rmse_percent" else ".3g") for key in COLUMNS]
        median = _told(figures["median_rmse_percent"], ".4f")
        failed = f"{figures['failed_pairs']} of {figures['pairs']}"
        lines.append(evaluate.table_line([method, *values, median, failed]))
    lines += ["", "## On the clip that the rig was made from", ""]
    lines += evaluate.table_head(["rig", "RMSE %", "median joints", "median seconds", "clips without a rig"])
    for method, figures in report["own_clips"].items():
        values = [_told(figures[key], form) for key, form in (("rmse_percent", ".4f"), ("joints", ".0f"))]
        lines.append(evaluate.table_line([method, *values, _told(figures["seconds"], ".1f"), str(figures["failed"])]))
    lines += ["", "## Every character", "", *_character_table(report["rows"])]
    failures = [f"- {_place(row)}, {row['method']}: {row['error']}" for row in report["rows"] if "error" in row]
    return "\n".join([*lines, *(["", "Failures:", "", *failures] if failures else [])]) + "\n"


def _character_table(rows: list[dict]) -> list[str]:
    """RMSE of every method, the geometric mean over a character's pairs, and its worst pair for the last of ours."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ours = next(method for method in reversed(methods) if method != ARTIST)
    lines = evaluate.table_head(["character", *methods, f"worst pair of {ours}"])
    for character, group in itertools.groupby(rows, key=lambda row: row["character"]):
        good = [row for row in group if "error" not in row]
        means = [geometric_mean([row["rmse_percent"] for row in good if row["method"] == m]) for m in methods]
        worst = max((row for row in good if row["method"] == ours), key=lambda row: row["rmse_percent"], default=None)
        told = f"{worst['source']} on {worst['target']}: {worst['rmse_percent']:.3f}" if worst else "–"
        lines.append(evaluate.table_line([character, *(_told(mean, ".4f") for mean in means), told]))
    return lines


def _place(row: dict) -> str:
    return f"{row['character']}, {row['source']} on {row['target']}"


def _told(value, form: str) -> str:
    return "–" if value is None else format(value, form)
