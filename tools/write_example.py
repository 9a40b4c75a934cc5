"""Write the embedded example: an Alembic cache from a clip's `.npz`.

    python tools/write_example.py ../shared/data/sequences/0ad_elephant_walk.npz examples/elephant_walk.abc

The archive holds what an exporter would write and nothing more: one transform, one mesh, one sample of the positions
per frame; no skeleton, no weights. The vertices keep the clip's order and are not welded. As in every Alembic file,
Y is up, faces run clockwise, and frame n lies at n / fps seconds.
"""

import argparse
from pathlib import Path

import imath
import numpy as np
from alembic3d import Abc, AbcCoreAbstract, AbcGeom


def write_alembic(path, vertices, faces, fps, name, description):
    """Write world positions (F,V,3), Z up, and triangles (M,3) as the mesh `name` of a new archive."""
    archive = Abc.CreateArchiveWithInfo(str(path), float(fps), "SPRig tools/write_example.py", description)
    sampling = AbcCoreAbstract.TimeSampling(1 / fps, 1 / fps)
    transform = AbcGeom.OXform(archive.getTop(), name)
    schema = AbcGeom.OPolyMesh(transform, f"{name}Shape").getSchema()
    schema.setTimeSampling(archive.addTimeSampling(sampling))
    clockwise = imath.IntArrayFromBuffer(np.ascontiguousarray(faces[:, ::-1], dtype=np.int32).reshape(-1))
    sizes = imath.IntArray(3, len(faces))
    for z_up in np.asarray(vertices, dtype=np.float32):
        y_up = np.stack([z_up[:, 0], z_up[:, 2], -z_up[:, 1]], axis=1)
        schema.set(AbcGeom.OPolyMeshSchemaSample(imath.V3fArrayFromBuffer(y_up), clockwise, sizes))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("archive", type=Path)
    options = parser.parse_args()
    with np.load(options.clip, allow_pickle=False) as clip:
        write_alembic(
            options.archive,
            clip["vertices"],
            clip["faces"],
            # The clips store the rate as float32; 30.000002 is meant to be 30.
            fps=round(float(clip["fps"]), 3),
            name="elephant",
            description=f"{clip['clip']} by {clip['author']}, {clip['licence']}. Source: {clip['source']}",
        )


if __name__ == "__main__":
    main()
