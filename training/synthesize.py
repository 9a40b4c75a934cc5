"""Creatures and machines made on the spot, with exactly known joints, weights and surfaces.

Everything is a tube: a smooth centreline through joints, elliptical rings around it, closed at both ends. Boxes,
cylinders, wheels and fins are tubes with other rings and ends. Z is up, characters face -Y, their left is +X, lengths
are metre-like.

Choices that a reader would question:
* A character is several closed islands that overlap, as game characters often are: a limb starts inside the body and
  its first piece moves with the body. There is no union of the surfaces: it would blur which weights are right.
* The piece of a tube between two joints belongs to the joint nearer to the root. Around a joint the two neighbours
  blend linearly in arc length, over at most half of the shorter one, so a vertex of a tube has at most two influences.
  Where a limb leaves the body, the body's skin takes part of the limb's first joint (at most one such joint a vertex).
* A pair of limbs is built once and mirrored. Small asymmetry comes from one smooth displacement of all space, that
  joints and surface share, so that the weights stay exact. Machines stay true.
* The ends of fingers, toes and tails are not joints. Every joint carries weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .character import Character

KINDS = ("biped", "quadruped", "many_legged", "bird", "fish", "snake", "arm", "vehicle")
MACHINES = ("arm", "vehicle")
MOST_JOINTS = 90
MIRROR = np.array([-1.0, 1.0, 1.0])
LEAST_RADIUS = 1e-3  # metres: thinner ends would make slivers


def creature(seed: int, kind: str | None = None) -> Character:
    """One random character, the same for a seed and kind; `kind` is one of KINDS, a random one when None.

    It has 5 to 90 joints and no poses. Raises ValueError for a kind that does not exist.
    """
    rng = np.random.default_rng(seed)
    drawn = KINDS[rng.integers(len(KINDS))]
    kind = drawn if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"There is no kind {kind!r}; pass one of {', '.join(KINDS)}.")
    machine = kind in MACHINES
    figure = _Figure(
        around=int(rng.integers(6, 13)),
        rings=int(rng.integers(2, 5)),
        blend=0.0 if machine or rng.random() < 0.15 else rng.uniform(0.1, 0.5),
        roundness=rng.uniform(0.3, 1.0),
        spill=0.0 if rng.random() < 0.4 else rng.uniform(0.2, 0.5),
    )
    _BUILDERS[kind](figure, rng)
    vertices, faces, weights = figure.skin()
    joints = np.array(figure.joints)
    size = np.ptp(vertices, axis=0).max()
    if not machine and rng.random() < 0.7:
        wave = rng.normal(0, 2 / size, (3, 3))
        phase, amplitude = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, 0.012, 3) * size
        vertices, joints = (p + amplitude * np.sin(p @ wave + phase) for p in (vertices, joints))
    scale = np.exp(rng.normal(0, 0.4)) * np.exp(rng.normal(0, 0.04, 3))
    name = f"synthetic_{kind}_{seed}"
    return Character(
        name=name,
        rig_id=name,
        category="machine or prop" if machine else "character",
        source="synthesize",
        licence="CC0-1.0",
        vertices=(vertices * scale).astype(np.float32),
        faces=faces,
        weights=weights,
        joints=(joints * scale).astype(np.float32),
        parents=np.array(figure.parents, dtype=np.int32),
        motion=np.zeros((0, len(joints), 4, 4), dtype=np.float32),
    )


@dataclass
class _Figure:
    """A character being put together: joints, and tubes with the joints that own their pieces."""

    around: int  # vertices of a ring
    rings: int  # rings from one joint to the next
    blend: float  # half width of the blend at a joint, as a share of the shorter neighbour; 0 is a rigid binding
    roundness: float  # 0: straight pieces, 1: Catmull-Rom centrelines
    spill: float  # the share that the body's skin takes of a limb's first joint
    joints: list = field(default_factory=list)
    parents: list = field(default_factory=list)
    tubes: list = field(default_factory=list)  # (vertices, faces, shares (V,S), owners (S,), is body)
    roots: list = field(default_factory=list)  # (joint, reach) of the limbs that leave a body

    def joint(self, position, parent: int) -> int:
        self.joints.append(np.asarray(position, dtype=np.float64))
        self.parents.append(parent)
        return len(self.joints) - 1

    def trunk(self, points, radii, root: int, **shape) -> list:
        """A body through points (K,3): both ends and K - 2 joints between them, the root being points[root].

        Returns the joint ids of the inner points, in their order.
        """
        points = np.asarray(points, dtype=np.float64)
        ids = {root: self.joint(points[root], -1)}
        for k in range(root + 1, len(points) - 1):
            ids[k] = self.joint(points[k], ids[k - 1])
        for k in range(root - 1, 0, -1):
            ids[k] = self.joint(points[k], ids[k + 1])
        last = len(points) - 2
        owners = [ids[min(max(k if k >= root else k + 1, 1), last)] for k in range(len(points) - 1)]
        self.tube(points, radii, [owners], body=True, **shape)
        return [ids[k] for k in range(1, len(points) - 1)]

    def limb(self, parents, points, radii, sunk: float = 0.3, **shape) -> list:
        """A chain of joints with its tube on each of `parents`: one, or left and right, which is mirrored.

        points (K,3) are K - 1 joints and the end, radii (K,) or (K,2) go with them. The tube starts inside the
        parent: `sunk` of the way from the first joint to the parent's. Returns the joint ids of each chain.
        """
        points, radii = np.asarray(points, dtype=np.float64), np.asarray(radii, dtype=np.float64)
        inside = sunk * (self.joints[parents[0]] - points[0])
        least = 0.3 * radii[0].min()
        if np.sqrt(inside @ inside) < least:
            along = points[0] - points[1]
            inside = least * along / np.sqrt(along @ along)
        chains = []
        for parent, side in zip(parents, ((1.0, 1.0, 1.0), MIRROR), strict=False):
            chain = []
            for position in points[:-1] * side:
                chain.append(self.joint(position, chain[-1] if chain else parent))
            self.roots.append((chain[0], 1.6 * radii[0].max()))
            chains.append(chain)
        owners = [[parent, *chain] for parent, chain in zip(parents, chains, strict=True)]
        if "shift" in shape:
            shape["shift"] = np.concatenate([shape["shift"][:1], shape["shift"]])
        self.tube(np.vstack([points[0] + inside, points]), np.concatenate([radii[:1], radii]), owners, **shape)
        return chains

    def lump(self, owners, points, radii, **shape) -> None:
        """A tube that moves rigidly with one joint, or with a left and a right one: a skull, a horn, a machine part."""
        self.tube(points, radii, [[owner] * (len(points) - 1) for owner in owners], **shape)

    def box(self, owners, centre, size, yaw: float = 0.0) -> None:
        """A box of `size` (3,) around `centre`, moving rigidly with its owners."""
        centre, half = np.asarray(centre, dtype=np.float64), np.asarray(size) / 2
        along = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        radii = np.tile(half[[0, 2]] * np.sqrt(2), (2, 1))
        across = (along[1], -along[0], 0.0)
        points = [centre - half[1] * along, centre + half[1] * along]
        self.lump(owners, points, radii, across=across, around=4, cap=0, rings=1)

    def cylinder(self, owners, start, end, radius: float) -> None:
        """A cylinder with flat ends, moving rigidly with its owners."""
        self.lump(owners, np.array([start, end]), np.full(2, radius), around=max(self.around, 10), cap=0, rings=1)

    def tube(
        self, points, radii, owners, across=None, shift=None, body=False, around=None, rings=None, cap=0.8, bulge=0.0
    ) -> None:
        """Add a closed tube; a second list of owners gets its mirror image.

        points (K,3) lie on the centreline, radii (K,) or (K,2) are the half axes there, the first along `across` (3,);
        `shift` (K,3) moves the rings off the joints' line (a wing trails behind its bones); owners[copy][k] is the
        joint that moves piece k; cap is how far the rounded ends stand out, in radii (0: flat).
        """
        points, radii = np.asarray(points, dtype=np.float64), np.asarray(radii, dtype=np.float64)
        radii = np.maximum(radii if radii.ndim == 2 else radii[:, None].repeat(2, axis=1), LEAST_RADIUS)
        around, rings = around or self.around, rings or self.rings
        pieces = len(points) - 1
        at = np.arange(pieces * rings + 1) / rings
        piece = np.minimum(at.astype(int), pieces - 1)
        u = (at - piece)[:, None]
        centre = self._curve(points, piece, u)
        moved = np.diff(centre, axis=0)
        step = np.sqrt((moved**2).sum(axis=1))
        unit = moved / step[:, None]
        tangent = np.concatenate([unit[:1], unit[:-1] + unit[1:], unit[-1:]])
        tangent /= np.sqrt((tangent**2).sum(axis=1, keepdims=True))
        if across is None:
            across = np.eye(3)[np.abs(tangent).max(axis=0).argmin()]
        first = across - (tangent @ across)[:, None] * tangent
        first /= np.sqrt((first**2).sum(axis=1, keepdims=True))
        second = _cross(tangent, first)
        ease = u * u * (3 - 2 * u)
        radius = radii[piece] * (1 - ease) + radii[piece + 1] * ease
        if bulge:
            radius = radius * (1 + bulge * np.sin(np.pi * u))
        arc = np.concatenate([[0.0], np.cumsum(step)])
        shares = self._shares(arc, arc[::rings])
        if shift is not None:
            centre = centre + shift[piece] * (1 - u) + shift[piece + 1] * u

        # The rounded ends: two smaller rings and a pole; flat ends have the pole only.
        angle = np.array([np.pi / 3, np.pi / 6]) if cap else np.empty(0)
        depth = cap * radius[[0, -1]].min(axis=1)
        shrink = np.cos(angle)
        ends = len(angle)
        order = np.concatenate([np.zeros(ends, int), np.arange(len(centre)), np.full(ends, len(centre) - 1)])
        out = np.concatenate([-depth[0] * np.sin(angle), np.zeros(len(centre)), depth[1] * np.sin(angle[::-1])])
        factor = np.concatenate([shrink, np.ones(len(centre)), shrink[::-1]])
        centre = centre[order] + out[:, None] * tangent[order]
        radius = radius[order] * factor[:, None]
        theta = np.arange(around) * (2 * np.pi / around) + np.pi / around
        ring = (radius[:, :1] * first[order])[:, None] * np.cos(theta)[:, None]
        ring += (radius[:, 1:] * second[order])[:, None] * np.sin(theta)[:, None]
        poles = centre[[0, -1]] + tangent[[0, -1]] * ((depth - np.abs(out[[0, -1]])) * [-1, 1])[:, None]
        vertices = np.concatenate([(centre[:, None] + ring).reshape(-1, 3), poles])
        shares = np.concatenate([shares[order].repeat(around, axis=0), shares[[0, -1]]])
        faces = _tube_faces(len(order), around)
        for owner, copy in zip(owners, (vertices, None), strict=False):
            if copy is None:
                self.tubes.append((vertices * MIRROR, faces[:, ::-1], shares, owner, body))
            else:
                self.tubes.append((vertices, faces, shares, owner, body))

    def _curve(self, points, piece, u) -> np.ndarray:
        """Positions (R,3) on the cubic Hermite curve through points (K,3), at u (R,1) of each ring's piece (R,)."""
        slope = np.empty_like(points)
        slope[1:-1] = (points[2:] - points[:-2]) / 2
        slope[0], slope[-1] = points[1] - points[0], points[-1] - points[-2]
        # A long neighbour must not make a short piece loop.
        length = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
        shortest = np.minimum(np.concatenate([length[:1], length]), np.concatenate([length, length[-1:]]))
        steep = np.sqrt((slope**2).sum(axis=1))
        slope *= (np.minimum(1, shortest / np.maximum(steep, 1e-9)) * self.roundness)[:, None]
        a, b = points[piece], points[piece + 1]
        return a + (b - a) * u * u * (3 - 2 * u) + slope[piece] * u * (1 - u) ** 2 - slope[piece + 1] * u * u * (1 - u)

    def _shares(self, arc, borders) -> np.ndarray:
        """How much of each ring at `arc` (R,) moves with each piece between `borders` (S+1,): (R,S), rows sum to 1."""
        length = np.diff(borders)
        if self.blend:
            half = self.blend * np.minimum(length[:-1], length[1:])
            after = np.clip((arc[:, None] - borders[1:-1] + half) / (2 * half), 0, 1)
        else:
            after = arc[:, None] >= borders[1:-1]
        shares = np.ones((len(arc), len(length)))
        shares[:, 1:] = after
        shares[:, :-1] -= after
        return shares

    def skin(self) -> tuple:
        """All tubes together: vertices (V,3), faces (M,3) int32, weights (V,J) float32."""
        sizes = np.array([len(tube[0]) for tube in self.tubes])
        starts = np.concatenate([[0], np.cumsum(sizes)])
        vertices = np.concatenate([tube[0] for tube in self.tubes])
        faces = np.concatenate([tube[1] + start for tube, start in zip(self.tubes, starts, strict=False)])
        weights = np.zeros((len(vertices), len(self.joints)), dtype=np.float32)
        for (_, _, shares, owners, body), start, end in zip(self.tubes, starts, starts[1:], strict=False):
            rows = weights[start:end]
            for piece, owner in enumerate(owners):
                rows[:, owner] += shares[:, piece]
            if body and self.spill and self.blend and self.roots:
                self._spill(vertices[start:end], rows)
        return vertices, faces.astype(np.int32), weights / weights.sum(axis=1, keepdims=True)

    def _spill(self, vertices, rows) -> None:
        """Give the limb that is nearest, in units of its reach, a share of the body's skin around its first joint."""
        ids, reach = np.array([r[0] for r in self.roots]), np.array([r[1] for r in self.roots])
        where = np.array(self.joints)[ids]
        distance = np.sqrt(((vertices[:, None] - where) ** 2).sum(axis=2)) / reach
        nearest = distance.argmin(axis=1)
        share = self.spill * np.clip(1 - distance.min(axis=1), 0, None)
        rows *= (1 - share)[:, None]
        rows[np.arange(len(rows)), ids[nearest]] += share


def _cross(a, b) -> np.ndarray:
    """Cross products of (N,3) and (N,3); numpy's own is several times slower on few rows."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


def _tube_faces(rings: int, around: int) -> np.ndarray:
    """Triangles (M,3) of `rings` rings of `around` vertices, the first and last pole after them, wound outwards."""
    first = np.arange(rings - 1)[:, None] * around
    j = np.arange(around)
    k = (j + 1) % around
    a, b = (first + j).ravel(), (first + k).ravel()
    pole, last = rings * around, (rings - 1) * around
    sides = np.stack([a, b, a + around, b, b + around, a + around], axis=1).reshape(-1, 3)
    start = np.stack([np.full(around, pole), k, j], axis=1)
    end = np.stack([np.full(around, pole + 1), last + j, last + k], axis=1)
    return np.concatenate([sides, start, end])


def _between(start, end, count: int) -> np.ndarray:
    """`count` points (count,3) from start to end, both included."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    return start + np.linspace(0, 1, count)[:, None] * (end - start)


def _profile(count: int, *values) -> np.ndarray:
    """`count` radii that run through `values` at even distances."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)


def _flat(radii, ratio: float) -> np.ndarray:
    """Half axes (K,2): radii, and `ratio` times as much across."""
    return np.stack([radii, ratio * radii], axis=1)


def _arch(start, direction, length: float, count: int, turn) -> np.ndarray:
    """`count` points of a curve of `length` from start (3,): `direction` (3,) turns evenly to direction + turn."""
    way = np.asarray(direction, dtype=np.float64) + np.linspace(0, 1, count - 1)[:, None] * np.asarray(turn)
    way /= np.sqrt((way**2).sum(axis=1, keepdims=True))
    steps = np.cumsum(way * (length / (count - 1)), axis=0)
    return np.concatenate([[start], start + steps])


# Parts that several kinds share. `size` is a length the part scales with; both sides of a pair are drawn at once.


def _tail(figure, rng, parent: int, start, size: float, radius: float, most: int = 8) -> None:
    count = int(rng.integers(2, most + 1))
    length = size * rng.uniform(0.5, 1.5)
    points = _arch(start, (0, 1, rng.uniform(-0.7, 0.5)), length, count + 1, (0, 0, rng.uniform(-0.6, 1.2)))
    figure.limb((parent,), points, _profile(count + 1, radius, radius * rng.uniform(0.2, 0.8)))


def _head(figure, rng, head: int, size: float, snout: float) -> None:
    """What stands out of a skull of radius `size` around a point in front of the joint `head`: snout, ears, horns."""
    centre = figure.joints[head] + np.array([0, -0.2, 0.6]) * size
    if snout > 0:
        nose = centre + np.array([0, -(0.7 + snout) * size, -0.3 * size])
        points, radii = _between(centre, nose, 3), size * _profile(3, 0.65, 0.5, rng.uniform(0.15, 0.45))
        figure.lump((head,), points, radii)
        if rng.random() < 0.4:
            jaw = np.stack([centre, nose]) + np.array([0, 0, -0.35 * size])
            figure.limb((head,), jaw, _flat(size * np.array([0.4, 0.2]), 0.4), sunk=0.1)
    if rng.random() < 0.5:
        count, out = int(rng.integers(1, 4)), rng.uniform(0.2, 1.5)
        start = centre + size * np.array([0.55, 0.1, 0.6])
        points = _arch(start, (out, 0.1, 1), size * rng.uniform(0.5, 2.2), count + 1, (0, 0, rng.uniform(-2, 0.3)))
        radii = _flat(size * _profile(count + 1, rng.uniform(0.15, 0.4), 0.08), rng.uniform(0.3, 1))
        figure.limb((head, head), points, radii, sunk=0.15)
    if rng.random() < 0.25:
        start, turn = centre + size * np.array([0.35, -0.2, 0.6]), rng.normal(0, 0.8, 3)
        points = _arch(start, (0.5, 0, 1), size * rng.uniform(0.5, 2), 4, turn)
        figure.lump((head, head), points, size * _profile(4, rng.uniform(0.12, 0.3), 0.04))


def _neck_and_head(figure, rng, chest: int, start, end, count: int, radius: float, size: float, snout: float) -> None:
    """`count` joints from the base of the neck (start) to the skull (end), the last of them the head's."""
    points = np.concatenate([_between(start, end, max(count, 2))[:count] if count > 1 else [end], [end]])
    points[-1] = points[-2] + size * np.array([0, -0.4, 1.0])
    radii = np.concatenate([np.full(count - 1, radius), [0.9 * radius, 0.7 * size]])
    (chain,) = figure.limb((chest,), points, radii, across=np.array([1.0, 0.0, 0.0]))
    skull = points[-2] + np.array([[0, 0.35, 0.6], [0, -0.2, 0.6], [0, -0.75, 0.5]]) * size
    figure.lump((chain[-1],), skull, size * np.array([0.55, 1, 0.6]) * rng.uniform(0.8, 1.1), cap=0.9)
    _head(figure, rng, chain[-1], size, snout)


def _legs(figure, rng, parent: int, hip, radius: float, bend: float, foot: float, joints: int, wide=0.0) -> list:
    """A pair of legs from hip (3,) (left) to the ground: 2 to 4 joints, the knee bent by `bend` towards -Y."""
    tall = hip[2]
    ankle = np.array([hip[0] + wide, hip[1] + rng.uniform(0, 0.1) * tall, tall * rng.uniform(0.07, 0.25)])
    knee = hip + (ankle - hip) * rng.uniform(0.42, 0.58) + np.array([0, -bend * tall, 0])
    flat = np.array([ankle[0], ankle[1] - 0.45 * foot, 0.6 * radius * 0.5])
    toe = flat + np.array([0.0, -0.55 * foot, 0])
    points = {2: [hip, knee, ankle * [1, 1, 0.4]], 3: [hip, knee, ankle, toe], 4: [hip, knee, ankle, flat, toe]}[joints]
    radii = radius * _profile(len(points), 1, 0.75, 0.55, 0.45, 0.4)
    return figure.limb((parent, parent), points, radii, across=np.array([1.0, 0.0, 0.0]), bulge=rng.uniform(0, 0.15))


def _fingers(figure, rng, hands, palm, forward, across, count: int, joints: int, length: float, spread: float) -> None:
    """`count` fingers of `joints` joints on a pair of hands: they leave the palm (3,) along `forward` side by side."""
    for lane in np.linspace(-1, 1, count) if count > 1 else [0.0]:
        start = palm + across * lane * spread * length
        reach = length * (1 - 0.2 * lane * lane) * rng.uniform(0.9, 1.1)
        points = _arch(start, forward + 0.35 * lane * across, reach, joints + 1, rng.normal(0, 0.1, 3))
        figure.limb(hands, points, length * _profile(joints + 1, 0.16, 0.09), around=6, rings=2, sunk=0.2)


def _arms(figure, rng, chest: int, shoulder, length: float, radius: float) -> None:
    """A pair of arms from shoulder (3,) (left), with or without collar bones, wrists and fingers."""
    down = rng.uniform(0, 1.35)
    way = np.array([np.cos(down), rng.uniform(-0.2, 0.1), -np.sin(down)])
    wrist = shoulder + 0.8 * length * way
    elbow = shoulder + 0.4 * length * way + np.array([0, rng.uniform(0, 0.1) * length, 0])
    end = wrist + 0.15 * length * way
    points, radii = [shoulder, elbow, wrist, end], radius * np.array([1, 0.8, 0.6, 0.55])
    if rng.random() < 0.6:
        collar = shoulder * [0.35, 1, 1]
        points, radii = [collar, *points], np.concatenate([radii[:1], radii])
    across = np.array([0.0, 1.0, 0.0])
    half = np.stack([radii, radii], axis=1)
    half[-1] *= [1.4, 0.7]
    chains = figure.limb((chest, chest), points, half, across=across, bulge=rng.uniform(0, 0.15))
    count = int(rng.integers(0, 6))
    joints = int(rng.integers(1, 4))
    # Room for a second pair of arms, a tail and wings.
    if count and len(figure.joints) + 2 * count * joints <= MOST_JOINTS - 24:
        reach = max(length * rng.uniform(0.13, 0.25), 2 * radius)
        hands = tuple(chain[-1] for chain in chains)
        _fingers(figure, rng, hands, end, way, across, count, joints, reach, rng.uniform(0.15, 0.4))


def _wings(figure, rng, chest: int, shoulder, span: float, chord: float) -> None:
    """A pair of wings of 2 to 5 joints: thin tubes whose rings trail behind the bones."""
    count, lift, sweep = int(rng.integers(2, 6)), rng.uniform(-0.2, 0.7), rng.uniform(-0.3, 0.5)
    points = _arch(shoulder, (1, sweep - 0.6, lift), span, count + 1, (0, rng.uniform(0, 1.2), -lift))
    half = chord * _profile(count + 1, 0.7, 1, 0.8, rng.uniform(0.1, 0.5)) / 2
    shift = np.zeros((count + 1, 3))
    shift[:, 1] = 0.7 * half
    figure.limb(
        (chest, chest), points, _flat(half, rng.uniform(0.06, 0.15)), across=np.array([0.0, 1.0, 0.0]), shift=shift
    )


# One builder a kind.


def _biped(figure, rng) -> None:
    height = rng.uniform(1.0, 2.2)
    tall = height * rng.uniform(0.3, 0.55)
    torso = height * rng.uniform(0.24, 0.36)
    wide, deep = height * rng.uniform(0.07, 0.14), rng.uniform(0.55, 0.9)
    lean = rng.uniform(-0.25, 0.05) * torso
    count = int(rng.integers(2, 7))
    inner = _between([0, 0, tall + 0.1 * torso], [0, lean, tall + 0.8 * torso], count)
    points = np.vstack([[0, 0, tall - 0.12 * torso], inner, [0, lean, tall + torso]])
    radii = _profile(count + 2, rng.uniform(0.8, 1.1), rng.uniform(0.65, 1.1), rng.uniform(0.9, 1.3), 0.7) * wide
    spine = figure.trunk(points, _flat(radii, deep), root=1, across=np.array([1.0, 0.0, 0.0]))
    head, neck = height * rng.uniform(0.06, 0.13), height * rng.uniform(0.02, 0.14)
    top = np.array([0, lean - 0.3 * neck, tall + torso + neck])
    count = int(rng.integers(1, 4))
    snout = rng.uniform(0.2, 1.3) if rng.random() < 0.4 else 0.0
    _neck_and_head(figure, rng, spine[-1], points[-1] * [1, 1, 0.98], top, count, head * 0.5, head, snout)
    thigh = wide * rng.uniform(0.4, 0.62)
    beast = rng.random() < 0.3
    _legs(
        figure,
        rng,
        spine[0],
        np.array([0.52 * wide, 0, tall]),
        thigh,
        rng.uniform(0.1, 0.2) if beast else rng.uniform(0, 0.04),
        rng.uniform(0.3, 0.5) * tall * 0.6,
        int(rng.integers(3, 5)),
        wide=rng.uniform(0, 0.1) * tall,
    )
    length = height * rng.uniform(0.28, 0.55)
    for level in [0.85, 0.55] if rng.random() < 0.06 else [0.85]:
        shoulder = np.array([wide * rng.uniform(1.0, 1.25), lean, tall + level * torso])
        _arms(figure, rng, spine[-1], shoulder, length, wide * rng.uniform(0.28, 0.45))
    if rng.random() < 0.35:
        _tail(figure, rng, spine[0], np.array([0, 0.6 * wide * deep, tall]), tall, thigh * rng.uniform(0.3, 0.9), 6)
    if rng.random() < 0.12:
        shoulder = np.array([0.3 * wide, lean + 0.7 * wide * deep, tall + 0.7 * torso])
        _wings(figure, rng, spine[-1], shoulder, height * rng.uniform(0.4, 0.9), height * rng.uniform(0.2, 0.5))
    if rng.random() < 0.15:
        box = np.array([1.3, rng.uniform(0.5, 1), rng.uniform(1.2, 2)]) * wide
        figure.box((spine[-1],), [0, lean + wide * deep + 0.3 * box[1], tall + 0.6 * torso], box)


def _quadruped(figure, rng) -> None:
    long, tall = rng.uniform(0.6, 1.6), rng.uniform(0.35, 1.0)
    thick = long * rng.uniform(0.12, 0.24)
    count = int(rng.integers(2, 7))
    sag = rng.uniform(-0.08, 0.05) * long
    inner = _between([0, 0.5 * long, tall], [0, -0.42 * long, tall * rng.uniform(0.95, 1.15)], count)
    inner[:, 2] += sag * np.sin(np.linspace(0, np.pi, count)) + 0.3 * thick
    points = np.vstack([inner[0] + [0, 0.15 * long, 0], inner, inner[-1] - [0, 0.16 * long, 0]])
    radii = _profile(count + 2, 0.6, rng.uniform(0.8, 1.1), rng.uniform(0.7, 1.2), rng.uniform(0.9, 1.3), 0.7) * thick
    across = np.array([1.0, 0.0, 0.0])
    root = 1 if rng.random() < 0.6 else (count + 1) // 2
    spine = figure.trunk(points, np.stack([radii * rng.uniform(0.7, 1), radii], axis=1), root=root, across=across)
    neck, rise = long * rng.uniform(0.15, 0.75), rng.uniform(0.1, 1.4)
    start = inner[-1] + [0, -0.1 * long, 0.3 * thick]
    end = start + neck * np.array([0, -np.cos(rise), np.sin(rise)])
    head = long * rng.uniform(0.08, 0.16)
    count = int(rng.integers(1, 3 + 4 * neck / long))
    _neck_and_head(figure, rng, spine[-1], start, end, count, head * rng.uniform(0.5, 0.9), head, rng.uniform(0.3, 1.8))
    joints = int(rng.integers(2, 5))
    leg, foot = thick * rng.uniform(0.3, 0.6), 0.25 * tall * rng.uniform(0.6, 1.2)
    stance = rng.uniform(0.45, 0.75) * thick
    sprawl = rng.uniform(0.3, 0.8) * tall if rng.random() < 0.2 else 0.0
    for owner, y, bend in (
        (spine[0], inner[0, 1], rng.uniform(0.02, 0.18)),
        (spine[-1], inner[-1, 1], -rng.uniform(0.02, 0.15)),
    ):
        hip = np.array([stance, y, tall * rng.uniform(0.9, 1.0)])
        _legs(figure, rng, owner, hip, leg * rng.uniform(0.8, 1.2), bend, foot, joints, sprawl)
    if rng.random() < 0.85:
        _tail(
            figure, rng, spine[0], points[0] + [0, -0.05 * long, 0.2 * thick], 0.6 * long, thick * rng.uniform(0.1, 0.7)
        )
    if rng.random() < 0.12:
        shoulder = inner[-1] + np.array([0.3 * thick, 0.1 * long, 0.7 * thick])
        _wings(figure, rng, spine[-1], shoulder, long * rng.uniform(0.6, 1.4), long * rng.uniform(0.3, 0.7))


def _many_legged(figure, rng) -> None:
    crab, centipede = rng.random() < 0.25, rng.random() < 0.2
    pairs = int(rng.integers(6, 13)) if centipede else int(rng.integers(3, 6))
    joints = int(rng.integers(1, 3)) if centipede else int(rng.integers(2, 5))
    long = rng.uniform(0.3, 1.0) * (2 if centipede else 1)
    high = rng.uniform(0.12, 0.4) * (0.4 if centipede else 1)
    wide = long * (rng.uniform(0.3, 0.6) if crab else rng.uniform(0.05, 0.09) if centipede else rng.uniform(0.15, 0.3))
    count = pairs if centipede else int(rng.integers(1, 3))
    inner = _between([0, 0.4 * long, high], [0, -0.4 * long, high], count + 2)[1:-1]
    points = np.vstack([[0, 0.5 * long, high], inner, [0, -0.5 * long, high]])
    radii = _profile(count + 2, 0.55, 1, 1, rng.uniform(0.5, 0.9)) * wide
    body = figure.trunk(
        points,
        _flat(radii, rng.uniform(0.4, 0.9)),
        root=int(rng.integers(1, count + 1)),
        across=np.array([1.0, 0.0, 0.0]),
    )
    reach, thin = long * rng.uniform(0.5, 1.2) * (0.3 if centipede else 1), rng.uniform(0.05, 0.13)
    knee, fan = rng.uniform(0.1, 1.6), 0.0 if centipede else rng.uniform(0.3, 0.9)
    for lane in np.linspace(1, -1, pairs):
        y = 0.36 * long * lane
        owner = body[int(np.argmin(np.abs(inner[:, 1] - y)))]
        edge = float(np.interp(-y, -points[:, 1], radii))
        way = np.array([1, fan * lane, 0]) / np.sqrt(1 + (fan * lane) ** 2)
        path = np.array([0.55 * edge, y, high]) + np.linspace(0, 1, joints + 1)[:, None] * reach * way
        path[:, 2] += knee * high * np.sin(np.pi * np.linspace(0, 1, joints + 1) ** 0.8)
        path[-1, 2] = 0.0
        leg = reach * thin * _profile(joints + 1, 1, 0.8, 0.35)
        figure.limb((owner, owner), path, leg, around=max(5, figure.around - 3), rings=2, sunk=0.2)
    front, back = points[-1], points[0]
    head = body[-1]
    if not crab and rng.random() < 0.7:
        size = wide * rng.uniform(0.4, 0.9)
        base = front + [0, 0.15 * size, 0]
        ((head,),) = figure.limb((head,), [base, base + [0, -1.2 * size, 0]], size * np.array([0.7, 0.8]))
        front = base + [0, -1.2 * size, 0]
    if crab or rng.random() < 0.25:
        claw = reach * rng.uniform(0.15, 0.3)
        start = np.array([0.5 * wide, -0.42 * long, high])
        points = _arch(start, (1, -0.5, 0.2), 0.9 * reach, 4, (-1.1, -1.2, 0))
        chains = figure.limb((body[-1], body[-1]), points, np.array([0.4, 0.4, 0.5, 0.8]) * claw, sunk=0.2)
        hands = tuple(chain[-1] for chain in chains)
        way = points[-1] - points[-2]
        _fingers(figure, rng, hands, points[-1], way / np.sqrt(way @ way), np.array([1.0, 0, 0]), 2, 1, 2 * claw, 0.15)
    if rng.random() < 0.6:
        count = int(rng.integers(1, 4))
        start = front + np.array([0.2 * wide, 0.1 * wide, 0.1 * wide])
        path = _arch(start, (0.5, -1, 0.6), long * rng.uniform(0.2, 0.7), count + 1, (0, 0, rng.uniform(-1, 0.5)))
        figure.limb((head, head), path, 0.02 * long * _profile(count + 1, 1, 0.5), around=5, rings=2, sunk=0.1)
    if not crab and not centipede:
        size, count = wide * rng.uniform(0.7, 1.5), int(rng.integers(1, 6))
        if rng.random() < 0.3:  # a scorpion's tail
            turn = (0, -1.8, 2.0)
            path = _arch(back + [0, -0.1 * long, 0], (0, 1, 0.3), long * rng.uniform(0.8, 1.6), count + 2, turn)
            figure.limb((body[0],), path, 0.5 * size * _profile(count + 2, 1, 0.7, 0.2))
        else:
            path = _between(back, back + [0, 2.2 * size, rng.uniform(-0.2, 0.6) * size], count + 1)
            figure.limb((body[0],), path, size * _profile(count + 1, 0.6, 1.0, 0.5), sunk=0.1)


def _bird(figure, rng) -> None:
    long, tall = rng.uniform(0.25, 0.8), rng.uniform(0.15, 0.8)
    thick, pitch = long * rng.uniform(0.18, 0.32), rng.uniform(0, 0.9)
    way = np.array([0, -np.cos(pitch), np.sin(pitch)])
    middle = np.array([0, 0, tall + thick])
    count = int(rng.integers(1, 5))
    inner = middle + np.linspace(-0.3, 0.3, count + 2)[1:-1, None] * long * way
    points = np.vstack([middle - 0.5 * long * way, inner, middle + 0.5 * long * way])
    radii = _profile(count + 2, 0.45, 1, rng.uniform(0.9, 1.1), 0.55) * thick
    across = np.array([1.0, 0.0, 0.0])
    spine = figure.trunk(points, radii, root=1, across=across)
    head = long * rng.uniform(0.12, 0.22)
    neck, rise = long * rng.uniform(0.1, 1.0), rng.uniform(0.4, 1.5)
    start = points[-1] - 0.1 * long * way
    end = start + neck * np.array([0, -np.cos(rise), np.sin(rise)])
    count = int(rng.integers(1, 3 + 3 * neck / long))
    _neck_and_head(figure, rng, spine[-1], start, end, count, head * rng.uniform(0.4, 0.9), head, rng.uniform(0.4, 2))
    shoulder = middle + 0.25 * long * way + np.array([0.45 * thick, 0, 0.3 * thick])
    _wings(figure, rng, spine[-1], shoulder, long * rng.uniform(0.6, 2.2), long * rng.uniform(0.3, 0.8))
    hip = middle - 0.1 * long * way + np.array([0.4 * thick, 0, -0.5 * thick])
    joints = int(rng.integers(2, 4))
    legs = _legs(figure, rng, spine[0], hip, thick * rng.uniform(0.1, 0.35), -rng.uniform(0, 0.12), 0.3 * tall, joints)
    toes = int(rng.integers(0, 4))
    if toes:
        feet = tuple(leg[-1] for leg in legs)
        foot = figure.joints[feet[0]] * [1, 1, 0.4]
        length = max(0.25 * tall, 0.12 * long)
        _fingers(figure, rng, feet, foot, np.array([0, -1.0, -0.1]), across, toes, int(rng.integers(1, 3)), length, 0.1)
    count, fan = int(rng.integers(1, 4)), long * rng.uniform(0.1, 0.4)
    path = _arch(points[0] + 0.1 * long * way, -way, long * rng.uniform(0.3, 1.0), count + 1, (0, 0.2, 0))
    figure.limb((spine[0],), path, _flat(fan * _profile(count + 1, 0.5, 1), 0.12), across=across)


def _fish(figure, rng) -> None:
    long = rng.uniform(0.3, 2.5)
    high, flat = long * rng.uniform(0.08, 0.25), rng.uniform(0.3, 1.3)
    count = int(rng.integers(3, 10))
    points = _between([0, -0.5 * long, high], [0, 0.45 * long, high], count + 2)
    radii = _profile(count + 2, rng.uniform(0.2, 0.6), 0.9, 1, rng.uniform(0.6, 0.9), 0.4, 0.2) * high
    across, up = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    root = int(rng.integers(1, (count + 1) // 2 + 1))
    spine = figure.trunk(points, np.stack([flat * radii, radii], axis=1), root=root, across=across)
    whale = rng.random() < 0.3
    tail, size = points[-1] - [0, 0.02 * long, 0], high * rng.uniform(0.7, 1.6)
    fluke = _between(tail, tail + [0, size, 0], 2) if rng.random() < 0.5 else _between(tail, tail + [0, size, 0], 3)
    half = _flat(size * _profile(len(fluke), 0.25, rng.uniform(0.8, 1.2)), 0.08)
    figure.limb((spine[-1],), fluke, half, across=across if whale else up, around=max(8, figure.around))
    chest = spine[min(1, count - 1)]
    for place in [0.25, 0.6] if rng.random() < 0.4 else [0.25]:
        where = place * (count + 1)
        owner = spine[int(np.clip(round(where) - 1, 0, count - 1))]
        edge = np.interp(where, np.arange(count + 2), radii)
        start = points[0] + place * (points[-1] - points[0]) + np.array([0.8 * flat * edge, 0, -0.3 * edge])
        fin = int(rng.integers(1, 4))
        way = (1, rng.uniform(0.2, 1.2), rng.uniform(-0.8, 0.1))
        path = _arch(start, way, long * rng.uniform(0.1, 0.35), fin + 1, (0, 0.5, 0))
        half = _flat(high * rng.uniform(0.25, 0.6) * _profile(fin + 1, 0.7, 1, 0.4), 0.12)
        figure.limb((owner, owner), path, half, across=np.array([0.0, 1.0, 0.0]), sunk=0.1)
    if rng.random() < 0.6:
        top = np.array([0, rng.uniform(-0.15, 0.1) * long, 1.8 * high])
        owner = spine[int(np.argmin(np.abs(points[1:-1, 1] - top[1])))]
        path = _between(top, top + np.array([0, 0.5, 0.8]) * high, 2)
        figure.limb((owner,), path, _flat(high * np.array([0.7, 0.3]), 0.12), across=np.array([0.0, 1.0, 0.0]))
    if rng.random() < 0.4:
        jaw = points[0] + np.array([[0, 0.12 * long, -0.3 * high], [0, -0.02 * long, -0.35 * high]])
        figure.limb((spine[0],), jaw, _flat(high * np.array([0.4, 0.2]), 0.5), sunk=0.1)
    if rng.random() < 0.1:  # feelers
        start = points[0] + np.array([0.2 * flat * high, 0.02 * long, -0.2 * high])
        path = _arch(start, (1, -0.6, -0.4), 0.3 * long, 4, (0, 1.2, 0))
        figure.limb((chest, chest), path, 0.02 * long * _profile(4, 1, 0.5), around=5)


def _snake(figure, rng) -> None:
    long, count = rng.uniform(0.8, 5.0), int(rng.integers(5, 61))
    thick = long * rng.uniform(0.015, 0.06)
    t = np.linspace(0, 1, count + 2)
    sway = rng.uniform(0, 0.9) * np.sin(2 * np.pi * rng.uniform(0.5, 2.5) * t + rng.uniform(0, 6))
    lift = np.clip(t - 1 + rng.uniform(-0.1, 0.4), 0, None) * rng.uniform(0, 6)
    step = np.stack([np.sin(sway), -np.cos(sway), np.minimum(lift, 2)], axis=1) * long / (count + 1)
    points = np.cumsum(step, axis=0) + np.array([0, 0.5 * long, thick])
    radii = thick * _profile(count + 2, rng.uniform(0.1, 0.5), 0.8, 1, 1, 0.8, rng.uniform(0.5, 0.9))
    if rng.random() < 0.2:
        radii[-max(2, count // 5) : -1] *= 1.8  # a hood
    root = (1, count, (count + 1) // 2)[rng.integers(3)]
    rings = 2 if count > 20 else figure.rings
    flat = _flat(radii, rng.uniform(0.6, 1))
    spine = figure.trunk(points, flat, root=root, across=np.array([1.0, 0.0, 0.0]), rings=rings)
    way = points[-1] - points[-2]
    way /= np.sqrt(way @ way)
    nose = points[-1] + (2.5 + rng.uniform(0, 2)) * thick * way
    path = _between(points[-1], nose, 3)
    ((head,),) = figure.limb((spine[-1],), path[[0, 2]], _flat(thick * np.array([1.2, 0.6]), 0.7))
    if rng.random() < 0.6:
        figure.limb((head,), path[[0, 2]] - [0, 0, 0.4 * thick], _flat(thick * np.array([0.9, 0.4]), 0.4), sunk=0.0)
    if rng.random() < 0.15:
        count = int(rng.integers(2, 4))
        start = points[-3] + np.array([0.5 * thick, 0, 0])
        path = _arch(start, (1, 0.2, 0.2), 6 * thick, count + 1, (0, -1, -0.6))
        figure.limb((spine[-2], spine[-2]), path, 0.35 * thick * _profile(count + 1, 1, 0.5))


def _arm(figure, rng) -> None:
    reach = rng.uniform(0.6, 2.5)
    thick = reach * rng.uniform(0.04, 0.09)
    root = figure.joint([0, 0, 0.5 * thick], -1)
    if rng.random() < 0.5:
        figure.cylinder((root,), [0, 0, 0], [0, 0, 2 * thick], thick * rng.uniform(1.5, 2.5))
    else:
        figure.box((root,), [0, 0, thick], thick * np.array([rng.uniform(3, 5), rng.uniform(3, 5), 2]))
    turn = figure.joint([0, 0, 2 * thick], root)
    figure.cylinder((turn,), [0, 0, 2 * thick], [0, 0, 4 * thick], 1.4 * thick)
    links = int(rng.integers(2, 6))
    angle, place, last = rng.uniform(0.9, 1.6), np.array([0, 0, 4 * thick]), turn
    square = rng.random() < 0.5
    for link in range(links):
        length, girth = reach / links * rng.uniform(0.7, 1.3), thick * (1 - 0.4 * link / links)
        way = np.array([0, -np.cos(angle), np.sin(angle)])
        last = figure.joint(place, last)
        figure.cylinder((last,), place - [1.3 * girth, 0, 0], place + [1.3 * girth, 0, 0], 1.25 * girth)
        shape = {"around": 4, "cap": 0} if square else {"cap": rng.choice([0, 0.5])}
        taper = girth * np.array([1, rng.uniform(0.6, 1)])
        figure.lump((last,), np.stack([place, place + length * way]), taper, across=np.array([1.0, 0, 0]), **shape)
        place = place + length * way
        angle -= rng.uniform(-0.1, 1.2)
    last = figure.joint(place, last)
    end = place + 1.5 * girth * way
    figure.cylinder((last,), place - 0.5 * girth * way, end, 0.9 * girth)
    across, fingers = np.array([1.0, 0, 0]), int(rng.integers(0, 3))
    for lane in np.linspace(0.3, 0.9, fingers) if fingers else []:
        joints = int(rng.integers(1, 3))
        start = end + lane * girth * across - 0.2 * girth * way
        path = _arch(start, way + 0.5 * across, 3 * girth, joints + 1, -0.8 * across)
        flat = _flat(girth * _profile(joints + 1, 0.3, 0.15), 0.7)
        figure.limb((last, last), path, flat, sunk=0.0, around=4, cap=0, rings=1)


def _vehicle(figure, rng) -> None:
    long = rng.uniform(1.5, 5)
    wide, high = long * rng.uniform(0.35, 0.6), long * rng.uniform(0.12, 0.3)
    wheel = long * rng.uniform(0.06, 0.14)
    floor = wheel * rng.uniform(0.8, 1.4)
    hull = figure.joint([0, 0, floor + 0.4 * high], -1)
    figure.box((hull,), [0, 0, floor + 0.5 * high], [wide, long, high])
    if rng.random() < 0.6:
        cab = high * rng.uniform(0.6, 1.4)
        size = [0.85 * wide, long * rng.uniform(0.2, 0.5), cab]
        figure.box((hull,), [0, rng.uniform(-0.25, 0.25) * long, floor + high + 0.45 * cab], size)
    half, tread = np.array([0.5 * wide, 0, 0]), np.array([wheel * rng.uniform(0.4, 0.9), 0, 0])
    for y in np.linspace(0.4, -0.4, int(rng.integers(2, 6))) * long:
        hub = np.array([0, y, wheel]) + half + 0.5 * tread
        wheels = tuple(figure.joint(hub * side, hull) for side in ((1, 1, 1), MIRROR))
        figure.cylinder(wheels, hub - 0.5 * tread, hub + 0.5 * tread, wheel)
    top = np.array([0, rng.uniform(-0.2, 0.2) * long, floor + high])
    if rng.random() < 0.6:
        turret = figure.joint(top, hull)
        girth, tall = wide * rng.uniform(0.25, 0.4), high * rng.uniform(0.4, 0.9)
        if rng.random() < 0.5:
            figure.cylinder((turret,), top - [0, 0, 0.1 * tall], top + [0, 0, tall], girth)
        else:
            figure.box((turret,), top + [0, 0, 0.5 * tall], [2 * girth, 2.3 * girth, tall])
        muzzle = top + [0, -0.8 * girth, 0.5 * tall]
        barrel, rise = figure.joint(muzzle, turret), rng.uniform(0, 0.6)
        end = muzzle + long * rng.uniform(0.2, 0.6) * np.array([0, -np.cos(rise), np.sin(rise)])
        figure.cylinder((barrel,), muzzle, end, 0.12 * girth)
    elif rng.random() < 0.7:
        last, thin, angle, place = hull, 0.06 * long, rng.uniform(0.6, 1.5), top
        for _ in range(int(rng.integers(2, 5))):
            last = figure.joint(place, last)
            end = place + long * rng.uniform(0.15, 0.35) * np.array([0, -np.cos(angle), np.sin(angle)])
            figure.lump((last,), np.stack([place, end]), np.full(2, thin), around=4, cap=0)
            place, angle, thin = end, angle - rng.uniform(0, 1), 0.8 * thin
    if rng.random() < 0.4:
        hinge = np.array([0.5 * wide, -0.1 * long, floor + 0.5 * high])
        doors = tuple(figure.joint(hinge * side, hull) for side in ((1, 1, 1), MIRROR))
        figure.box(doors, hinge + [0, 0.1 * long, 0], [0.04 * wide, 0.2 * long, 0.8 * high])


_BUILDERS = dict(zip(KINDS, (_biped, _quadruped, _many_legged, _bird, _fish, _snake, _arm, _vehicle), strict=True))
