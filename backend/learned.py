"""A rig from the networks alone (SPRig 4 and 5): skeleton and skin weights of one shape.

    surface points in the unit cube -> skeleton decoder -> skinning network -> weights of the points -> of all vertices

Of several candidate skeletons the likeliest is taken; choosing by the motion is not the networks' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .device import load_torch
from .errors import SprigError, no_progress
from .points import UnitCube, sample_surface
from .surface import edges, islands, vertex_normals

SHIPPED = Path(__file__).resolve().parents[1] / "weights"  # skeleton.safetensors, skinning.safetensors
SKELETON_POINTS = 8192  # surface points that the skeleton decoder sees
SKINNING_POINTS = 8192  # surface points that get weights from the network; vertices take theirs from these
PICKLES = (".pth", ".pt", ".ckpt")  # suffixes of Puppeteer's released files


@dataclass(frozen=True, eq=False)
class NetworkRig:
    """joints (J,3) float64 in the units of the shape, parents (J,), parents first; weights (N,J) float32, rows on the
    simplex; confidence (J,) in [0, 1]; warnings are sentences for the user."""

    joints: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    confidence: np.ndarray
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Networks:
    """The two networks on one device; `checkpoints` says which files they came from, for the report.

    `released`: those of "skeleton" and "skinning" that are Puppeteer's. They are large and run in bfloat16 on CUDA.
    """

    skeleton: object
    skinning: object
    device: str
    checkpoints: dict
    warnings: tuple[str, ...]
    released: frozenset[str] = frozenset()


def load_networks(skeleton_file=None, skinning_file=None, device: str = "cpu") -> Networks:
    """Load both networks, SPRig's own where no file is given. Raises SprigError for one that is missing or unusable."""
    from .checkpoint import fingerprint

    loaded, checkpoints, warnings = {}, {}, []
    files = {"skeleton": skeleton_file, "skinning": skinning_file}
    for kind, file in files.items():
        path = Path(file) if file else SHIPPED / f"{kind}.safetensors"
        if not file and not path.is_file():
            raise SprigError(
                f"This version of SPRig comes without a {kind} network; give one with --checkpoint-{kind}, or use "
                "--skeleton motion."
            )
        network, found = _load(path, kind, device)
        loaded[kind] = network
        warnings += found
        checkpoints[kind] = {"file": path.name, "fingerprint": fingerprint(path)}
    released = frozenset(kind for kind, file in files.items() if file and _is_puppeteer(file))
    return Networks(loaded["skeleton"], loaded["skinning"], device, checkpoints, tuple(warnings), released)


def _is_puppeteer(path) -> bool:
    return Path(path).suffix.lower() in PICKLES


def _load(path: Path, kind: str, device: str):
    """A network and what the user should know about it."""
    if not _is_puppeteer(path):
        from .checkpoint import load_checkpoint

        return load_checkpoint(path, kind, device), []
    from .puppeteer.load import load_skeleton, load_skinning
    from .puppeteer.skinning import NON_COMMERCIAL

    if kind == "skeleton":
        return load_skeleton(path).to(device), []
    return load_skinning(path).to(device), [NON_COMMERCIAL]


def rig_shape(
    vertices,
    faces,
    networks: Networks,
    *,
    joints: int | None = None,
    candidates: int = 1,
    temperature: float = 0.0,
    influences: int = 4,
    seed: int = 0,
    progress=no_progress,
) -> NetworkRig:
    """Rig one shape: vertices (N,3), faces (M,3). The same networks, options and seed give the same rig."""
    torch = load_torch()
    from .skinning.transfer import points_to_vertices

    cube = UnitCube.of(vertices)
    inside = cube.to_cube(vertices)
    seen = sample_surface(inside, faces, SKELETON_POINTS, seed).at(inside, faces)
    with _precision(networks, "skeleton"):
        found, warnings = _skeleton(
            networks,
            torch.as_tensor(seen, device=networks.device)[None],
            joints,
            candidates,
            temperature,
            seed,
            lambda share, text: progress(0.8 * share, text),
        )
    progress(0.8, "Weighting the skin")
    samples = sample_surface(inside, faces, SKINNING_POINTS, seed + 1)
    points = samples.at(inside, faces)
    with torch.no_grad(), _precision(networks, "skinning"):
        weights = networks.skinning(
            torch.as_tensor(points, device=networks.device)[None],
            torch.as_tensor(found.joints, dtype=torch.float32, device=networks.device)[None],
            torch.as_tensor(found.parents, dtype=torch.long, device=networks.device)[None],
            torch.ones((1, len(found.parents)), dtype=torch.bool, device=networks.device),
        )[0]
    mesh_edges = edges(faces)
    label = islands(len(inside), mesh_edges)
    carried = points_to_vertices(
        weights.float().cpu().numpy(),
        points,
        label[samples.nearest_corner(faces)],
        inside,
        vertex_normals(inside, faces),
        label,
        mesh_edges,
        influences=influences,
        point_vertex=samples.nearest_corner(faces),
    )
    warnings = (*networks.warnings, *warnings)
    return NetworkRig(cube.from_cube(found.joints), found.parents, carried, found.confidence, warnings)


def _precision(networks: Networks, kind: str):
    half = networks.device == "cuda" and kind in networks.released
    return load_torch().autocast(networks.device, dtype=load_torch().bfloat16, enabled=half)


def _skeleton(networks: Networks, points, joints, candidates: int, temperature: float, seed: int, progress):
    """The likeliest skeleton for points (1,N,6), and what the user should know about it.

    Puppeteer's is decoded as its authors do and then repaired, unless options ask for more: whether its joints come
    parents first, which the grammar of `generate` insists on, is not known.
    """
    from .skeleton.generate import GeneratedSkeleton, generate

    plain = joints is None and candidates == 1 and temperature == 0
    if "skeleton" in networks.released and plain:
        from .puppeteer.repair import greedy_tree

        progress(0.0, "Decoding the skeleton")
        places, parents = greedy_tree(networks.skeleton, points)
        return GeneratedSkeleton(places, parents, np.full(len(parents), np.nan), np.nan, False), ()
    found = generate(
        networks.skeleton,
        points,
        candidates=candidates,
        temperature=temperature,
        joints=joints,
        seed=seed,
        progress=progress,
    )[0]
    if not found.cut:
        return found, ()
    return found, (
        f"The network's skeleton was cut at {len(found.parents)} joints, the most it can hold; limbs may be missing.",
    )
