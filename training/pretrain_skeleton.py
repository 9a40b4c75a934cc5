"""Train the skeleton decoder on rigged characters.

    python -m sprig.training.pretrain_skeleton RUN --bank FOLDER --minutes 600
    torchrun --nproc-per-node 8 -m sprig.training.pretrain_skeleton RUN --bank FOLDER

Loss: cross-entropy of the tokens (SPRig eq. 3, the pre-training of the teacher), plus two that teach the points what
they belong to. Every neighbourhood's two votes are drawn to the joint that moves it and to the end of that joint's
bone, and the state that writes a joint's coordinates is drawn to point at the neighbourhoods that vote for it.

RUN gets state.pt (to resume), skeleton.safetensors (the average of the weights), log.jsonl and curves.png.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from ..backend.device import load_torch

torch = load_torch()  # before torch comes in by another way: its threads wait as we like it
import torch.nn.functional as F  # noqa: E402

from ..backend.errors import SprigError  # noqa: E402
from ..backend.metrics import chamfer, topology_f1  # noqa: E402
from ..backend.skeleton.generate import generate  # noqa: E402
from ..backend.skeleton.network import SkeletonConfig, SkeletonNetwork, at_points  # noqa: E402
from ..backend.skeleton.tokens import FIRST_BIN, PAD, VOCABULARY  # noqa: E402
from . import loop  # noqa: E402
from .augment import OFF, Batch, Store, draw, in_order, in_pieces, to_tokens  # noqa: E402

WEIGHTS = {"token": 1.0, "vote": 1.0, "pointing": 0.1}  # of the losses
JITTER = 3.0  # bins: largest standard deviation of the joints that the decoder looks back at, drawn per character
SPREAD = 1.2  # bins: standard deviation of the distribution that a coordinate should have
CLOSE = 0.02  # unit cube: votes nearer than this are pulled less than in proportion (Huber)


def corrupted(ids):
    """Ids (B,T) as the decoder looks back at them: joints moved by some bins, and in half of the skeletons some hidden.

    The next joint is nearly always close to the last one, and a decoder that has learned only that repeats itself when
    it goes on from joints of its own. With what it has written taken away it has to look at the points.
    """
    batch, length = ids.shape
    strength = JITTER * torch.rand(batch, 1, device=ids.device)
    moved = ids + (strength * torch.randn(ids.shape, device=ids.device)).round().long()
    place = torch.arange(length, device=ids.device)
    coordinate = (place % 4 > 0) & (ids >= FIRST_BIN)
    seen = torch.where(coordinate, moved.clamp(FIRST_BIN, VOCABULARY - 1), ids)
    chance = (2 * torch.rand(batch, 1, device=ids.device) - 1).clamp_min(0)  # of each joint
    hidden = torch.rand(batch, length // 4 + 1, device=ids.device) < chance
    hidden = hidden[:, (place - 1).clamp_min(0) // 4] & coordinate
    return torch.where(hidden, PAD, seen)


def _targets(ids):
    """Probabilities (B,T,VOCABULARY) for tokens ids (B,T) after BOS: coordinates are spread over bins around theirs.

    A bin beside the right one is nearly right; and where the decoder is in doubt, what it prefers is then the place
    around which most probability lies, not the one bin with most of it.
    """
    tokens = torch.arange(VOCABULARY, device=ids.device)
    apart = (tokens[FIRST_BIN:] - tokens[FIRST_BIN:, None]).float()
    near = F.pad((-0.5 * (apart / SPREAD).square()).softmax(1), (FIRST_BIN, 0))  # (BINS,VOCABULARY)
    exact = F.one_hot(ids, VOCABULARY).float()
    coordinate = (torch.arange(ids.shape[1], device=ids.device) % 4 < 3) & (ids >= FIRST_BIN)
    return torch.where(coordinate[..., None], near[(ids - FIRST_BIN).clamp_min(0)], exact)


def losses(network: SkeletonNetwork, batch: Batch, corrupt: bool = True) -> dict:
    """{name: (sum, number of terms)} for a batch `in_order`; "parent" is the part of "token" that is about parents."""
    ids = to_tokens(batch)
    condition = network.condition(batch.points)
    seen = corrupted(ids) if corrupt else ids
    logits, pointing = network.teach(condition, ids[:, :-1], seen[:, :-1])
    wanted = ids[:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1), _targets(wanted).flatten(0, 1), reduction="none").view_as(wanted)
    each = each * (wanted != PAD)

    # what the neighbourhoods should vote for
    weights = at_points(batch.weights, condition.seeds)  # (B,S,J)
    seeds = at_points(batch.points, condition.seeds)[..., :3]
    own = weights.argmax(2)  # (B,S)
    child = (batch.parents[:, None] == own[..., None]) & batch.valid[:, None]  # (B,S,J)
    far = torch.cdist(seeds, batch.joints).masked_fill(~child, torch.inf)
    end, has_end = far.argmin(2), child.any(2)
    target = torch.stack([at_points(batch.joints, own), at_points(batch.joints, end)], dim=2)
    known = torch.stack([torch.ones_like(has_end), has_end], dim=2)  # (B,S,2)
    missed = F.huber_loss(condition.votes, target, reduction="none", delta=CLOSE).sum(3) / CLOSE

    # who votes for each joint
    joint = torch.arange(batch.joints.shape[1], device=ids.device)[:, None]
    voters = torch.stack(
        [weights.mT, (end[:, None] == joint) & has_end[:, None] & (own[:, None] != joint)], dim=3
    ).flatten(2)  # (B,J,2S)
    share = voters / voters.sum(2, keepdim=True).clamp_min(1e-6)
    seen = (voters.sum(2) > 0.5) & batch.valid
    point = -((share * pointing[:, : seen.shape[1]]).sum(2) * seen).sum()
    joints = batch.valid.sum()
    return {
        "token": (each.sum(), (wanted != PAD).sum()),
        "parent": (each[:, 3::4].sum(), joints),
        "vote": ((missed * known).sum(), known.sum()),
        "pointing": (point, seen.sum()),
    }


@torch.no_grad()
def validate(network: SkeletonNetwork, held_out: list[Store], points: int) -> dict:
    """Greedy skeletons of the validation characters, each in one pose of its own: medians; and the losses' means, which
    are much less a matter of luck."""
    distances, agreement, sums = [], [], {}
    for store in held_out:
        generator = torch.Generator(store.device).manual_seed(0)
        batch = in_order(draw(store, 1, generator, points, replace(OFF, clip=1.0)))
        for name, (value, count) in losses(network, batch, corrupt=False).items():
            sums.setdefault(f"held_out_{name}", []).append(float(value / count))
        found = generate(network, batch.points)[0]
        joints, parents = batch.joints[0].cpu().numpy(), batch.parents[0].cpu().numpy()
        distances.append(chamfer(found.joints, joints))
        agreement.append(topology_f1(found.joints, found.parents, joints, parents))
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    return {"cd_j2j": float(np.median(distances)), "topology_f1": float(np.median(agreement)), **means}


def main(command: list[str] | None = None) -> None:
    parser = loop.arguments(__doc__.splitlines()[0], batch=32, rate=1.2e-3)
    parser.add_argument("--dropout", type=float, default=0.0, help="of what each block adds; for long runs 0.1")
    options = parser.parse_args(command)
    place = loop.settle(options)
    source = loop.Source(options, place)
    network = SkeletonNetwork(SkeletonConfig(dropout=options.dropout)).to(place.device)

    def step() -> dict:
        batches = [in_order(batch) for batch in source.draw(options.batch, options.points)]
        pieces = in_pieces(batches, loop.piece_size(options, place))
        return loop.add_gradients(pieces, options.batch, place, lambda piece: losses(network, piece), WEIGHTS)

    loop.train(options, place, source, network, step, lambda model: validate(model, source.held_out, options.points))


if __name__ == "__main__":
    try:
        main()
    except SprigError as problem:
        sys.exit(str(problem))
