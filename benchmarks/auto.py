"""`auto` against the motion alone and the networks alone, on real clips whose skeletons no network has seen: a table.

    python benchmarks/auto.py [--clips NAME ...] [--left-out] [--noise PERCENT ...]

For each clip of training/validation_clips.txt that has an artist's rig: what was taken, number of joints, RMSE of the
whole clip as a ratio to `motion` with as many joints, chamfer distance of the joints to the artist's (unit cube of the
anchor frame) and topology F1, of `auto`, of `motion` with as many joints, and of `learned`. With --left-out also the
RMSE of the frames that were not fitted over that of the fitted ones (every second frame each, METRICS), and with
--noise the RMSE of a rig from noisy vertices over the noise, against the noisy and against the clean vertices, and how
far joints move: of each the nearest joint of the clean rig, the mean in per cent of the diagonal.
"""

import threads  # noqa: F401, I001 - first, see there

import argparse

import numpy as np
from scipy.spatial.distance import cdist

from clips import SEQUENCES
from sprig.backend import metrics
from sprig.backend.formats import read_sequence_file
from sprig.backend.points import UnitCube
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.sequence import MeshSequence
from sprig.backend.surface import edges
from sprig.training.rigbank import validation_clips


def artists_skeleton(path, anchor: int, origin):
    """Joints (J,3) that carry weight, and their ancestors, as posed in the anchor frame, and parents (J,)."""
    with np.load(path, allow_pickle=False) as arrays:
        keep = metrics.weighted_joints(arrays["weights"], arrays["parents"])
        joints = arrays["bone_world"][anchor, keep, :3, 3].astype(np.float64) - origin
        return joints, metrics.parents_among(arrays["parents"], keep)


def scores(rig, truth) -> tuple[float, float]:
    """Chamfer distance in the unit cube and topology F1 of a rig's joints."""
    cube = UnitCube.of(rig.rest_vertices)
    joints, artists = cube.to_cube(rig.skeleton.joints), cube.to_cube(truth[0])
    return metrics.chamfer(joints, artists), metrics.topology_f1(joints, rig.skeleton.parents, artists, truth[1])


def with_vertices(sequence: MeshSequence, vertices, frames=None) -> MeshSequence:
    numbers = None if frames is None else sequence.frame_numbers[frames]
    return MeshSequence(vertices, sequence.faces, fps=sequence.fps, origin=sequence.origin, frame_numbers=numbers)


def left_out_ratio(sequence: MeshSequence, anchor: int) -> float:
    """RMSE of the frames left out over that of the fitted ones; only poses are solved in the former."""
    from sprig.backend.motion.poses import fit_poses

    fitted, left = metrics.left_out_split(sequence.frame_count, anchor)
    rig = rig_sequence(with_vertices(sequence, sequence.vertices[fitted], fitted), RigOptions())
    rest = rig.rest_vertices.astype(np.float64)
    motion = fit_poses(
        sequence.vertices[left],
        edges(sequence.faces),
        0,
        rig.weights,
        rig.skeleton.joints,
        rig.skeleton.parents,
        rest=rest,
    )
    size = metrics.diagonal(sequence.vertices[anchor])
    return metrics.rmse_percent(rest, rig.weights, motion, sequence.vertices[left], size) / rig.rmse


def noise_figures(sequence: MeshSequence, clean_rig, percent: float) -> tuple[float, float, float]:
    """RMSE over the noise against the noisy and the clean vertices, and how far joints move, % of the diagonal."""
    size = metrics.diagonal(sequence.vertices[clean_rig.anchor])
    noisy = with_vertices(sequence, metrics.with_noise(sequence.vertices, percent, size))
    anchor = int(sequence.frame_numbers[clean_rig.anchor])
    rig = rig_sequence(noisy, RigOptions(anchor=anchor))
    errors = [
        metrics.rmse_percent(rig.rest_vertices, rig.weights, rig.motion, target.vertices, size) / percent
        for target in (noisy, sequence)
    ]
    moved = cdist(rig.skeleton.joints, clean_rig.skeleton.joints).min(axis=1).mean()
    return *errors, 100 * moved / size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", nargs="+", default=validation_clips(), metavar="NAME")
    parser.add_argument("--left-out", action="store_true", help="also fit every second frame alone")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[], metavar="PERCENT", help="also with noisy vertices"
    )
    arguments = parser.parse_args()
    columns = [
        "RMSE %",
        "/ motion",
        *(f"{what} {who}" for what in ("CD", "F1") for who in ("auto", "motion", "learned")),
    ]
    columns += ["left out / fitted"] * arguments.left_out
    columns += [f"{percent} % noise: {what}" for percent in arguments.noise for what in ("noisy", "clean", "joints %")]
    print(f"| clip | taken | joints | {' | '.join(columns)} |\n| --- | --- | --- |" + " --- |" * len(columns))
    table = []
    for name in arguments.clips:
        path = SEQUENCES / f"{name}.npz"
        sequence = read_sequence_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            if "bone_world" not in arrays:
                continue
        rig = rig_sequence(sequence, RigOptions())
        truth = artists_skeleton(path, rig.anchor, sequence.origin)
        motion = rig_sequence(sequence, RigOptions(skeleton="motion", joints=len(rig.skeleton)))
        learned = rig_sequence(sequence, RigOptions(skeleton="learned"))
        row = [rig.rmse, rig.rmse / motion.rmse]
        row += np.array([scores(one, truth) for one in (rig, motion, learned)]).T.flatten().tolist()
        row += [left_out_ratio(sequence, rig.anchor)] * arguments.left_out
        for percent in arguments.noise:
            row += noise_figures(sequence, rig, percent)
        table.append(row)
        taken = next(one["source"] for one in rig.provenance["choice"]["candidates"] if one["chosen"])
        print(f"| {name} | {taken} | {len(rig.skeleton)} | {' | '.join(f'{x:.3f}' for x in row)} |", flush=True)
    for kind, mean in (("median", np.median), ("mean", np.mean)):
        print(f"| **{kind}** | | | {' | '.join(f'{x:.3f}' for x in mean(np.array(table), axis=0))} |")


if __name__ == "__main__":
    main()
