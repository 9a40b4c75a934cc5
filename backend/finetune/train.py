"""Teach a copy of a network to give the anchor's rig on every frame (SPRig 4 to 6).

The teacher is frozen and has done its part when training starts (`clip.py`). The student is a copy of it whose encoder
stays frozen too; what is kept is the moving average of its weights, from the epoch that was best on the frames that
were held out. With `lora` only low-rank updates of its linear layers are trained (`lora.py`), and merged at the end.
What is frozen shares its memory with the teacher. A stage (`SkeletonStage`, `SkinningStage`) says what a step's loss is
and how good a network is; `fine_tune` is the loop around both, for one clip or many.

Choices that a reader would question:
* Every step draws its numbers from the seed and its own, and a state holds where in an epoch it is: a run that goes on
  gives what it would have given.
* A step of the skeleton stage also shows random bends of the anchor (`bends.py`), which the paper has not: without them
  other clips of the character got other skeletons (training/LOG.md, protocol b).
* Nothing is dropped out: what the student should agree with is the teacher's answer, which was given without.
* A step of the skinning stage is about some of the tracked points: the gradient of all needs gigabytes and says little
  more. The network sees them all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..device import half_pays
from ..errors import SprigError, no_progress
from ..learned import SKELETON_POINTS
from ..metrics import pjdd, temporal_skin_error
from ..points import sample_surface
from ..skeleton.generate import generate_each
from .bends import bent_vertices
from .clip import TARGETS, SkeletonTarget, SkinningTarget, frame_weights
from .lora import merged, with_lora
from .losses import LossConfig, geometric_prior, geometry_loss, skinning_loss, token_loss

CLIP = 1.0  # norm of the gradient
DECODED = 8  # frames of each clip that are decoded freely to see how far their skeletons drift, and weighed
WEIGHED = 128  # tracked points of every frame that a step of the skinning stage is about
VALIDATED_POINTS = 256  # tracked points of them
FIGURES = {"skeleton": ("pjdd", "PJDD"), "skinning": ("skin_error", "skin error")}  # in the history, for the user


@dataclass(frozen=True)
class FineTuneConfig:
    """How long and how fast; the losses' own numbers are in `losses`."""

    epochs: int = 12
    frames: int = 4  # of one clip in a step of the skeleton, the anchor besides: more and smaller steps learn sooner
    bends: int = 2  # poses in such a step that the clip does not show: for other clips of the character
    least_steps: int = 16  # of an epoch: short clips are shown more than once, each time with other surface points
    skinning_frames: int = 1  # of the skin: it needs many steps, and each is quick
    skeleton_rate: float = 1e-3  # highest learning rate
    skinning_rate: float = 2e-3
    warm_up: int = 10  # steps
    decay: float = 0.01  # of weights, times the learning rate
    average: float = 0.98  # part of the average that a step keeps
    patience: int = 4  # epochs without a gain after which training ends
    many_views: bool = False  # the skeleton student is still decoded by `consensus`: replay showed it other views, too
    validated: int = 12  # clips, evenly spread, that validation is about; of one clip it takes as long as some steps
    target: str = "sequence"  # what the skinning student is to say, one of clip.TARGETS; "anchor" is the paper's
    lora: int = 0  # rank of the updates of linear layers; 0 trains all weights of the decoder
    seed: int = 0
    losses: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self):
        if min(self.epochs, self.frames, self.skinning_frames) < 1 or self.bends < 0:
            raise SprigError(
                "Fine-tuning takes at least 1 epoch, 1 frame at a time, and no fewer than 0 bends; ask for more."
            )
        if self.target not in TARGETS:
            raise SprigError(f"There is no target {self.target!r}; choose {' or '.join(TARGETS)}.")
        if self.lora < 0:
            raise SprigError(f"The rank of low-rank updates is {self.lora}; ask for 1 or more, or 0 for none.")


class SkeletonStage:
    """Token and geometry consistency of the skeleton decoder (SPRig eqs. 1 to 3)."""

    kind = "skeleton"

    def __init__(self, targets: list[SkeletonTarget], config: FineTuneConfig, device: str):
        self.targets, self.config, self.device = targets, config, device

    def loss(self, network, target: SkeletonTarget, frames, seed: int):
        """The loss of some frames, the anchor first, and random bends, and its terms; `seed` draws these and points."""
        points = np.concatenate([self._points(target, frames, seed), self._bent_points(target, seed)])
        return self._loss(network, target, points)

    def _loss(self, network, target, points):
        """Of poses with points (B,N,6), the anchor first."""
        ids = target.ids.to(self.device)
        with torch.no_grad():
            condition = network.condition(torch.as_tensor(points, device=self.device))
        logits = network(condition, ids.expand(len(points), -1))
        token, token_terms = token_loss(logits, ids, 0, self.config.losses)
        geometry, geometry_terms = geometry_loss(
            logits, target.joints.to(self.device), target.parents.to(self.device), 0, self.config.losses, network.offset
        )
        return self.config.losses.token * token + geometry, token_terms | geometry_terms

    @torch.no_grad()
    def validate(self, network, tick=lambda: None) -> dict:
        """The loss on held-out frames, and PJDD of frames decoded freely: means over clips. tick() is called often."""
        losses, drifts = [], []
        for target in _some(self.targets, self.config.validated):
            tick()
            if target.clip.held_out.any():
                frames = [target.clip.anchor, *np.flatnonzero(target.clip.held_out)]
                losses.append(float(self._loss(network, target, self._points(target, frames, seed=0))[0]))
            points = self._points(target, [target.clip.anchor, *_shown(target.clip)], seed=0)
            points = torch.as_tensor(points, device=self.device)
            found = generate_each(network, points, progress=lambda *_: tick())
            drifts.append(pjdd([(one.joints, one.parents) for (one,) in found], 0).index)
        return {"loss": _mean(losses), "pjdd": _mean(drifts)}

    def _points(self, target, frames, seed):
        return np.stack([target.clip.points(frame, SKELETON_POINTS, seed=4096 * seed + int(frame)) for frame in frames])

    def _bent_points(self, target, seed):
        clip, random = target.clip, np.random.default_rng(seed)
        rig = target.joints.numpy(), target.parents.numpy()
        drawn = np.empty((self.config.bends, SKELETON_POINTS, 6), dtype=np.float32)
        for k in range(self.config.bends):
            bent = bent_vertices(clip.vertices[clip.anchor], target.heat, *rig, random)
            surface = sample_surface(bent, clip.faces, SKELETON_POINTS, seed=int(random.integers(2**31)))
            drawn[k] = surface.at(bent, clip.faces)
        return drawn


class SkinningStage:
    """Masked distillation with entropy and proximity priors for the skinning network (SPRig eqs. 4 to 12)."""

    kind = "skinning"

    def __init__(self, targets: list[SkinningTarget], config: FineTuneConfig, device: str):
        self.targets, self.config, self.device = targets, config, device

    def loss(self, network, target: SkinningTarget, frames, seed: int, count: int = WEIGHED):
        """The loss of some frames, the anchor first, and its terms; `seed` draws the points that it is about."""
        chosen = torch.as_tensor(np.random.default_rng(seed).permutation(target.points.shape[1])[:count])
        weights = frame_weights(network, target, frames, self.device, chosen)
        valid = torch.ones(len(target.parents), dtype=torch.bool)
        points = target.points[:, chosen, :3]
        prior = geometric_prior(points, target.joints, target.parents, valid, self.config.losses)
        constants = (target.weights[chosen], prior[torch.as_tensor(np.asarray(frames))], valid)
        return skinning_loss(weights, *(value.to(self.device) for value in constants), 0, self.config.losses)

    @torch.no_grad()
    def validate(self, network, tick=lambda: None) -> dict:
        """The loss on held-out frames, and how much weights change from frame to frame: means over clips. tick() is
        called often."""
        losses, errors = [], []
        for target in _some(self.targets, self.config.validated):
            tick()
            if target.clip.held_out.any():
                frames = [target.clip.anchor, *np.flatnonzero(target.clip.held_out)]
                losses.append(float(self.loss(network, target, frames, 0, VALIDATED_POINTS)[0]))
            tick()
            chosen = torch.arange(min(VALIDATED_POINTS, target.points.shape[1]))  # they are in no order
            shown = [target.clip.anchor, *_shown(target.clip)]
            weights = frame_weights(network, target, shown, self.device, chosen)
            errors.append(temporal_skin_error(weights.float().cpu().numpy(), 0).per_point)
        return {"loss": _mean(losses), "skin_error": _mean(errors)}


def _some(values: list, most: int) -> list:
    """Up to `most` of the values, evenly spread."""
    return [values[k] for k in np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]


def _shown(clip) -> list[int]:
    """The frames, without the anchor, that a network is judged by."""
    return _some([frame for frame in range(len(clip.vertices)) if frame != clip.anchor], DECODED)


def _mean(values: list[float]) -> float:
    """Of those that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def student_of(teacher: nn.Module, config: FineTuneConfig) -> nn.Module:
    """A copy of a network to be trained, its encoder (the modules named in `encoder_parts`) frozen.

    With `config.lora` everything is frozen but the updates that are put in. What is frozen shares the teacher's memory.
    A student of SPRig's skeleton decoder says in its own config whether it is to be decoded in many views.
    """
    names = [name for name, _ in teacher.named_parameters()]
    frozen = {name for name in names if config.lora or name.split(".")[0] in teacher.encoder_parts}
    student = _copy(teacher, frozen)
    if hasattr(student.config, "many_views"):
        student.config = replace(student.config, many_views=student.config.many_views and config.many_views)
    if config.lora:
        return with_lora(student, config.lora, config.seed)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return student


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a student that are not frozen, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _copy(network, shared) -> nn.Module:
    """A copy of a network; the parameters named in `shared` are others, frozen, in the same memory."""
    parameters = dict(network.named_parameters())
    done = {id(parameters[name]): nn.Parameter(parameters[name].detach(), requires_grad=False) for name in shared}
    return copy.deepcopy(network, done)


def _copy_of_student(student) -> nn.Module:
    return _copy(student, {name for name, _ in student.named_parameters()} - trained(student).keys())


@dataclass
class FineTuneState:
    """Everything that training needs to go on; between two steps it is whole."""

    student: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    half: bool = False  # matrix products in bfloat16
    best: dict | None = None  # what is trained of the best average
    best_loss: float = math.inf
    epoch: int = 0
    done: int = 0  # steps of this epoch
    sums: dict = field(default_factory=dict)  # of the terms in them
    step: int = 0
    without_gain: int = 0
    history: list = field(default_factory=list)


def begin(teacher: nn.Module, config: FineTuneConfig) -> FineTuneState:
    """A state before the first epoch."""
    student = student_of(teacher, config)
    rate = config.skeleton_rate if teacher.kind == "skeleton" else config.skinning_rate
    groups = [{"params": list(trained(student).values()), "highest": rate}]
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=config.decay, betas=(0.9, 0.98))
    device = next(teacher.parameters()).device.type
    half = device == "cuda" or (device == "cpu" and half_pays())
    return FineTuneState(student.eval(), _copy_of_student(student).eval(), optimiser, half)


def fine_tune(
    teacher: nn.Module,
    stage,
    config: FineTuneConfig,
    *,
    progress=no_progress,
    state: FineTuneState | None = None,
    after_epoch: Callable[[FineTuneState], None] | None = None,
    replay: Callable[[nn.Module, int], Tensor | None] | None = None,
    average_gradients: Callable[[nn.Module], None] | None = None,
    part: tuple[int, int] = (0, 1),
    on_first: Callable[[Callable[[], dict]], dict] | None = None,
) -> tuple[nn.Module, list[dict]]:
    """The student, in eval mode, and the figures of every epoch, the first of them the teacher's own.

    `state` goes on with an earlier run; `after_epoch` is called with the state, to save it or to show it. What
    replay(student, step) gives is added to the loss of the step, where it gives anything. Of several processes each
    takes its `part`, (which one, of how many), `average_gradients` averages over all, and `on_first` calls a function
    in the first one and gives all what it returned, so that they end together. `progress` is called before every step
    and may raise Cancelled; the state is then whole. The teacher is never changed.
    """
    state = state or begin(teacher, config)
    share = state.epoch / config.epochs

    def validate(network) -> dict:
        def tick():
            progress(share, _told(stage.kind, state.history, share))

        return on_first(lambda: stage.validate(network, tick)) if on_first else stage.validate(network, tick)

    if not state.history:
        state.history.append({"epoch": 0, **validate(teacher)})
    while state.epoch < config.epochs and state.without_gain < config.patience:
        steps = _epoch(stage, config, state.epoch, part)
        while state.done < len(steps):
            share = (state.epoch + state.done / (len(steps) + 1)) / config.epochs  # validation counts as a step
            progress(share, _told(stage.kind, state.history, share))
            rise = min(1.0, (state.step + 1) / config.warm_up)
            for group in state.optimiser.param_groups:
                group["lr"] = group["highest"] * rise * 0.5 * (1 + math.cos(math.pi * share))
            _step(state, stage, *steps[state.done], config, replay, average_gradients)
        share = (state.epoch + len(steps) / (len(steps) + 1)) / config.epochs
        figures = validate(state.average)
        means = {name: float(total) / len(steps) for name, total in state.sums.items()}
        state.epoch, state.done, state.sums = state.epoch + 1, 0, {}
        state.history.append({"epoch": state.epoch, **figures, **means})
        if not figures["loss"] >= state.best_loss:  # not a number where nothing is held out: then the last one is best
            state.best_loss, state.without_gain = figures["loss"], 0
            state.best = {name: mean.detach().clone() for name, mean in trained(state.average).items()}
        else:
            state.without_gain += 1
        if after_epoch:
            after_epoch(state)
    progress(1.0, _told(stage.kind, state.history, 1.0))
    return student_so_far(teacher, state), state.history


def student_so_far(teacher: nn.Module, state: FineTuneState) -> nn.Module:
    """The best student of a state, in eval mode, a network of the teacher's own class; at first the teacher."""
    if state.best is None:
        return copy.deepcopy(teacher).eval()
    result = _copy_of_student(state.average)
    with torch.no_grad():
        for name, parameter in trained(result).items():
            parameter.copy_(state.best[name])
    result = merged(result)
    for name, parameter in teacher.named_parameters():
        result.get_parameter(name).requires_grad_(parameter.requires_grad)
    return result.eval()


def _step(state: FineTuneState, stage, target, frames, config: FineTuneConfig, replay, average_gradients) -> None:
    """One step of the student, its average, and the sums of the losses' terms."""
    device = next(state.student.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=state.half):
        loss, terms = stage.loss(state.student, target, frames, seed=config.seed + 1 + state.step)
        again = replay(state.student, state.step) if replay else None
        if again is not None:
            loss, terms = loss + again, {**terms, "replay": again.detach()}
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
        values = trained(state.student)
        for name, mean in trained(state.average).items():
            mean.lerp_(values[name], 1 - keep)
    for name, value in terms.items():  # on their device: reading a number waits for it
        state.sums[name] = state.sums.get(name, 0.0) + value
    state.done += 1


def _epoch(stage, config: FineTuneConfig, epoch: int, part: tuple[int, int]) -> list[tuple]:
    """The steps of an epoch, (target, frames), the anchor first: every frame of every clip once, in random order; more
    than once if that is less than `least_steps`.

    All processes have equally many; where they do not come out even, the first steps are taken twice.
    """
    random = np.random.default_rng([config.seed, epoch])
    frames = {"skeleton": config.frames, "skinning": config.skinning_frames}[stage.kind]
    steps = []
    while not steps or len(steps) < config.least_steps:
        for target in stage.targets:
            clip = target.clip
            learned = random.permutation(np.setdiff1d(np.flatnonzero(~clip.held_out), [clip.anchor]))
            pieces = np.array_split(learned, max(1, -(-len(learned) // frames)))
            steps += [(target, [clip.anchor, *piece.tolist()]) for piece in pieces]
    which, processes = part
    order = np.resize(random.permutation(len(steps)), -(-len(steps) // processes) * processes)
    return [steps[k] for k in order[which::processes]]


def kept(history: list[dict]) -> dict:
    """The figures of the epoch whose weights the student has: least loss on the frames that were held out."""
    trained = history[1:]
    if any(math.isnan(epoch["loss"]) for epoch in trained):  # too short a clip to hold frames out: the last
        return trained[-1]
    return min(trained, key=lambda epoch: epoch["loss"])


def _told(stage: str, history: list[dict], share: float) -> str:
    """What is read while it goes on, short enough for the line of a progress bar."""
    if not history:
        return f"Trying the {stage} network"
    key, name = FIGURES[stage]
    first, last = history[0], history[-1]
    if last is first:
        return f"Epoch 1: {name} {first[key]:.3g}"
    if share < 1:
        return f"Epoch {last['epoch'] + 1}: {name} {last[key]:.3g} (was {first[key]:.3g})"
    return f"Learned: {name} {kept(history)[key]:.3g} (was {first[key]:.3g})"
