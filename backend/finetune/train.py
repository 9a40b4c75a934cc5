"""Teach a copy of a network to give the anchor's rig on every frame (SPRig 4 to 6).

The teacher is frozen and has done its part when training starts (`clip.py`). The student is a copy of it whose encoder
stays frozen too; what is kept is the moving average of its weights, from the epoch that was best on the frames that
were held out. A stage (`SkeletonStage`, `SkinningStage`) says what a step's loss is and how good a network is;
`fine_tune` is the loop around both, for one clip or many.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ..device import half_pays
from ..errors import SprigError, no_progress
from ..learned import SKELETON_POINTS
from ..metrics import pjdd, temporal_skin_error
from ..skeleton.generate import generate
from .clip import SkeletonTarget, SkinningTarget, frame_weights
from .losses import LossConfig, geometric_prior, geometry_loss, skinning_loss, token_loss

CLIP = 1.0  # norm of the gradient
DECODED = 8  # frames of each clip that are decoded freely to see how far their skeletons drift


@dataclass(frozen=True)
class FineTuneConfig:
    """How long and how fast; the losses' own numbers are in `losses`."""

    epochs: int = 12
    frames: int = 8  # of one clip in a step, the anchor besides
    skeleton_rate: float = 1e-3  # highest learning rate
    skinning_rate: float = 2e-3
    warm_up: int = 10  # steps
    decay: float = 0.01  # of weights, times the learning rate
    average: float = 0.98  # part of the average that a step keeps
    patience: int = 4  # epochs without a gain after which training ends
    seed: int = 0
    losses: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self):
        if self.epochs < 1 or self.frames < 1:
            raise SprigError("Fine-tuning takes at least 1 epoch and 1 frame at a time; ask for more.")


class SkeletonStage:
    """Token and geometry consistency of the skeleton decoder (SPRig eqs. 1 to 3)."""

    kind = "skeleton"

    def __init__(self, targets: list[SkeletonTarget], config: FineTuneConfig, device: str):
        self.targets, self.config, self.device = targets, config, device

    def loss(self, network, target: SkeletonTarget, frames, seed: int):
        """The loss of some frames, the anchor first, and its terms; `seed` draws their surface points."""
        ids = target.ids.to(self.device)
        with torch.no_grad():
            condition = network.condition(self._points(target, frames, seed))
        logits = network(condition, ids.expand(len(frames), -1))
        token, token_terms = token_loss(logits, ids, 0, self.config.losses)
        geometry, geometry_terms = geometry_loss(
            logits, target.joints.to(self.device), target.parents.to(self.device), 0, self.config.losses, network.offset
        )
        return token + geometry, token_terms | geometry_terms

    @torch.no_grad()
    def validate(self, network) -> dict:
        """The loss on held-out frames, and PJDD of frames decoded freely: means over the clips."""
        losses, drifts = [], []
        for target in self.targets:
            held_out = np.flatnonzero(target.clip.held_out)
            if len(held_out):
                frames = [target.clip.anchor, *held_out]
                losses.append(float(self.loss(network, target, frames, seed=0)[0]))
            some = np.unique(np.linspace(0, len(target.clip.vertices) - 1, DECODED).astype(int))
            skeletons = [self.decode(network, target, frame) for frame in [target.clip.anchor, *some]]
            drifts.append(pjdd(skeletons, 0).index)
        return {"loss": float(np.mean(losses)) if losses else math.nan, "pjdd": float(np.nanmean(drifts))}

    def decode(self, network, target: SkeletonTarget, frame: int):
        """Joints (J,3) and parents (J,) that a network writes for a frame, greedily."""
        found = generate(network, self._points(target, [frame], seed=0))[0]
        return found.joints, found.parents

    def _points(self, target, frames, seed):
        drawn = [target.clip.points(frame, SKELETON_POINTS, seed=4096 * seed + int(frame)) for frame in frames]
        return torch.as_tensor(np.stack(drawn), device=self.device)


class SkinningStage:
    """Masked distillation with entropy and proximity priors for the skinning network (SPRig eqs. 4 to 12)."""

    kind = "skinning"

    def __init__(self, targets: list[SkinningTarget], config: FineTuneConfig, device: str):
        self.targets, self.config, self.device = targets, config, device
        self.priors = [
            geometric_prior(target.points[..., :3], target.joints, target.parents, _all_valid(target), config.losses)
            for target in targets
        ]

    def loss(self, network, target: SkinningTarget, frames, seed: int):
        """The loss of some frames, the anchor first, and its terms."""
        weights = frame_weights(network, target, list(frames), self.device)
        prior = self.priors[next(k for k, one in enumerate(self.targets) if one is target)][list(frames)]
        valid = _all_valid(target).to(self.device)
        taught = target.weights.to(self.device)
        return skinning_loss(weights, taught, prior.to(self.device), valid, 0, self.config.losses)

    @torch.no_grad()
    def validate(self, network) -> dict:
        """The loss on held-out frames, and how much weights change from frame to frame: means over the clips."""
        losses, errors = [], []
        for target in self.targets:
            held_out = np.flatnonzero(target.clip.held_out)
            if len(held_out):
                losses.append(float(self.loss(network, target, [target.clip.anchor, *held_out], seed=0)[0]))
            some = np.unique(np.linspace(0, len(target.clip.vertices) - 1, DECODED).astype(int))
            weights = frame_weights(network, target, [target.clip.anchor, *some], self.device)
            errors.append(temporal_skin_error(weights.float().cpu().numpy(), 0).per_point)
        return {"loss": float(np.mean(losses)) if losses else math.nan, "skin_error": float(np.mean(errors))}


def _all_valid(target):
    return torch.ones(len(target.parents), dtype=torch.bool)


def student_of(teacher: nn.Module) -> nn.Module:
    """A copy of a network to be trained, its encoder (the modules named in `encoder_parts`) frozen."""
    student = copy.deepcopy(teacher)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in teacher.encoder_parts)
    return student


@dataclass
class FineTuneState:
    """Everything that training needs to go on after an epoch."""

    student: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    best: dict | None = None  # weights of the best average
    best_loss: float = math.inf
    epoch: int = 0
    step: int = 0
    without_gain: int = 0
    history: list = field(default_factory=list)


def begin(teacher: nn.Module, config: FineTuneConfig) -> FineTuneState:
    """A state before the first epoch."""
    student = student_of(teacher)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    rate = config.skeleton_rate if teacher.kind == "skeleton" else config.skinning_rate
    groups = [{"params": trained, "highest": rate}]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=config.decay, betas=(0.9, 0.98))
    return FineTuneState(student, copy.deepcopy(student).eval(), optimiser)


def fine_tune(
    teacher: nn.Module,
    stage,
    config: FineTuneConfig,
    *,
    progress=no_progress,
    state: FineTuneState | None = None,
    after_epoch: Callable[[FineTuneState], None] | None = None,
    average_gradients: Callable[[nn.Module], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> tuple[nn.Module, list[dict]]:
    """The student, in eval mode, and the figures of every epoch, the first of them the teacher's own.

    `state` goes on with an earlier run; `after_epoch` is called with the state, to save it or to show it. Of several
    processes each takes its `part`, (which one, of how many), and `average_gradients` averages over all. `progress` may
    raise Cancelled; the teacher is never changed.
    """
    state = state or begin(teacher, config)
    device = next(teacher.parameters()).device.type
    half = device == "cuda" or (device == "cpu" and half_pays())
    if not state.history:
        state.history.append({"epoch": 0, **stage.validate(teacher)})
    total = config.epochs * len(_epoch(stage, config, 0, part))
    while state.epoch < config.epochs and state.without_gain < config.patience:
        sums, count = {}, 0
        for target, frames in _epoch(stage, config, state.epoch, part):
            progress(state.step / total, _told(state.history))
            share = min(1.0, (state.step + 1) / config.warm_up) * 0.5 * (1 + math.cos(math.pi * state.step / total))
            for group in state.optimiser.param_groups:
                group["lr"] = share * group["highest"]
            state.student.train()
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss, terms = stage.loss(state.student, target, frames, seed=config.seed + 1 + state.step)
            state.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if average_gradients:
                average_gradients(state.student)
            norm = nn.utils.clip_grad_norm_(state.student.parameters(), CLIP)
            if norm.isfinite():
                state.optimiser.step()
            state.step += 1
            keep = min(config.average, state.step / (10 + state.step))
            with torch.no_grad():
                for mean, value in zip(state.average.parameters(), state.student.parameters(), strict=True):
                    mean.lerp_(value, 1 - keep)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += 1
        state.epoch += 1
        figures = stage.validate(state.average)
        state.history.append({"epoch": state.epoch, **figures, **{name: total / count for name, total in sums.items()}})
        if (
            not figures["loss"] >= state.best_loss
        ):  # nothing is held out of a very short clip: then the last one is best
            state.best_loss, state.without_gain = figures["loss"], 0
            state.best = copy.deepcopy(state.average.state_dict())
        else:
            state.without_gain += 1
        if after_epoch:
            after_epoch(state)
    progress(1.0, _told(state.history))
    result = copy.deepcopy(teacher)
    result.load_state_dict(state.best)
    return result.eval(), state.history


def _epoch(stage, config: FineTuneConfig, epoch: int, part: tuple[int, int]) -> list[tuple]:
    """The steps of an epoch, (target, frames), the anchor first: every frame of every clip once, in random order."""
    random = np.random.default_rng([config.seed, epoch])
    steps = []
    for target in stage.targets:
        clip = target.clip
        learned = random.permutation(np.setdiff1d(np.flatnonzero(~clip.held_out), [clip.anchor]))
        pieces = np.array_split(learned, max(1, -(-len(learned) // config.frames)))
        steps += [(target, [clip.anchor, *piece.tolist()]) for piece in pieces]
    order = random.permutation(len(steps))
    which, processes = part
    order = order[: len(order) - len(order) % processes or None]  # as many steps for all
    return [steps[k] for k in order[which::processes]]


def _told(history: list[dict]) -> str:
    """What the user reads while it goes on."""
    first, last = history[0], history[-1]
    name = "pjdd" if "pjdd" in first else "skin_error"
    label = {"pjdd": "joints drift", "skin_error": "weights change"}[name]
    return f"Fine-tuning, epoch {last['epoch'] + 1}: {label} {last[name]:.3g} (at first {first[name]:.3g})"
