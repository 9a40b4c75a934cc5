"""Time of every stage, by pytest-benchmark: small (the example) and typical (10,000 vertices, 100 frames, 40 joints).

pytest benchmarks/test_stages.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from sprig.backend.anchor import anchor_frame
from sprig.backend.device import load_torch
from sprig.backend.formats import read_sequence_file
from sprig.backend.formats.npz import write_rig
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.surface import prepare, surface_areas

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "elephant_walk.abc"
JOINTS = {"small": 20, "typical": 40}


@pytest.fixture(scope="module", params=JOINTS)
def size(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sequence(size):
    if size == "small":
        return read_sequence_file(EXAMPLE)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from clips import creature

    return creature(10_000, 100, JOINTS[size])


@pytest.fixture(scope="module")
def rig(sequence, size):
    return rig_sequence(sequence, RigOptions(skeleton="motion", joints=JOINTS[size]))


@pytest.mark.benchmark(group="read")
def test_read_alembic(benchmark):
    assert benchmark(read_sequence_file, EXAMPLE).frame_count == 49


@pytest.mark.benchmark(group="read")
def test_read_npz(benchmark, sequence, tmp_path):
    np.savez(tmp_path / "clip.npz", vertices=sequence.vertices, faces=sequence.faces)
    assert benchmark(read_sequence_file, tmp_path / "clip.npz").vertex_count == sequence.vertex_count


@pytest.mark.benchmark(group="prepare")
def test_prepare(benchmark, sequence):
    benchmark.pedantic(prepare, (sequence,), rounds=5)


@pytest.mark.benchmark(group="anchor")
def test_anchor(benchmark, sequence):
    benchmark(lambda: anchor_frame(surface_areas(sequence.vertices, sequence.faces)))


@pytest.mark.benchmark(group="motion")
@pytest.mark.parametrize("hierarchy", [False, True], ids=["free", "hierarchy"])
def test_motion(benchmark, sequence, size, hierarchy):
    load_torch()
    from sprig.backend.motion.solver import solve_motion

    prepared = prepare(sequence)
    graph = np.concatenate([prepared.edges, prepared.bridges])
    options = {"joints": JOINTS[size], "hierarchy": hierarchy}
    arguments = (prepared.trajectories, graph, anchor_frame(prepared.areas))
    benchmark.pedantic(solve_motion, arguments, options, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="write")
def test_write_npz(benchmark, rig, tmp_path):
    benchmark(write_rig, tmp_path / "rig.npz", rig)


@pytest.mark.benchmark(group="write")
def test_write_armature(benchmark, sequence, rig):
    """Armature, skinned copy with its vertex groups, and keys, into an open scene."""
    bpy = pytest.importorskip("bpy", reason="the bpy wheel is not installed")
    from sprig.sprig_blender.write_armature import mesh_from_sequence, write_armature

    def scene():
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        return (bpy.context, rig, mesh_from_sequence(bpy.context, sequence), sequence.object_id), {}

    benchmark.pedantic(write_armature, setup=scene, rounds=5)
