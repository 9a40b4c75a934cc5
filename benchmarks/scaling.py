"""How time and memory of a rig grow with vertices, frames and joints: a markdown table.

    python benchmarks/scaling.py [--largest]

Each row is a generated creature rigged in a process of its own. "Added" is the peak resident set minus that after the
imports (METRICS.md), "peak" is all of it; both include the sequence itself. `--largest` adds 100,000 × 200 × 60.
"""

import threads  # noqa: I001 - first, see there

import argparse
import json
import resource
import subprocess
import sys
import time

from clips import creature
from sprig.backend.pipeline import RigOptions, rig_sequence

BASE = (5_000, 100, 40)
ROWS = [BASE]
ROWS += [(vertices, *BASE[1:]) for vertices in (2_500, 10_000, 20_000, 40_000)]
ROWS += [(BASE[0], frames, BASE[2]) for frames in (50, 200, 400)]
ROWS += [(*BASE[:2], joints) for joints in (20, 60, 80)]
LARGEST = (100_000, 200, 60)


def peak_megabytes() -> float:
    """Largest resident set of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def rig_one(vertices: int, frames: int, joints: int) -> dict:
    """Rig one creature in this process: seconds, megabytes and RMSE."""
    rig_sequence(creature(480, 3, 12), RigOptions(skeleton="motion", joints=2))  # first calls load libraries
    imports = peak_megabytes()
    sequence = creature(vertices, frames, joints)
    start = time.perf_counter()
    rig = rig_sequence(sequence, RigOptions(skeleton="motion", joints=joints))
    seconds, peak = time.perf_counter() - start, peak_megabytes()
    return {"seconds": seconds, "added": peak - imports, "peak": peak, "rmse": rig.rmse}


def in_child(size: tuple[int, int, int]) -> dict:
    """`rig_one` in a new process, so that rows do not share their peak."""
    command = [sys.executable, __file__, "--one", *map(str, size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--largest", action="store_true", help="also 100,000 vertices × 200 frames × 60 joints")
    parser.add_argument("--one", type=int, nargs=3, metavar=("V", "F", "J"), help="one size, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(rig_one(*arguments.one)))
        return
    print(f"Rotation-only rig of a generated creature; {threads.THREADS} threads.\n")
    print("| vertices | frames | joints | seconds | added MB | peak MB | RMSE % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in [*ROWS, LARGEST] if arguments.largest else ROWS:
        row = in_child(size)
        print(
            f"| {size[0]:,} | {size[1]} | {size[2]} | {row['seconds']:.1f} | {row['added']:.0f} | {row['peak']:.0f} "
            f"| {row['rmse']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
