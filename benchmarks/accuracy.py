"""RMSE on the 12 reference clips, Dem Bones' free bones against ours with and without a hierarchy: a markdown table.

    python benchmarks/accuracy.py [--clips NAME ...] [--out FOLDER]

Same number of bones everywhere (Dem Bones often returns fewer, in brackets), four influences, per cent of the anchor
frame's diagonal over all frames and original vertices. Dem Bones' rest shape is the first frame, as in its command
line, and in the columns "anchor" the frame that ours starts from. "Ours free" has rest-shape correction but no
hierarchy, like Dem Bones' result; "ours" is what `sprig rig --joints B` makes: joint rotations and one root
translation. With --out every rig is also written as FOLDER/CLIP.npz, for an independent score.
"""

import threads  # noqa: I001 - first, see there

import argparse
from pathlib import Path

import numpy as np

from clips import REFERENCE, load_reference
from peer import DEFAULT, TUNED, dem_bones, rmse_percent, weld_and_bridge
from sprig.backend import metrics
from sprig.backend.formats.npz import write_rig
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.sequence import MeshSequence
from sprig.backend.surface import prepare

FREE_ITERATIONS = 120  # until little changes, as for Dem Bones, whose iterations are eight solves each
COLUMNS = ("default", "tuned", "default, anchor", "tuned, anchor", "ours free", "ours")


def peer_errors(sequence: MeshSequence, bones: int, anchor: int) -> list[tuple[float, int]]:
    """RMSE % and the number of bones returned, for the four ways to run Dem Bones, as in COLUMNS."""
    given = weld_and_bridge(sequence)
    errors = []
    for rest_frame in (0, anchor):
        for trans_affine in (DEFAULT, TUNED):
            found = dem_bones(given, bones, rest_frame, trans_affine)
            errors.append((rmse_percent(sequence, given, found, anchor), found.weights.shape[1]))
    return errors


def free_error(sequence: MeshSequence, bones: int, anchor: int) -> tuple[float, int]:
    """RMSE % and number of our free bones with rest-shape correction: the solver without its hierarchy."""
    from sprig.backend.motion.solver import solve_motion  # after the pipeline has loaded torch with its settings

    prepared = prepare(sequence)
    graph = np.concatenate([prepared.edges, prepared.bridges])
    fit = solve_motion(prepared.trajectories, graph, anchor, joints=bones, hierarchy=False, iterations=FREE_ITERATIONS)
    rest, weights = fit.rest[prepared.vertex_map], fit.weights[prepared.vertex_map]
    size = metrics.diagonal(sequence.vertices[anchor])
    return metrics.rmse_percent(rest, weights, fit.motion, sequence.vertices, size), len(fit.parents)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", nargs="+", choices=REFERENCE, default=list(REFERENCE), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write our rigs there, as .npz")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"RMSE, % of the diagonal; Dem Bones in four columns, then ours; {threads.THREADS} threads.\n")
    print(f"| clip | B | {' | '.join(COLUMNS)} |")
    print("| --- | --- |" + " --- |" * len(COLUMNS))
    table = []
    for name in arguments.clips:
        sequence, bones = load_reference(name), REFERENCE[name]
        rig = rig_sequence(sequence, RigOptions(skeleton="motion", joints=bones))
        if arguments.out:
            write_rig(arguments.out / f"{name}.npz", rig)
        row = [
            *peer_errors(sequence, bones, rig.anchor),
            free_error(sequence, bones, rig.anchor),
            (rig.rmse, len(rig.skeleton)),
        ]
        table.append([error for error, _ in row])
        cells = [f"{error:.4f}" + ("" if count == bones else f" ({count})") for error, count in row]
        print(f"| {name} | {bones} | {' | '.join(cells)} |", flush=True)
    table = np.array(table)
    print(f"| **geometric mean** | | {' | '.join(f'{mean:.4f}' for mean in np.exp(np.log(table).mean(axis=0)))} |")
    print(f"| **median** | | {' | '.join(f'{median:.4f}' for median in np.median(table, axis=0))} |")
    wins = [int((table[:, column] < table[:, 1]).sum()) for column in range(len(COLUMNS))]
    print(f"| **better than tuned** | | {' | '.join(f'{won} of {len(table)}' for won in wins)} |")


if __name__ == "__main__":
    main()
