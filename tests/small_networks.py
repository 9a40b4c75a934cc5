"""A small skeleton decoder and a small skinning network on disk, untrained: for tests of what is around them."""

from pathlib import Path

import torch

from sprig.backend.checkpoint import save_checkpoint
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skinning.network import SkinningConfig, SkinningNetwork


def small_networks(folder: Path) -> dict[str, str]:
    """Write both into a folder; the options of RigOptions that name them. The skeleton has at most 12 joints."""
    torch.manual_seed(0)
    skeleton = SkeletonNetwork(
        SkeletonConfig(width=32, heads=2, seeds=32, neighbours=8, encoder_blocks=1, decoder_blocks=1, most_joints=12)
    )
    skinning = SkinningNetwork(SkinningConfig(width=24, blocks=1, support=256))
    for kind, network in (("skeleton", skeleton), ("skinning", skinning)):
        save_checkpoint(folder / f"{kind}.safetensors", network, {"command": "made by a test"})
    return {f"checkpoint_{kind}": str(folder / f"{kind}.safetensors") for kind in ("skeleton", "skinning")}
