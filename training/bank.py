"""Building a rig bank out of a public package: reading its files with care, writing what rigbank.py reads.

A builder turns a package that anyone can download into the folder that training reads: one .npz a character and
CATALOGUE.csv. Choices that a reader would question:

* A package is read where it lies, a folder or a zip (a wheel is one), and nothing is unpacked. It is untrusted: the
  size of a file is looked at before it is read, and whatever a parser trips over is one sentence.
* The folder must be new or empty, every file appears whole or not at all, and the catalogue comes last: a folder
  without one is no bank, so nobody trains on half of one.
* A character is written only if training can use it (`rigbank.clean_character`); what is left out is told.
* The rig_id is a digest of names and hierarchy, so that a bank that is built again keeps the ids of the lists that
  say what is never trained on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import re
import struct
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..backend.errors import SprigError
from ..backend.formats.checks import file_errors
from ..backend.formats.whole_file import whole_file
from .rigbank import category_of, clean_character

MAX_FILE_BYTES = 64_000_000  # of one file of a package; the largest that is read has 6 MB
MAX_XML_BYTES = 1_000_000  # a tree takes twenty times as much
MAX_READ_BYTES = 2_000_000_000  # of all that is read of one package
MAX_FILES = 500_000  # in a package; 0 A.D. has 36,000
MAX_JOINTS = 1_000  # of one skeleton
MAX_WEIGHTS = 50_000_000  # vertices x joints of one character; 400 MB in float64
MAX_COORDINATE = 1e6  # in whatever unit; far beyond any character, and its square is still a float32
MAX_NAME = 200  # letters of a file's or a joint's name
WELD_DISTANCE = 1e-5  # of the diagonal: vertices that are nearer and have the same weights are one
SAME_WEIGHT = 1e-3  # float16, which weights are stored in, resolves half of it
NO_LENGTH = 1e-3  # of the diagonal: a bone that is shorter points nowhere

PARSER_ERRORS = (  # what the parsers of Python and numpy raise on damaged bytes
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError, ValueError,
    EOFError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
COLUMNS = (
    "name", "verts", "faces", "joints", "joints_kept", "joints_weighted", "poses", "clips_in_source", "licence",
    "author", "source", "kbytes", "skeleton", "rig_id", "kind",
)  # fmt: skip


# ---- reading a package


@contextmanager
def damaged(name: str):
    """Turn whatever a parser raises on the file `name` of a package into a SprigError; those pass as they are."""
    try:
        yield
    except PARSER_ERRORS as error:
        cause = next(iter(str(error).splitlines()), "")[:MAX_NAME] or type(error).__name__
        raise SprigError(f"{name} is damaged or no file of its kind ({cause}); get the package again.") from error


class Package:
    """The files of a folder or a zip by their names with forward slashes; `with Package(path) as package`."""

    def __init__(self, path: Path | str):
        """Raises SprigError if path is neither, or holds more than MAX_FILES files."""
        self.path, self._zip, self._read_bytes = Path(path), None, 0
        if self.path.is_dir():
            with file_errors(self.path):
                paths = [found for found in self.path.rglob("*") if found.is_file()]
                self._sizes = {found.relative_to(self.path).as_posix(): found.stat().st_size for found in paths}
        elif self.path.is_file():
            with file_errors(self.path), damaged(self.path.name):
                self._zip = zipfile.ZipFile(self.path)
                self._sizes = {info.filename: info.file_size for info in self._zip.infolist()}
        else:
            raise SprigError(f"{self.path} does not exist; give the package's file, or the folder it was unpacked to.")
        if len(self._sizes) > MAX_FILES:
            raise SprigError(
                f"{self.path.name} holds {len(self._sizes)} files, more than {MAX_FILES}; is it the package?"
            )

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_) -> None:
        if self._zip is not None:
            self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def under(self, folder: str, ending: str) -> list[str]:
        """Names that start with `folder` and end with `ending`, sorted."""
        return sorted(name for name in self._sizes if name.startswith(folder) and name.endswith(ending))

    def read(self, name: str, most: int = MAX_FILE_BYTES) -> bytes:
        """One file's bytes. Raises SprigError if it is not there, too large or damaged."""
        if name not in self._sizes:
            raise SprigError(f"{self.path.name} has no {name}; give the whole package.")
        size = self._sizes[name]
        self._read_bytes += size
        if size > most or self._read_bytes > MAX_READ_BYTES:
            raise SprigError(f"{name} has {size} bytes, more than are read; get the package again.")
        with file_errors(name), damaged(name):
            if self._zip is None:
                return (self.path / name).read_bytes()
            return self._zip.read(name)  # never more than the size that was just looked at


def gunzip(name: str, data: bytes) -> bytes:
    """What a .gz holds, at most MAX_FILE_BYTES."""
    with damaged(name):
        unpacker = zlib.decompressobj(wbits=31)
        text = unpacker.decompress(data, MAX_FILE_BYTES)
        if not unpacker.eof:
            raise ValueError(f"truncated, or more than {MAX_FILE_BYTES} bytes")
        return text


def whole_numbers(values: np.ndarray, count: int) -> np.ndarray:
    """Float indices (K,) as integers; ValueError unless they are whole and below count."""
    if not ((values >= 0) & (values < count) & (values == np.floor(values))).all():
        raise ValueError("vertices that are not there")
    return values.astype(np.int64)


def read_json(package: Package, name: str) -> dict:
    """A JSON file whose outermost value is an object."""
    with damaged(name):
        value = json.loads(package.read(name))
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value


def read_xml(package: Package, name: str) -> ElementTree.Element:
    """The root of an XML file; one that declares entities is refused, since they can grow without end."""
    data = package.read(name, MAX_XML_BYTES)
    with damaged(name):
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
            raise ValueError("a document type, entities or zero bytes")
        return ElementTree.fromstring(data)


# ---- a character


def rig_id(names: list[str], parents: np.ndarray) -> str:
    """Equal for equal names and hierarchy; parents before children."""
    text = f"{[int(parent) for parent in parents]}{'|'.join(names)}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8]


@dataclass(eq=False)
class Rigged:
    """A rigged mesh as its source has it. V vertices, M triangles, J joints, P poses; Z up, the source's unit.

    The constructor puts parents before children, welds, scales weights to a sum of one and raises SprigError for
    what is no character.
    """

    name: str
    kind: str  # "character", "accessory" or "machine or prop"
    source: str  # the package and the file in it
    licence: str  # SPDX
    author: str
    skeleton: str  # where names and hierarchy are from
    vertices: np.ndarray  # (V,3) bind pose
    faces: np.ndarray  # (M,3)
    joint_names: list[str]
    parents: np.ndarray  # (J,) -1 for roots
    bone_rest: np.ndarray  # (J,4,4) in the bind pose, world space
    weights: np.ndarray  # (V,J)
    tails: np.ndarray | None = None  # (J,3), None where the source has none
    pose_world: np.ndarray | None = None  # (P,J,4,4)
    pose_clip: list[str] = field(default_factory=list)  # the clip that each pose is from
    clips: int = 0  # in the source, for this skeleton

    def __post_init__(self):
        count, joints = np.shape(self.weights)
        self._need(0 < joints <= MAX_JOINTS and 0 < count * joints <= MAX_WEIGHTS, "too few or many joints or vertices")
        if self.pose_world is None:
            self.pose_world = np.zeros((0, joints, 4, 4))
        for key, shape in {
            "vertices": (count, 3), "faces": (len(self.faces), 3), "parents": (joints,), "bone_rest": (joints, 4, 4),
            "weights": (count, joints), "pose_world": (len(self.pose_clip), joints, 4, 4),
            "joint_names": (joints,),
        }.items():  # fmt: skip
            self._need(np.shape(getattr(self, key)) == shape, f"{key} of another shape than {shape}")
            if key != "joint_names":  # a comparison with NaN is false
                self._need((np.abs(getattr(self, key)) <= MAX_COORDINATE).all(), f"numbers in {key} that are none")
        self._need(all(0 < len(name) <= MAX_NAME for name in self.joint_names), "a joint without a name")
        self._need(len(self.faces) > 0, "no triangles")
        self._need(0 <= np.min(self.faces) and np.max(self.faces) < count, "triangles of vertices that are not there")
        self._need(np.min(self.weights) >= 0, "negative weights")
        self._need((np.sum(self.weights, axis=1) > 0).all(), "vertices without weights")
        self._need(-1 <= np.min(self.parents) and np.max(self.parents) < joints, "parents that are not there")
        self._need(np.abs(np.linalg.det(self.bone_rest)).min() > 0, "bones without size")
        self._sort()
        self._weld()

    def _need(self, holds: bool, fault: str) -> None:
        if not holds:
            raise SprigError(f"{self.name} has {fault}; get the package again.")

    def _sort(self) -> None:
        """Parents before children, otherwise as they come."""
        order, placed = [], set()
        for joint in range(len(self.parents)):
            chain = []
            while joint >= 0 and joint not in placed:
                placed.add(joint)
                chain.append(joint)
                joint = self.parents[joint]
            self._need(joint not in chain, "bones that are their own ancestors")
            order += reversed(chain)
        rank, parents = np.argsort(order), np.asarray(self.parents)[order]
        self.joint_names = [self.joint_names[joint] for joint in order]
        self.parents = np.where(parents < 0, -1, rank[parents])
        self.bone_rest = self.bone_rest[order]
        self.weights = self.weights[:, order] / np.sum(self.weights, axis=1, keepdims=True)
        self.tails = None if self.tails is None else self.tails[order]
        self.pose_world = self.pose_world[:, order]

    def _weld(self) -> None:
        """Make one of the vertices that share place and weights (games split at texture seams); drop idle ones."""
        used = np.unique(self.faces)
        place = np.round(self.vertices[used] / max(WELD_DISTANCE * self.diagonal, 1e-30))
        _, first, number = np.unique(
            np.hstack([place, np.round(self.weights[used] / SAME_WEIGHT)]),
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        order = np.argsort(first)  # keep the source's order
        kept, rank = used[first[order]], np.argsort(order)
        renamed = np.zeros(len(self.vertices), dtype=np.int64)
        renamed[used] = rank[number.reshape(-1)]
        faces = renamed[self.faces]
        flat = (faces == np.roll(faces, 1, axis=1)).any(axis=1)
        self._need(not flat.all(), "no triangles")
        self.vertices, self.weights, self.faces = self.vertices[kept], self.weights[kept], faces[~flat]

    @property
    def diagonal(self) -> float:
        """Of the bounding box."""
        return float(np.linalg.norm(np.ptp(self.vertices, axis=0)))

    @property
    def tails_rest(self) -> np.ndarray:
        """(J,3) ends of the bones in the bind pose: the source's, else a guess.

        A bone points to the child whose subtree carries most; a leaf through the centre of its skin, to twice the
        distance, or else on as its parent.
        """
        if self.tails is not None:
            return self.tails
        heads, least = self.bone_rest[:, :3, 3], NO_LENGTH * self.diagonal
        own = self.weights.sum(axis=0)
        carried = own.copy()
        for joint in reversed(range(len(heads))):
            if self.parents[joint] >= 0:
                carried[self.parents[joint]] += carried[joint]
        tails = np.empty((len(heads), 3))
        for joint, parent in enumerate(self.parents):
            children = np.flatnonzero(self.parents == joint)
            children = children[
                (np.linalg.norm(heads[children] - heads[joint], axis=1) > least) & (carried[children] > 0)
            ]
            way = np.zeros(3)
            if len(children):
                way = heads[children[np.argmax(carried[children])]] - heads[joint]
            elif own[joint] > 0:
                way = 2 * (self.weights[:, joint] @ self.vertices / own[joint] - heads[joint])
            if np.linalg.norm(way) <= least and parent >= 0:
                way = (heads[joint] - heads[parent]) / 2
            if np.linalg.norm(way) <= least:
                way = np.array([0, 0, 0.05 * self.diagonal])
            tails[joint] = heads[joint] + way
        return tails

    @property
    def keep_joints(self) -> np.ndarray:
        """(K,) joints that are left when leaves without weights are cut, again and again."""
        keep = self.weights.any(axis=0)
        for joint in reversed(range(len(keep))):
            if keep[joint] and self.parents[joint] >= 0:
                keep[self.parents[joint]] = True
        return np.flatnonzero(keep)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored, by key."""
        return {
            "name": np.array(self.name),
            "category": np.array(""),
            "source": np.array(self.source),
            "licence": np.array(self.licence),
            "author": np.array(self.author),
            "rest_vertices": self.vertices.astype(np.float32),
            "faces": self.faces.astype(np.int32),
            "weights": self.weights.astype(np.float16),
            "joint_names": np.array(self.joint_names),
            "parents": self.parents.astype(np.int32),
            "joints_rest": self.bone_rest[:, :3, 3].astype(np.float32),
            "tails_rest": self.tails_rest.astype(np.float32),
            "tails_source": np.array("derived" if self.tails is None else "file"),
            "bone_rest": self.bone_rest.astype(np.float32),
            "keep_joints": self.keep_joints.astype(np.int32),
            "pose_world": self.pose_world.astype(np.float32),
            "pose_clip": np.array(self.pose_clip, dtype=str),
        }


# ---- writing


class BankWriter:
    """A bank being written: `add` characters, then `finish`. `rows` and `skipped` say what came of them."""

    def __init__(self, folder: Path | str):
        """Raises SprigError unless the folder is new or empty."""
        self.folder = Path(folder)
        self.rows: list[dict[str, str | int]] = []
        self.skipped: list[tuple[str, str]] = []  # what was left out, and why
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            occupied = any(self.folder.iterdir())
        except OSError as error:
            raise SprigError(f"{folder} cannot be written ({error.strerror or error}); give another folder.") from error
        if occupied:
            raise SprigError(f"{folder} is not empty; give a new folder for the bank.")

    def skip(self, name: str, reason: str) -> None:
        """Note that `name` is left out."""
        self.skipped.append((name, reason))

    def add(self, rigged: Rigged) -> None:
        """Write a character, or note why training could not use it."""
        arrays, rig = rigged.arrays(), rig_id(rigged.joint_names, rigged.parents)
        try:
            clean_character(arrays, rig, category_of(rigged.name, rigged.kind))
        except ValueError as problem:
            self.skip(rigged.name, str(problem))
            return
        if not re.fullmatch(r"[\w-][\w. -]*", rigged.name) or rigged.name in (row["name"] for row in self.rows):
            self.skip(rigged.name, "another one has the name, or it is no name for a file")
            return
        path = self.folder / f"{rigged.name}.npz"
        with whole_file(path) as temporary, open(temporary, "xb") as file:
            np.savez_compressed(file, **arrays)
        values = (
            rigged.name, len(rigged.vertices), len(rigged.faces), len(rigged.parents), len(rigged.keep_joints),
            int(rigged.weights.any(axis=0).sum()), len(rigged.pose_clip), rigged.clips, rigged.licence, rigged.author,
            rigged.source, path.stat().st_size // 1024, rigged.skeleton, rig, rigged.kind,
        )  # fmt: skip
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def finish(self) -> None:
        """Write the catalogue. Raises SprigError when there is nothing in it."""
        if not self.rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            raise SprigError(f"No usable character was found in the package ({reasons or 'it has none'}).")
        with whole_file(self.folder / "CATALOGUE.csv") as temporary:
            with open(temporary, "x", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(self.rows)

    def summary(self) -> Iterable[str]:
        """Lines that say what was written, and what was skipped with the reason, alike ones together."""
        joints = [row["joints_kept"] for row in self.rows]
        rigs = {row["rig_id"] for row in self.rows}
        licences = ", ".join(sorted({str(row["licence"]) for row in self.rows}))
        megabytes = sum(row["kbytes"] for row in self.rows) / 1024
        yield (
            f"{self.folder}: {len(self.rows)} characters, {len(rigs)} rigs of {min(joints)} to {max(joints)} joints, "
            f"{sum(row['poses'] for row in self.rows)} poses, {megabytes:.0f} MB; {licences}"
        )
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(re.sub(f"^{re.escape(name)} ", "it ", reason), []).append(name)
        for reason, names in reasons.items():
            yield f"skipped {len(names)}: {reason} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
