"""Fitting a skeleton that the user brings: its bones stay as they are, weights and poses come from the motion.

    the skeleton in its rest pose, with the mesh as it is then -> start weights -> weights and poses in turn -> rig

Choices that a reader would question:
* Bones that neither carry weights nor lead to one that does (targets of inverse kinematics, handles) are not solved:
  they follow their parent, or stay where they are.
* Start weights are the user's where there are some, else the skinning network's for this skeleton; where that is
  missing, heat's.
* Whether skeleton, rest shape and sequence belong together is told by the lengths of the mesh's edges, which bending
  hardly changes, whatever pose the rest shape is in and wherever it stands.
"""

from __future__ import annotations

import numpy as np

from .anchor import anchor_frame
from .device import resolve_device
from .errors import SprigError, no_progress
from .finish import Clock, Fit, finished_rig
from .given_skeleton import GivenSkeleton
from .metrics import diagonal
from .pipeline import RigOptions
from .rig import Rig, Skeleton
from .sequence import MeshSequence
from .surface import Prepared, prepare

FITS = ("both", "weights", "motion")
ROUNDS = 12  # after as many to begin with: given joints settle more slowly than those that the motion itself has found
OUTSIDE = 0.25  # of the diagonal: a joint this far outside the box of the rest shape is beside the mesh
OTHER_SIZE = 1.5  # the ratio of edge lengths from which on a rest shape has another size than the sequence
OTHER_SHAPE = 0.4  # median change of an edge's length, as a logarithm, that no pose of the same mesh explains


def rig_with(
    sequence: MeshSequence,
    given: GivenSkeleton,
    options: RigOptions,
    progress=no_progress,
    *,
    fit: str = "both",
) -> Rig:
    """Rig a sequence with a given skeleton, whose bones come back as they are (parents before their children).

    fit: "both"; "weights", for the poses that the skeleton brings; or "motion", for its weights. Of the options those
    that make skeletons mean nothing here. `progress` and errors as in `rig_sequence`; SprigError also where skeleton
    and sequence do not belong together.
    """
    clock = Clock()
    device = resolve_device(options.device, double_precision=True)
    if fit not in FITS:
        raise SprigError(f"There is no fit {fit!r}; choose {', '.join(FITS[:-1])} or {FITS[-1]}.")
    given = given.parents_first()
    with clock.stage("prepare"):
        progress(0.0, "Preparing the mesh")
        prepared = prepare(sequence, may_be_still=fit == "motion")
        anchor_number = given.rest_frame if options.anchor is None else options.anchor
        anchor = anchor_frame(prepared.areas) if anchor_number is None else sequence.position_of(anchor_number)
        rest = _rest_shape(sequence, prepared, given)
        _check_belonging(prepared, rest, given.joints[given.deform] - sequence.origin)
    with clock.stage("motion"):
        solved = _solve(
            sequence, prepared, anchor, rest, given, options, fit, device, lambda s, t: progress(0.05 + 0.9 * s, t)
        )
    with clock.stage("rig"):
        progress(0.95, "Measuring the rig")
        frames = given.frames
        if frames is not None:
            frames = np.array(frames, dtype=np.float64)
            frames[:, :3, 3] -= sequence.origin
        tails = given.tails - sequence.origin
        rig = finished_rig(
            sequence,
            prepared,
            anchor,
            Skeleton(solved.joints, tails, solved.parents, given.names, frames),
            solved,
            {"seed": options.seed, "device": device},
            clock,
            advice="the skeleton has too few bones for this motion, or its rest pose is not that of the rest shape",
        )
    progress(1.0, "Done")
    return rig


def _rest_shape(sequence: MeshSequence, prepared: Prepared, given: GivenSkeleton) -> np.ndarray:
    """The welded mesh (N,3) in the skeleton's rest pose, relative to the sequence's origin."""
    if given.rest_frame is not None:
        return prepared.trajectories[sequence.position_of(given.rest_frame)].astype(np.float64)
    if given.rest_vertices is None:
        raise SprigError(
            "The mesh is not bound to the skeleton, so its shape in the rest pose is not known; name the rest frame, "
            "in which it has that pose."
        )
    if len(given.rest_vertices) != sequence.vertex_count:
        raise SprigError(
            f"The skeleton's rest shape has {len(given.rest_vertices)} vertices, but the sequence has "
            f"{sequence.vertex_count}; give the skeleton of this mesh, or name a rest frame."
        )
    return _welded(given.rest_vertices - sequence.origin, prepared)


def _welded(values, prepared: Prepared) -> np.ndarray:
    """Mean (N,K) over the vertices that weld, of values (V,K)."""
    sums = np.zeros((len(prepared.counts), values.shape[1]))
    np.add.at(sums, prepared.vertex_map, values)
    return sums / prepared.counts[:, None]


def _check_belonging(prepared: Prepared, rest, joints):
    """SprigError where the rest shape is of another mesh or size, or the joints lie beside it."""
    start, end = prepared.edges.T
    tiny = 1e-9 * max(diagonal(rest), 1e-30)

    def lengths(shape):
        return np.log(np.linalg.norm(shape[start].astype(np.float64) - shape[end], axis=1) + tiny)

    own = lengths(rest)
    likest, size = np.inf, 0.0  # of the frame that is most like the rest shape, whatever its size
    for frame in prepared.trajectories:
        change = lengths(frame) - own
        middle = float(np.median(change))
        unlike = float(np.median(np.abs(change - middle)))
        if unlike < likest:
            likest, size = unlike, middle
    if likest > OTHER_SHAPE:
        raise SprigError(
            "The skeleton's rest shape is unlike the mesh in every frame; its vertices are another mesh's or in "
            "another order, so give the skeleton of this mesh."
        )
    ratio = float(np.exp(size))
    if not 1 / OTHER_SIZE < ratio < OTHER_SIZE:
        raise SprigError(
            f"The mesh is {ratio:.3g} times as large as in the skeleton's rest shape; apply the scale or convert the "
            "unit."
        )
    low, high = rest.min(axis=0), rest.max(axis=0)
    outside = np.linalg.norm(np.maximum(np.maximum(low - joints, joints - high), 0), axis=1)
    if np.median(outside) > OUTSIDE * diagonal(rest):
        raise SprigError(
            "Most joints lie far outside the mesh's rest shape; move the skeleton to the mesh, or name the frame in "
            "which the mesh is where the skeleton is."
        )


def _solve(sequence, prepared, anchor: int, rest, given: GivenSkeleton, options: RigOptions, fit, device, progress):
    """The Fit of the whole skeleton: bones that nothing hangs on follow their parents."""
    joints = given.joints - sequence.origin
    bones = np.flatnonzero(_carrying(given))  # the others are not solved
    number = np.full(len(joints) + 1, -1)
    number[bones] = np.arange(len(bones))
    parents = number[given.parents[bones]]
    deform, locked = given.deform[bones], given.locked[bones]
    located = [b for b in range(len(bones)) if given.located[bones[b]] and parents[b] >= 0]
    weights = None
    if given.weights is not None:
        if len(given.weights) != sequence.vertex_count:
            raise SprigError(
                f"The skeleton's weights are of {len(given.weights)} vertices, but the sequence has "
                f"{sequence.vertex_count}; give the skeleton of this mesh."
            )
        weights = _welded(np.where(given.deform, given.weights, 0)[:, bones], prepared)
    edges = np.concatenate([prepared.edges, prepared.bridges])
    provenance = {"skeleton_source": "given", "fit": fit}
    shared = {"rest": rest, "device": device}
    solving = {
        "counts": prepared.counts,
        "influences": options.influences,
        "rest_correction": options.rest_correction,
        "held": locked | ~deform,
    }
    if fit == "motion":
        weights = _whole_rows(weights)
        progress(0.0, "Reading the motion")
        from .motion.poses import fit_poses

        motion = fit_poses(
            prepared.trajectories, edges, anchor, weights, joints[bones], parents,
            located=located, progress=progress, **shared,
        )  # fmt: skip
    else:
        if (locked | ~deform).all():
            raise SprigError("The weights of all bones are locked; unlock some vertex groups, or fit the motion only.")
        progress(0.0, "Finding start weights")
        start, checkpoints = _start_weights(prepared, rest, joints[bones], parents, deform, locked, weights, options)
        provenance["checkpoints"] = checkpoints

        def after_start(share, text):
            progress(0.1 + 0.9 * share, text)

        from .motion.given import fit_given, fit_weights

        if fit == "both":
            found = fit_given(
                prepared.trajectories, edges, anchor, joints[bones], parents, start,
                located=located, rounds=ROUNDS, several_starts=True, progress=after_start, **shared, **solving,
            )  # fmt: skip
            weights, rest, motion = found.weights, found.rest, found.motion
        else:
            motion = _known_motion(sequence, given)[:, bones]
            weights, rest = fit_weights(
                prepared.trajectories, edges, anchor, motion, start, progress=after_start, **shared, **solving
            )
    whole = np.zeros((len(weights), len(joints)))
    whole[:, bones] = weights
    everything = _with_followers(motion, bones, given.parents) if fit != "weights" else _known_motion(sequence, given)
    return Fit(joints, given.parents, whole, rest, everything, provenance, ())


def _carrying(given: GivenSkeleton) -> np.ndarray:
    """Bones (J,) that may carry weights, and all their ancestors."""
    carrying = given.deform.copy()
    for j in range(len(carrying) - 1, 0, -1):
        if carrying[j] and given.parents[j] >= 0:
            carrying[given.parents[j]] = True
    return carrying


def _with_followers(motion, bones, parents) -> np.ndarray:
    """Motion (F,J,4,4) of all bones from that (F,K,4,4) of `bones`: the others follow their parents or stay."""
    whole = np.tile(np.eye(4), (len(motion), len(parents), 1, 1))
    solved = np.full(len(parents), -1)
    solved[bones] = np.arange(len(bones))
    for j, parent in enumerate(parents):
        if solved[j] >= 0:
            whole[:, j] = motion[:, solved[j]]
        elif parent >= 0:
            whole[:, j] = whole[:, parent]
    return whole


def _known_motion(sequence: MeshSequence, given: GivenSkeleton) -> np.ndarray:
    """The skeleton's own motion (F,J,4,4) relative to the sequence's origin."""
    if given.motion is None:
        raise SprigError("The skeleton brings no poses to find weights for; fit weights and motion both.")
    if len(given.motion) != sequence.frame_count:
        raise SprigError(
            f"The skeleton has poses for {len(given.motion)} frames, but the sequence has {sequence.frame_count}; give "
            "the same frames of both."
        )
    motion = np.array(given.motion, dtype=np.float64)
    motion[..., :3, 3] += motion[..., :3, :3] @ sequence.origin - sequence.origin
    return motion


def _whole_rows(weights) -> np.ndarray:
    """The user's weights with rows that sum to 1; SprigError where there are none."""
    if weights is None:
        raise SprigError("The skeleton brings no weights to find poses for; fit weights and motion both.")
    sums = weights.sum(axis=1, keepdims=True)
    if (sums <= 0).any():
        raise SprigError(
            f"{np.count_nonzero(sums <= 0)} vertices have no weight on any bone that deforms; assign them, or fit "
            "weights and motion both."
        )
    return weights / sums


def _start_weights(prepared, rest, joints, parents, deform, locked, weights, options: RigOptions):
    """Start weights (N,K), rows on the simplex, and the checkpoints they come from: the user's where there are some."""
    free = deform & ~locked
    kept = np.zeros((len(rest), len(joints)))
    if weights is not None:
        kept[:, locked] = weights[:, locked]
        kept /= np.maximum(kept.sum(axis=1, keepdims=True), 1)
    start = np.where(free, 0 if weights is None else weights, 0) * np.ones((len(rest), 1))
    empty = start.sum(axis=1) <= 0
    checkpoints = {}
    if empty.any():
        own = np.flatnonzero(free)
        guess, checkpoints = _guess_weights(prepared, rest, joints[own], _parents_among(own, parents), options)
        start[np.ix_(empty, own)] = guess[empty]
    return kept + (1 - kept.sum(axis=1, keepdims=True)) * start / start.sum(axis=1, keepdims=True), checkpoints


def _guess_weights(prepared, rest, joints, parents, options: RigOptions):
    """Weights (N,K) of a shape for some joints by the skinning network, or by heat where that is missing."""
    if len(joints) == 1:
        return np.ones((len(rest), 1)), {}
    from .learned import load_networks, shipped_file, weigh

    if options.checkpoint_skinning is None and not shipped_file("skinning").is_file():
        from .skinning.heat import heat_weights

        return heat_weights(rest, prepared.faces, joints, parents).astype(np.float64), {}
    networks = load_networks(None, options.checkpoint_skinning, resolve_device(options.device), kinds=("skinning",))
    found = weigh(rest, prepared.faces, joints, parents, networks, influences=options.influences, seed=options.seed)
    return found.astype(np.float64), networks.checkpoints


def _parents_among(chosen, parents) -> np.ndarray:
    """For each chosen bone its nearest ancestor among them, -1 where there is none."""
    number = {int(bone): k for k, bone in enumerate(chosen)}
    found = []
    for bone in chosen:
        above = parents[bone]
        while above >= 0 and int(above) not in number:
            above = parents[above]
        found.append(number.get(int(above), -1))
    return np.array(found)
