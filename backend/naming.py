"""Readable joint names from structure and symmetry: `thigh.L`, `spine_01`, `tail_03`, `limb_B_01.R`.

The skeleton is folded along its mirror plane: joints left and right of it become one pair, and a pair gets one name
with the suffixes that Blender's mirror tools know. The anchor is a pose from the middle of an animation, so the two
sides do not mirror each other exactly: limbs are paired by where they leave the trunk, how long they are and how they
branch, rather than by where their ends happen to be.

A name says no more than the skeleton shows. `leg`: a pair the character stands on, `front_leg` and `hind_leg` where
there are two and the head shows which is which; `arm`: the one other pair of an upright biped; `hips`, `chest`: the
joints of the `spine` that carry them; `head`, `tail`: ends of the spine that can be told apart; `neck`: what leads to
the joint of the head from which ears or jaws fork, or the first of two joints. The limbs of an upright biped are named
bone by bone (`thigh`, `shin`, `foot`, `toe`; `shoulder`, `upper_arm`, `forearm`, `hand`, `finger`) where two long bones
of like length show knee or elbow, and numbered otherwise; those of a quadruped are always numbered, since artists give
them three bones to seven. Everything else is a `limb`, a `side` (a small pair), a `chain` or a `branch`. A skeleton
made from motion alone often mirrors in part only: it gets sides where limbs do mirror, across a plane that an axis
confirms, and no anatomy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations

import numpy as np

UP = np.array([0.0, 0.0, 1.0])
# All lengths below are relative to the skeleton's size, the diagonal of its bounding box.
NEAR_PLANE = 0.06  # a branch whose middle is closer to the mirror plane belongs to the trunk rather than to a side
PAIR_COST = 0.6  # dearer pairs of branches are no pair; mirrored exactly costs 0, of unlike structure 1
LIMB_LENGTH = 0.15  # pairs shorter than this are ears, fins and the like: `side`
END_LENGTH = 0.1  # shorter ends of the trunk say nothing about head and tail
TRUNK_CREDIT = 0.8  # of a joint on the plane, against 1 for a mirrored one: else a flat skeleton mirrors onto itself
SINGLE_CREDIT = -0.5  # of a joint off the plane without a partner
AXIS_BONUS = (0.1, 0.05)  # for planes across X and Y: nearly all files have the character face along an axis
MAX_PLANES = 64  # mirror planes tried in full
CLEAR = (
    0.6  # mean credit per joint above which the symmetry is beyond doubt; artists' skeletons reach 0.75 to 1 in motion
)
AGREEMENT = 2.0  # degrees between the ways from right to left of pairs that mirror each other exactly
CARRIER = 0.5  # of a limb's length: a joint further from where the limb begins is no hips or chest, but a helper
LIKE_LENGTH = 0.5  # of the longer: thigh and shin, or upper arm and forearm, are at least that much alike
SHORT_BONE = 0.7  # of the upper arm: a shorter bone before it is the shoulder
EXTREMITY = 0.7  # of the shorter of the two long bones: those of hand and foot are shorter, else they are twist bones,
ANKLE = 45.0  # or turn away from the shin by so many degrees, as the feet of small fat characters do
SEGMENTS = {"arm": ("upper_arm", "forearm", "hand", "finger"), "leg": ("thigh", "shin", "foot", "toe")}
PARTS = {
    "spine": ("root", "hips", "spine", "chest", "trunk"),
    "head": ("neck", "head"),
    "tail": ("tail",),
    "arm": ("arm", "shoulder", *SEGMENTS["arm"]),
    "leg": ("leg", "front_leg", "hind_leg", *SEGMENTS["leg"]),
    "limb": ("limb",),
}


@dataclass(frozen=True, eq=False)
class _Tree:
    """A skeleton with what the branch below each joint is like: its length, number of joints and middle."""

    joints: np.ndarray
    parents: np.ndarray
    children: list
    size: float
    reach: np.ndarray
    count: np.ndarray
    middle: np.ndarray

    @classmethod
    def of(cls, joints, parents) -> _Tree:
        joints, parents = np.asarray(joints, dtype=np.float64), np.asarray(parents)
        children = [[] for _ in parents]
        reach, count, middle = np.zeros(len(parents)), np.ones(len(parents)), joints.copy()
        for j in range(len(parents) - 1, -1, -1):  # children come after their parents
            p = parents[j]
            if p >= 0:
                children[p].insert(0, j)
                reach[p] += reach[j] + np.linalg.norm(joints[j] - joints[p])
                count[p] += count[j]
                middle[p] += middle[j]
        size = float(np.linalg.norm(np.ptp(joints, axis=0))) or 1.0
        return cls(joints, parents, children, size, reach, count, middle / count[:, None])

    def alike(self, a: int, b: int) -> float:
        """How alike the branches below two joints are, in [0, 1]: the ratios of their lengths and joint counts."""
        short, long = sorted((self.reach[a], self.reach[b]))
        few, many = sorted((self.count[a], self.count[b]))
        margin = 0.05 * self.size  # two leaves are alike, and so are a leaf and a stub
        return float((short + margin) / (long + margin) * np.sqrt(few / many))


@dataclass(frozen=True, eq=False)
class _Fold:
    """A skeleton folded along a plane: partner (J,) or -1, side (J,) +1, -1 or 0 for the trunk; normal points to +1."""

    normal: np.ndarray
    partner: np.ndarray
    side: np.ndarray
    score: float

    @property
    def clear(self) -> bool:
        """Whether so much of the skeleton mirrors that limbs, head and tail may be told by their shape."""
        return self.score >= CLEAR * len(self.side)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What a skeleton shows of a body, for J joints.

    names (J,): unique, at most 40 characters; partner (J,): the joint's mirror image or -1; side (J,): +1 on the left,
    -1 on the right, 0 on the trunk and where nothing mirrors; left (3,): unit vector across the mirror plane.
    """

    names: tuple[str, ...]
    partner: np.ndarray
    side: np.ndarray
    left: np.ndarray

    @property
    def mirrors(self) -> bool:
        """Whether the skeleton has sides at all."""
        return bool(self.side.any())

    @property
    def parts(self) -> tuple[str, ...]:
        """The part of the body that each joint belongs to: one of PARTS, or other."""
        return tuple(_part(name) for name in self.names)


def _part(name: str) -> str:
    """The part of PARTS that a name belongs to, whatever number, branch or side it has."""
    base = re.match("[a-z]+(_[a-z]+)?", name)[0].removesuffix("_branch")
    return next((part for part, bases in PARTS.items() if base in bases), "other")


def read_anatomy(joints, parents) -> Anatomy:
    """Read joints (J,3), parents (J,) before their children, -1 for roots.

    Left is the character's own left when the skeleton shows where it faces, else the side of +X, which is the left of
    a character that faces -Y as Blender's do (+Y for a character whose sides lie along Y, +Z for one that lies down).
    """
    tree = _Tree.of(joints, parents)
    fold = _best_fold(tree)
    base, forward = _base_names(tree, fold)
    left = _left(fold.normal, forward)
    side = left * fold.side
    names = tuple(name + {0: "", 1: ".L", -1: ".R"}[s] for name, s in zip(base, side.tolist(), strict=True))
    return Anatomy(names, fold.partner, side, _across(tree, fold.partner, side, left * fold.normal))


def name_joints(joints, parents) -> list[str]:
    """Names for a skeleton's joints (J,3), parents (J,) before their children: those of `read_anatomy`."""
    return list(read_anatomy(joints, parents).names)


def _across(tree: _Tree, partner, side, left) -> np.ndarray:
    """The way from right to left: the pairs' where all agree, else the fold's, which may have been made straight."""
    apart = tree.joints[side > 0] - tree.joints[partner[side > 0]]
    apart = apart[(partner[side > 0] >= 0) & (np.linalg.norm(apart, axis=1) > 0.02 * tree.size)]
    if len(apart) == 0:
        return left
    mean = apart.sum(axis=0) / max(np.linalg.norm(apart.sum(axis=0)), 1e-12)
    agree = apart @ mean > np.cos(np.radians(AGREEMENT)) * np.linalg.norm(apart, axis=1)
    return mean if agree.all() and mean @ left > 0 else left


def _left(normal, forward) -> int:
    """Which side of the plane (+1 or -1) is the character's left."""
    if forward is not None:
        return 1 if normal @ np.cross(UP, forward) > 0 else -1
    axis = 0 if abs(normal[0]) > 0.2 else np.abs(normal).argmax()
    return 1 if normal[axis] > 0 else -1


# ---- symmetry


def _best_fold(tree: _Tree) -> _Fold:
    """The fold that mirrors most of the skeleton; one without pairs where nothing mirrors."""
    count = len(tree.parents)
    nothing = _Fold(np.array([1.0, 0, 0]), np.full(count, -1), np.zeros(count, int), 0.0)
    folds = [_folded(tree, normal, point) for normal, point in _planes(tree)]
    folds = [fold for fold in folds if _has_two_sides(tree, fold)]
    best = max(folds, key=lambda fold: fold.score, default=nothing)
    if not best.clear:
        folds = [fold for fold in folds if np.abs(fold.normal[:2]).max() == 1]  # exactly across X or Y
        best = max(folds, key=lambda fold: fold.score, default=nothing)
    return best if best.score > 0 else nothing


def _has_two_sides(tree: _Tree, fold: _Fold) -> bool:
    """Whether a fold shows a body: a trunk or several pairs. A lone chain bent in the middle has neither."""
    return np.count_nonzero(fold.side == 0) > 1 or len(_tops(tree, fold)) > 1


def _tops(tree: _Tree, fold: _Fold) -> list[int]:
    """The joints on the + side where a pair leaves the trunk."""
    return [j for j in np.flatnonzero(fold.side > 0).tolist() if tree.parents[j] < 0 or fold.side[tree.parents[j]] == 0]


def _planes(tree: _Tree):
    """Mirror planes worth trying, (normal, point): those between two branches that are alike and leave near another."""
    found = []
    for a, b in combinations(range(len(tree.parents)), 2):
        pa, pb = tree.parents[a], tree.parents[b]
        related = pa == pb or (pa >= 0 and tree.parents[pa] == pb) or (pb >= 0 and tree.parents[pb] == pa)
        if not related or a == pb or b == pa or tree.alike(a, b) < 0.5:
            continue
        for ends in ((tree.joints[a], tree.joints[b]), (tree.middle[a], tree.middle[b])):
            across = ends[1] - ends[0]
            length = np.linalg.norm(across)
            if length > 0.02 * tree.size:
                weight = tree.alike(a, b) * (tree.reach[a] + tree.reach[b] + length)
                found.append((weight, across / length, (ends[0] + ends[1]) / 2))
    found.sort(key=lambda plane: -plane[0])
    kept = []
    for _, normal, point in found:
        normal = normal * np.sign(normal[np.abs(normal).argmax()])
        offset = normal @ point
        if all(abs(normal @ n) < 0.995 or abs(offset - n @ p) > 0.02 * tree.size for n, p in kept):
            kept.append((normal, point))
            for axis in np.eye(3)[:2]:  # the same plane, made straight
                if 0.9 < normal @ axis:
                    kept.append((axis, point))
        if len(kept) >= MAX_PLANES:
            break
    return kept


def _folded(tree: _Tree, normal, point) -> _Fold:
    """Fold along one plane, from the roots outwards: the trunk stays, branches off it find their partners."""
    joints, size = tree.joints, tree.size
    height = (joints - point) @ normal
    middle_height = (tree.middle - point) @ normal
    mirrored = joints - 2 * height[:, None] * normal
    mirrored_middle = tree.middle - 2 * middle_height[:, None] * normal
    partner, side = np.full(len(joints), -1), np.zeros(len(joints), int)
    cost_of = np.zeros(len(joints))

    def cost(a, b):
        if min(abs(middle_height[a]), abs(middle_height[b])) < 0.01 * size or middle_height[a] * middle_height[b] > 0:
            return np.inf
        apart = np.linalg.norm(mirrored[a] - joints[b])
        apart += 0.5 * np.linalg.norm(mirrored_middle[a] - tree.middle[b])
        return apart / size + 1 - tree.alike(a, b)

    def cost_below(a, b):
        """Of two joints whose parents are a pair: seen from their parents, since the pose may have moved those."""
        offset_a, offset_b = mirrored[a] - mirrored[tree.parents[a]], joints[b] - joints[tree.parents[b]]
        return np.linalg.norm(offset_a - offset_b) / size + 1 - tree.alike(a, b)

    def join(a, b, value, side_of_a):
        partner[a], partner[b] = b, a
        side[a], side[b] = side_of_a, -side_of_a
        cost_of[a] = cost_of[b] = value
        here, there = tree.children[a], tree.children[b]
        matched = _assign(here, there, cost_below, 2 * PAIR_COST)
        for c, d, below in matched:
            join(c, d, below, side_of_a)
        for single in set(here + there) - {j for c, d, _ in matched for j in (c, d)}:
            paint(single, side[tree.parents[single]])

    def paint(j, value):
        side[j] = value
        cost_of[j] = 1 - SINGLE_CREDIT
        for child in tree.children[j]:
            paint(child, value)

    waiting = [j for j, p in enumerate(tree.parents) if p < 0]
    trunk = []
    while True:
        up, down = ([j for j in waiting if s * middle_height[j] > 0] for s in (1, -1))
        for a, b, value in _assign(up, down, cost, PAIR_COST):
            join(a, b, value, 1)
            waiting.remove(a)
            waiting.remove(b)
        on_plane = [j for j in waiting if abs(middle_height[j]) < NEAR_PLANE * size or tree.parents[j] < 0]
        if not on_plane:
            break
        trunk += on_plane
        waiting = [j for j in waiting if j not in on_plane] + [c for j in on_plane for c in tree.children[j]]
    for j in waiting:  # off the plane, without a partner
        paint(j, 0)
    cost_of[trunk] = 1 - TRUNK_CREDIT * np.clip(1 - np.abs(height[trunk]) / (0.1 * size), 0, 1)
    score = float(np.sum(1 - cost_of)) * (1 + np.array([*AXIS_BONUS, 0]) @ (np.abs(normal) > 0.95))
    return _Fold(normal, partner, side, score)


def _assign(here, there, cost, limit: float) -> list:
    """Pairs (a, b, cost) of least total cost, those up to the limit."""
    if not here or not there:
        return []
    from scipy.optimize import linear_sum_assignment  # the add-on, which writes armatures, is enabled without scipy

    table = np.array([[min(cost(a, b), 1e3) for b in there] for a in here])
    rows, columns = linear_sum_assignment(table)
    pairs = [(here[r], there[c], float(table[r, c])) for r, c in zip(rows, columns, strict=True)]
    return [pair for pair in pairs if pair[2] <= limit]


# ---- names


class _Names:
    """Writes names on a folded tree, where the joint on the + side stands for its pair."""

    def __init__(self, tree: _Tree, fold: _Fold):
        self.tree, self.fold = tree, fold
        self.names = [""] * len(tree.parents)

    def children(self, j: int) -> list[int]:
        """Children in the folded tree: pairs first, so that a sword does not lead the arm, then by their length."""
        found = list(self.tree.children[j])
        if self.fold.partner[j] >= 0:
            single = [c for c in self.tree.children[self.fold.partner[j]] if self.fold.partner[c] < 0]
            found += single
        return sorted(
            (c for c in found if self.stands(c)), key=lambda c: (self.fold.partner[c] < 0, -self.length(c), c)
        )

    def stands(self, j: int) -> bool:
        """Whether the joint is unpaired or stands for its pair."""
        return self.fold.partner[j] < 0 or self.fold.side[j] > 0

    def pair(self, j: int) -> list[int]:
        return [j] if self.fold.partner[j] < 0 else [j, int(self.fold.partner[j])]

    def length(self, j: int) -> float:
        """Length of the branch with its first bone, mean of the pair."""
        tree = self.tree
        bones = [np.linalg.norm(tree.joints[k] - tree.joints[max(tree.parents[k], 0)]) for k in self.pair(j)]
        return float(np.mean([tree.reach[k] + bone for k, bone in zip(self.pair(j), bones, strict=True)]))

    def onward(self, j: int) -> list[int]:
        """Children that belong to the same branch, longest first: a pair that leaves the trunk starts its own."""
        return [c for c in self.children(j) if self.fold.side[j] != 0 or self.fold.partner[c] < 0]

    def path(self, j: int) -> list[int]:
        """From a joint along the longest branches to a tip."""
        found = [j]
        while onward := self.onward(found[-1]):
            found.append(onward[0])
        return found

    def forks(self, j: int) -> bool:
        """Whether anything leaves the path from a joint to its tip: ears, jaws, fingers."""
        path = self.path(j)
        return any(c not in path for k in path for c in self.children(k))

    def side_branches(self, path: list[int]) -> list[int]:
        """What leaves a path, pairs that start their own branch excepted."""
        return [c for k in path for c in self.onward(k) if c not in path]

    def write(self, j: int, name: str) -> None:
        for k in self.pair(j):
            self.names[k] = name

    def write_chain(self, path: list[int], name: str) -> None:
        for number, j in enumerate(path, start=1):
            self.write(j, name if len(path) == 1 else f"{name}_{number:02d}")

    def write_branch(self, j: int, name: str) -> None:
        """Name a branch: its longest path by number, everything that leaves it as `branch_A`, `branch_B`, …"""
        path = self.path(j)
        self.write_chain(path, name)
        self.write_side_branches(path, name)

    def write_side_branches(self, path: list[int], name: str) -> None:
        """Name what leaves a path and has no name yet."""
        branches = [c for c in self.side_branches(path) if not self.names[c]]
        for index, c in enumerate(branches):
            path = self.path(c)
            self.write_chain(path, f"{name}_branch_{_letter(index)}")
            branches += self.side_branches(path)


def _letter(index: int) -> str:
    """A, B, … Z, AA, AB, …"""
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = chr(ord("A") + digit) + name
    return name


def _base_names(tree: _Tree, fold: _Fold) -> tuple[list[str], np.ndarray | None]:
    """Names without the suffix, the same for both of a pair, and where the character faces if the skeleton shows it."""
    names = _Names(tree, fold)
    central = [j for j in range(len(tree.parents)) if fold.side[j] == 0]
    tops = _tops(tree, fold)
    limbs = [j for j in tops if names.length(j) >= LIMB_LENGTH * tree.size]

    trunk = set(np.flatnonzero(tree.parents < 0).tolist())  # the roots, and what leads from them to a limb
    for limb in limbs:
        for j in tree.parents[names.pair(limb)].tolist():
            while j >= 0:
                trunk.add(j)
                j = int(tree.parents[j])
    trunk = {j for j in trunk if fold.side[j] == 0}
    ends = [j for j in central if j not in trunk and int(tree.parents[j]) in trunk]

    legs = [j for j in limbs if fold.clear and _stands_on(tree, names, j)]
    arms = _arms(tree, names, legs, [j for j in limbs if j not in legs])
    head, tail = _head_and_tail(tree, names, ends if fold.clear else [], limbs, legs, arms)
    forward = _forward(tree, fold, names, legs, head, trunk, upright=bool(arms))

    def order(j):  # front first where that is known, else top first
        place = np.mean(tree.joints[names.pair(j)], axis=0)
        return tuple(
            np.round([-place @ (UP if forward is None else forward) / tree.size, -place @ UP / tree.size], 6)
        ), j

    kinds = {"leg": legs, "arm": arms}
    hips, chest = (_carrier(tree, names, limb[0]) if len(limb) == 1 else None for limb in (legs, arms))
    if len(legs) == 2 and forward is not None:
        front, hind = sorted(legs, key=order)
        chest, hips = _carrier(tree, names, front), _carrier(tree, names, hind)
        if None in (hips, chest):  # feet without legs, as controls of inverse kinematics
            hips = chest = None
        else:
            kinds = {"front_leg": [front], "hind_leg": [hind]}
    if hips == chest:
        hips = chest = None
    _write_trunk(tree, names, trunk, hips, chest, "spine" if fold.clear else "trunk")
    if arms:
        _write_limb(tree, names, legs[0], "leg")
        _write_limb(tree, names, arms[0], "arm")
        kinds = {}
    for j in head:
        _write_head(names, j)
    kinds["tail"] = tail
    kinds["limb"] = [j for j in limbs if j not in legs + arms]
    kinds["side"] = [j for j in tops if j not in limbs]
    kinds["chain"] = [j for j in ends if j not in head + tail]
    for kind, members in kinds.items():
        for index, j in enumerate(sorted(members, key=order)):
            names.write_branch(j, kind if len(members) == 1 and kind != "chain" else f"{kind}_{_letter(index)}")
    return names.names, forward


def _carrier(tree: _Tree, names: _Names, limb: int) -> int | None:
    """The joint of the trunk from which both limbs of a pair leave, if it is near where they begin."""
    pair = names.pair(limb)
    above = {int(tree.parents[k]) for k in pair}
    if len(above) != 1 or min(above) < 0:
        return None
    (carrier,) = above
    apart = np.linalg.norm(np.mean(tree.joints[pair], axis=0) - tree.joints[carrier])
    return carrier if apart < CARRIER * np.mean(tree.reach[pair]) else None


def _between(tree: _Tree, start: int, end: int) -> list[int]:
    """The joints on the way from one joint to another, without both; empty where they have different roots."""

    def upwards(j):
        found = [j]
        while tree.parents[found[-1]] >= 0:
            found.append(int(tree.parents[found[-1]]))
        return found

    here, there = upwards(start), upwards(end)
    meeting = next((j for j in here if j in there), None)
    if meeting is None:
        return []
    way = here[: here.index(meeting) + 1] + there[: there.index(meeting)][::-1]
    return [j for j in way if j not in (start, end)]


def _write_trunk(tree: _Tree, names: _Names, trunk: set, hips: int | None, chest: int | None, name: str) -> None:
    """The roots, hips and chest where they are known, the way between these two, and the other paths of the trunk."""
    roots = [j for j in sorted(trunk) if tree.parents[j] < 0]
    for index, j in enumerate(roots):
        names.write(j, "root" if len(roots) == 1 else f"root_{_letter(index)}")
    named = {hips, chest}
    for j, what in ((hips, "hips"), (chest, "chest")):
        if j is not None:
            names.write(j, what)
    if None not in (hips, chest):
        between = [j for j in _between(tree, hips, chest) if j not in roots]
        names.write_chain(between, name)
        named.update(between)
        name = "trunk"
    paths = []
    starts = [c for j in roots for c in names.children(j) if c in trunk]
    while starts:
        path = [starts.pop(0)]
        while onward := [c for c in names.children(path[-1]) if c in trunk]:
            path.append(onward[0])
            starts += onward[1:]
        paths.append([j for j in path if j not in named])
    paths = [path for path in paths if path]
    for index, path in enumerate(paths):
        names.write_chain(path, name if len(paths) == 1 else f"{name}_{_letter(index)}")


def _write_head(names: _Names, j: int) -> None:
    """The head begins where the first thing forks off its chain, or is the second of two joints; before it the neck."""
    path = names.path(j)
    forks = [k for k in path if any(c not in path for c in names.children(k))]
    if forks or len(path) <= 2:
        start = path.index(forks[0]) if forks else len(path) - 1
        names.write_chain(path[:start], "neck")
        names.write_chain(path[start:], "head")
        names.write_side_branches(path, "head")
    else:
        names.write_branch(j, "head")


def _write_limb(tree: _Tree, names: _Names, j: int, kind: str) -> None:
    """An arm or leg of an upright biped, bone by bone where knee or elbow can be told, else numbered."""
    path = [k for k in names.path(j) if names.fold.partner[k] >= 0]  # a sword is no part of the hand
    start = _first_long_bone(tree, names, path, kind)
    if start is None:
        names.write_branch(j, kind)
        return
    upper, lower, last, digit = SEGMENTS[kind]
    end = path[start + 2]
    digits = [c for c in names.onward(end) if names.fold.partner[c] >= 0]
    if start:
        names.write(j, "shoulder")
    names.write(path[start], upper)
    names.write(path[start + 1], lower)
    if len(digits) > 1:
        path = path[: start + 3]
        names.write(end, last)
        for index, c in enumerate(digits):
            names.write_branch(c, f"{digit}_{_letter(index)}")
    elif kind == "leg" and len(path) == start + 4:
        names.write(end, last)
        names.write(path[-1], digit)
    else:
        names.write_chain(path[start + 2 :], last)
    names.write_side_branches(path, kind)


def _first_long_bone(tree: _Tree, names: _Names, path: list[int], kind: str) -> int | None:
    """Where thigh or upper arm is on the path of a limb: 0, or 1 after a shoulder; None where that is in doubt."""
    heads = tree.joints[[names.pair(j) for j in path]]
    bones = np.diff(heads, axis=0)
    lengths = np.linalg.norm(bones, axis=2).mean(axis=1)
    if len(lengths) < 2:
        return None
    start = int(kind == "arm" and lengths[0] < SHORT_BONE * lengths[1])
    if len(lengths) < start + 2:
        return None
    short, long = sorted(lengths[start : start + 2])
    forks = [c for j in path[: start + 2] for c in names.onward(j) if c not in path]
    if any(names.fold.partner[c] >= 0 for c in forks):
        return None
    fits = (lengths[start + 2 :] < EXTREMITY * short).all()
    if kind == "leg" and not fits:  # the foot that stands shows the ankle, the other may be stretched
        shin, foot = bones[1:3] / np.maximum(np.linalg.norm(bones[1:3], axis=2, keepdims=True), 1e-12)
        fits = np.sum(shin * foot, axis=1).min() < np.cos(np.radians(ANKLE))
    return start if short >= LIKE_LENGTH * long and fits else None


def _stands_on(tree: _Tree, names: _Names, j: int) -> bool:
    """Whether the character stands on this pair: both reach from well above down to the skeleton's lowest part.

    One of them may be lifted behind, as in a run.
    """
    height = tree.joints @ UP
    low, extent = height.min(), np.ptp(height)
    if extent < 0.2 * tree.size:
        return False
    lifted = []
    for k in names.pair(j):
        lowest = min(height[d] for d in _below(tree, k))
        lifted.append((lowest - low) / extent)
        if height[k] - lowest < (0.4 if lifted[-1] <= 0.2 else 0.2) * tree.reach[k]:
            return False
    return min(lifted) <= 0.2 and max(lifted) <= 0.4


def _below(tree: _Tree, j: int) -> list[int]:
    """A joint and all its descendants."""
    found = [j]
    for k in found:
        found += tree.children[k]
    return found


def _arms(tree: _Tree, names: _Names, legs: list, others: list) -> list:
    """The one other pair of an upright character on one pair of legs."""
    if len(legs) != 1 or len(others) != 1:
        return []
    hips, shoulders = (np.mean(tree.joints[names.pair(j)], axis=0) for j in (legs[0], others[0]))
    upright = (shoulders - hips) @ UP > np.cos(np.pi / 4) * np.linalg.norm(shoulders - hips) > 0
    return others if upright else []


def _head_and_tail(tree: _Tree, names: _Names, ends: list, limbs: list, legs: list, arms: list) -> tuple[list, list]:
    """Head and tail among the ends of the trunk, as lists of none or one, where the skeleton tells them apart.

    Upright: the head is the end that rises above the arms. Otherwise it is the only end that forks, into ears and
    jaws, or on four legs and more the only one that rises. The tail is an end that does not fork and leaves against
    the head's direction.
    """
    ends = [j for j in ends if names.length(j) >= END_LENGTH * tree.size]
    if arms:
        shoulder = (tree.joints[names.pair(arms[0])] @ UP).mean()
        heads = [j for j in ends if tree.middle[j] @ UP > shoulder]
    else:
        heads = [j for j in ends if names.forks(j)]
        if not heads and len(legs) > 1:
            heads = [j for j in ends if _rises(tree, names, j)]
    if len(heads) != 1 or not limbs:
        return [], []
    body = np.mean([tree.joints[k] for j in limbs for k in names.pair(j)], axis=0)
    ahead = tree.middle[heads[0]] - body
    tails = [
        j
        for j in ends
        if j not in heads and not names.forks(j) and tree.children[j] and (tree.middle[j] - body) @ ahead < 0
    ]
    return heads, tails if len(tails) == 1 else []


def _rises(tree: _Tree, names: _Names, j: int) -> bool:
    """Whether an end of the trunk leads upwards."""
    return (tree.joints[names.path(j)[-1]] - tree.joints[tree.parents[j]]) @ UP > 0.3 * names.length(j)


def _forward(tree, fold, names, legs, head, trunk, upright) -> np.ndarray | None:
    """Where the character faces, a horizontal unit vector (3,) along its mirror plane; None where nothing shows it.

    A body that lies along its trunk faces where its head is; an upright one where its feet point.
    """
    ahead = np.cross(fold.normal, UP)
    if np.linalg.norm(ahead) < 0.5 or not fold.side.any():
        return None  # lying on its side, or nothing to mirror
    ahead /= np.linalg.norm(ahead)
    if head and not upright:
        # from the middle of what carries the limbs to the head
        body = np.mean(tree.joints[sorted(trunk)], axis=0)
        steps = [tree.middle[head[0]] - body]
    else:
        steps = [tree.joints[d] - tree.joints[tree.parents[d]] for d in _feet(tree, names, legs)]
    along = np.array([step @ ahead for step in steps]) / tree.size
    if len(along) == 0 or abs(along.mean()) < 0.01 or not (np.sign(along) == np.sign(along[0])).all():
        return None
    return ahead * np.sign(along[0])


def _feet(tree: _Tree, names: _Names, legs: list) -> list[int]:
    """Tips of the legs that rest on the ground: low, with a last bone that lies rather than stands."""
    height = tree.joints @ UP
    found = []
    for leg in legs:
        for k in names.pair(leg):
            tip = k
            while tree.children[tip]:
                tip = min(tree.children[tip], key=lambda c: (height[c], c))
            bone = tree.joints[tip] - tree.joints[tree.parents[tip]]
            grounded = height[tip] - height.min() < 0.1 * np.ptp(height)
            if tip != k and grounded and abs(bone @ UP) < 0.5 * np.linalg.norm(bone):
                found.append(tip)
    return found
