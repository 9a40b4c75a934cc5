"""Animals, people and machines of the game 0 A.D., with their skeletons, skin weights and poses out of their clips.

    python -m sprig.training.build_0ad PACKAGE OUT

PACKAGE is public.zip of the Debian package 0ad-data (usr/share/games/0ad/mods/public/public.zip), or the folder it was
unpacked to. OUT becomes a rig bank, which `rigbank.py` reads. The art is CC-BY-SA-3.0, Wildfire Games; a bank built
from it is too.

What the game keeps where, and choices that a reader would question:

* A mesh (PMD) has vertices with up to four bones each, and its bones' places in the bind pose, but no names and no
  parents. A clip (PSA) has a place and a turn of every bone in every frame. Both are in world space, left-handed, Y up;
  exchanging y and z makes that right-handed, Z up.
* Names and parents are in the standard skeletons (XML), and nothing says which one a mesh has. Of those with as many
  bones it is the one that shares most words with the names of the mesh and its clips; of several the one whose bones
  keep their lengths best over the clips (a true parent keeps its distance), and then the one with the shorter bones.
  Where neither speaks for a skeleton of few bones, the mesh is left out.
* The clips of a mesh are those of the actors (XML) that wear it. One with another number of bones is for another part
  of the actor. A mesh without clips is left out: nothing could tell its skeleton.
* Vertices may hang from one more bone than there is, the mesh itself; it becomes a joint that never moves.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..backend.errors import SprigError
from .bank import MAX_JOINTS, MAX_WEIGHTS, BankWriter, Package, Rigged, damaged, read_xml

MESHES, CLIPS, ACTORS = "art/meshes/", "art/animation/", "art/actors/"
VARIANTS, SKELETONS = "art/variants/", "art/skeletons/"
LICENCE_FILE = "art/LICENSE.txt"
AUTHOR = "Wildfire Games"
MOST_POSES = 32
NO_BONE = 0xFF  # an unused place for a bone of a vertex
SHORTER = 0.02  # how much a skeleton's mean bone length counts against it, beside how much lengths change
MANY = 10  # bones: so many are no coincidence, fewer need a word or lengths that speak for them
STEADY = 0.004  # of the size of the bind pose: how much such lengths may change
ACCESSORIES = r"props/(horse|new/capes|helmet)/|rein"  # what characters wear
MACHINES = r"target_marker|_trader"  # in the folder of the characters, but none


@dataclass(frozen=True, eq=False)
class Mesh:
    """A PMD file, in its own frame. V vertices, M triangles, J bones (0: not rigged)."""

    vertices: np.ndarray  # (V,3)
    faces: np.ndarray  # (M,3)
    bones: np.ndarray  # (J,7) place and turn (x, y, z, w) in the bind pose
    owners: np.ndarray  # (V,4) bones of a vertex; NO_BONE, or J for the mesh itself
    shares: np.ndarray  # (V,4)


@dataclass(frozen=True)
class StandardSkeleton:
    """Names and parents of bones, parents first."""

    source: str
    names: list[str]
    parents: list[int]


# ---- reading


def read_pmd(name: str, data: bytes) -> Mesh:
    """A mesh (versions 3 and 4). Raises SprigError if it is damaged."""
    with damaged(name):
        magic, version, size = struct.unpack_from("<4sII", data)
        if magic != b"PSMD" or version not in (3, 4) or size + 12 != len(data):
            raise ValueError("no PMD of version 3 or 4, or cut off")
        count, uv_sets = (
            struct.unpack_from("<II", data, 12) if version == 4 else (*struct.unpack_from("<I", data, 12), 1)
        )
        layout = np.dtype(
            [
                ("place", "<f4", 3),
                ("rest", f"V{12 + 8 * uv_sets}"),  # the normal and texture coordinates
                ("owners", "u1", 4),
                ("shares", "<f4", 4),
            ]
        )
        at = 20 if version == 4 else 16
        vertices = np.frombuffer(data, layout, count, at)
        at += vertices.nbytes
        faces = np.frombuffer(data, "<u2", 3 * struct.unpack_from("<I", data, at)[0], at + 4)
        at += 4 + faces.nbytes
        joints = struct.unpack_from("<I", data, at)[0]
        bones = np.frombuffer(data, "<f4", 7 * joints, at + 4).reshape(joints, 7)
        if len(vertices) * (joints + 1) > MAX_WEIGHTS or joints > MAX_JOINTS:
            raise ValueError(f"{len(vertices)} vertices and {joints} bones")
        if not np.isfinite(bones).all() or not np.isfinite(vertices["shares"]).all():
            raise ValueError("bones that are none")
        used = (vertices["owners"] != NO_BONE) & (vertices["shares"] != 0)
        if (vertices["owners"][used] > joints).any() or (vertices["shares"] < 0).any():
            raise ValueError("weights of bones that are not there, or below zero")
    return Mesh(
        vertices["place"].astype(np.float64),
        faces.reshape(-1, 3).astype(np.int64),
        bones.astype(np.float64),
        vertices["owners"].astype(np.int64),
        np.where(used, vertices["shares"], 0).astype(np.float64),
    )


def read_psa(name: str, data: bytes) -> np.ndarray:
    """(F,J,7) place and turn (x, y, z, w) of every bone in every frame. Raises SprigError if it is damaged."""
    with damaged(name):
        magic, version, size, letters = struct.unpack_from("<4sIII", data)
        if magic != b"PSSA" or version != 1 or size + 12 != len(data):
            raise ValueError("no PSA of version 1, or cut off")
        joints, frames = struct.unpack_from("<II", data, 20 + letters)  # after the name and the length of a frame
        keys = np.frombuffer(data, "<f4", 7 * joints * frames, 28 + letters).reshape(frames, joints, 7)
        if not keys.size or not np.isfinite(keys).all():
            raise ValueError("no frames, or numbers that are none")
        if not np.linalg.norm(keys[..., 3:].astype(np.float64), axis=-1).min() > 0:
            raise ValueError("turns that are none")
    return keys


def read_skeletons(package: Package, name: str) -> list[StandardSkeleton]:
    """The standard skeletons of a file. Raises SprigError if it is damaged."""
    found = []
    root = read_xml(package, name)
    with damaged(name):
        for skeleton in root.iter("standard_skeleton"):
            names, parents, waiting = [], [], [(bone, -1) for bone in reversed(skeleton.findall("bone"))]
            while waiting:  # in the file's order, which is that of the bones in meshes and clips
                bone, parent = waiting.pop()
                waiting += [(child, len(names)) for child in reversed(bone.findall("bone"))]
                names.append(bone.attrib["name"])
                parents.append(parent)
                if len(names) > MAX_JOINTS:
                    raise ValueError(f"more than {MAX_JOINTS} bones")
            if names:
                found.append(StandardSkeleton(f"{Path(name).name} / {skeleton.get('title')}", names, parents))
    return found


def read_actors(package: Package, bank: BankWriter) -> dict[str, set[str]]:
    """The clips of every mesh, by what stem() makes of their names; damaged actors are noted as skipped."""
    trees = {}
    for name in [*package.under(ACTORS, ".xml"), *package.under(VARIANTS, ".xml")]:
        try:
            trees[name] = read_xml(package, name)
        except SprigError as error:
            bank.skip(name, str(error))
    clips: dict[str, set[str]] = {}
    for name, root in trees.items():
        if not name.startswith(ACTORS):
            continue
        seen, waiting, meshes, moves = set(), [root], set(), set()
        while waiting:
            tree = waiting.pop()
            meshes.update(stem(mesh.text.strip()) for mesh in tree.iter("mesh") if mesh.text)
            moves.update(stem(move.get("file")) for move in tree.iter("animation") if move.get("file"))
            files = {VARIANTS + part.get("file") for part in tree.iter("variant") if part.get("file")}
            waiting += [trees[file] for file in sorted(files - seen) if file in trees]
            seen |= files
        for mesh in meshes:
            clips.setdefault(mesh, set()).update(moves)
    return clips


def stem(name: str) -> str:
    """A mesh's or clip's name without the endings by which different files call it: a/b.dae.cached.pmd is a/b."""
    return re.sub(r"(\.(dae|cached|pmd|psa))+$", "", name)


# ---- putting together


def matrices(keys: np.ndarray) -> np.ndarray:
    """(...,4,4) right-handed, Z up, of places and turns (...,7), left-handed, Y up."""
    found = np.zeros((*keys.shape[:-1], 4, 4))
    found[..., :3, :3] = Rotation.from_quat(keys[..., 3:].reshape(-1, 4)).as_matrix().reshape(*keys.shape[:-1], 3, 3)
    found[..., :3, 3] = keys[..., :3]
    found[..., 3, 3] = 1
    swap = [0, 2, 1, 3]
    return found[..., swap, :][..., swap]


def fitting_skeleton(
    skeletons: list[StandardSkeleton], known: set[str], rest: np.ndarray, poses: np.ndarray
) -> StandardSkeleton | None:
    """The skeleton of a mesh by the rule at the top of this module, None where none fits.

    known: words of the names of the mesh and its clips; rest (J,3) and poses (P,J,3) are places of the bones.
    """
    candidates = [skeleton for skeleton in skeletons if len(skeleton.names) == len(rest)]
    if not candidates:
        return None
    size = np.linalg.norm(np.ptp(rest, axis=0))
    changes, lengths = zip(*(bone_lengths(skeleton, rest, poses) for skeleton in candidates), strict=True)
    shared = [len(known & words(skeleton.source)) for skeleton in candidates]

    def rank(number: int) -> tuple[int, float]:
        return -shared[number], changes[number] + SHORTER * lengths[number]

    best = min(range(len(candidates)), key=rank)
    sure = shared[best] or len(rest) >= MANY or (0 < lengths[best] and changes[best] <= STEADY * size)
    return candidates[best] if sure else None


def bone_lengths(skeleton: StandardSkeleton, rest: np.ndarray, poses: np.ndarray) -> tuple[float, float]:
    """How much a skeleton's bones change their lengths over the poses, and how long they are at rest; means."""
    bones = np.array([(joint, parent) for joint, parent in enumerate(skeleton.parents) if parent >= 0]).reshape(-1, 2)
    if not len(bones):
        return 0.0, 0.0
    change, length = (places[..., bones[:, 0], :] - places[..., bones[:, 1], :] for places in (poses, rest))
    return float(np.linalg.norm(change, axis=-1).std(axis=0).mean()), float(np.linalg.norm(length, axis=-1).mean())


def words(name: str) -> set[str]:
    """The words of a name; those that say nothing count too, for they are in no skeleton's or in many."""
    return set(re.findall("[a-z]+", name.lower()))


def kind_of(name: str) -> str:
    """The catalogue's kind of a mesh by its path."""
    if name.startswith("skeletal/") and not re.search(MACHINES, name):
        return "character"
    return "accessory" if re.search(ACCESSORIES, name) else "machine or prop"


def rig(name: str, mesh: Mesh, clips: dict[str, np.ndarray], skeletons: list[StandardSkeleton]) -> Rigged:
    """A mesh with its skeleton and poses from all its clips. Raises SprigError with the reason if it has none."""
    joints = len(mesh.bones)
    clips = {clip: keys for clip, keys in sorted(clips.items()) if keys.shape[1] == joints}
    if not clips:
        raise SprigError(f"{name} has no clip.")
    keys = np.concatenate(list(clips.values()))
    frame_clip = np.repeat([clip.rpartition("/")[2] for clip in clips], [len(frames) for frames in clips.values()])
    chosen = np.unique(np.linspace(0, len(keys) - 1, MOST_POSES).round().astype(int))
    with damaged(name):
        rest, poses = matrices(mesh.bones), matrices(keys[chosen].astype(np.float64))
    known = words(" ".join([name, *clips]))
    skeleton = fitting_skeleton(skeletons, known, rest[:, :3, 3], keys[..., :3].astype(np.float64))
    if skeleton is None:
        raise SprigError(f"{name} has no standard skeleton that fits.")

    weights = np.zeros((len(mesh.vertices), joints + 1))
    for owners, shares in zip(mesh.owners.T, mesh.shares.T, strict=True):
        np.add.at(weights, (np.arange(len(weights)), np.minimum(owners, joints)), shares)
    names, parents = list(skeleton.names), list(skeleton.parents)
    if weights[:, joints].any():
        names, parents = [*names, "mesh_root"], [*parents, -1]
        rest = np.concatenate([rest, np.eye(4)[None]])
        poses = np.concatenate([poses, np.broadcast_to(np.eye(4), (len(poses), 1, 4, 4))], axis=1)
    return Rigged(
        name=f"0ad_{name.removeprefix('skeletal/').replace('/', '_')}",
        kind=kind_of(name),
        source=f"Debian 0ad-data (public.zip) : {MESHES}{name}.dae",
        licence="CC-BY-SA-3.0",
        author=AUTHOR,
        skeleton=skeleton.source,
        vertices=mesh.vertices[:, [0, 2, 1]],
        faces=mesh.faces,
        joint_names=names,
        parents=np.array(parents),
        bone_rest=rest,
        weights=weights[:, : len(names)],
        pose_world=poses,
        pose_clip=frame_clip[chosen].tolist(),
        clips=len(clips),
    )


# ---- the bank


def build_0ad(source: Path | str, out: Path | str, tell: Callable[[str], None] = print) -> None:
    """Write the bank of all rigged meshes that have a skeleton and a clip.

    A damaged mesh, clip, actor or skeleton is skipped and named in the summary. tell is called with lines of progress
    and the summary. Raises SprigError with the reason where there can be no bank.
    """
    with Package(source) as package:
        if b"Creative Commons Attribution-Share Alike 3.0" not in package.read(LICENCE_FILE):
            raise SprigError(f"{LICENCE_FILE} is not CC-BY-SA-3.0; this version of the package cannot be used.")
        bank = BankWriter(out)
        tell("reading actors")
        clips_of = read_actors(package, bank)
        skeletons = []
        for name in package.under(SKELETONS, ".xml"):
            try:
                skeletons += read_skeletons(package, name)
            except SprigError as error:
                bank.skip(name, str(error))
        files = {stem(name.removeprefix(CLIPS)): name for name in package.under(CLIPS, ".psa")}
        read: dict[str, np.ndarray | None] = {}
        names = package.under(MESHES, ".pmd")
        plain = 0
        for number, name in enumerate(names):
            if number % 500 == 0:
                tell(f"mesh {number} of {len(names)}")
            short = stem(name.removeprefix(MESHES))
            try:
                mesh = read_pmd(name, package.read(name))
                if not len(mesh.bones):
                    plain += 1
                    continue
                for clip in sorted(clips_of.get(short, set()).intersection(files) - set(read)):
                    try:
                        read[clip] = read_psa(files[clip], package.read(files[clip]))
                    except SprigError as error:
                        read[clip] = None
                        bank.skip(files[clip], str(error))
                clips = {clip: read[clip] for clip in clips_of.get(short, ()) if read.get(clip) is not None}
                rigged = rig(short, mesh, clips, skeletons)
            except SprigError as error:
                bank.skip(short, str(error))
                continue
            bank.add(rigged)
        bank.finish()
    tell(f"{plain} of {len(names)} meshes have no bones")
    for line in bank.summary():
        tell(line)


def main() -> None:
    """The command line; `python -m sprig.training.build_0ad --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m sprig.training.build_0ad", description="The rigged meshes of the Debian package 0ad-data."
    )
    parser.add_argument("package", type=Path, help="public.zip, or the folder it was unpacked to")
    parser.add_argument("out", type=Path, help="a new folder for the bank")
    options = parser.parse_args()
    try:
        build_0ad(options.package, options.out)
    except SprigError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
