"""Train the skinning network on rigged characters, with the artists' skeletons given.

    python -m sprig.training.pretrain_skinning RUN --bank FOLDER --minutes 300
    torchrun --nproc-per-node 8 -m sprig.training.pretrain_skinning RUN --bank FOLDER

Loss, per surface point: the Kullback-Leibler divergence of the weights from the artist's, and the sum of their absolute
differences, which is how weights are scored. Joints are jittered a little, because in use they are a network's.

RUN gets state.pt (to resume), skinning.safetensors (the average of the weights), log.jsonl and curves.png.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from ..backend.device import load_torch

torch = load_torch()  # before torch comes in by another way: its threads wait as we like it

from ..backend.errors import SprigError  # noqa: E402
from ..backend.metrics import sharpened, skin_scores  # noqa: E402
from ..backend.skinning.network import SkinningNetwork  # noqa: E402
from . import loop  # noqa: E402
from .augment import OFF, Batch, Store, draw, in_pieces  # noqa: E402

WEIGHTS = {"divergence": 0.7, "l1": 0.7}  # of the losses
WEIGHED = 128  # points of a character that the loss is about; all of them are seen
JITTER = 0.025  # unit cube: largest standard deviation of joints, drawn per character
LEAST = 1e-6  # a weight below this counts as this in the divergence


def losses(network: SkinningNetwork, batch: Batch) -> dict:
    """{name: (sum, number of terms)} over the first WEIGHED points of every character."""
    strength = JITTER * torch.rand(len(batch.joints), 1, 1, device=batch.joints.device)
    joints = batch.joints + strength * torch.randn_like(batch.joints)
    encoded = network.encode(batch.points, joints, batch.parents, batch.valid)
    weights = network.weights(batch.points[:, :WEIGHED], batch.heat[:, :WEIGHED], encoded)
    truth = batch.weights[:, :WEIGHED]
    count = truth.shape[0] * truth.shape[1]
    divergence = truth * (truth.clamp_min(LEAST).log() - weights.clamp_min(LEAST).log())
    return {"divergence": (divergence.sum(), count), "l1": ((weights - truth).abs().sum(), count)}


@torch.no_grad()
def validate(network: SkinningNetwork, held_out: list[Store], points: int) -> dict:
    """Weights of surface points of the validation characters, each in one pose of its own: the median of their L1."""
    errors = []
    for store in held_out:
        generator = torch.Generator(store.device).manual_seed(0)
        batch = draw(store, 1, generator, points, replace(OFF, clip=1.0))
        weights = network(batch.points, batch.joints, batch.parents, batch.valid, batch.heat)[0].cpu().numpy()
        errors.append(skin_scores(sharpened(weights), batch.weights[0].cpu().numpy()).l1)
    return {"skin_l1": float(np.median(errors)), "skin_l1_mean": float(np.mean(errors))}


def main(command: list[str] | None = None) -> None:
    options = loop.arguments(__doc__.splitlines()[0], batch=16, rate=2e-3).parse_args(command)
    place = loop.settle(options)
    source = loop.Source(options, place, heat=True)
    network = SkinningNetwork().to(place.device)

    def step() -> dict:
        pieces = in_pieces(source.draw(options.batch, options.points), loop.piece_size(options, place))
        return loop.add_gradients(pieces, options.batch, place, lambda piece: losses(network, piece), WEIGHTS)

    loop.train(options, place, source, network, step, lambda model: validate(model, source.held_out, options.points))


if __name__ == "__main__":
    try:
        main()
    except SprigError as problem:
        sys.exit(str(problem))
