"""The clips that benchmarks run on: the 12 reference clips, and a generated creature of any size.

The reference clips are files of `../shared/data/sequences`; `REFERENCE` gives the number of joints each is rigged with:
the artist's joints that carry weight, 20 where there is no rig.
"""

import sys
from pathlib import Path

import numpy as np

from sprig.backend.sequence import MeshSequence

SEQUENCES = Path(__file__).resolve().parents[2] / "shared" / "data" / "sequences"

REFERENCE = {
    "0ad_elephant_walk": 47,
    "quat_wolf_gallop": 46,
    "kaykit_knight_run": 22,
    "quat_knight_roll": 28,
    "quat_trex_jump": 28,
    "m2m_horse_rear": 51,
    "0ad_bear_attack": 43,
    "quat_spider_walk": 35,
    "m2m_snake_sidewinding": 27,
    "dembones_bone": 20,
    "oa_gargoyle_death": 20,
    "quat_mech_george_pickup": 42,
}

CREATURE_SEED = 7  # of the clip that the README's times are measured on
SPINE_RADIUS, LIMB_RADIUS = 0.12, 0.06  # of the tubes at their root; a bone is about 0.2 long
STRETCH = 2.0  # the tubes' quads are about this many times longer than wide
INFLUENCES = 4  # largest number of joints that move one vertex of the creature
BLEND = 0.35  # how far a joint's influence reaches beyond its bone, in bone lengths


def load_reference(name: str) -> MeshSequence:
    """A reference clip from its positions and faces alone; ends the program, saying why, when it is not there."""
    path = SEQUENCES / f"{name}.npz"
    if not path.is_file():
        sys.exit(f"{path.name} is not there: the reference clips belong into ../shared/data/sequences")
    with np.load(path, allow_pickle=False) as clip:
        return MeshSequence.from_world(clip["vertices"], clip["faces"], fps=float(clip["fps"]), name=name)


def creature(vertices: int = 5_000, frames: int = 100, joints: int = 40, seed: int = CREATURE_SEED) -> MeshSequence:
    """A creature of tubes: a spine, limbs in pairs and a tail, skinned smoothly and moved by turning its joints.

    Exactly `vertices`, `frames` and `joints`. Every chain of joints carries a tube of its own, so the mesh has as many
    islands as chains. Each joint turns about its own axis as a sum of two sines, the root also travels. Frames are
    made one at a time: beside the result, memory does not depend on their number.
    """
    if joints < 12 or vertices < 40 * joints or frames < 2:
        sys.exit("A creature needs at least 12 joints, 40 vertices a joint and 2 frames.")
    rng = np.random.default_rng(seed)
    heads, parents, chains = _skeleton(joints, rng)
    rest, faces, influence, weights = _skin(vertices, chains)
    motion = _swing(frames, heads, parents, rng)
    posed = np.empty((frames, vertices, 3), dtype=np.float32)
    for f in range(frames):
        bones = motion[f][influence]  # (V,4,3,4)
        blended = (weights[:, :, None, None] * bones).sum(axis=1)
        posed[f] = np.einsum("vij,vj->vi", blended[:, :, :3], rest) + blended[:, :, 3]
    return MeshSequence(posed, faces, fps=30.0, name=f"creature_{vertices}x{frames}x{joints}")


def _skeleton(joints: int, rng) -> tuple[np.ndarray, np.ndarray, list[tuple[list[int], np.ndarray]]]:
    """Joint positions (J,3), parents (J,), and the chains: joints [c0, c1, ...] and the points (n+1,3) they lie on.

    A quarter of the joints are the spine, a sixth the tail, the rest limbs of three to seven. The last point of a
    chain is its tip, so that every joint has a stretch to move. A limb begins at the spine joint that it hangs from.
    """
    heads, parents, chains = [], [], []

    def grow(root: int | None, place, count: int, step) -> None:
        """A chain of `count` new joints, bending a little on the way."""
        chain, points = ([], []) if root is None else ([root], [heads[root]])
        for _ in range(count):
            parents.append(chain[-1] if chain else -1)
            chain.append(len(heads))
            heads.append(place)
            points.append(place)
            place = place + step + rng.normal(scale=0.02, size=3)
        chains.append((chain, np.array([*points, place])))

    spine, tail = joints // 4, joints // 6
    grow(None, np.array([0.0, 0.0, 1.0]), spine, np.array([0.0, 0.25, 0.0]))
    grow(0, heads[0] + [0.0, -0.2, 0.0], tail, np.array([0.0, -0.2, -0.03]))
    limbs = 0
    while len(heads) < joints:
        left = joints - len(heads)
        count = int(rng.integers(3, 6))
        count = left if left < count + 3 else count
        side, root = (1.0, -1.0)[limbs % 2], (1 + limbs // 2 * 3) % spine
        step = np.array([0.06 * side, 0.02, -0.2])
        grow(root, heads[root] + [0.2 * side, 0.0, -0.05], count, step)
        limbs += 1
    return np.array(heads), np.array(parents), chains


def _skin(vertices: int, chains):
    """Rest positions (V,3), faces (M,3), and for each vertex its joints (V,4) and their weights (V,4).

    A tube is one long spiral of vertices around its chain, so that it can have any number of them; consecutive turns
    are joined by triangles. Weights fall off smoothly with the distance to the joints' bones, along the chain.
    """
    knots = [np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))] for _, points in chains]
    lengths = np.array([k[-1] for k in knots])
    counts = np.floor(vertices * lengths / lengths.sum()).astype(int)
    counts[0] += vertices - counts.sum()
    rest, faces, influence, weights = [], [], [], []
    start = 0
    for number, ((chain, points), knot, length, count) in enumerate(zip(chains, knots, lengths, counts, strict=True)):
        radius = SPINE_RADIUS if number == 0 else LIMB_RADIUS
        around = max(6, round(np.sqrt(count * 2 * np.pi * radius * STRETCH / length)))
        along = np.linspace(0, length, count)
        centre = np.stack([np.interp(along, knot, points[:, k]) for k in range(3)], axis=1)
        direction = points[-1] - points[0]
        across = np.cross(direction, [1.0, 0.2, 0.1])
        across /= np.linalg.norm(across)
        upward = np.cross(direction, across) / np.linalg.norm(direction)
        angle = 2 * np.pi * np.arange(count) / around
        taper = radius * (1 - 0.7 * along / length)
        rest.append(centre + taper[:, None] * (np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * upward))
        i = start + np.arange(count - around - 1)
        faces.append(np.stack([i, i + 1, i + around], axis=1))
        faces.append(np.stack([i + 1, i + around + 1, i + around], axis=1))
        chosen, share = _chain_weights(along, knot)
        influence.append(np.asarray(chain)[chosen])
        weights.append(share)
        start += count
    return np.concatenate(rest), np.concatenate(faces), np.concatenate(influence), np.concatenate(weights)


def _chain_weights(along, knots) -> tuple[np.ndarray, np.ndarray]:
    """The bones (n,4) of a chain that move the points at arc lengths `along` (n,), and their weights (n,4).

    Bone k moves the stretch from knot k to knot k+1 and fades out beyond it; rows sum to 1.
    """
    middle, length = (knots[:-1] + knots[1:]) / 2, np.diff(knots)
    falloff = np.clip(1 - np.abs(along[:, None] - middle) / (length * (0.5 + BLEND)), 0, None) ** 2
    falloff = np.pad(falloff, ((0, 0), (0, max(0, INFLUENCES - len(middle)))))  # a chain of fewer bones than columns
    bones = np.argsort(-falloff, axis=1, kind="stable")[:, :INFLUENCES]
    share = np.take_along_axis(falloff, bones, axis=1)
    return np.minimum(bones, len(middle) - 1), share / share.sum(axis=1, keepdims=True)


def _swing(frames: int, heads, parents, rng) -> np.ndarray:
    """Bone matrices (F,J,3,4), rest pose to frame: every joint turns about its own axis, the root travels."""
    joints = len(parents)
    axis = rng.normal(size=(joints, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    reach = np.radians(rng.uniform(8, 30, size=joints))
    phase = rng.uniform(0, 2 * np.pi, size=(2, joints))
    time = 2 * np.pi * np.arange(frames)[:, None] / frames
    angle = reach * (np.sin(time + phase[0]) + 0.4 * np.sin(2 * time + phase[1]))  # (F,J)
    cross = np.zeros((joints, 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]], cross[:, [1, 2, 0], [2, 0, 1]] = axis, -axis
    sine, versine = np.sin(angle)[..., None, None], (1 - np.cos(angle))[..., None, None]
    local = np.eye(3) + sine * cross + versine * (cross @ cross)  # Rodrigues
    motion = np.empty((frames, joints, 3, 4))
    motion[:, 0, :, :3] = local[:, 0]
    travel = np.stack([0.1 * np.sin(time[:, 0]), 0.5 * time[:, 0], 0.05 * np.sin(2 * time[:, 0])], axis=1)
    motion[:, 0, :, 3] = heads[0] + travel - local[:, 0] @ heads[0]
    for j in range(1, joints):
        above = motion[:, parents[j]]
        turned = above[..., :3] @ local[:, j]
        motion[:, j, :, :3] = turned
        motion[:, j, :, 3] = above[..., :3] @ heads[j] + above[..., 3] - turned @ heads[j]
    return motion
