"""PartField's point features (Liu et al. 2025) as they sit, frozen, in the released Puppeteer skinning files.

Points -> one point-voxel block (PVCNN) -> scatter to three planes -> a U-Net on the planes -> a transformer on the
planes -> features read back at the points. Planes are xy, yz, xz; in each the first axis runs along the columns and the
second along the rows. Attribute names are those of the released files, so that a state dict loads key for key.

Peculiarities of the original that its weights depend on: the voxel grid is read with its axes in reverse; the U-Net's
3x3 convolutions run on the three planes stacked into one image and so bleed across their borders; point-voxel blocks
after the first, the SDF decoder and `logit_scale` are in the files and never used.

The features depend on the points alone: keep them for a frame rather than computing them again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLANE_AXES = ((0, 1), (1, 2), (0, 2))  # (column, row) of each plane: xy, yz, xz
POINT_CHANNELS = 8  # position, twice the position, and two the released network always saw as zero
MOST_VOXELS = 64  # along an edge of the grid: 270 MB at the released width
PLANE_MARGIN = 1e-5  # keeps a coordinate of 0.5 inside its plane


@dataclass(frozen=True)
class PartFieldConfig:
    """Sizes of the point-feature network; the defaults are the released ones."""

    point_channels: tuple[int, ...] = (256, 128, 128, 256)  # of the point-voxel blocks, only the first is used
    voxels: int = 32  # along an edge of the first block's grid
    plane_channels: int = 256
    resolution: int = 128  # of the planes; the transformer works at a quarter of it
    unet_width: int = 32  # at full resolution, doubled at each level
    unet_levels: int = 3
    transformer_width: int = 1024
    transformer_heads: int = 8
    transformer_layers: int = 6
    sdf_channels: int = 64  # of the planes' output, unused here
    part_channels: int = 448  # the features

    def __post_init__(self):
        # What no shape of a weight shows, a file could claim at will.
        if self.transformer_width % self.transformer_heads or self.resolution % 4:
            raise ValueError(
                f"{self.transformer_heads} heads for a width of {self.transformer_width}, or planes of "
                f"{self.resolution}, no multiple of 4"
            )
        if self.voxels > MOST_VOXELS or self.resolution % 2 ** (self.unet_levels - 1):
            raise ValueError(f"{self.voxels} voxels, or {self.unet_levels} levels for planes of {self.resolution}")


# ---- points and voxels


class PointVoxelBlock(nn.Module):
    """Convolutions on voxel averages, read back at the points, plus a map of each point by itself."""

    def __init__(self, inputs: int, outputs: int, voxels: int):
        super().__init__()
        self.voxels = voxels
        self.voxel_layers = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, eps=1e-4),
            nn.LeakyReLU(0.1),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, eps=1e-4),
            nn.LeakyReLU(0.1),
        )
        self.point_features = nn.Module()
        self.point_features.layers = nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.InstanceNorm1d(outputs), nn.ReLU())

    def forward(self, features, points):
        """features (B,C,N), points (B,N,3) in [-1,1] -> (B,outputs,N)."""
        size = self.voxels
        grid = ((points + 1) / 2 * size).clamp(0, size - 1)
        x, y, z = grid.round().long().unbind(-1)
        voxels = scatter_mean(features, (x * size + y) * size + z, size**3)
        voxels = self.voxel_layers(voxels.unflatten(-1, (size, size, size)))
        # The grid is stored x, y, z and the original reads it z, y, x; its weights were trained that way.
        return read_grid(voxels, grid.flip(-1)) + self.point_features.layers(features)


def scatter_mean(features: Tensor, cells: Tensor, count: int) -> Tensor:
    """Mean of features (B,C,N) over the points in each of `count` cells, cells (B,N) long: (B,C,count), 0 if empty."""
    sums = features.new_zeros(*features.shape[:2], count)
    sums = sums.scatter_add(2, cells[:, None].expand_as(features), features)
    points = features.new_zeros(len(features), count)
    points = points.scatter_add(1, cells, torch.ones_like(cells, dtype=features.dtype))
    return sums / points.clamp_min(1)[:, None]


def read_grid(grid: Tensor, places: Tensor) -> Tensor:
    """Multilinear values of grid (B,C,*sizes) at places (B,N,axes), in cells along each axis: (B,C,N).

    Places outside read the border. Written out because grid_sample lacks this border on MPS.
    """
    sizes = grid.shape[2:]
    values = grid.flatten(2)
    read = 0.0
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        cell, share = 0, 1.0
        for axis, (upper, size) in enumerate(zip(corner, sizes, strict=True)):
            place = places[..., axis].clamp(0, size - 1)
            lower = place.floor()
            share = share * (place - lower if upper else 1 - place + lower)
            cell = cell * size + (lower.long() + upper).clamp_max(size - 1)
        read = read + values.gather(2, cell[:, None].expand(-1, values.shape[1], -1)) * share[:, None]
    return read


# ---- the U-Net on three planes


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels, 32), channels, eps=1e-6)


class CrossPlaneConvolution(nn.Module):
    """A 1x1 convolution for each plane over its own features and those of the two others along the shared axes.

    With xz transposed the planes are cyclic: the columns of each are the rows of the next (as Rodin, Wang et al. 2023).
    The next plane averaged over its columns varies along our columns, the one before averaged over its rows along our
    rows.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.plane_convs = nn.ModuleList(nn.Conv2d(3 * channels, channels, 1) for _plane in range(3))

    def forward(self, stacked):
        xy, yz, xz = stacked.chunk(3, dim=2)
        planes = [xy, yz, xz.transpose(2, 3)]
        mixed = []
        for i, convolution in enumerate(self.plane_convs):
            plane, after, before = planes[i], planes[(i + 1) % 3], planes[(i + 2) % 3]
            along_columns = after.mean(3)[:, :, None, :].expand_as(plane)
            along_rows = before.mean(2)[:, :, :, None].expand_as(plane)
            mixed.append(convolution(torch.cat([plane, along_columns, along_rows], dim=1)))
        mixed[2] = mixed[2].transpose(2, 3)
        return torch.cat(mixed, dim=2)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_mid = group_norm(outputs)
        self.conv_3daware = CrossPlaneConvolution(outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv_3daware(F.silu(self.norm_mid(h)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class DownLevel(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block = ResidualBlock(inputs, outputs)


class UpLevel(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.block = ResidualBlock(inputs, outputs)


class PlaneUNet(nn.Module):
    """U-Net on the three planes stacked vertically, (B,C,3R,R) -> (B,outputs,3R,R)."""

    def __init__(self, inputs: int, width: int, levels: int, outputs: int):
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        self.down_convs = nn.ModuleList(map(DownLevel, [inputs, *widths[:-1]], widths))
        self.up_convs = nn.ModuleList(
            UpLevel(widths[i] + widths[i + 1], widths[i]) for i in reversed(range(levels - 1))
        )
        self.norm_out = group_norm(width)
        self.conv_final = nn.Conv2d(width, outputs, 1)

    def forward(self, x):
        skips = []
        for level in self.down_convs:
            x = level.block(F.avg_pool2d(skips[-1], 2) if skips else x)
            skips.append(x)
        skips.pop()
        for level in self.up_convs:
            x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1)
            x = level.block(level.norm1(x))
        return self.conv_final(F.silu(self.norm_out(x)))


class PointsToPlanes(nn.Module):
    """Points to three planes of features: the point-voxel block, the scatter, the U-Net."""

    def __init__(self, config: PartFieldConfig):
        super().__init__()
        self.resolution = config.resolution
        channels = config.point_channels
        self.pc_encoder = nn.Module()
        self.pc_encoder.encoder = nn.ModuleList(
            PointVoxelBlock(inputs, outputs, config.voxels)
            for inputs, outputs in zip((POINT_CHANNELS, *channels[:-1]), channels, strict=True)
        )
        self.unet_encoder = PlaneUNet(channels[0], config.unet_width, config.unet_levels, config.plane_channels)

    def forward(self, points):
        """points (B,N,3) in [-1,1] -> (B,3,plane_channels,R,R)."""
        size = self.resolution
        features = torch.cat([points, 2 * points, torch.zeros_like(points[..., :2])], dim=-1).transpose(1, 2)
        features = self.pc_encoder.encoder[0](features, points)
        cells = ((points / 2 / (1 + PLANE_MARGIN) + 0.5) * size).floor().long().clamp(0, size - 1)
        planes = [
            scatter_mean(features, cells[..., row] * size + cells[..., column], size**2).unflatten(-1, (size, size))
            for column, row in PLANE_AXES
        ]
        stacked = self.unet_encoder(torch.cat(planes, dim=2))
        return stacked.unflatten(2, (3, size)).transpose(1, 2)


# ---- the transformer on the planes


class PlaneAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in F.linear(x, self.in_proj_weight).chunk(3, -1)
        )
        return self.out_proj(F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))


class PlaneLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attn = PlaneAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        # Dropout, off in a frozen network, holds the place it has in the released names.
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width), nn.Dropout(0.0)
        )

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlaneTransformer(nn.Module):
    """Planes (B,3,C,R,R) -> (B,3,sdf + part channels,R,R): a transformer at R/4 plus a map of each pixel."""

    def __init__(self, config: PartFieldConfig):
        super().__init__()
        width, outputs = config.transformer_width, config.sdf_channels + config.part_channels
        low = config.resolution // 4
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 3 * low * low, width))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            PlaneLayer(width, config.transformer_heads) for _ in range(config.transformer_layers)
        )
        self.transformer.norm = nn.LayerNorm(width, eps=1e-6)
        self.downsampler = nn.Sequential(
            nn.Conv2d(config.plane_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.upsampler = nn.ConvTranspose2d(width, outputs, 4, stride=4)
        self.mlp = nn.Sequential(nn.Linear(config.plane_channels, outputs), nn.ReLU(), nn.Linear(outputs, outputs))

    def forward(self, planes):
        batch = len(planes)
        low = self.downsampler(planes.flatten(0, 1))  # (3B,width,R/4,R/4)
        size = low.shape[-1]
        tokens = low.unflatten(0, (batch, 3)).permute(0, 1, 3, 4, 2).flatten(1, 3) + self.pos_embed
        for layer in self.transformer.layers:
            tokens = layer(tokens)
        tokens = self.transformer.norm(tokens).unflatten(1, (3, size, size))
        up = self.upsampler(tokens.permute(0, 1, 4, 2, 3).flatten(0, 1)).unflatten(0, (batch, 3))
        return up + self.mlp(planes.movedim(2, -1)).movedim(-1, 2)


# ---- the whole


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Sum over the planes (B,3,C,R,R) of their features at points (B,N,3) in [-1,1], bilinear: (B,N,C)."""
    places = (points + 1) / 2 * (planes.shape[-1] - 1)
    features = [read_grid(planes[:, i], places[..., [row, column]]) for i, (column, row) in enumerate(PLANE_AXES)]
    return sum(features).transpose(1, 2)


class PartField(nn.Module):
    """Part features of points. `planes` is the slow half and depends on the shape alone."""

    def __init__(self, config: PartFieldConfig):
        super().__init__()
        self.part_channels = config.part_channels
        self.model = nn.Module()  # the released names have this level
        self.model.logit_scale = nn.Parameter(torch.zeros(1))
        self.model.triplane_transformer = PlaneTransformer(config)
        self.model.sdf_decoder = nn.Module()
        self.model.sdf_decoder.layers = _sdf_layers(config.sdf_channels)
        self.model.pvcnn = PointsToPlanes(config)

    def planes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B,N,3) in [-0.5, 0.5] -> planes before (B,3,C,R,R), after (B,3,part_channels,R,R) the transformer."""
        planes = self.model.pvcnn(2 * points)
        return planes, self.model.triplane_transformer(planes)[:, :, -self.part_channels :]

    def forward(self, points: Tensor) -> Tensor:
        """Points (B,N,3) in [-0.5, 0.5] -> features (B,N,part_channels)."""
        return sample_planes(self.planes(points)[1], 2 * points)


def _sdf_layers(channels: int) -> nn.Sequential:
    """In the released files but not used for rigging: parameters only."""
    layers = [module for _layer in range(6) for module in (nn.Linear(channels, channels, bias=False), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(channels, 1, bias=False))
