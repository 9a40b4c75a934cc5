"""Time of our whole rotation-only rig against Dem Bones' free bones, in the same run: a markdown table.

    python benchmarks/speed.py [--runs 5] [--clips NAME ...]

Ours is everything from the weld to the rest-shape correction; Dem Bones' is its solver alone, on input that was welded
and bridged before the clock started, 30 iterations, as many bones as we have joints. The programs take turns, so that
a busy machine slows all of them; quote the ratios, not the seconds.
"""

import threads  # noqa: I001 - first, see there

import argparse
import statistics
import time

from clips import REFERENCE, creature, load_reference
from peer import DEFAULT, TUNED, dem_bones, weld_and_bridge
from sprig.backend.pipeline import RigOptions, rig_sequence

CREATURE_JOINTS = 40
CLIPS = ("m2m_horse_rear", "quat_mech_george_pickup", "creature")


def measure(name: str, runs: int) -> str:
    """One row: joints, median seconds of ours, Dem Bones default and tuned, and the ratios."""
    sequence = creature(joints=CREATURE_JOINTS) if name == "creature" else load_reference(name)
    joints = REFERENCE.get(name, CREATURE_JOINTS)
    given = weld_and_bridge(sequence)
    ours, default, tuned = [], [], []
    for _ in range(runs):
        start = time.perf_counter()
        rig = rig_sequence(sequence, RigOptions(skeleton="motion", joints=joints))
        ours.append(time.perf_counter() - start)
        default.append(dem_bones(given, joints, 0, DEFAULT).seconds)
        tuned.append(dem_bones(given, joints, 0, TUNED).seconds)
    own, stock, best = (statistics.median(times) for times in (ours, default, tuned))
    size = f"{sequence.vertex_count:,} × {sequence.frame_count} × {joints}"
    times = f"{own:.2f} | {stock:.2f} | {best:.2f} | {own / stock:.2f} | {own / best:.2f}"
    return f"| {name} | {size} | {rig.rmse:.4f} | {times} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each program, of which the median is printed")
    parser.add_argument("--clips", nargs="+", choices=(*CLIPS, *REFERENCE), default=CLIPS, metavar="NAME")
    arguments = parser.parse_args()
    print(f"Whole rig against Dem Bones' free bones; {threads.THREADS} threads, medians of {arguments.runs}.\n")
    print(
        "| clip | V × F × joints | our RMSE % | ours, s | Dem Bones, s | tuned, s | ours / Dem Bones | ours / tuned |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rig_sequence(creature(480, 3, 12), RigOptions(skeleton="motion", joints=2))  # first calls load libraries
    for name in arguments.clips:
        print(measure(name, arguments.runs), flush=True)


if __name__ == "__main__":
    main()
