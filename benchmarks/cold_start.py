"""`sprig rig` from a cold start to files on the disk, stage by stage: a markdown table.

    python benchmarks/cold_start.py [--runs 5] [--sizes 2000x60 10000x100] [--out npz blend] [--skeleton auto]

Every run is a process of its own on a generated creature (clips.creature). "start-up" is what the stages of the report
leave of the wall time: Python, the imports, writing the report. Memory is the report's: beyond the imports.
"""

import threads  # noqa: I001 - first, see there

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clips import creature

STAGES = {
    "reading": ("read", "prepare", "anchor"),
    "networks": ("networks",),
    "decoding": ("learned",),
    "solving": ("motion", "rig"),
    "writing": ("write",),
}
JOINTS = 40


def measure(vertices: int, frames: int, suffix: str, skeleton: str, runs: int, folder: Path) -> str:
    """One row: medians over the runs."""
    source, out, report = folder / "clip.npz", folder / f"rig.{suffix}", folder / "rig.json"
    sequence = creature(vertices, frames, JOINTS)
    np.savez(source, vertices=sequence.vertices, faces=sequence.faces, fps=sequence.fps)
    rows = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sprig.sprig_blender.cli", "rig", source, "-o", out, "-q", "--skeleton", skeleton,
             "--report", report],
            check=True,
        )  # fmt: skip
        wall = time.perf_counter() - start
        told = json.loads(report.read_text())
        stages = [sum(told["seconds"].get(name, 0.0) for name in names) for names in STAGES.values()]
        rows.append([wall - sum(told["seconds"].values()), *stages, wall, told["peak_memory_mb"]])
    cells = [statistics.median(column) for column in zip(*rows, strict=True)]
    size = f"{vertices:,} × {frames} | .{suffix} | {skeleton} | {len(told['joints'])} | {told['rmse_percent']:.3f}"
    return f"| {size} | {' | '.join(f'{cell:.2f}' for cell in cells[:-1])} | {cells[-1]:.0f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="of which the median is printed")
    parser.add_argument("--sizes", nargs="+", default=["2000x60", "10000x100"], metavar="VERTICESxFRAMES")
    parser.add_argument("--out", nargs="+", choices=("npz", "blend", "glb", "fbx"), default=["npz", "blend"])
    parser.add_argument("--skeleton", nargs="+", choices=("auto", "learned", "motion"), default=["auto"])
    arguments = parser.parse_args()
    print(f"Seconds from the start of the process; {threads.THREADS} threads, medians of {arguments.runs}.\n")
    columns = ["V × F", "output", "skeleton", "joints", "RMSE %", "start-up", *STAGES, "all", "peak MB"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            vertices, frames = map(int, size.split("x"))
            for suffix in arguments.out:
                for skeleton in arguments.skeleton:
                    row = measure(vertices, frames, suffix, skeleton, arguments.runs, Path(folder))
                    print(row, flush=True)


if __name__ == "__main__":
    main()
