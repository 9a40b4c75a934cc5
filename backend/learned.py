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
SKELETON_POINTS = 1024  # surface points that the skeleton decoder sees, as many as in training
SKINNING_POINTS = 8192  # surface points that get weights from the network; vertices take theirs from these
PICKLES = (".pth", ".pt", ".ckpt")  # suffixes of Puppeteer's released files
KINDS = ("skeleton", "skinning")


@dataclass(frozen=True, eq=False)
class NetworkSkeleton:
    """joints (J,3) float64 in the units of the shape, parents (J,), parents first; confidence (J,) in [0, 1], NaN where
    there is none; warnings are sentences for the user; agreed: the confidence is the share of many decodings that have
    the joint, not one network's own idea of how sure it is."""

    joints: np.ndarray
    parents: np.ndarray
    confidence: np.ndarray
    warnings: tuple[str, ...]
    agreed: bool = False


@dataclass(frozen=True, eq=False)
class NetworkRig:
    """joints (J,3) float64 in the units of the shape, parents (J,), parents first; weights (N,J) float32, rows on the
    simplex; confidence (J,), warnings and agreed as in NetworkSkeleton."""

    joints: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    confidence: np.ndarray
    warnings: tuple[str, ...]
    agreed: bool = False


@dataclass(frozen=True, eq=False)
class Networks:
    """The two networks on one device, None for one that was not loaded; `checkpoints` says which files they came from.

    `released`: those of "skeleton" and "skinning" that are Puppeteer's, or students of these. They are large and run in
    bfloat16 on CUDA. `teacher`: of students, the networks as they were before they were fine-tuned on the sequence.
    """

    skeleton: object
    skinning: object
    device: str
    checkpoints: dict
    warnings: tuple[str, ...]
    released: frozenset[str] = frozenset()
    teacher: Networks | None = None


def load_networks(skeleton_file=None, skinning_file=None, device: str = "cpu", kinds=KINDS) -> Networks:
    """Load both networks or those of `kinds`, SPRig's own where no file is given.

    Raises SprigError for one that is missing or unusable.
    """
    from .checkpoint import architecture, fingerprint

    loaded, checkpoints = {}, {}
    files = {kind: file for kind, file in zip(KINDS, (skeleton_file, skinning_file), strict=True) if kind in kinds}
    for kind, file in files.items():
        path = Path(file) if file else shipped_file(kind)
        if not file and not path.is_file():
            raise SprigError(
                f"This version of SPRig comes without a {kind} network; give one with --checkpoint-{kind}, or use "
                "--skeleton motion."
            )
        loaded[kind] = _load(path, kind).to(device)
        checkpoints[kind] = {"file": path.name, "fingerprint": fingerprint(path)}
    released = frozenset(kind for kind, network in loaded.items() if architecture(network) == "puppeteer")
    skeleton, skinning = (loaded.get(kind) for kind in KINDS)
    return Networks(skeleton, skinning, device, checkpoints, _warnings(released), released)


def shipped_file(kind: str) -> Path:
    """Where SPRig's own network of a kind is, or would be."""
    return SHIPPED / f"{kind}.safetensors"


def _load(path: Path, kind: str):
    if path.suffix.lower() not in PICKLES:
        from .checkpoint import load_checkpoint

        return load_checkpoint(path, kind)
    from .puppeteer.load import load_skeleton, load_skinning

    return load_skeleton(path) if kind == "skeleton" else load_skinning(path)


def _warnings(released) -> tuple[str, ...]:
    """What the user should know about networks, of which these are Puppeteer's."""
    if "skinning" not in released:
        return ()
    from .puppeteer.skinning import NON_COMMERCIAL

    return (NON_COMMERCIAL,)


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
    found = find_skeleton(
        vertices,
        faces,
        networks,
        joints=joints,
        candidates=candidates,
        temperature=temperature,
        seed=seed,
        progress=lambda share, text: progress(0.8 * share, text),
    )
    progress(0.8, "Weighting the skin")
    weights = weigh(vertices, faces, found.joints, found.parents, networks, influences=influences, seed=seed + 1)
    warnings = (*networks.warnings, *found.warnings)
    return NetworkRig(found.joints, found.parents, weights, found.confidence, warnings, found.agreed)


def find_skeleton(
    vertices,
    faces,
    networks: Networks,
    *,
    joints: int | None = None,
    candidates: int = 1,
    temperature: float = 0.0,
    greedy: bool = False,
    seed: int = 0,
    progress=no_progress,
) -> NetworkSkeleton:
    """The best skeleton for one shape: vertices (N,3), faces (M,3); `seed` chooses its surface points, too.

    greedy: the one that the network writes in one go, whatever would be better.
    """
    torch = load_torch()
    cube = UnitCube.of(vertices)
    inside = cube.to_cube(vertices)
    seen = sample_surface(inside, faces, SKELETON_POINTS, seed).at(inside, faces)
    points = torch.as_tensor(seen, device=networks.device)[None]
    with _precision(networks, "skeleton"):
        found, warnings = _skeleton(networks, points, joints, candidates, temperature, greedy, seed, progress)
    return NetworkSkeleton(cube.from_cube(found.joints), found.parents, found.confidence, warnings, found.agreed)


def weigh(vertices, faces, joints, parents, networks: Networks, *, influences: int = 4, seed: int = 0) -> np.ndarray:
    """Skin weights (N,J) float32, rows on the simplex, of one shape for a skeleton: joints (J,3) and parents (J,).

    vertices (N,3), faces (M,3); `influences`: joints that may move one vertex; `seed` chooses the surface points.
    """
    torch = load_torch()
    from .skinning.heat import heat_features
    from .skinning.transfer import points_to_vertices

    cube = UnitCube.of(vertices)
    inside = cube.to_cube(vertices)
    samples = sample_surface(inside, faces, SKINNING_POINTS, seed)
    points = samples.at(inside, faces)
    seen = [
        torch.as_tensor(points, device=networks.device)[None],
        torch.as_tensor(cube.to_cube(joints), device=networks.device)[None],
        torch.as_tensor(parents, dtype=torch.long, device=networks.device)[None],
        torch.ones((1, len(parents)), dtype=torch.bool, device=networks.device),
    ]
    network = networks.skinning  # Puppeteer's finds everything by itself
    if "skinning" not in networks.released:
        heat = samples.blend(heat_features(inside, faces, cube.to_cube(joints), parents), faces)
        seen.append(torch.as_tensor(heat, device=networks.device)[None])
        network = networks.skinning.predict
    with torch.no_grad(), _precision(networks, "skinning"):
        weights = network(*seen)[0]
    mesh_edges = edges(faces)
    label = islands(len(inside), mesh_edges)
    corner = samples.nearest_corner(faces)
    return points_to_vertices(
        weights.float().cpu().numpy(),
        points,
        label[corner],
        inside,
        vertex_normals(inside, faces),
        label,
        mesh_edges,
        influences=influences,
        point_vertex=corner,
    )


def _precision(networks: Networks, kind: str):
    half = networks.device == "cuda" and kind in networks.released
    return load_torch().autocast(networks.device, dtype=load_torch().bfloat16, enabled=half)


def _skeleton(networks: Networks, points, joints, candidates: int, temperature: float, greedy: bool, seed, progress):
    """The best skeleton for points (1,N,6), and what the user should know about it.

    Where nothing is asked for, each network is decoded in the way it does best: SPRig's by what its views agree on,
    a student of one sequence greedily, as it was taught, and Puppeteer's as its authors do, with repairs (whether its
    joints come parents first, which the grammar of `generate` insists on, is not known).
    """
    from .skeleton.consensus import consensus
    from .skeleton.generate import GeneratedSkeleton, generate

    network, released = networks.skeleton, "skeleton" in networks.released
    plain = candidates == 1 and temperature == 0
    if plain and released and joints is None:
        from .puppeteer.repair import greedy_tree

        progress(0.0, "Decoding the skeleton")
        places, parents = greedy_tree(network, points)
        return GeneratedSkeleton(places, parents, np.full(len(parents), np.nan), np.nan, False), ()
    if plain and not released and not greedy and network.config.many_views:
        found = consensus(network, points[0], joints=joints, seed=seed, progress=progress)
    else:
        found = generate(
            network,
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
