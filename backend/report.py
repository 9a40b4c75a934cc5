"""The report of one run as plain JSON: what went in, what was made, how well it replays, what it cost.

Frames are named by their *numbers* (the scene's, or 1, 2, … where a file has none), never by position; lengths are in
scene units, world axes, Z up; errors are in per cent of the anchor frame's bounding-box diagonal (METRICS.md).
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np

from .rig import Rig

SCHEMA = "sprig-report-1"  # raised whenever a key changes its name, unit or meaning
MEBIBYTE = 1024 * 1024


def version() -> str:
    """SPRig's version, from the one file that both the wheel and the Blender extension carry."""
    manifest = Path(__file__).resolve().parents[1] / "blender_manifest.toml"
    return tomllib.loads(manifest.read_text(encoding="utf-8"))["version"]


def rig_report(
    rig: Rig,
    *,
    source: str,
    clip_sources=(),
    object_names,
    influences: int,
    seconds: dict[str, float] | None = None,
    warnings=(),
    peak_memory: float | None = None,
) -> dict:
    """Describe a finished rig in JSON types.

    source: the input as the user named it; clip_sources: of several clips each one's; object_names: the meshes that the
    rig moves; influences: how many joints could move one vertex; seconds: wall time of stages around the rigging
    (reading, writing), beside the rig's own; warnings: sentences beside the rig's own; peak_memory: MiB beyond the
    imports (`peak_memory_mb`), None if unknown.
    """
    skeleton, numbers = rig.skeleton, rig.frame_numbers
    return {
        "schema": SCHEMA,
        "sprig_version": version(),
        "input": str(source),
        "object": ", ".join(object_names),
        "vertices": len(rig.rest_vertices),
        "faces": len(rig.faces),
        "frames": len(numbers),
        "fps": float(rig.fps),
        "anchor_frame": int(numbers[rig.anchor]),
        "skeleton_source": rig.provenance["skeleton_source"],
        "checkpoints": rig.provenance.get("checkpoints", {}),
        "device": rig.provenance["device"],
        "seed": int(rig.provenance["seed"]),
        "influences": int(influences),
        "joints": [
            {
                "name": name,
                "parent": skeleton.names[skeleton.parents[j]] if skeleton.parents[j] >= 0 else None,
                "head": (skeleton.joints[j] + rig.origin).tolist(),
                "tail": (skeleton.tails[j] + rig.origin).tolist(),
                "rotation_range_deg": float(np.degrees(rig.rotation_range[j])),
                "seen_in_motion": bool(rig.seen_in_motion[j]),
                # Motion alone has nothing to say about confidence: JSON has no NaN, so that is null.
                "confidence": float(rig.confidence[j]) if np.isfinite(rig.confidence[j]) else None,
            }
            for j, name in enumerate(skeleton.names)
        ],
        "rmse_percent": rig.rmse,
        "rmse_percent_per_frame": rig.rmse_per_frame.tolist(),
        "worst_frame": int(numbers[rig.worst_frame]),
        "seconds": {stage: float(spent) for stage, spent in {**(seconds or {}), **rig.seconds}.items()},
        "peak_memory_mb": peak_memory,
        "warnings": list(dict.fromkeys([*warnings, *rig.warnings])),
        **({"choice": rig.provenance["choice"]} if "choice" in rig.provenance else {}),
        **({"clips": _clips(rig, clip_sources)} if rig.clips else {}),
    }


def _clips(rig: Rig, sources) -> list[dict]:
    """Each clip's own figures. Frame numbers start again with every clip, so only here it shows whose a frame is."""
    found = []
    for clip, source in zip(rig.clips, sources, strict=True):
        numbers, errors = rig.frame_numbers[clip.rows], rig.rmse_per_frame[clip.rows]
        holds_anchor = clip.start <= rig.anchor < clip.stop
        found.append(
            {
                "input": str(source),
                "name": clip.name,
                "frames": len(numbers),
                "fps": float(clip.fps),
                "anchor_frame": int(rig.frame_numbers[rig.anchor]) if holds_anchor else None,
                "rmse_percent": float(np.sqrt(np.mean(errors**2))),
                "worst_frame": int(numbers[errors.argmax()]),
            }
        )
    return found


def write_report(path, report: dict) -> None:
    """Write a report as indented UTF-8 JSON; raises OSError."""
    Path(path).write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def peak_memory_mb() -> float | None:
    """Largest resident set of this process so far in MiB; None where the system does not say it simply.

    It never falls, so "minus that of the imports" (METRICS.md) is the difference to its value after the imports.
    """
    if sys.platform == "linux":  # not getrusage: there a process starts with the peak of the one that started it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024
    if sys.platform == "darwin":
        import resource  # not there on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
    return None
