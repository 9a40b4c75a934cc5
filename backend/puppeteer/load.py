"""Released Puppeteer files (`.pth`) to networks: strictly, every name and shape, and never by plain pickle.

A file is {"model": state dict} and may carry the training arguments beside it. Sizes are read off the shapes; the few
that shapes do not show (attention heads, the voxel grid) are the released ones unless a config is given. Everything
that can be wrong with a file is a SprigError.
"""

from __future__ import annotations

import argparse
import os
import re

import torch
from torch import Tensor, nn

from ..errors import SprigError
from ..skeleton.tokens import BINS, FIRST_BIN
from .michelangelo import MichelangeloConfig
from .partfield import PartFieldConfig
from .skeleton import PuppeteerSkeleton, SkeletonConfig
from .skinning import PuppeteerSkinning, SkinningConfig

HEAD_WIDTH = 64  # of every released transformer but PartField's
PARTFIELD_HEAD_WIDTH = 128
DECODER = "transformer.model.decoder."
SHAPE = "point_encoder.model.shape_model."
PARTS = "point_embed.model."


def load_skeleton(path: str | os.PathLike, config: SkeletonConfig | None = None) -> PuppeteerSkeleton:
    """A released skeleton file as a network in eval mode on the CPU, float32; without a config its shapes give one."""
    state = read_state(path)
    return _load(path, state, PuppeteerSkeleton, config, skeleton_config, f"{DECODER}embed_tokens.weight", "skeleton")


def load_skinning(path: str | os.PathLike, config: SkinningConfig | None = None) -> PuppeteerSkinning:
    """A released skinning file as a network in eval mode on the CPU, float32; without a config its shapes give one.

    Show `skinning.NON_COMMERCIAL` to whoever uses it.
    """
    state = read_state(path)
    return _load(path, state, PuppeteerSkinning, config, skinning_config, "blocks.0.rel_pos_scale", "skinning")


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a `.pth` file by name, on the CPU and as they are stored."""
    if not os.path.isfile(path):
        raise SprigError(f"{path} is not there; give the path of a Puppeteer .pth file.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training arguments: plain data, dropped below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can fail in any way, none of which runs its code
        raise SprigError(
            f"{path} cannot be read as network weights; download it again or choose another file."
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise SprigError(f'{path} has no table of weights called "model"; give a released Puppeteer .pth file.')
    for name, tensor in state.items():
        # A tensor that is larger than its storage would swell when it is copied.
        stored = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not stored or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise SprigError(f"{path} holds something else than plain weights under {name!r}; choose another file.")
    return dict(state)


def _load(path, state, network, config, infer, landmark, kind):
    if landmark not in state:
        raise SprigError(f"{path} is not a Puppeteer {kind} file; choose the one for the {kind}.")
    try:
        config = infer(state) if config is None else config
        with torch.device("meta"):
            model = network(config)
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise SprigError(f"{path} has shapes no Puppeteer {kind} network has; download it again.") from error
    assign_state(model, state, str(path))
    return model


def assign_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give a model built on the meta device these weights as float32, every name and shape compared; eval mode."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unknown = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    wrong = {name for name in wanted.keys() & state.keys() if tuple(state[name].shape) != wanted[name]}
    for names, complaint in ((missing, "lacks"), (unknown, "has unknown"), (wrong, "has the wrong shape for")):
        if names:
            raise SprigError(
                f"{source} does not fit this Puppeteer network, it {complaint} {len(names)} of its tensors, "
                f"{min(names)!r} for one; choose a file of the same kind."
            )
    state = {name: tensor.float().contiguous() for name, tensor in state.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise SprigError(f"{source} holds weights that are not finite numbers; download it again.")
    model.load_state_dict(state, strict=True, assign=True)
    if isinstance(model, PuppeteerSkeleton):
        model.tie()
    model.eval()


# ---- sizes from shapes


def skeleton_config(state: dict[str, Tensor]) -> SkeletonConfig:
    """The config of a skeleton state dict; raises LookupError or ValueError where the shapes make no sense."""
    vocabulary, width = state[f"{DECODER}embed_tokens.weight"].shape
    if vocabulary != FIRST_BIN + BINS:
        raise ValueError(f"vocabulary of {vocabulary}")
    encoder = _michelangelo_config(state)
    per_slot = len(state[f"{DECODER}token_embed_positions.weight"]) - FIRST_BIN
    # rows: prefix, slots, BOS and EOS, and OPT's offset of two
    slots, rest = divmod(len(state[f"{DECODER}embed_positions.weight"]) - (encoder.latents + 1) - 4, per_slot)
    if per_slot not in (4, 6) or rest or slots < 1:
        raise ValueError(f"{per_slot} tokens for each of {slots} slots, {rest} over")
    return SkeletonConfig(
        width=width,
        heads=_heads(width, HEAD_WIDTH),
        layers=_count(state, f"{DECODER}layers."),
        feed_forward=len(state[f"{DECODER}layers.0.fc1.weight"]),
        tokens_per_slot=per_slot,
        slots=slots,
        target_table="target_aware_pos_embed" in state,
        encoder=encoder,
    )


def skinning_config(state: dict[str, Tensor]) -> SkinningConfig:
    """The config of a skinning state dict; raises LookupError or ValueError where the shapes make no sense."""
    inner, width = state["blocks.0.self_attn_j.fn.to_q.weight"].shape  # width is the encoder's, or nothing fits
    heads = len(state["blocks.0.rel_pos_proj.weight"])
    return SkinningConfig(
        heads=heads,
        head_width=inner // heads,
        feed_forward=state["blocks.0.ff_j.fn.net.2.weight"].shape[1] // width,
        depth=_count(state, "blocks."),
        encoder=_michelangelo_config(state),
        partfield=_partfield_config(state),
    )


def _michelangelo_config(state):
    tokens, width = state[f"{SHAPE}encoder.query"].shape
    return MichelangeloConfig(
        width=width,
        heads=_heads(width, HEAD_WIDTH),
        latents=tokens - 1,
        bottleneck=state[f"{SHAPE}post_kl.weight"].shape[1],
        encoder_layers=_count(state, f"{SHAPE}encoder.self_attn.resblocks."),
        decoder_layers=_count(state, f"{SHAPE}transformer.resblocks."),
        frequencies=(state[f"{SHAPE}encoder.input_proj.weight"].shape[1] - 6) // 6,
    )


def _partfield_config(state):
    blocks = f"{PARTS}pvcnn.pc_encoder.encoder."
    unet, planes = f"{PARTS}pvcnn.unet_encoder.", f"{PARTS}triplane_transformer."
    _one, tokens, width = state[f"{planes}pos_embed"].shape
    low = round((tokens / 3) ** 0.5)
    sdf = len(state[f"{PARTS}sdf_decoder.layers.0.weight"])
    return PartFieldConfig(
        point_channels=tuple(len(state[f"{blocks}{i}.voxel_layers.0.weight"]) for i in range(_count(state, blocks))),
        plane_channels=len(state[f"{unet}conv_final.weight"]),
        resolution=4 * low,
        unet_width=len(state[f"{unet}norm_out.weight"]),
        unet_levels=_count(state, f"{unet}down_convs."),
        transformer_width=width,
        transformer_heads=_heads(width, PARTFIELD_HEAD_WIDTH),
        transformer_layers=_count(state, f"{planes}transformer.layers."),
        sdf_channels=sdf,
        part_channels=len(state[f"{planes}mlp.2.weight"]) - sdf,
    )


def _heads(width: int, head_width: int) -> int:
    heads, rest = divmod(width, head_width)
    if rest or heads < 1:
        raise ValueError(f"width of {width}")
    return heads


def _count(state, prefix: str) -> int:
    """How many numbered parts follow `prefix` in the names."""
    return len({found[1] for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))})
