"""What the training scripts share around their loops: options, data, schedule, averages, state, log, curves.

A run is measured in minutes of work, summed over all the times it was resumed: on a laptop, a busy machine or eight
GPUs the learning rate has come down to zero when the minutes are over. Everything a run needs to go on (weights, their
average, the optimiser, random numbers, the time worked) is one file, written every two minutes and when the run is
told to stop; the data is drawn from random numbers, so it goes on where it was.

With torchrun every process draws its own characters and the gradients are averaged.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import nn

from ..backend.checkpoint import save_checkpoint
from ..backend.device import half_pays, resolve_device
from ..backend.errors import Cancelled, SprigError
from ..backend.formats.checks import file_errors
from ..backend.formats.whole_file import whole_file
from .augment import AugmentConfig, Store, draw
from .rigbank import read_rigbank, validation_rigs
from .synthesize import creature

SAVE_EVERY, TELL_EVERY = 120, 30  # seconds
PATIENCE = timedelta(hours=2)  # of processes that wait for the first one to validate or to write
STATE = "state.pt"
CLIP = 1.0  # norm of the gradient
DECAY = 0.05  # of weights, times the learning rate
SYNTHETIC = 2048  # different characters made on the spot
MACHINES = ("machine", "accessory")  # categories: drawn less often than the rest, their skeletons follow no anatomy
PEOPLE = ("biped",)  # drawn more often than by their few rigs: these have the most bodies, and most users rig people


# ---- options


def arguments(description: str, batch: int, rate: float) -> argparse.ArgumentParser:
    """The options of both pre-training scripts."""
    parser = run_arguments(description)
    data_arguments(parser)
    parser.add_argument("--minutes", type=float, default=60, help="of work in all, until the learning rate is zero")
    parser.add_argument("--batch", type=int, default=batch, help="characters per step and process")
    parser.add_argument("--micro", type=int, default=16, help="of them at a time; a GPU takes the whole batch")
    parser.add_argument("--points", type=int, default=1024, help="surface points of a character")
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument("--warm-up", type=int, default=200, help="steps until the learning rate is at its highest")
    parser.add_argument("--average", type=float, default=0.999, help="part of the average that a step keeps")
    parser.add_argument(
        "--validate", type=float, default=10, help="minutes of work between looks at the validation set"
    )
    return parser


def run_arguments(description: str) -> argparse.ArgumentParser:
    """The options of every run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the run; a run that is there goes on with --resume")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    return parser


def data_arguments(parser: argparse.ArgumentParser, made: int = SYNTHETIC) -> None:
    """The options of a `Source`."""
    parser.add_argument(
        "--bank", type=Path, action="append", default=[], help="folder of rigged characters; repeatable"
    )
    parser.add_argument("--synthetic", type=float, default=0.3, help="share of characters that are made on the spot")
    parser.add_argument("--made", type=int, default=made, help="how many different ones are made")
    parser.add_argument("--machines", type=float, default=0.15, help="share of machines and accessories among the rest")
    parser.add_argument("--people", type=float, default=0.4, help="share of bipeds among what is left then")
    parser.add_argument(
        "--augment", type=_setting, action="append", default=[], metavar="NAME=VALUE",
        help="one number of AugmentConfig (augment.py), for instance bend=0.4; repeatable",
    )  # fmt: skip
    parser.add_argument("--licence", help="use only characters whose licence starts with this, for instance CC0")


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    known = {field.name: field.type for field in fields(AugmentConfig)}
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return name, int(value) if known[name] == "int" else float(value)


@dataclass(frozen=True)
class Place:
    """Where this process runs: its device, and its number among all processes of the run."""

    device: torch.device
    rank: int
    processes: int
    half: bool  # matrix products in bfloat16

    def precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def average_gradients(self, network: nn.Module) -> None:
        """Over all processes, in place."""
        if self.processes > 1:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            for gradient, mean in zip(
                gradients, (flat / self.processes).split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(mean.view_as(gradient))

    def agree(self, *values: float) -> list[float]:
        """The first process's numbers, so that all stop, save and slow down in the same step."""
        if self.processes == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device="cpu" if self.device.type == "cpu" else self.device)
        distributed.broadcast(shared, 0)
        return shared.tolist()

    def on_first(self, work: Callable):
        """What work() returns in the first process, the only one to call it; or its Cancelled, raised in all."""
        result = None
        if self.rank == 0:
            try:
                result = work()
            except Cancelled as cancelled:
                result = cancelled
        if self.processes > 1:
            shared = [result]
            distributed.broadcast_object_list(shared, 0)
            (result,) = shared
        if isinstance(result, Cancelled):
            raise result
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            distributed.barrier()

    def leave(self) -> None:
        """At the end of the run, together: a process whose peers have gone may abort."""
        self.wait()
        if self.processes > 1:
            distributed.destroy_process_group()


def settle(options: argparse.Namespace) -> Place:
    """Join the other processes where torchrun started several, seed torch, and choose device and precision.

    Raises SprigError for a folder with a run that is not to be resumed, before anything long begins.
    """
    if (options.output / STATE).exists() and not options.resume:
        raise SprigError(f"There is a run in {options.output} already; go on with --resume, or name another folder.")
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if options.threads:
        torch.set_num_threads(options.threads)
    name = resolve_device(options.device)
    if name == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if processes > 1:
        distributed.init_process_group("nccl" if name == "cuda" else "gloo", timeout=PATIENCE)
    torch.manual_seed(options.seed)
    return Place(torch.device(name), rank, processes, name == "cuda" or (name == "cpu" and half_pays()))


# ---- data


class Source:
    """Batches of characters: people, animals and machines from the banks, each by rig, and creatures made on the spot.

    Banks stay apart, so that one with large meshes does not fill up the others' to its size.

    `held_out`: a store for each character of the validation list, which is never drawn from.
    """

    def __init__(self, options: argparse.Namespace, place: Place, heat: bool = False):
        never = validation_rigs()
        kinds = {"people": [], "animals": [], "machines": [], "synthetic": []}  # of lists, one for each bank
        self.held_out = []
        for bank in options.bank:
            every = read_rigbank(bank)
            self.held_out += [Store([one], heat).to(place.device) for one in every if one.rig_id in never]
            wanted = [one for one in every if one.rig_id not in never and one.licence.startswith(options.licence or "")]
            kinds["people"].append([one for one in wanted if one.category in PEOPLE])
            kinds["machines"].append([one for one in wanted if one.category in MACHINES])
            kinds["animals"].append([one for one in wanted if one.category not in PEOPLE + MACHINES])
        if options.synthetic > 0:
            kinds["synthetic"].append([creature(seed) for seed in range(options.made)])
        self.counts = {kind: sum(map(len, groups)) for kind, groups in kinds.items()}
        if not any(self.counts.values()):
            raise SprigError("There is nothing to learn from; give a --bank, or a --synthetic share above 0.")
        rest = (1 - options.synthetic) * (1 - options.machines)
        shares = {
            "people": rest * options.people,
            "animals": rest * (1 - options.people),
            "machines": (1 - options.synthetic) * options.machines,
            "synthetic": options.synthetic,
        }
        whole = sum(share for kind, share in shares.items() if self.counts[kind])
        self.parts = []  # of the share and the characters
        for kind, groups in kinds.items():
            rigs = [len({one.rig_id for one in group}) for group in groups]
            self.parts += [
                (shares[kind] / whole * count / sum(rigs), Store(group, heat).to(place.device))
                for count, group in zip(rigs, groups, strict=True)
                if group and shares[kind] > 0
            ]
        self.augment = AugmentConfig(**dict(options.augment))
        self.generator = torch.Generator(place.device).manual_seed(options.seed * 1000 + place.rank)
        self.debts = [0.0] * len(self.parts)  # what a part is owed, in characters

    def draw(self, count: int, points: int):
        """Batches, one for each part that is due, of `count` characters together."""
        owed = [debt + share * count for debt, (share, _) in zip(self.debts, self.parts, strict=True)]
        whole = [int(value) for value in owed]
        for k in sorted(range(len(owed)), key=lambda k: whole[k] - owed[k])[: count - sum(whole)]:
            whole[k] += 1
        self.debts = [value - given for value, given in zip(owed, whole, strict=True)]
        return [
            draw(store, given, self.generator, points, self.augment)
            for given, (_, store) in zip(whole, self.parts, strict=True)
            if given > 0
        ]

    def state(self) -> dict:
        return {"generator": self.generator.get_state(), "debts": self.debts}

    def restore(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        if len(state["debts"]) == len(self.parts):  # else the run goes on with other banks
            self.debts = list(state["debts"])


# ---- schedule, average


def learning_rate(highest: float, step: int, warm_up: int, share: float) -> float:
    """Linear warm-up over `warm_up` steps, times half a cosine over the share of the run that is done."""
    return highest * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def make_optimisers(network: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside Transformer blocks, AdamW for the rest.

    Muon's steps are scaled to the size of AdamW's, so both take one learning rate. Of the rest, matrices decay; biases,
    norms and embeddings do not.
    """
    tables = {module.weight for module in network.modules() if isinstance(module, nn.Embedding)}
    named = [(name, parameter) for name, parameter in network.named_parameters()]
    inside = [p for name, p in named if "blocks" in name and p.ndim == 2 and p not in tables]
    matrices = [p for name, p in named if "blocks" not in name and p.ndim == 2 and p not in tables]
    rest = [p for _, p in named if p.ndim != 2 or p in tables]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)),
        torch.optim.Muon(inside, lr=rate, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
    ]


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, keep: float, step: int) -> None:
    """Exponential moving average of the weights; shorter in the first steps, when all of them are bad."""
    keep = min(keep, (1 + step) / (10 + step))
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - keep)


# ---- the loop


def piece_size(options, place: Place) -> int:
    """How many characters pass through the network at a time."""
    return options.batch if place.device.type == "cuda" else options.micro


def add_gradients(pieces, batch: int, place: Place, losses, weights: dict[str, float]) -> dict:
    """Add the gradient of a step's loss piece by piece: the weighted sum of the means, by characters.

    losses(piece) returns {name: (sum, number of terms)}; so does this, summed over the pieces.
    """
    figures = {}
    for piece in pieces:
        with place.precision():
            found = losses(piece)
        share = len(piece.joints) / batch
        sum(share * weight * found[name][0] / found[name][1] for name, weight in weights.items()).backward()
        for name, (value, count) in found.items():
            before = figures.get(name, (0.0, 0))
            figures[name] = (before[0] + value.detach(), before[1] + count)
    return figures


def train(options, place: Place, source: Source, network: nn.Module, step, validate) -> None:
    """Train until the minutes are over or the process is asked to end; the folder then holds all that is to be kept.

    step() draws its characters, adds the gradient of one step's loss, and returns {figure: (sum, count)} for the log;
    validate(network) returns {figure: value} and gets the average of the weights.
    """
    folder, file = options.output, options.output / f"{network.kind}.safetensors"
    average = copy.deepcopy(network).eval()
    optimisers = make_optimisers(network, options.rate)
    done = {"steps": 0, "drawn": 0, "worked": 0.0, "validated": 0.0}  # worked, validated: seconds
    if options.resume:
        state = load_state(folder / STATE, place.device)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        for optimiser, before in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(before)
        source.restore(state["source"])
        if place.rank > 0:  # the file holds the first process's numbers, and there may be more processes now
            source.generator.manual_seed(hash((options.seed, place.rank, state["done"]["drawn"])))
        torch.set_rng_state(state["random"].cpu())
        done = state["done"]
    if place.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        size = sum(parameter.numel() for parameter in network.parameters())
        print(f"{size:,} parameters; learning from {source.counts}; {place}", flush=True)

    def save():
        save_state(
            folder / STATE,
            network=network.state_dict(),
            average=average.state_dict(),
            optimisers=[optimiser.state_dict() for optimiser in optimisers],
            source=source.state(),
            random=torch.get_rng_state(),
            done=done,
        )
        provenance = {
            "command": f"python -m sprig.training.pretrain_{network.kind} " + " ".join(sys.argv[1:]),
            "commit": commit(),
            "minutes": round(done["worked"] / 60, 1),
            "characters drawn": done["drawn"],
            "learned from": {name: str(count) for name, count in source.counts.items()},
        }
        save_checkpoint(file, copy.deepcopy(average).half(), provenance)  # half the size, and no worse

    stop, minutes = Stop(), options.minutes
    saved = told = time.monotonic()
    sums, since = {}, done["drawn"]
    while True:
        over = done["worked"] >= 60 * minutes
        due = over or done["worked"] - done["validated"] >= 60 * options.validate
        if due and not stop.asked and done["validated"] < done["worked"]:
            done["validated"] = done["worked"]
            if place.rank == 0:
                log(folder, minutes=done["worked"] / 60, step=done["steps"], drawn=done["drawn"], **validate(average))
                plot_curves(folder)
                told, sums, since = time.monotonic(), {}, done["drawn"]
        if place.rank == 0 and (over or stop.asked or time.monotonic() - saved > SAVE_EVERY):
            save()
            saved = time.monotonic()
        if over or stop.asked:
            break

        start = time.monotonic()
        rate = learning_rate(options.rate, done["steps"], options.warm_up, done["worked"] / 60 / minutes)
        for group in itertools.chain(*(optimiser.param_groups for optimiser in optimisers)):
            group["lr"] = rate
        network.train()
        for name, (value, count) in step().items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(value), before[1] + float(count))
        place.average_gradients(network)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for optimiser in optimisers:
            if norm.isfinite():  # else the step is left out
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        follow(average, network, options.average, done["steps"])
        done["steps"] += 1
        done["drawn"] += options.batch * place.processes
        done["worked"], asked = place.agree(done["worked"] + time.monotonic() - start, stop.asked)
        stop.asked = bool(asked)

        if place.rank == 0 and time.monotonic() - told > TELL_EVERY:
            speed = (done["drawn"] - since) / (time.monotonic() - told)
            figures = {name: total / count for name, (total, count) in sums.items()}
            log(
                folder, minutes=done["worked"] / 60, step=done["steps"], drawn=done["drawn"], per_second=speed,
                **figures, norm=float(norm), rate=rate,
            )  # fmt: skip
            told, sums, since = time.monotonic(), {}, done["drawn"]
    place.leave()


# ---- state, log, curves


class Stop:
    """Becomes true when the process is asked to end; the loop then saves and leaves."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_):
        self.asked = True


def save_state(path: Path, **parts) -> None:
    """One file, whole or not at all."""
    with whole_file(path) as temporary:
        torch.save(parts, temporary)


def load_state(path: Path, device) -> dict:
    """What `save_state` wrote. Raises SprigError where there is none."""
    if not path.is_file():
        raise SprigError(f"There is no run to resume in {path.parent}; leave --resume away to start one.")
    with file_errors(path):
        return torch.load(path, map_location=device, weights_only=True)


def log(folder: Path, **entry) -> None:
    """Print an entry and append it to log.jsonl."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    told = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in entry.items())
    print("  ".join(told), flush=True)


def plot_curves(folder: Path) -> None:
    """curves.png from log.jsonl: each figure over the minutes worked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [key for key in dict.fromkeys(key for entry in entries for key in entry) if key not in ("step", "minutes")]
    kinds = [key for key in kinds if any(isinstance(entry.get(key), float) for entry in entries)]
    columns = 4
    figure, axes = plt.subplots(
        -(-len(kinds) // columns), columns, figsize=(16, 3 * -(-len(kinds) // columns)), squeeze=False
    )
    for axis, key in zip(axes.flat, kinds, strict=False):  # the last row may have axes to spare
        told = [(entry["minutes"], entry[key]) for entry in entries if isinstance(entry.get(key), float)]
        axis.plot(*zip(*told, strict=True), linewidth=1)
        axis.set_title(key, fontsize=10)
        axis.set_xlabel("minutes", fontsize=8)
    for axis in list(axes.flat)[len(kinds) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=80)
    plt.close(figure)


def commit() -> str:
    """The commit of the checkout that trains, with "+" where files have changed since; "unknown" outside one."""
    here = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"
