"""The rig bank: artists' characters read as ground truth, and which of them are never trained on.

Artists' skeletons hold joints that no method could or should find: helpers, IK targets and weapon slots without skin,
and twist joints. They are removed here by three rules, each a function of its own:

* needed_joints: a joint stays if its largest weight exceeds 0.01, or if it lies between such a joint and the lowest
  common ancestor of all such joints of its tree (the metrics' ground truth, less the helpers above that ancestor);
* join_roots: of several trees the one that carries the most weight gives the root, and the other roots become its
  children: where they belong nobody knows, and the root is the choice that claims least;
* twist_joints: a joint inside an unbranched, straight chain is merged into its parent if it is called a twist, or
  if in every pose it only turns about the chain against its parent.

What a removed joint carried goes to its nearest remaining ancestor.

The split is by family of skeletons, never by file: skeletons that share most of their joint names (an artist's stag
and bull), the levels of detail of one model and reshaped copies of one mesh count as one family and stay on one side.
Both lists lie beside this module and were written, before anything was trained, with
`python -m sprig.training.rigbank --write-split FOLDER`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend.errors import SprigError
from .character import Character

LEAST_WEIGHT = 0.01  # a joint whose largest weight is not above this has no skin (as in the metrics)
MOST_JOINTS = 101  # as many as the skeleton network can write
STRAIGHT = np.cos(np.radians(10))  # a chain bends less than this at a twist joint
SWING = np.cos(np.radians(5))  # a twist joint never tilts its bone more than this against its parent
TWIST = np.cos(np.radians(10))  # and turns more than this about it in at least one pose, or there is no sign of a twist

SHARED_NAMES = 0.6  # skeletons are of one family if they share this part of the joint names that either has
VALIDATION_SHARE = 0.15  # of the skeletons of each category
LISTS = Path(__file__).parent
RIGS_LIST = LISTS / "validation_rigs.txt"
CLIPS_LIST = LISTS / "validation_clips.txt"

# The first pattern found in a name gives the category of a character; what none fits is a "creature".
CATEGORIES = {
    "fish": r"fish_|_fish|tuna|shark",
    "bird": r"crow|hawk|chicken|peacock|bird|turkey|_bat$",
    "snake": r"snake",
    "insect": r"spider|crab|_bee$",
    "quadruped": r"croc|boar|lion|piglet|bear|bull(?!_frog)|camel|cattle|deer|donkey|elephant|hippo|fox|goat|horse"
    r"|mastiff|_pig|pony|rabbit|rhino|sheep|wolf|zebra|zebu|wildebeest|alpaca|_cow|husky|shiba|stag$|apatosaurus|stegosaurus"
    r"|triceratops|_rat$|_cat$|opossum",
    "biped": r"^0ad_new_|^anny_|modular_(wo)?men|astronaut|platformer_game_pack_character|knight|^kaykit_|godot_player"
    r"|wocc_(skeleton|giant|goblin|tribal|orcenemy|yeti)",
    "robot": r"mech_|cyberpunk",
}


@dataclass(frozen=True)
class Rejected:
    """A file of the bank that cannot be learned from, and why."""

    name: str
    reason: str


# ---- reading


def read_rigbank(folder: Path | str) -> list[Character]:
    """All usable characters of the bank, cleaned, in order of name. Raises SprigError if there is no bank."""
    return inspect_rigbank(folder)[0]


def inspect_rigbank(folder: Path | str) -> tuple[list[Character], list[Rejected]]:
    """The usable characters of the bank, and the files that were left out with the reasons."""
    characters, rejected = [], []
    for entry in read_catalogue(folder):
        with np.load(Path(folder) / f"{entry['name']}.npz") as arrays:
            try:
                characters.append(clean_character(arrays, entry["rig_id"], category_of(entry["name"], entry["kind"])))
            except ValueError as problem:
                rejected.append(Rejected(entry["name"], str(problem)))
    return characters, rejected


def read_catalogue(folder: Path | str) -> list[dict[str, str]]:
    """The rows of the bank's CATALOGUE.csv in order of name."""
    path = Path(folder) / "CATALOGUE.csv"
    if not path.is_file():
        raise SprigError(f"There is no CATALOGUE.csv in {folder}; give the folder of the rig bank.")
    with path.open(encoding="utf-8", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda entry: entry["name"])


def category_of(name: str, kind: str) -> str:
    """Body plan by name, for characters; "machine" and "accessory" are the catalogue's own kinds."""
    if kind != "character":
        return "accessory" if kind == "accessory" else "machine"
    found = (category for category, pattern in CATEGORIES.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, "creature")


def clean_character(arrays, rig_id: str, category: str) -> Character:
    """One file's arrays, cleaned by the rules at the top of this module.

    arrays: a mapping with the keys of the bank's README. Raises ValueError with the reason if it cannot be used.
    """
    weights = arrays["weights"].astype(np.float64)
    joints = arrays["joints_rest"].astype(np.float64)
    parents = arrays["parents"].astype(np.int64)
    names = arrays["joint_names"]
    for key in ("rest_vertices", "weights", "joints_rest", "bone_rest", "pose_world"):
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{key} is not finite")
    if not len(arrays["faces"]):
        raise ValueError("no faces")
    if (weights < 0).any() or not (weights.sum(axis=1) > 0.5).all():
        raise ValueError("vertices without weights")
    motion = arrays["pose_world"].astype(np.float64) @ np.linalg.inv(arrays["bone_rest"].astype(np.float64))

    keep = needed_joints(weights, parents)
    if not keep.any():
        raise ValueError("no joint has skin")
    weights, parents = move_weights(weights, joints, parents, keep), remove_joints(parents, keep)
    joints, motion, names = joints[keep], motion[:, keep], names[keep]

    parents = join_roots(weights, parents)
    order = parents_first(parents)
    rank = np.argsort(order)
    parents = np.where(parents[order] < 0, -1, rank[parents[order]])
    weights, joints, motion, names = weights[:, order], joints[order], motion[:, order], names[order]

    keep = ~twist_joints(joints, parents, motion, names)
    weights, parents = move_weights(weights, joints, parents, keep), remove_joints(parents, keep)
    joints, motion = joints[keep], motion[:, keep]

    if not 2 <= len(joints) <= MOST_JOINTS:
        raise ValueError(f"{len(joints)} joints, usable are 2 to {MOST_JOINTS}")
    return Character(
        name=str(arrays["name"]),
        rig_id=rig_id,
        category=category,
        source=str(arrays["source"]),
        licence=str(arrays["licence"]),
        vertices=arrays["rest_vertices"].astype(np.float32),
        faces=arrays["faces"].astype(np.int32),
        weights=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        joints=joints.astype(np.float32),
        parents=parents.astype(np.int32),
        motion=motion.astype(np.float32),
    )


# ---- the rules of the clean-up; J joints, V vertices, P poses; parents (J,) before children, -1 for roots


def needed_joints(weights: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """(J,) bool: joints with skin, and their ancestors up to the lowest common one of each tree.

    weights: (V,J); skin means a weight above LEAST_WEIGHT somewhere.
    """
    skinned = weights.max(axis=0) > LEAST_WEIGHT
    needed = skinned.copy()
    for joint in reversed(range(len(parents))):
        if needed[joint] and parents[joint] >= 0:
            needed[parents[joint]] = True
    for joint in range(len(parents)):  # from the roots down, so that each cut may make the next joint a root
        is_root = parents[joint] < 0 or not needed[parents[joint]]
        if needed[joint] and is_root and not skinned[joint] and np.count_nonzero(needed & (parents == joint)) == 1:
            needed[joint] = False
    return needed


def remaining_ancestors(parents: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(J,) index of the nearest joint that is kept, from each joint towards its root, itself included; -1 for none."""
    found = np.full(len(parents), -1)
    for joint, parent in enumerate(parents):
        if keep[joint]:
            found[joint] = joint
        elif parent >= 0:
            found[joint] = found[parent]
    return found


def remove_joints(parents: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Parents among the kept joints only, numbered anew; a joint without a kept ancestor becomes a root."""
    ancestors = remaining_ancestors(parents, keep)
    number = np.cumsum(keep) - 1
    above = np.where(parents[keep] >= 0, ancestors[parents[keep]], -1)
    return np.where(above >= 0, number[above], -1)


def move_weights(weights: np.ndarray, joints: np.ndarray, parents: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(V,K) weights of the kept joints; those of a removed joint go to its nearest kept ancestor.

    A removed joint above all kept ones has none: the kept joint nearest to it in the rest pose, joints (J,3), takes
    its weights.
    """
    target = remaining_ancestors(parents, keep)
    kept = np.flatnonzero(keep)
    for joint in np.flatnonzero(target < 0):
        target[joint] = kept[np.argmin(np.linalg.norm(joints[kept] - joints[joint], axis=1))]
    moved = np.zeros_like(weights)
    np.add.at(moved.T, target, weights.T)
    return moved[:, keep]


def join_roots(weights: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Parents with one root: that of the tree with the largest sum of weights; other roots become its children."""
    tree = np.arange(len(parents))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            tree[joint] = tree[parent]
    root = np.argmax(np.bincount(tree, weights.sum(axis=0)))
    joined = np.where(parents < 0, root, parents)
    joined[root] = -1
    return joined


def parents_first(parents: np.ndarray) -> np.ndarray:
    """(J,) an order of the joints of one tree by depth, so that parents come before children and the root first."""
    depth = np.zeros(len(parents), dtype=int)
    above = parents.copy()
    while (above >= 0).any():
        depth += above >= 0
        above = np.where(above >= 0, parents[above], -1)
    return np.argsort(depth, kind="stable")


def twist_joints(joints: np.ndarray, parents: np.ndarray, motion: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(J,) bool: joints that only spread the twist of their parent's bone over its length.

    Such a joint is its parent's only child, has a single child, and the bones before and after it point the same way.
    And either "twist" is in its name, or in every pose its turn against the parent leaves the bone's direction alone
    and in one pose it is a turn worth the name (SWING and TWIST). motion: (P,J,4,4), rest to pose.
    """
    twists = np.zeros(len(parents), dtype=bool)
    children = [np.flatnonzero(parents == joint) for joint in range(len(parents))]
    for joint, parent in enumerate(parents):
        if parent < 0 or len(children[parent]) != 1 or len(children[joint]) != 1:
            continue
        before, after = joints[joint] - joints[parent], joints[children[joint][0]] - joints[joint]
        lengths = np.linalg.norm(before) * np.linalg.norm(after)
        if lengths == 0 or before @ after < STRAIGHT * lengths:
            continue
        twists[joint] = "twist" in str(names[joint]).lower() or only_twists(motion[:, parent], motion[:, joint], after)
    return twists


def only_twists(parent_motion: np.ndarray, motion: np.ndarray, direction: np.ndarray) -> bool:
    """Whether a joint turns against its parent, and only about direction (3,); both motions are (P,4,4)."""
    turns = nearest_rotations(parent_motion).transpose(0, 2, 1) @ nearest_rotations(motion)
    direction = direction / np.linalg.norm(direction)
    swing = turns @ direction @ direction  # cosines
    angle = (np.trace(turns, axis1=1, axis2=2) - 1) / 2
    return bool((swing > SWING).all() and (angle < TWIST).any())


def nearest_rotations(motion: np.ndarray) -> np.ndarray:
    """(P,3,3) rotations nearest to the linear parts of (P,4,4), which may scale."""
    left, _stretch, right = np.linalg.svd(motion[:, :3, :3])
    left[:, :, 2] *= np.linalg.det(left @ right)[:, None]
    return left @ right


# ---- the split


def split(characters: Iterable[Character]) -> tuple[list[Character], list[Character]]:
    """(training, validation): validation holds the characters whose rig_id is in validation_rigs.txt.

    The list is closed under families, and the clips of validation_clips.txt are of families on it or of none in the
    bank, so no skeleton of a listed clip is ever trained on.
    """
    held_out = set(validation_rigs())
    training, validation = [], []
    for character in characters:
        (validation if character.rig_id in held_out else training).append(character)
    return training, validation


def validation_rigs() -> list[str]:
    """rig_ids that are never trained on."""
    return read_list(RIGS_LIST)


def validation_clips() -> list[str]:
    """Names of real clips whose skeletons are never trained on."""
    return read_list(CLIPS_LIST)


def read_list(path: Path) -> list[str]:
    """The lines of a list file without comments (from # on) and blank lines."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def rig_families(
    joint_names: dict[str, set[str]], models: dict[str, set[str]], meshes: dict[str, set[bytes]]
) -> list[tuple[str, ...]]:
    """rig_ids grouped into families, each sorted, in order of their first.

    joint_names: rig_id to names of joints; models: rig_id to names of characters; meshes: rig_id to their triangles,
    as bytes. Two skeletons are related if they share SHARED_NAMES of their joint names, a model (the name without
    "_low", a level of detail) or a mesh (a fox may be a wolf with other proportions); relations chain.
    """
    plain = {rig: {name.removesuffix("_low") for name in names} for rig, names in models.items()}
    family = {rig: {rig} for rig in joint_names}
    for one, other in itertools.combinations(sorted(joint_names), 2):
        shared = len(joint_names[one] & joint_names[other])
        alike = shared >= SHARED_NAMES * len(joint_names[one] | joint_names[other])
        related = alike or plain[one] & plain[other] or meshes[one] & meshes[other]
        if related and family[one] is not family[other]:
            family[one] |= family[other]
            for rig in family[other]:
                family[rig] = family[one]
    return sorted({tuple(sorted(members)) for members in family.values()})


def choose_validation(
    families: Iterable[Iterable[str]], category: Callable[[str], str], with_clips: set[str]
) -> list[str]:
    """rig_ids to hold out: VALIDATION_SHARE of the skeletons of every category, whole families, at least one.

    Families come in the order of the SHA-256 of their first rig_id, a fixed lottery; the first one that has a real
    clip (a rig_id in with_clips) is moved to the front. One that would exceed the share of its category is passed
    over; if all would, the smallest is taken. A family's category is that of its first rig.
    """
    groups: dict[str, list[list[str]]] = {}
    for members in sorted(map(sorted, families), key=lambda members: hashlib.sha256(members[0].encode()).digest()):
        groups.setdefault(category(members[0]), []).append(members)
    chosen = []
    for group in groups.values():
        room = round(VALIDATION_SHARE * sum(map(len, group)))
        clipped = [members for members in group if len(members) <= room and with_clips.intersection(members)][:1]
        taken = []
        for members in clipped + [members for members in group if members not in clipped]:
            if len(taken) + len(members) <= room:
                taken += members
        chosen += taken or min(group, key=len)
    return sorted(chosen)


def write_split(bank: Path, sequences: Path, lists: Path = LISTS) -> None:
    """Writes validation_rigs.txt and validation_clips.txt into the folder lists.

    bank: the rig bank; sequences: the folder of real clips.
    """
    joint_names, models, meshes, categories, skeletons = {}, {}, {}, {}, {}
    for entry in read_catalogue(bank):
        rig = entry["rig_id"]
        with np.load(bank / f"{entry['name']}.npz") as arrays:
            skeletons[skeleton_key(arrays)] = rig
            meshes.setdefault(rig, set()).add(arrays["faces"].tobytes())
            joint_names[rig] = set(arrays["joint_names"].tolist())
        models.setdefault(rig, set()).add(entry["name"])
        categories.setdefault(rig, []).append(category_of(entry["name"], entry["kind"]))
    # Horse gear and capes share the skeleton of their wearer, so a rig is an accessory only if nothing else is.
    worn_by = {rig: next((c for c in found if c != "accessory"), "accessory") for rig, found in categories.items()}

    clips = {}
    for path in sorted(sequences.glob("*.npz")):
        with np.load(path) as arrays:
            clips[path.stem] = skeletons.get(skeleton_key(arrays))

    families = rig_families(joint_names, models, meshes)
    chosen = choose_validation(families, worn_by.__getitem__, set(clips.values()) - {None})
    lines = [
        "# Skeletons (rig_id) of the rig bank that are never trained on, with category and one of their characters.",
        f"# {len(chosen)} of {len(joint_names)}; how they were chosen: choose_validation in rigbank.py.",
    ]
    lines += [f"{rig}  # {worn_by[rig]}: {min(models[rig])}" for rig in chosen]
    (lists / RIGS_LIST.name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    lines = [
        "# Real clips whose skeletons are never trained on. After each the rig_id of its skeleton in the rig bank;",
        "# none: no skeleton, or one that is not in the bank (keep its makers' other models out of training too).",
    ]
    lines += [f"{name}  # {rig or 'none'}" for name, rig in clips.items() if rig is None or rig in chosen]
    (lists / CLIPS_LIST.name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def skeleton_key(arrays) -> tuple | None:
    """Names and hierarchy of joints, equal for equal skeletons; None for a clip without one."""
    if "joint_names" not in arrays:
        return None
    return tuple(arrays["joint_names"].tolist()), tuple(arrays["parents"].tolist())


def main() -> None:
    """The command line; `python -m sprig.training.rigbank --help`."""
    parser = argparse.ArgumentParser(prog="python -m sprig.training.rigbank", description="The lists of the split.")
    parser.add_argument(
        "--write-split",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the rig bank, with the real clips in the folder sequences beside it",
    )
    folder = parser.parse_args().write_split
    write_split(folder, folder.resolve().parent / "sequences")


if __name__ == "__main__":
    main()
