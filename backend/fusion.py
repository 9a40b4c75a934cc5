"""`auto`: the networks propose, the motion decides.

Candidates, from the one with most of the networks' anatomy to the one with least:
    network   their skeleton and weights; the motion solves weights and poses and corrects joints (motion/correct.py)
    parts     what moves together is at first what their weights say; the motion finds the joints, drawn to theirs
    motion    what moves together is found in the motion; its joints are drawn to theirs as well
The first that explains the motion within PREFERENCE of the best is taken: an artist would rather have the anatomy, but
not a rig that replays his animation worse. Errors of skeletons of different size are compared at equal complexity: one
with twice the joints has to have half of the error. Where nearly all decodings of the networks agree, their skeleton is
an artist's (training/LOG.md), and it may cost CERTAIN_PREFERENCE as long as it meets the tolerance, or leaves little
but the noise of the vertices; bones are added until it does.

Where several proposals are asked for, they are drawn from the network, or made on frames that look different and
carried to the anchor frame; the one whose skeleton explains some frames best goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .errors import no_progress
from .kinematics import carry_joints
from .learned import NetworkRig, Networks, rig_shape
from .motion.alternate import (
    ROUNDS,
    MotionFit,
    Setting,
    alternate,
    finish,
    go_on,
    in_scene_units,
    in_solver_units,
)
from .motion.correct import correct, keep_still_weights
from .motion.given import start_state
from .motion.hierarchy import bone_matrices
from .motion.noise import noise_level, steady_shape
from .motion.problem import at_frames, diverse_frames, make_problem, moments, rmse
from .motion.solver import NEAR_NOISE, TOLERANCE_MARGIN, Hints, make_setting, solve_motion, tolerance_warnings
from .skeletons import rotation_ranges
from .surface import Prepared, winding_numbers

PREFERENCE = 1.1  # times the best cost: a candidate with more of the networks' anatomy may cost this much
HOPELESS = 4.0  # times the best cost: a network's skeleton with more is not corrected, which would not make it the best
CERTAIN = 0.9  # mean confidence from which the networks' skeleton may cost as follows where it meets the tolerance
CERTAIN_PREFERENCE = 2.1  # times the best cost; with more, other clips of the character suffer (training/LOG.md)
MANY_ROUNDS = 3 * ROUNDS  # for the network's skeleton where it is certain, and where no tolerance ends the fit
SURE = 0.7  # confidence from which the network's joints draw the motion's to them
SAME_JOINT = 0.03  # diagonals: a joint this near to one of the network's is as sure as that one
NOISY = 2e-4  # diagonals: vertices that move at random by more are steadied before the networks see them
INVISIBLE = 1e-4  # diagonals: smaller errors count as equal
INSIDE = 0.5  # winding number
STILL_COST = 1.02  # times the error: what the network's weights in still limbs may cost
DRAWN = 0.5  # temperature of proposals that are drawn
FEW_FRAMES, FEW_ROUNDS = 12, 4  # in which several proposals are compared
REASONS = {
    "certain": "the networks are sure of their skeleton, and it meets the tolerance, not far from the best",
    "network": "the network's own skeleton explains the motion nearly as well as any",
    "parts": "parts that the network sees, joined where the motion bends, explain the motion nearly as well as any",
    "motion": "parts from the motion explain it clearly better than those of the network",
}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A skeleton fitted to the motion; confidence (J,), NaN for joints that no network knows."""

    source: str
    fit: MotionFit
    confidence: np.ndarray

    @property
    def cost(self) -> float:
        """Error at equal complexity, as a fraction of the diagonal."""
        return max(self.fit.rmse, INVISIBLE) * len(self.fit.parents)


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate that is taken, why, in words for the report, all that were tried, and what the user should know."""

    taken: Candidate
    reason: str
    tried: list[Candidate]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Proposal:
    """What the networks propose, in the anchor frame; `tried` says for the report what there was to choose from."""

    rig: NetworkRig
    tried: list[dict]


def propose(
    prepared: Prepared,
    anchor: int,
    networks: Networks,
    *,
    joints: int | None = None,
    candidates: int = 1,
    temperature: float = 0.0,
    influences: int = 4,
    seed: int = 0,
    progress=no_progress,
) -> Proposal:
    """The networks' rig of the anchor frame, or of several `candidates` the one that explains some frames best.

    The first is the networks' own choice, with fine-tuned networks the second is their teacher's. Every second of the
    others is drawn at `temperature` (DRAWN where that is 0), the rest are the networks' choices in frames that differ
    most, carried to the anchor frame.
    """
    edges = np.concatenate([prepared.edges, prepared.bridges])
    problem, centre, scale = make_problem(prepared.trajectories, edges, anchor)
    frames = diverse_frames(problem, anchor, max(FEW_FRAMES, candidates))[0]
    shape = prepared.trajectories
    noise = noise_level(problem)
    if noise > NOISY:  # they look at normals
        shape = np.array(shape)
        shape[anchor] = steady_shape(prepared.trajectories, edges, anchor, noise * scale)
    if joints is not None and joints > networks.skeleton.most_joints:
        joints = None  # then the motion adds what the network cannot hold
    rigs, tried = [], []
    looks = [(networks, *look) for look in _looks(frames.tolist(), candidates, temperature)]
    if networks.teacher and candidates > 1:
        looks = [looks[0], (networks.teacher, anchor, False), *looks[1:-1]]
    for k, (who, frame, drawn) in enumerate(looks):
        rig = rig_shape(
            shape[frame].astype(np.float64),
            prepared.faces,
            who,
            joints=joints,
            temperature=(temperature or DRAWN) if drawn else 0.0,
            influences=influences,
            seed=seed + k,
            progress=lambda share, text, k=k: progress((k + share) / candidates, text),
        )
        if frame != anchor:
            places = carry_joints(rig.joints, rig.parents, rig.weights, shape[frame], shape[anchor][None])[0]
            rig = replace(rig, joints=places)
        rigs.append(rig)
        fine_tuned = who.teacher is not None
        tried.append({"frame": frame, "drawn": drawn, "fine_tuned": fine_tuned, "joints": len(rig.parents)})
    if candidates == 1:
        return Proposal(rigs[0], tried)
    setting = make_setting(at_frames(problem, frames[:FEW_FRAMES]), 0, prepared.counts, influences)
    for rig, row in zip(rigs, tried, strict=True):
        state = _network_state(setting, rig, centre, scale)
        state = alternate(setting, state, lambda _share: None, rounds=FEW_ROUNDS)
        error = setting.error(bone_matrices(state.pose), state.W, state.u)
        sure = float(np.nanmean(rig.confidence)) if np.isfinite(rig.confidence).any() else 0.0
        row.update(rmse_percent=100 * error, confidence=sure)
    cost = [row["rmse_percent"] * row["joints"] * (2 - row["confidence"]) for row in tried]
    best = int(np.argmin(cost))
    for k, row in enumerate(tried):
        row["chosen"] = k == best
    return Proposal(rigs[best], tried)


def _looks(frames: list[int], candidates: int, temperature: float) -> list[tuple[int, bool]]:
    """Frame of each proposal, and whether it is drawn; `frames`: the anchor, then those that differ most."""
    anchor, *others = frames
    if candidates == 1:
        return [(anchor, temperature > 0)]
    looks = [(anchor, False)]
    while len(looks) < candidates:
        looks.append((others.pop(0), False) if len(looks) % 2 == 0 and others else (anchor, True))
    return looks


def fuse(
    prepared: Prepared,
    anchor: int,
    proposal: NetworkRig,
    *,
    joints: int | None,
    tolerance: float,
    influences: int = 4,
    rest_correction: bool = True,
    stretch: bool = False,
    device: str = "cpu",
    progress=no_progress,
) -> Choice:
    """Which candidate is taken, and all that were tried, for what the networks propose on the anchor frame.

    Without a number of `joints` it is the networks', or as many more as the tolerance (per cent of the diagonal) needs.
    """
    edges = np.concatenate([prepared.edges, prepared.bridges])
    common = {
        "counts": prepared.counts, "influences": influences, "rest_correction": rest_correction, "stretch": stretch,
        "device": device,
    }  # fmt: skip

    def part(start, end):
        return lambda share, text: progress(start + (end - start) * share, text)

    near = proposal.joints[proposal.confidence >= SURE]
    labels = proposal.weights.argmax(axis=1)
    parts = solve_motion(
        prepared.trajectories, edges, anchor, joints=joints, tolerance=tolerance, least=len(proposal.parents),
        hints=Hints(near, labels), progress=part(0.0, 0.3), **common,
    )  # fmt: skip
    motion = solve_motion(
        prepared.trajectories, edges, anchor, joints=len(parts.parents), hints=Hints(near),
        progress=part(0.3, 0.6), **common,
    )  # fmt: skip
    size = float(np.linalg.norm(np.ptp(prepared.trajectories[anchor], axis=0)))
    candidates = [_as_sure(name, fit, proposal, size) for name, fit in (("parts", parts), ("motion", motion))]
    hopeless = HOPELESS * min(candidate.cost for candidate in candidates)
    problem, centre, scale = make_problem(prepared.trajectories, edges, anchor, device)
    setting = make_setting(problem, anchor, prepared.counts, influences, rest_correction, stretch)
    if joints is None:
        noise = noise_level(problem)
        enough = max(TOLERANCE_MARGIN * tolerance / 100, NEAR_NOISE * noise)
        certain = proposal.agreed and float(np.mean(proposal.confidence)) >= CERTAIN
    else:  # there is no tolerance to meet
        noise, enough, certain = 0.0, np.inf, False
    network = _network_candidate(
        setting,
        centre,
        scale,
        prepared.faces,
        proposal,
        hopeless,
        part(0.6, 0.9),
        same_count=joints is not None,
        enough=enough if certain else None,
    )
    choice = choose([network, *candidates], enough, certain)
    if choice.taken is not network and (joints is not None or choice.taken.fit.rmse > enough):
        choice = _gone_on(choice, setting, centre, scale, part(0.9, 1.0))
    if joints is None:
        warnings = tolerance_warnings(choice.taken.fit.rmse, tolerance / 100, noise)
    else:
        warnings = () if choice.taken is network else parts.warnings
    return replace(choice, warnings=warnings)


def _gone_on(choice: Choice, setting: Setting, centre, scale: float, progress) -> Choice:
    """The choice after more rounds for the one that is taken, whose error is to be as small as it gets."""
    fit = go_on(
        setting,
        in_solver_units(choice.taken.fit, centre, scale),
        lambda share: progress(share, "Fitting all frames"),
        MANY_ROUNDS,
    )
    taken = replace(choice.taken, fit=in_scene_units(fit, centre, scale))
    return replace(choice, taken=taken, tried=[taken if one is choice.taken else one for one in choice.tried])


def choose(candidates: list[Candidate], enough: float = np.inf, certain: bool = False) -> Choice:
    """The first candidate whose cost is within PREFERENCE of the least, of those whose error is small `enough` if any.

    enough: RMSE as a fraction of the diagonal; certain: the first one, the network's, that has it may cost
    CERTAIN_PREFERENCE.
    """
    fitting = [candidate for candidate in candidates if candidate.fit.rmse <= enough] or candidates
    least = min(candidate.cost for candidate in fitting)
    taken = next(candidate for candidate in fitting if candidate.cost <= PREFERENCE * least)
    first = candidates[0]
    if certain and taken is not first and first.fit.rmse <= enough and first.cost <= CERTAIN_PREFERENCE * least:
        return Choice(first, REASONS["certain"], candidates)
    return Choice(taken, REASONS[taken.source], candidates)


def _network_candidate(
    setting: Setting, centre, scale, faces, proposal: NetworkRig, hopeless, progress, *, same_count, enough
):
    """The network's skeleton with weights and poses from the motion, corrected by it unless its cost is `hopeless`.

    enough: RMSE, as a fraction of the diagonal, with which the skeleton is to be taken, so that bones and time are
    spent on reaching it; None where it has to be the best.
    """
    rest = setting.problem.rest.cpu().numpy()

    def inside(points):
        return winding_numbers(points, rest, faces) > INSIDE

    state = _network_state(setting, proposal, centre, scale)
    state = alternate(
        setting,
        state,
        lambda share: progress(0.5 * share, "Fitting the network's skeleton"),
        rounds=ROUNDS if enough is None else MANY_ROUNDS,
    )
    origin = np.arange(len(proposal.parents))
    error = rmse(setting.key, bone_matrices(state.pose), *moments(setting.key, state.W, state.u))
    if enough is not None or error * len(origin) < hopeless:
        state, origin = correct(
            setting,
            state,
            proposal.confidence,
            inside,
            lambda share: progress(0.5 + 0.4 * share, "Correcting the skeleton"),
            same_count=same_count,
            enough=enough,
        )
    fit = finish(setting, state, lambda share: progress(0.9 + 0.1 * share, "Fitting all frames"))
    fit = _with_still_weights(setting, fit, _start_weights(proposal, origin))
    confidence = np.where(origin >= 0, proposal.confidence[np.maximum(origin, 0)], np.nan)
    return Candidate("network", in_scene_units(fit, centre, scale), confidence)


def _start_weights(proposal: NetworkRig, origin) -> np.ndarray:
    """The network's weights (N,B) for the joints that are left: a merged joint's went to the next one above it."""
    place = {int(j): k for k, j in enumerate(origin) if j >= 0}
    start = np.zeros((len(proposal.weights), len(origin)))
    for j in range(len(proposal.parents)):
        stands = j
        while stands not in place:
            stands = int(proposal.parents[stands])
        start[:, place[stands]] += proposal.weights[:, j]
    return start


def _with_still_weights(setting, fit: MotionFit, start) -> MotionFit:
    """The fit with the network's weights where limbs never move, unless that costs STILL_COST of the error."""
    turned = rotation_ranges(fit.motion[..., :3, :3], fit.parents, 0)
    weights = keep_still_weights(fit.weights, start, turned, fit.parents, setting.influences)
    as_tensors = (
        torch.as_tensor(one, device=setting.problem.device) for one in (fit.motion[:, :, :3], weights, fit.rest)
    )
    error = setting.error(*as_tensors)
    return replace(fit, weights=weights, rmse=error) if error <= STILL_COST * fit.rmse else fit


def _network_state(setting, rig: NetworkRig, centre, scale: float):
    """A network's rig in the poses that its weights tell."""
    rest = setting.problem.rest
    places = torch.as_tensor((rig.joints - centre) / scale, dtype=rest.dtype, device=rest.device)
    return start_state(setting, places, rig.parents, torch.as_tensor(rig.weights, dtype=rest.dtype, device=rest.device))


def _as_sure(source: str, fit: MotionFit, proposal: NetworkRig, size: float) -> Candidate:
    """A candidate whose joints are as sure as those of the network that they lie on."""
    distance = np.linalg.norm(fit.joints[:, None] - proposal.joints, axis=2)
    known = distance.min(axis=1) < SAME_JOINT * size
    return Candidate(source, fit, np.where(known, proposal.confidence[distance.argmin(axis=1)], np.nan))
