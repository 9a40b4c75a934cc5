"""Copies what SPRig needs out of an Alembic archive into plain files; `alembic.py` runs it as a process of its own.

    python alembic_worker.py ARCHIVE FOLDER OPTIONS

The C++ library behind alembic3d trusts what an archive says and crashes on some damaged ones, hence the process. It
needs alembic3d alone, not numpy, so that it starts quickly. It writes FOLDER/values, raw little-endian numbers, and
last FOLDER/index.json, which says where in it everything is, or {"error": sentence}.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from pathlib import Path

MATRIX = struct.Struct("<16d")
RATE_KEYS = ("_ai_DCC_FPS", "FramesPerTimeUnit")  # metadata in which Alembic itself and Blender note the frame rate


class Refused(Exception):
    """The archive cannot be used; the text says why."""


def main(archive_path: str, folder: str, options: str) -> None:
    """Write the values and the index of an archive. options: JSON, see `copy_archive`."""
    from alembic3d.Abc import IArchive

    try:
        with (Path(folder) / "values").open("wb") as values:
            index = copy_archive(IArchive(archive_path), values, json.loads(options))
    except Refused as refusal:
        index = {"error": str(refusal)}
    except OSError as error:
        index = {"error": f"cannot be read or copied to {folder} ({error.strerror}); make room there."}
    except Exception as error:  # whatever the library makes of a damaged file; it goes to the user as one sentence
        index = {"error": f"is damaged, Alembic says: {' '.join(str(error).split())[:200]}; export it again."}
    (Path(folder) / "index.json").write_text(json.dumps(index))


def copy_archive(archive, values, options: dict) -> dict:
    """The index: noted frame rate, and nodes in the archive's order, each after the transform that it is below.

    options: the most objects, samples of one thing and values in one array that are accepted, and whether everything
    is read once that an importer may look at.
    """
    if options["everything"]:
        read_everything(archive, options)
    transforms_and_meshes = find_nodes(archive, options["objects"])
    used = {id(node) for node, _ in transforms_and_meshes if node["kind"] == "mesh"}
    for node, _ in reversed(transforms_and_meshes):
        if id(node) in used and node["parent"] is not None:
            used.add(id(node["parent"]))
    kept = [(node, schema) for node, schema in transforms_and_meshes if id(node) in used]
    place = {id(node): k for k, (node, _) in enumerate(kept)}
    for node, schema in kept:
        copy = copy_mesh if node["kind"] == "mesh" else copy_transform
        node.update(copy(node["name"], schema, values, options))
        node["parent"] = -1 if node["parent"] is None else place[id(node["parent"])]
    notes = archive.getTop().getMetaData()
    return {
        "noted_rate": next(filter(None, map(notes.get, RATE_KEYS)), ""),
        "nodes": [node for node, _ in kept],
    }


def find_nodes(archive, most: int) -> list[tuple[dict, object]]:
    """Transforms and meshes with their schemas, depth first.

    A mesh takes the name of the object above it, as in Blender: exporters write object `Body` with mesh `BodyShape`.
    """
    from alembic3d.Abc import WrapExistingFlag
    from alembic3d.AbcGeom import IPolyMesh, ISubD, IXform

    found = []
    seen = 0
    stack = [(archive.getTop(), None, "")]
    while stack:
        thing, parent, above = stack.pop()
        header, name = thing.getHeader(), thing.getName() if seen else ""
        seen += 1
        if seen + len(stack) > most:
            raise Refused(f"holds more than {most} objects; export the character alone.")
        if IXform.matches(header):
            schema = IXform(thing, WrapExistingFlag.kWrapExisting).getSchema()
            node = {"kind": "transform", "name": name, "parent": parent}
            found.append((node, schema))
            parent = node
        for kind in (IPolyMesh, ISubD):
            if kind.matches(header):
                schema = kind(thing, WrapExistingFlag.kWrapExisting).getSchema()
                positions = schema.getPositionsProperty()
                if positions.getNumSamples() and len(positions.samples[0]):
                    found.append(({"kind": "mesh", "name": above or name, "parent": parent}, schema))
        stack.extend((thing.getChild(k), parent, name) for k in reversed(range(thing.getNumChildren())))
    return found


def read_everything(archive, options: dict) -> None:
    """Read every sample of what an importer looks at besides positions and faces; damage there raises or crashes."""
    from alembic3d.Abc import ISampleSelector, WrapExistingFlag
    from alembic3d.AbcGeom import ICamera, ICurves, INuPatch, IPoints, IPolyMesh, ISubD, IXform

    stack = [archive.getTop()]
    seen = 0
    while stack:
        thing = stack.pop()
        seen += 1
        if seen + len(stack) > options["objects"]:
            raise Refused(f"holds more than {options['objects']} objects; export the character alone.")
        for kind in (IXform, IPolyMesh, ISubD, ICurves, IPoints, ICamera, INuPatch):
            if kind.matches(thing.getHeader()):
                schema = kind(thing, WrapExistingFlag.kWrapExisting).getSchema()
                for time in sample_times(thing.getName(), schema, options["samples"]):
                    schema.getValue(ISampleSelector(time))
                for get in ("getUVsParam", "getNormalsParam"):
                    parameter = getattr(schema, get)() if hasattr(schema, get) else None
                    if parameter is not None and parameter.valid():
                        for time in sample_times(thing.getName(), parameter, options["samples"]):
                            parameter.getExpandedValue(ISampleSelector(time))
        stack.extend(thing.getChild(k) for k in range(thing.getNumChildren()))


def copy_transform(name: str, schema, values, options: dict) -> dict:
    """times (N,); matrices: where N row-vector matrices (4,4) float64 begin; inherits (N,) whether parents count."""
    from alembic3d.Abc import ISampleSelector

    times = sample_times(name, schema, options["samples"])
    begin, inherits = values.tell(), []
    for time in times:
        # a selector made from a whole number takes it for a time, so the sample is named by its time
        value = schema.getValue(ISampleSelector(time))
        matrix = value.getMatrix()
        values.write(MATRIX.pack(*(matrix[row][column] for row in range(4) for column in range(4))))
        inherits.append(value.getInheritsXforms())
    return {"times": times, "matrices": begin, "inherits": inherits}


def copy_mesh(name: str, schema, values, options: dict) -> dict:
    """times (N,); positions: begin and number of points (float32) of each sample, one entry if they never change;
    counts, indices: begin and number of the polygons' sizes and corners (int32); changes: time of other faces."""
    positions = schema.getPositionsProperty()
    times = sample_times(name, positions, options["samples"])
    different = 1 if positions.isConstant() else len(times)
    copied, places = 0, []
    for k in range(different):
        sample = positions.samples[k]
        copied += len(sample)
        if copied > options["values"]:
            raise Refused(f"has more than {options['values']} vertex positions in {name!r}; export less.")
        places.append((values.tell(), len(sample)))
        values.write(numbers(name, sample, "f", 3))
    node = {"times": times, "positions": places, "changes": None}
    for key, faces in (("counts", schema.getFaceCountsProperty()), ("indices", schema.getFaceIndicesProperty())):
        face_times = sample_times(name, faces, options["samples"])
        if not face_times:
            raise Refused(f"has no faces in {name!r}; export a surface mesh.")
        first = numbers(name, faces.samples[0], "i", 1)
        if len(first) > 4 * options["values"]:
            raise Refused(f"has more than {options['values']} face corners in {name!r}; export less.")
        for k in range(1, 1 if faces.isConstant() else len(face_times)):
            if numbers(name, faces.samples[k], "i", 1) != first:
                node["changes"] = face_times[k] if node["changes"] is None else min(node["changes"], face_times[k])
                break
        node[key] = (values.tell(), len(first) // 4)
        values.write(first)
    return node


def sample_times(name: str, sampled, most: int) -> list[float]:
    """Times in seconds of the samples of a schema or property."""
    count = sampled.getNumSamples()
    if count > most:
        raise Refused(f"claims {count} samples of {name!r}, more than the {most} that can be read; export less.")
    sampling = sampled.getTimeSampling()
    return [sampling.getSampleTime(k) for k in range(count)]


def numbers(name: str, sample, code: str, width: int) -> bytes:
    """The bytes of an array sample, once its layout is the expected one: `width` numbers of four bytes an item.

    They are copied from the array's address, because its buffer states a wrong length: four bytes an item.
    """
    count = len(sample)
    if count == 0:
        return b""
    view = memoryview(sample)
    shape, strides = ((count, width), (4 * width, 4)) if width > 1 else ((count,), (4,))
    if (view.format, view.shape, view.strides) != (code, shape, strides):
        raise Refused(f"stores the mesh {name!r} in an unknown way; export it again.")
    return ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(sample)), 4 * width * count)


if __name__ == "__main__":
    main(*sys.argv[1:])
