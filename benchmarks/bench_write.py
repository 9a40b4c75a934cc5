"""How long Blender takes for a rig: adding it to the scene, evaluating it, saving it, drawing it. A markdown table.

    python benchmarks/bench_write.py [--vertices 10000] [--frames 100] [--joints 40]

The generated creature of `clips.py` is rigged once; every row is the median of several runs. "Add to the scene" is the
whole of `write_armature` (mesh copy, bones, vertex groups, keys), and the two rows below it are its slowest steps.
"""

import threads  # noqa: I001 - first, see there

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bpy  # noqa: TID253 - this one is about Blender
from clips import creature
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.sprig_blender import write_armature as writer
from sprig.sprig_blender.export import FORMATS, export
from sprig.sprig_blender.preview_picture import render_preview
from sprig.sprig_blender.write_armature import evaluated_rmse, mesh_from_sequence, write_armature


@contextlib.contextmanager
def without_chatter():
    """Send what Blender's exporters print, from C as well, to nowhere."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def seconds(work, runs: int) -> float:
    """Median wall time of `work()`."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(vertices: int, frames: int, joints: int) -> dict[str, float]:
    """Seconds per step."""
    sequence = creature(vertices, frames, joints)
    rig = rig_sequence(sequence, RigOptions(skeleton="motion", joints=joints))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    sources = mesh_from_sequence(bpy.context, sequence)
    written = write_armature(bpy.context, rig, sources, sequence.object_id)
    placed, names = writer._place(rig), list(rig.skeleton.names)
    weights, mesh = writer.pruned(rig.weights), sources[0].copy()
    mesh.data = mesh.data.copy()
    rows = {
        "add to the scene": seconds(lambda: write_armature(bpy.context, rig, sources, sequence.object_id), 7),
        "— vertex groups": seconds(lambda: list(writer.write_vertex_groups(mesh, weights, [])), 7),
        "— keys": seconds(lambda: writer._write_action(written.armature.copy(), names, rig, placed), 7),
    }
    written = write_armature(bpy.context, rig, sources, sequence.object_id)
    rows["evaluate every frame"] = seconds(lambda: evaluated_rmse(bpy.context, written, sequence), 3)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            path = Path(folder) / f"rig{suffix}"
            rows[f"save {suffix}"] = seconds(lambda path=path: export(path, bpy.context, written, sources=sources), 3)
        picture = Path(folder) / "preview.png"
        rows["draw the preview"] = seconds(lambda: render_preview(picture, rig, sequence), 3)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vertices", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--joints", type=int, default=40)
    size = parser.parse_args()
    with without_chatter():
        rows = measure(size.vertices, size.frames, size.joints)
    print(
        f"{size.vertices:,} vertices × {size.frames} frames × {size.joints} joints, "
        f"Blender {bpy.app.version_string}, {threads.THREADS} threads.\n"
    )
    print("| step | seconds |\n| --- | --- |")
    for step, median in rows.items():
        print(f"| {step} | {median:.3f} |")
    sys.stdout.flush()
    os._exit(0)  # with torch loaded and a glTF file written, bpy's tear-down waits for ever


if __name__ == "__main__":
    main()
