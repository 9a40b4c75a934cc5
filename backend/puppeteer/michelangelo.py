"""The shape encoder of the released Puppeteer networks: Michelangelo's "shapevae-256" (Zhao et al. 2023).

Both networks carry a copy under `point_encoder`. Attribute names are those of the released files, so that a state dict
loads key for key; this is also why the volume decoder and the image projection, which rigging never uses, are built.
Queries, keys and values are interleaved per head: the output of one projection is first split into heads and then into
q, k, v.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXTENT = 0.9995  # the released networks saw points scaled such that the largest coordinate is this


@dataclass(frozen=True)
class MichelangeloConfig:
    """Sizes of the encoder; the defaults are the released ones."""

    width: int = 768
    heads: int = 12
    latents: int = 256  # beside them there is one global token
    bottleneck: int = 64  # width of the variational bottleneck
    encoder_layers: int = 8
    decoder_layers: int = 16
    frequencies: int = 8  # 1, 2, 4, ..., without pi

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} is no multiple of {self.heads} heads")


def to_encoder_frame(points: Tensor) -> Tensor:
    """Points (B,N,6) of the networks' frame, longest side 1, as the encoder wants them: longest side 2 * EXTENT."""
    return torch.cat([points[..., :3] * (2 * EXTENT), points[..., 3:]], dim=-1)


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """x (...,3) -> (..., 3 (2 frequencies + 1)): x, all sines, all cosines; coordinate first, then frequency."""
    octaves = 2.0 ** torch.arange(frequencies, dtype=x.dtype, device=x.device)
    angles = (x[..., None] * octaves).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tensors (B,L,heads,channels), result (B,L,heads * channels)."""
    mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        queries, keys, values = self.c_qkv(x).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        return self.c_proj(attend(queries, keys, values))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width, bias=False)
        self.c_kv = nn.Linear(width, 2 * width, bias=False)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x, data):
        queries = self.c_q(x).unflatten(-1, (self.heads, -1))
        keys, values = self.c_kv(data).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        return self.c_proj(attend(queries, keys, values))


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class SelfAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CrossAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)
        self.ln_3 = nn.LayerNorm(width)

    def forward(self, x, data):
        x = x + self.attn(self.ln_1(x), self.ln_2(data))
        return x + self.mlp(self.ln_3(x))


class Transformer(nn.Module):
    """Self-attention blocks one after the other."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(SelfAttentionBlock(width, heads) for _ in range(layers))

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class PointEncoder(nn.Module):
    """Learned queries look at the points, then at each other."""

    def __init__(self, config: MichelangeloConfig):
        super().__init__()
        width, heads = config.width, config.heads
        self.frequencies = config.frequencies
        self.query = nn.Parameter(0.02 * torch.randn(config.latents + 1, width))
        self.input_proj = nn.Linear(3 * (2 * config.frequencies + 1) + 3, width)
        self.cross_attn = CrossAttentionBlock(width, heads)
        self.self_attn = Transformer(width, heads, config.encoder_layers)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, points):
        features = torch.cat([fourier_features(points[..., :3], self.frequencies), points[..., 3:]], dim=-1)
        queries = self.query.expand(len(points), -1, -1)
        return self.ln_post(self.self_attn(self.cross_attn(queries, self.input_proj(features))))


class VolumeDecoder(nn.Module):
    """In the released files but not used for rigging: parameters only."""

    def __init__(self, config: MichelangeloConfig):
        super().__init__()
        self.query_proj = nn.Linear(3 * (2 * config.frequencies + 1), config.width)
        self.cross_attn_decoder = CrossAttentionBlock(config.width, config.heads)
        self.ln_post = nn.LayerNorm(config.width)
        self.output_proj = nn.Linear(config.width, 1)


class ShapeModel(nn.Module):
    def __init__(self, config: MichelangeloConfig):
        super().__init__()
        self.encoder = PointEncoder(config)
        self.pre_kl = nn.Linear(config.width, 2 * config.bottleneck)
        self.post_kl = nn.Linear(config.bottleneck, config.width)
        self.transformer = Transformer(config.width, config.heads, config.decoder_layers)
        self.geo_decoder = VolumeDecoder(config)


class Michelangelo(nn.Module):
    """Point clouds to one global token and a set of shape latents."""

    def __init__(self, config: MichelangeloConfig):
        super().__init__()
        self.model = nn.Module()  # the released names have this level
        self.model.shape_projection = nn.Parameter(torch.zeros(config.width, config.width))  # unused, in the file
        self.model.shape_model = ShapeModel(config)

    def encode(self, points: Tensor) -> Tensor:
        """Points (B,N,6), coordinates within +-EXTENT, unit normals -> (B, 1 + latents, width), global token first."""
        return self.model.shape_model.encoder(points)

    def decode(self, tokens: Tensor) -> Tensor:
        """Encoder output (B, 1 + latents, width) -> the same with the latents passed through bottleneck and decoder.

        The bottleneck's mean is taken, never a sample; the global token stays as it is.
        """
        shape = self.model.shape_model
        mean = shape.pre_kl(tokens[:, 1:]).chunk(2, dim=-1)[0]
        return torch.cat([tokens[:, :1], shape.transformer(shape.post_kl(mean))], dim=1)
