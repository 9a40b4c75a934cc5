"""One polygon mesh from an OBJ or PLY file, with the vertices exactly as the file has them.

General mesh libraries merge, split or triangulate while loading; here the order and number of vertices must survive,
because frame f's vertex v has to be frame 0's vertex v. Normals, texture coordinates and materials are passed over.
Reading the next frame of a sequence is given the frame before (`like`): faces that are written the same way are not
parsed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import SprigError
from . import checks

PARSER_ERRORS = (ValueError, LookupError, OverflowError, MemoryError)  # of numbers and names in damaged text
MAX_PLY_HEADER = 100_000  # bytes; headers have some 500, with long comments a few thousand
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1",
    "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
PLY_FORMATS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, eq=False)
class PolygonMesh:
    """points (V,3) float64; counts (P,) corners of each polygon, indices (sum of counts,) its vertices.

    object_id (V,) indexes object_names; `spelling` is how the file writes its faces, to recognise them again.
    """

    points: np.ndarray
    counts: np.ndarray
    indices: np.ndarray
    object_id: np.ndarray
    object_names: tuple[str, ...]
    spelling: object

    def same_topology(self, other: PolygonMesh) -> bool:
        """Whether the polygons connect the same vertices in the same order; the number of vertices is not compared."""
        return self.spelling == other.spelling or (
            np.array_equal(self.counts, other.counts) and np.array_equal(self.indices, other.indices)
        )


def read_mesh(path, like: PolygonMesh | None = None) -> PolygonMesh:
    """Read an .obj or .ply file; `like` is an earlier frame of the same sequence. Raises SprigError."""
    path = Path(path)
    reader = {".obj": _read_obj, ".ply": _read_ply}.get(path.suffix.lower())
    if reader is None:
        raise SprigError(f"{path.name} is no mesh file that is read here; give an .obj or a .ply.")
    try:
        with checks.file_errors(path):
            size = path.stat().st_size
            if not path.is_file():
                raise SprigError(f"{path.name} is not a regular file; give an .obj or a .ply.")
            if size > checks.MAX_MESH_BYTES:
                raise SprigError(
                    f"{path.name} has {size} bytes, more than the {checks.MAX_MESH_BYTES} that can be read."
                )
            mesh = reader(path, path.read_bytes(), like)
    except PARSER_ERRORS as error:
        raise SprigError(f"{path.name} is damaged or no {path.suffix} mesh ({error}); export it again.") from error
    checks.check_counts(path, vertices=len(mesh.points), faces=len(mesh.counts), corners=len(mesh.indices))
    checks.check_indices(path, mesh.indices, len(mesh.points))
    return mesh


def _read_obj(path: Path, data: bytes, like: PolygonMesh | None) -> PolygonMesh:
    vertex_lines, face_lines, objects = [], [], []
    vertices_before = []  # each face, because negative indices count backwards from there
    for line in data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        line = line.strip()
        keyword = line[:2].rstrip()
        if keyword == b"v":
            vertex_lines.append(line)
        elif keyword == b"f":
            face_lines.append(line)
            vertices_before.append(len(vertex_lines))
        elif keyword == b"o":
            objects.append((len(vertex_lines), line[2:].strip().decode("utf-8", "replace")))
    points = _obj_points(vertex_lines)
    spelling = (face_lines, vertices_before)
    if like is not None and like.spelling == spelling:
        counts, indices = like.counts, like.indices
    else:
        counts, indices = _obj_faces(face_lines, vertices_before)
    object_id, names = _obj_objects(objects, len(points), path.stem)
    return PolygonMesh(points, counts, indices, object_id, names, spelling)


def _obj_points(lines: list[bytes]) -> np.ndarray:
    """Positions (V,3) from "v x y z ..." lines, all at once where they have the same number of values."""
    if not lines:
        return np.zeros((0, 3))
    words = b" ".join(lines).split()
    width = len(lines[0].split())
    if len(words) == width * len(lines) and words[::width].count(b"v") == len(lines) and width >= 4:
        columns = [words[column::width] for column in (1, 2, 3)]
    else:
        rows = [line.split() for line in lines]
        columns = [[row[column] for row in rows] for column in (1, 2, 3)]
    return np.stack([np.array(list(map(float, column))) for column in columns], axis=1)


def _obj_faces(lines: list[bytes], vertices_before: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """counts (P,), indices from "f v/vt/vn ..." lines; v counts from 1, or backwards from the last vertex so far."""
    counts, indices = [], []
    for line, before in zip(lines, vertices_before, strict=True):
        corners = line.split()[1:]
        counts.append(len(corners))
        for corner in corners:
            index = int(corner.split(b"/", 1)[0])
            indices.append(index - 1 if index >= 0 else before + index)
    return np.array(counts, dtype=np.int64), np.array(indices, dtype=np.int64)


def _obj_objects(objects: list[tuple[int, str]], vertex_count: int, default: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """object_id (V,) and names from "o" lines: (number of vertices before it, name); empty objects are left out."""
    starts = [(0, default), *objects, (vertex_count, "")]
    names: dict[str, int] = {}
    object_id = np.zeros(vertex_count, dtype=np.int32)
    for (start, name), (end, _) in pairwise(starts):
        if end > start:
            object_id[start:end] = names.setdefault(name or default, len(names))
    return object_id, tuple(names) or (default,)


@dataclass(frozen=True)
class _Property:
    """A column of a PLY element: numpy type codes without byte order; count_type is None for a scalar."""

    name: str
    type: str
    count_type: str | None = None


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[_Property, ...]

    @property
    def has_lists(self) -> bool:
        return any(column.count_type for column in self.properties)


def _read_ply(path: Path, data: bytes, like: PolygonMesh | None) -> PolygonMesh:
    order, elements, start = _ply_header(data)
    body = _TextBody(data[start:].split()) if order is None else _BinaryBody(data, start, order)
    points, counts, indices, spelling = np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0, np.int64), None
    for element in elements:
        checks.check_counts(path, **{"vertices" if element.name == "vertex" else "faces": element.count})
        if element.name == "face" and like is not None and like.spelling and like.spelling[0] == (order, element):
            known = like.spelling[1]
            if body.at(body.position, body.position + len(known)) == known:
                body.position += len(known)
                counts, indices, spelling = like.counts, like.indices, like.spelling
                continue
        begin = body.position
        columns = body.read(element)
        if element.name == "vertex":
            if any(isinstance(columns[axis], tuple) for axis in "xyz"):
                raise ValueError("its vertices have lists for coordinates")
            points = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], axis=1)
        elif element.name == "face":
            key = "vertex_indices" if "vertex_indices" in columns else "vertex_index"
            if not isinstance(columns[key], tuple):
                raise ValueError("its faces are no lists of vertices")
            counts, indices = columns[key]
            spelling = ((order, element), body.at(begin, body.position))
    if indices.dtype.kind not in "iu":
        raise ValueError("face corners are not whole numbers")
    return PolygonMesh(points, counts, indices, np.zeros(len(points), np.int32), (path.stem,), spelling)


def _ply_header(data: bytes) -> tuple[str | None, list[_Element], int]:
    """Byte order (None for text), elements and where the body starts."""
    marker = data.find(b"end_header", 0, MAX_PLY_HEADER)
    end = data.find(b"\n", marker)
    if not data.startswith(b"ply") or marker < 0 or end < 0:
        raise ValueError("its header is incomplete")
    lines = [line.split() for line in data[:marker].decode("ascii", "replace").splitlines()]
    if len(lines) < 2 or lines[1][:1] != ["format"]:
        raise ValueError("its second line does not say the format")
    order = PLY_FORMATS[lines[1][1]]
    elements: list[_Element] = []
    for words in lines[2:]:
        match words:
            case ["element", name, count]:
                if int(count) < 0:
                    raise ValueError(f"it has {count} of element {name}")
                elements.append(_Element(name, int(count), ()))
            case ["property", "list", count_type, item_type, name]:
                column = _Property(name, PLY_TYPES[item_type], PLY_TYPES[count_type])
                if column.count_type[0] not in "iu":
                    raise ValueError(f"the length of list {name} is not a whole number")
                elements[-1] = _Element(elements[-1].name, elements[-1].count, (*elements[-1].properties, column))
            case ["property", item_type, name]:
                column = _Property(name, PLY_TYPES[item_type])
                elements[-1] = _Element(elements[-1].name, elements[-1].count, (*elements[-1].properties, column))
            case _ if words and words[0] not in ("comment", "obj_info"):
                raise ValueError(f"header line {' '.join(words)[:60]!r} is not understood")
    return order, elements, end + 1


class _BinaryBody:
    """The part of a binary PLY after its header. `read` gives a column as (N,), a list column as (counts, values)."""

    def __init__(self, data: bytes, position: int, order: str):
        self.data, self.position, self.order = data, position, order

    def at(self, begin: int, end: int) -> bytes:
        return self.data[begin:end]

    def read(self, element: _Element) -> dict:
        lengths = self._first_lengths(element) if element.has_lists and element.count else {}
        rows = self._read_table(element, lengths) if element.count else None
        if rows is None:
            return self._walk(element)
        columns = {}
        for column in element.properties:
            columns[column.name] = rows[column.name]
            if column.count_type:
                counts = np.full(element.count, lengths.get(column.name, 0), dtype=np.int64)
                columns[column.name] = (counts, rows[column.name].reshape(-1))
        return columns

    def _first_lengths(self, element: _Element) -> dict[str, int]:
        """List lengths of the element's first row: usually those of all rows."""
        _, counts, _ = self._places(replace(element, count=1))
        return {column.name: counts[column.name][0] for column in element.properties if column.count_type}

    def _read_table(self, element: _Element, lengths: dict[str, int]) -> np.ndarray | None:
        """All rows as a structured array, if every list has the length that it has in the first row."""
        fields = []
        for column in element.properties:
            if column.count_type:
                fields.append((f"length of {column.name}", self.order + column.count_type))
            fields.append((column.name, self.order + column.type, (lengths[column.name],) if column.count_type else ()))
        layout = np.dtype(fields)
        size = layout.itemsize * element.count
        if self.position + size > len(self.data):
            if lengths:
                return None
            raise ValueError(f"it ends within element {element.name}")
        if not layout.itemsize:
            return np.zeros(0, layout)
        rows = np.frombuffer(self.data, layout, element.count, self.position)
        if any((rows[f"length of {name}"] != length).any() for name, length in lengths.items()):
            return None
        self.position += size
        return rows

    def _walk(self, element: _Element) -> dict:
        """Row by row, for lists of different lengths."""
        starts, counts, self.position = self._places(element)
        raw = np.frombuffer(self.data, np.uint8)
        columns = {}
        for column in element.properties:
            size = int(column.type[1])
            count = np.array(counts[column.name], dtype=np.int64)
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            items = np.repeat(np.array(starts[column.name], dtype=np.int64), count) + size * within
            values = raw[items[:, None] + np.arange(size)].view(self.order + column.type).reshape(-1)
            columns[column.name] = (count, values) if column.count_type else values
        return columns

    def _places(self, element: _Element) -> tuple[dict[str, list[int]], dict[str, list[int]], int]:
        """Where the values of each row begin and how many there are, by column, and where the element ends."""
        position = self.position
        starts = {column.name: [] for column in element.properties}
        counts = {column.name: [] for column in element.properties}
        for _ in range(element.count):
            for column in element.properties:
                count = 1
                if column.count_type:
                    size = int(column.count_type[1])
                    signed = column.count_type[0] == "i"
                    word = self.data[position : position + size]
                    count = int.from_bytes(word, "little" if self.order == "<" else "big", signed=signed)
                    position += size
                starts[column.name].append(position)
                counts[column.name].append(count)
                position += count * int(column.type[1])
                if count < 0 or position > len(self.data):
                    raise ValueError("it ends within a list")
        return starts, counts, position


class _TextBody:
    """The words of a text PLY after its header; the same interface as _BinaryBody."""

    def __init__(self, words: list[bytes]):
        self.words, self.position = words, 0

    def at(self, begin: int, end: int) -> list[bytes]:
        return self.words[begin:end]

    def read(self, element: _Element) -> dict:
        width = len(element.properties)
        if not element.has_lists:
            words = self._take(width * element.count)
            return {
                column.name: np.array([_number(word, column.type) for word in words[k::width]], dtype=column.type)
                for k, column in enumerate(element.properties)
            }
        parts = {column.name: [] for column in element.properties}
        for _ in range(element.count):
            for column in element.properties:
                length = int(self._take(1)[0]) if column.count_type else 1
                parts[column.name].append([_number(word, column.type) for word in self._take(length)])
        columns = {}
        for column in element.properties:
            rows = parts[column.name]
            values = np.array([value for row in rows for value in row], dtype=column.type)
            count = np.array([len(row) for row in rows], dtype=np.int64)
            columns[column.name] = (count, values) if column.count_type else values
        return columns

    def _take(self, count: int) -> list[bytes]:
        if count < 0 or self.position + count > len(self.words):
            raise ValueError("it ends within an element")
        self.position += count
        return self.words[self.position - count : self.position]


def _number(word: bytes, code: str):
    return float(word) if code[0] == "f" else int(word)
