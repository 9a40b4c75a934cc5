"""Our networks on the inputs of a parity file: every output that the original's own code wrote there.

A parity file is an `.npz` of inputs, expected outputs and `cfg`, a JSON text in the words of the original's settings.
Nothing but the inputs and `cfg` is read to compute the outputs, so the comparison cannot flatter itself.
"""

from __future__ import annotations

import json
import zipfile

import numpy as np
import torch

from ..errors import SprigError
from .load import load_skeleton, load_skinning
from .michelangelo import MichelangeloConfig
from .partfield import PartFieldConfig, sample_planes
from .repair import bones_from_bins
from .skeleton import SkeletonConfig
from .skinning import FARTHEST_HOPS, SkinningConfig, Streams

SKELETON_INPUTS = ("pc_normal", "forced_ids", "detok_in")
SKINNING_INPUTS = ("sample_points", "pc_w_norm", "skeleton", "dist_graph", "valid_mask")


def outputs(weights, tensors) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What our network computes, and the arrays of the parity file `tensors`; `weights` is a .pth file."""
    try:
        with open(tensors, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            given = {name: file[name] for name in file.files}
        cfg = json.loads(str(given["cfg"]))
        skeleton = "opt" in cfg
        config = skeleton_config(cfg) if skeleton else skinning_config(cfg)
        inputs = [torch.from_numpy(given[name]) for name in (SKELETON_INPUTS if skeleton else SKINNING_INPUTS)]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise SprigError(
            f"{tensors} cannot be read as a parity file ({error}); it needs the settings and the inputs."
        ) from error
    with torch.no_grad():
        if skeleton:
            computed = skeleton_outputs(load_skeleton(weights, config), *inputs)
        else:
            computed = skinning_outputs(load_skinning(weights, config), *inputs)
    return {name: tensor.numpy() for name, tensor in computed.items()}, given


def errors(computed: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute difference of every array both hold; infinite where shapes differ or a value is not finite."""
    found = {}
    for name in sorted(computed.keys() & expected.keys()):
        ours, theirs = computed[name], expected[name]
        difference = np.inf
        if ours.shape == theirs.shape:
            difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
        found[name] = difference if np.isfinite(difference) else np.inf
    return found


def skeleton_outputs(model, pc_normal, forced_ids, detok_in) -> dict[str, torch.Tensor]:
    """pc_normal (1,N,6) as the encoder takes it, forced_ids (T,), detok_in (1,n) bins with -1 for padding."""
    tokens = model.point_encoder.encode(pc_normal)
    condition = model.prefix(tokens)
    bones = [bones_from_bins(row, model.config.tokens_per_slot) for row in detok_in.numpy()]
    return {
        "point_feature": tokens,
        "cond": condition,
        "logits": model.logits(condition, forced_ids[None])[0],
        "greedy_ids": model.greedy(condition),
        "detok_bones": torch.from_numpy(np.stack(bones)),
    }


def skinning_outputs(model, sample_points, pc_w_norm, skeleton, dist_graph, valid_mask) -> dict[str, torch.Tensor]:
    """sample_points (1,N,6) in [-0.5, 0.5], pc_w_norm (1,M,6) within +-0.9995, skeleton (1,J,6), hops (1,J,J)."""
    shape = model.shape_tokens(pc_w_norm)
    positions = sample_points[..., :3]
    before, after = model.point_embed.planes(positions)
    features = sample_planes(after, 2 * positions)
    projected, embedded = model.proj(features), model.point_embed_pe(sample_points)
    hops = dist_graph.clamp(0, FARTHEST_HOPS).long()
    states = model.attend(Streams(projected + embedded, shape), skeleton, hops, valid_mask)
    found = {
        "shape_feature": shape,
        "pvcnn_triplane": before,
        "triplane_out": after,
        "partfield_feat": features,
        "proj": projected,
        "pe_points": embedded,
        "pe_joints": model.skeleton_condition(skeleton),
    }
    for i, (points, joints) in enumerate(states):
        found |= {f"block{i}_point": points, f"block{i}_joint": joints}
    return found | {"weights": model.weights_with_padding(*states[-1])}


# ---- the original's settings


def skeleton_config(cfg: dict) -> SkeletonConfig:
    """Our config from the original's words; KeyError where one is missing, ValueError where we have no such network."""
    per_slot = cfg["bone_per_token"]
    slots, rest = divmod(cfg["max_length"] - cfg["cond_length"] - 2, per_slot)
    opt = cfg["opt"]
    if per_slot != (4 if cfg["joint_token"] else 6) or rest or opt["do_layer_norm_before"]:
        raise ValueError("settings that no released Puppeteer skeleton network has")
    return SkeletonConfig(
        width=opt["hidden_size"],
        heads=opt["num_attention_heads"],
        layers=opt["num_hidden_layers"],
        feed_forward=opt["ffn_dim"],
        tokens_per_slot=per_slot,
        slots=slots,
        target_table=cfg["seq_shuffle"],
        encoder=michelangelo_config(cfg["michelangelo"]),
    )


def skinning_config(cfg: dict) -> SkinningConfig:
    """As `skeleton_config`, for the skinning network."""
    if cfg["dim"] != cfg["michelangelo"]["width"]:
        raise ValueError("settings that no released Puppeteer skinning network has")
    return SkinningConfig(
        heads=cfg["heads"],
        head_width=cfg["dim_head"],
        feed_forward=cfg["ff_mult"],
        depth=cfg["depth"],
        encoder=michelangelo_config(cfg["michelangelo"]),
        partfield=partfield_config(cfg["partfield"]),
    )


def michelangelo_config(cfg: dict) -> MichelangeloConfig:
    """The encoder's part of the settings."""
    if cfg["include_pi"] or cfg["qkv_bias"] or cfg["point_feats"] != 3:
        raise ValueError("settings that no released Puppeteer encoder has")
    return MichelangeloConfig(
        width=cfg["width"],
        heads=cfg["heads"],
        latents=cfg["num_latents"],
        bottleneck=cfg["embed_dim"],
        encoder_layers=cfg["num_encoder_layers"],
        decoder_layers=cfg["num_decoder_layers"],
        frequencies=cfg["num_freqs"],
    )


def partfield_config(cfg: dict) -> PartFieldConfig:
    """PartField's part of the settings; blocks are [channels, repetitions, voxels along an edge]."""
    blocks = cfg["pvcnn"]["blocks"]
    return PartFieldConfig(
        point_channels=tuple(channels for channels, times, _voxels in blocks for _ in range(times)),
        voxels=blocks[0][2],
        plane_channels=cfg["pvcnn"]["z_triplane_channels"],
        resolution=cfg["triplane_resolution"],
        unet_width=cfg["unet"]["start_hidden_channels"],
        unet_levels=cfg["unet"]["depth"],
        transformer_width=cfg["transformer_dim"],
        transformer_heads=cfg["heads"],
        transformer_layers=cfg["layers"],
        sdf_channels=cfg["sdf_channels"],
        part_channels=cfg["part_channels"],
    )
