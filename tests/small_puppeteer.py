"""Puppeteer's two networks in small, with random weights that are spread enough that a missing term shows."""

from dataclasses import replace

import torch

from sprig.backend.puppeteer import skeleton, skinning
from sprig.backend.puppeteer.michelangelo import MichelangeloConfig
from sprig.backend.puppeteer.partfield import PartFieldConfig

ENCODER = MichelangeloConfig(
    width=24, heads=3, latents=5, bottleneck=4, encoder_layers=1, decoder_layers=2, frequencies=3
)
SKELETON = skeleton.SkeletonConfig(width=32, heads=2, layers=2, feed_forward=24, slots=12, encoder=ENCODER)
SKINNING = skinning.SkinningConfig(
    heads=2,
    head_width=4,
    feed_forward=2,
    depth=2,
    encoder=ENCODER,
    partfield=PartFieldConfig(
        point_channels=(8, 4, 4, 8),
        voxels=4,
        plane_channels=8,
        resolution=8,
        unet_width=4,
        unet_levels=2,
        transformer_width=16,
        transformer_heads=2,
        transformer_layers=1,
        sdf_channels=4,
        part_channels=6,
    ),
)


def small_puppeteer(kind: str, seed: int = 0, **changes):
    """The "skeleton" network, of at most 12 joints, or the "skinning" network; `changes` of its config."""
    if kind == "skeleton":
        return network(skeleton.PuppeteerSkeleton, replace(SKELETON, **changes), seed)
    return network(skinning.PuppeteerSkinning, replace(SKINNING, **changes), seed)


def network(network_class, config, seed: int = 0):
    """A network whose weights are spread enough that a missing term shows."""
    torch.manual_seed(seed)
    made = network_class(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 if "embed" in name else 2 / parameter[0].numel() ** 0.5)
    return made.eval()
