"""Readers without Blender: every format on a small file made here and on real files, and rigs written and read back."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sprig.backend.errors import SprigError
from sprig.backend.formats import alembic, is_native, npz, read_sequence_file
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.rig import Rig, Skeleton

from .creatures import chain
from .small_files import (
    CUBE,
    QUADS,
    TRIANGLES,
    WRITERS,
    AbcMesh,
    AbcTransform,
    tumbling_cube,
    write_abc,
    write_anime,
    write_clip,
    write_dymesh,
    write_folder,
    write_npz,
    write_obj,
    write_pc2,
    write_ply,
    z_to_y_up,
)

MOVING = tumbling_cube()
FLOAT32_STEP = 2**-23  # relative distance between neighbouring float32 numbers


def world(sequence) -> np.ndarray:
    return np.stack([sequence.world_vertices(f) for f in range(sequence.frame_count)])


def windings(faces) -> set:
    """Triangles without regard to which corner is written first; the winding counts."""
    return {tuple(np.roll(face, -face.argmin()).tolist()) for face in np.asarray(faces)}


def signed_volume(points, faces) -> float:
    a, b, c = np.moveaxis(np.asarray(points, float)[faces], 1, 0)
    return float(np.einsum("mi,mi->m", a, np.cross(b, c)).sum() / 6)


def matrix(translation=(0, 0, 0), rotation=None, scale=1.0) -> np.ndarray:
    """A row-vector matrix (4,4) as Alembic stores them."""
    result = np.eye(4)
    result[:3, :3] = scale * (np.eye(3) if rotation is None else rotation.as_matrix().T)
    result[3, :3] = translation
    return result


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_sequence(kind, tmp_path):
    path, rest = write_clip(kind, tmp_path, MOVING)
    assert is_native(path)
    sequence = read_sequence_file(path, rest=rest)
    assert np.allclose(world(sequence), MOVING, atol=4 * FLOAT32_STEP * np.abs(MOVING).max(), rtol=0)
    assert sequence.frame_numbers.tolist() == [1, 2, 3, 4] and sequence.frame_index.tolist() == [0, 1, 2, 3]
    assert sequence.fps == 24
    assert sequence.name == "box"
    assert len(sequence.object_names) == 1 and not sequence.object_id.any()
    # quads may be cut either way, so the surface is compared and not the list of triangles
    assert len(sequence.faces) == len(TRIANGLES)
    assert np.isclose(signed_volume(CUBE, sequence.faces), 2.0)


@pytest.mark.parametrize("kind", WRITERS)
def test_far_from_the_origin_nothing_is_lost(kind, tmp_path):
    """10 km away a float32 file has steps of a millimetre; the reader must not add to that."""
    far = (MOVING.astype(np.float64) + [1e4, -1e4, 50.0]).astype(np.float32)
    path, rest = write_clip(kind, tmp_path, far)
    sequence = read_sequence_file(path, rest=rest)
    assert np.abs(sequence.vertices).max() < 10
    assert np.abs(world(sequence) - far.astype(np.float64)).max() <= 1e-6
    assert np.allclose(sequence.origin, (far[0].max(axis=0).astype(np.float64) + far[0].min(axis=0)) / 2)


@pytest.mark.parametrize("kind", WRITERS)
def test_given_frame_rate_and_up_axis_win(kind, tmp_path):
    up = "z" if kind == "abc" else "y"
    in_file = MOVING if kind == "abc" else z_to_y_up(MOVING)
    path, rest = write_clip(kind, tmp_path, in_file)
    if kind == "abc":
        write_abc(path, AbcMesh(in_file))
    sequence = read_sequence_file(path, rest=rest, fps=48, up=up)
    assert np.allclose(world(sequence), MOVING, atol=1e-6)
    assert sequence.fps == 48


def test_what_is_native(tmp_path):
    assert is_native(tmp_path) and is_native("WALK.ABC") and is_native("a.npz")
    assert not any(is_native(name) for name in ("a.fbx", "a.obj", "a.glb", "a", "npz"))


# --- .npz ------------------------------------------------------------------------------------------------------------


def test_npz_reads_its_four_keys_alone(tmp_path):
    trap = np.array([{"never": "looked at"}], dtype=object)
    path = write_npz(
        tmp_path / "a.npz", MOVING, fps=30.0, object_id=np.array([7] * 3 + [2] * 5), weights=trap, weld_index=trap
    )
    sequence = read_sequence_file(path)
    assert sequence.fps == 30
    assert sequence.object_id.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert sequence.object_names == ("object_2", "object_7")
    assert np.array_equal(sequence.faces, TRIANGLES)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4", "i4"])
def test_npz_takes_any_number_type(dtype, tmp_path):
    positions = np.round(MOVING * 8).astype(dtype)
    sequence = read_sequence_file(write_npz(tmp_path / "a.npz", positions, fps=np.array([12])))
    assert np.array_equal(world(sequence), positions.astype(np.float64))
    assert sequence.fps == 12


def test_npz_in_float64_far_away_keeps_its_digits(tmp_path):
    far = MOVING.astype(np.float64) + 1e4
    sequence = read_sequence_file(write_npz(tmp_path / "a.npz", far))
    assert np.abs(world(sequence) - far).max() < 1e-6


# --- meshes ----------------------------------------------------------------------------------------------------------


def test_folder_is_read_in_natural_order(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    positions = tumbling_cube(12)
    for f, points in enumerate(positions):
        write_obj(folder / f"Box{f + 1}.obj", points)
    (folder / ".hidden.obj").write_text("not a mesh")
    (folder / "Box1.mtl").write_text("newmtl nothing")
    assert np.allclose(world(read_sequence_file(folder)), positions, atol=1e-6)


def test_obj_with_everything_that_the_format_allows(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for f in range(2):
        (folder / f"{f}.obj").write_text(
            "# two objects\r\nmtllib a.mtl\r\no body\r\n"
            f"v 0 0 {f}\r\nv\t1 0 {f} 1.0\r\n  v 1 1 {f} 0.1 0.2 0.3\r\nv 0 1 {f}\r\n"
            "vt 0 0\nvn 0 0 1\nusemtl red\ns 1\n"
            "f 1/1/1 2/1/1 \\\n 3/1/1\n"
            "f -4//1 -2//1 -1//1\n"
            "l 1 2\n"
            "o hat\n"
            f"v 0 0 {f + 1}e0\nv 1 0 {f + 1}\nv 1 1 {f + 1}\n"
            "f 5 6 7\nf -3 -1 1\n"
        )
    sequence = read_sequence_file(folder)
    assert sequence.vertex_count == 7
    assert sequence.faces.tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 0]]
    assert sequence.object_names == ("body", "hat")
    assert sequence.object_id.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert np.allclose(world(sequence)[1, :, 2], [1, 1, 1, 1, 2, 2, 2])


def test_relative_corners_are_understood_in_every_frame(tmp_path):
    """The same text "f -3 -2 -1" means other vertices where other vertices come before it."""
    folder = tmp_path / "frames"
    folder.mkdir()
    vertices = ["v 0 0 0", "v 1 0 0", "v 0 1 0", "v 0 0 1"]
    (folder / "1.obj").write_text("\n".join([*vertices, "f -3 -2 -1"]))
    (folder / "2.obj").write_text("\n".join([*vertices[:3], "f -3 -2 -1", vertices[3]]))
    with pytest.raises(SprigError, match=r"2\.obj \(frame 2\) has other faces than 1\.obj"):
        read_sequence_file(folder)
    (folder / "2.obj").write_text("\n".join([*vertices, "f 2 -2 4"]))  # the same face, spelled otherwise
    assert read_sequence_file(folder).faces.tolist() == [[1, 2, 3]]


def test_ply_with_polygons_of_many_sizes_and_other_elements(tmp_path):
    polygons = [[0, 1, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5, 1]]
    for kind in ("binary_little_endian", "binary_big_endian", "ascii"):
        folder = write_folder(tmp_path / kind, MOVING, ".ply", polygons=polygons, kind=kind)
        sequence = read_sequence_file(folder)
        assert np.allclose(world(sequence), MOVING, atol=1e-6)
        assert windings(sequence.faces) >= {(4, 6, 7), (4, 7, 5)} and len(sequence.faces) == 6


def test_ply_with_an_element_of_lists_before_the_faces(tmp_path):
    header = (
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty double x\nproperty double y\nproperty double z\n"
        "element strip 2\nproperty list uchar float lengths\nproperty int id\n"
        "element face 2\nproperty uchar red\nproperty list int uint vertex_index\nend_header\n"
    )
    folder = tmp_path / "frames"
    folder.mkdir()
    for f in range(2):
        body = f"0 0 {f}\n1 0 {f}\n1 1 {f}\n0 1 {f}\n2 0.5 0.25 9\n0 8\n255 3 0 1 2\n255 3 0 2 3\n"
        (folder / f"{f}.ply").write_text(header + body)
    sequence = read_sequence_file(folder)
    assert sequence.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert world(sequence)[1, :, 2].tolist() == [1, 1, 1, 1]


def test_a_point_cache_takes_a_ply_as_its_mesh(tmp_path):
    sequence = read_sequence_file(write_pc2(tmp_path / "a.pc2", MOVING), rest=write_ply(tmp_path / "rest.ply", CUBE))
    assert np.isclose(signed_volume(CUBE, sequence.faces), 2.0)


# --- DyMesh ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["array", "fortran", "big-endian", "half", "lists", "list of arrays", "scalars"])
def test_dymesh_in_all_the_ways_that_python_pickles_it(form, protocol, tmp_path):
    vertices = {
        "array": MOVING,
        "fortran": np.asfortranarray(MOVING),
        "big-endian": MOVING.astype(">f4"),
        "half": MOVING.astype(np.float16),
        "lists": MOVING.tolist(),
        "list of arrays": list(MOVING),
        "scalars": [[[*point] for point in frame] for frame in MOVING],
    }[form]
    faces = TRIANGLES.tolist() if form == "lists" else TRIANGLES
    sequence = read_sequence_file(write_dymesh(tmp_path / "a.bin", vertices, faces, protocol))
    assert np.allclose(world(sequence), MOVING, atol=4e-3 if form == "half" else 1e-6)
    assert np.array_equal(sequence.faces, TRIANGLES)


# --- Alembic ---------------------------------------------------------------------------------------------------------


def test_animated_parents_are_multiplied(tmp_path):
    turns = [matrix(rotation=Rotation.from_rotvec([0, 0.2 * f, 0])) for f in range(4)]
    moves = [matrix(translation=(f, 0, 0), scale=2.0) for f in range(4)]
    tree = AbcTransform([AbcTransform([AbcMesh(CUBE[None])], turns, "arm")], moves, "walk")
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", tree))
    for f in range(4):
        in_file = 2 * Rotation.from_rotvec([0, 0.2 * f, 0]).apply(CUBE) + [f, 0, 0]
        expected = np.stack([in_file[:, 0], -in_file[:, 2], in_file[:, 1]], axis=1)
        assert np.allclose(sequence.world_vertices(f), expected, atol=1e-6)
    assert sequence.object_names == ("arm",)
    assert sequence.frame_numbers.tolist() == [1, 2, 3, 4]


def test_a_transform_may_ignore_its_parents_from_some_frame_on(tmp_path):
    above = [matrix(translation=(10 * f, 0, 0)) for f in range(4)]
    local = [matrix(translation=(0, f, 0)) for f in range(4)]
    tree = AbcTransform([AbcTransform([AbcMesh(CUBE[None])], local, "b", inherits=[1, 1, 0, 1])], above, "a")
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", tree))
    shift = world(sequence)[:, 0] - [CUBE[0, 0], -CUBE[0, 2], CUBE[0, 1]]
    assert np.allclose(shift, [[0, 0, 0], [10, 0, 1], [0, 0, 2], [30, 0, 3]], atol=1e-6)


def test_two_meshes_become_one_sequence_with_two_objects(tmp_path):
    pentagon = [[0, 1, 2, 3, 4]]
    angles = np.linspace(0, 2 * np.pi, 5, endpoint=False)
    plate = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    plates = np.stack([plate + [0, 0, f] for f in range(4)])
    path = write_abc(
        tmp_path / "a.abc",
        AbcTransform([AbcMesh(z_to_y_up(MOVING))], name="body"),
        AbcTransform([AbcMesh(z_to_y_up(plates), polygons=pentagon, name="plateShape")], name="plate"),
    )
    sequence = read_sequence_file(path)
    assert sequence.object_names == ("body", "plate")
    assert sequence.object_id.tolist() == [0] * 8 + [1] * 5
    assert np.allclose(world(sequence), np.concatenate([MOVING, plates], axis=1), atol=1e-6)
    assert len(sequence.faces) == 12 + 3
    assert (sequence.faces[:12] < 8).all() and (sequence.faces[12:] >= 8).all()
    assert signed_volume(CUBE, sequence.faces[:12]) > 0


def test_a_polygon_is_wound_the_other_way_than_in_the_file(tmp_path):
    """Alembic's faces are clockwise. The concave cap must be cut inside as well."""
    outline = np.array([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]], dtype=float)
    points = np.c_[outline, np.zeros(5)]
    path = write_abc(tmp_path / "a.abc", AbcMesh(z_to_y_up(points)[None], polygons=[[4, 3, 2, 1, 0]]))
    sequence = read_sequence_file(path)
    a, b, c = np.moveaxis(points[sequence.faces], 1, 0)
    areas = np.cross(b - a, c - a)[:, 2] / 2
    assert (areas > 0).all() and np.isclose(areas.sum(), 10)


def test_same_names_are_told_apart_and_subdivision_surfaces_are_meshes(tmp_path):
    still = [AbcTransform([AbcMesh(CUBE[None], subdivided=k == 1)], name=f"copy{k}") for k in range(3)]
    groups = [AbcTransform([AbcTransform([AbcMesh(CUBE[None])], name="eye")], name=side) for side in ("left", "right")]
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", *still, *groups, AbcMesh(CUBE[None], name="bare")))
    assert sequence.object_names == ("copy0", "copy1", "copy2", "eye", "eye.001", "bare")
    assert sequence.frame_count == 1


def test_samples_at_other_times_are_interpolated(tmp_path):
    """The mesh has samples at 0 and 1 s, its parent at 0, 0.5 and 2 s: four frames."""
    tree = AbcTransform(
        [AbcMesh(np.stack([CUBE, CUBE + [0, 4, 0]]), times=[0.0, 1.0])],
        [matrix(translation=(x, 0, 0)) for x in (0, 10, 40)],
        times=[0.0, 0.5, 2.0],
    )
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", tree))
    moved = world(sequence)[:, 0] - world(sequence)[0, 0]
    assert np.allclose(moved, [[0, 0, 0], [10, 0, 2], [20, 0, 4], [40, 0, 4]], atol=1e-6)


def test_times_that_differ_by_rounding_are_one_frame(tmp_path):
    times = [k / 24 for k in range(1, 5)]
    tree = AbcTransform(
        [AbcMesh(MOVING, times=[time + 1e-10 for time in times])],
        [matrix(translation=(f, 0, 0)) for f in range(4)],
        times=times,
    )
    assert read_sequence_file(write_abc(tmp_path / "a.abc", tree)).frame_count == 4


@pytest.mark.parametrize(
    ("times", "noted", "given", "fps", "numbers"),
    [
        ([0.0, 1 / 30, 2 / 30, 3 / 30], None, None, 30, [0, 1, 2, 3]),
        ([11 / 25, 12 / 25, 13 / 25, 14 / 25], None, None, 25, [11, 12, 13, 14]),
        ([0.041708, 0.083417, 0.125125, 0.166833], None, None, 1 / 0.0417083, [1, 2, 3, 4]),  # 23.976, rounded times
        ([1 / 24, 3 / 24, 5 / 24, 7 / 24], None, None, 12, [1, 2, 3, 4]),  # every second frame of 24 a second
        ([1 / 24, 3 / 24, 5 / 24, 7 / 24], 24.0, None, 24, [1, 3, 5, 7]),  # the same where the file says so
        ([0.0, 1 / 48, 2 / 48, 3 / 48], 24.0, None, 48, [0, 1, 2, 3]),  # two samples a frame
        ([0.0, 1 / 30, 2 / 30, 3 / 30], None, 60, 60, [0, 2, 4, 6]),
        ([0.0, 1 / 30, 2 / 30, 3 / 30], None, 7, 7, [1, 2, 3, 4]),
        ([-2 / 24, -1 / 24, 0.0, 1 / 24], None, None, 24, [-2, -1, 0, 1]),
    ],
)
def test_frame_numbers_are_those_that_blender_shows(times, noted, given, fps, numbers, tmp_path):
    path = write_abc(tmp_path / "a.abc", AbcMesh(MOVING), times=times, noted_rate=noted)
    sequence = read_sequence_file(path, fps=given)
    assert sequence.fps == pytest.approx(fps, abs=2e-3)
    assert sequence.frame_numbers.tolist() == numbers
    rate, probed = alembic.probe(path)
    assert np.allclose(probed, times) and (given or rate == sequence.fps)


def test_cyclic_sampling(tmp_path):
    from alembic3d import AbcCoreAbstract

    cycle = AbcCoreAbstract.TimeVector()
    cycle.extend([0.0, 0.25])
    shutter = AbcCoreAbstract.TimeSampling(AbcCoreAbstract.TimeSamplingType(2, 1.0), cycle)  # 0, 1/4, 1, 5/4
    tree = AbcTransform([AbcMesh(MOVING, times=shutter)], [matrix(translation=(4 * k, 0, 0)) for k in range(6)],
                        times=[k / 4 for k in range(6)])  # fmt: skip
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", tree))
    assert sequence.frame_count == 6 and sequence.fps == 4
    y = world(sequence)[:, 0, 2]  # up here is Y there, which the parent does not move
    assert np.allclose(y[[0, 1, 4, 5]], MOVING[:, 0, 1], atol=1e-6)
    assert np.isclose(y[2], MOVING[1, 0, 1] + (MOVING[2, 0, 1] - MOVING[1, 0, 1]) / 3, atol=1e-6)


def test_a_far_transform_over_near_points_keeps_the_points_digits(tmp_path):
    """Float32 points near their own origin, carried 10 km away by a float64 transform: no rounding to millimetres."""
    tree = AbcTransform([AbcMesh(z_to_y_up(MOVING))], [matrix(translation=(1e4, 2e4, -1e4))])
    sequence = read_sequence_file(write_abc(tmp_path / "a.abc", tree))
    assert np.abs(world(sequence) - (MOVING.astype(np.float64) + [1e4, 1e4, 2e4])).max() < 1e-6


def test_archives_without_alembic3d_in_their_folder(tmp_path, monkeypatch):
    """The worker must find its library wherever we found it, whatever the user's environment says."""
    write_abc(tmp_path / "a.abc", AbcMesh(MOVING))
    (tmp_path / "imath.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert read_sequence_file("a.abc").frame_count == 4


def test_the_worker_leaves_nothing_behind(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    read_sequence_file(write_abc(tmp_path / "a.abc", AbcMesh(MOVING)))
    assert list(temporary.iterdir()) == []


def test_npz_is_read_without_alembic3d_torch_or_trimesh(tmp_path):
    """Only what a format needs is imported; enabling the add-on and reading a cache must be quick."""
    write_npz(tmp_path / "a.npz", MOVING)
    code = (
        "import sys; from sprig.backend.formats import read_sequence_file; read_sequence_file(sys.argv[1]);"
        "print([name for name in ('alembic3d', 'imath', 'torch', 'trimesh', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.npz")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- real files ------------------------------------------------------------------------------------------------------


def real_inputs():
    return (
        *("quat_spider_walk.abc m2m_horse_rear.abc m2m_kaiju_tail_attack.abc quat_knight_roll.abc").split(),
        *("quat_manta_ray_swim.abc glest_thor_attack.abc oa_gargoyle_death.abc ufo_alientank_walk.abc").split(),
        *("glest_thor_attack.mdd ufo_alientank_walk.pc2 glest_behemoth_walk.pc2").split(),
    )


def test_no_real_file_is_forgotten(shared):
    """Every file of the catalogue that needs no Blender is among the tests below."""
    with (shared / "data" / "inputs" / "CATALOGUE.csv").open() as file:
        native = {row["file"] for row in csv.DictReader(file) if is_native(row["file"])}
    assert native == set(real_inputs())


@pytest.mark.parametrize("name", real_inputs())
def test_real_files_equal_their_twins(name, shared):
    """Positions within float32 rounding, the twin's triangles exactly, same frame rate where the format has one."""
    path = shared / "data" / "inputs" / name
    cache = path.suffix in (".mdd", ".pc2")
    sequence = read_sequence_file(path, rest=path.with_name(f"{path.stem}_rest.obj") if cache else None)
    twin = np.load(shared / "data" / "sequences" / f"{path.stem}.npz")
    assert sequence.vertices.shape == twin["vertices"].shape
    diagonal = np.linalg.norm(np.ptp(twin["vertices"][0], axis=0))
    assert np.abs(world(sequence) - twin["vertices"]).max() < 1e-6 * diagonal  # Blender rounded twice more
    assert np.array_equal(sequence.faces, twin["faces"])
    assert sequence.fps == (24 if cache else twin["fps"])


def test_real_archive_of_another_exporter(shared):
    """Maya, 400 frames of quads. The twin was sampled 30 times a second from it, frame 1 at 1/30 s."""
    sequence = read_sequence_file(shared / "data" / "inputs" / "dembones_bone_original.abc")
    twin = np.load(shared / "data" / "sequences" / "dembones_bone.npz")
    assert sequence.vertices.shape == (400, 754, 3) and sequence.fps == 24
    assert sequence.frame_numbers[[0, -1]].tolist() == [1, 400]
    assert sequence.object_names == ("Bone",)
    positions = world(sequence)
    for f in range(len(twin["vertices"])):
        place = max(0.0, (f + 1) / 30 * 24 - 1)
        before = int(place + 1e-9)
        share = place - before
        expected = (1 - share) * positions[before] + share * positions[before + 1]
        assert np.abs(expected - twin["vertices"][f]).max() < 1e-6 * 4.4  # of the diagonal
    assert len(sequence.faces) == len(twin["faces"])
    assert np.isclose(
        signed_volume(positions[0], sequence.faces), signed_volume(positions[0], twin["faces"]), rtol=1e-2
    )  # quads that are not flat are cut otherwise


@pytest.mark.parametrize("kind", ["obj", "ply", "anime", "dymesh"])
def test_a_real_clip_in_formats_without_a_real_file(kind, shared, tmp_path):
    stored = np.load(shared / "data" / "sequences" / "m2m_snake_sidewinding.npz")
    positions, faces = stored["vertices"][:6], stored["faces"]
    path = {
        "obj": lambda: write_folder(tmp_path / "snake", positions, ".obj", polygons=faces),
        "ply": lambda: write_folder(tmp_path / "snake", positions, ".ply", polygons=faces),
        "anime": lambda: write_anime(tmp_path / "snake.anime", positions, faces),
        "dymesh": lambda: write_dymesh(tmp_path / "snake.bin", positions, faces),
    }[kind]()
    sequence = read_sequence_file(path)
    diagonal = np.linalg.norm(np.ptp(positions[0], axis=0))
    assert np.abs(world(sequence) - positions).max() < 1e-6 * diagonal
    assert np.array_equal(sequence.faces, faces)


def test_real_npz(shared):
    path = shared / "data" / "sequences" / "kaykit_mage_spellcast.npz"
    sequence, stored = read_sequence_file(path), np.load(path)
    assert np.abs(world(sequence) - stored["vertices"]).max() < 1e-6
    assert np.array_equal(sequence.faces, stored["faces"])
    assert np.array_equal(sequence.object_id, stored["object_id"])
    assert sequence.fps == stored["fps"]


# --- rigs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig() -> Rig:
    """A chain of three bones 10 km from the origin."""
    sequence, joints, weights, motion = chain()
    names = ("root", "Bein.L", "関節")
    skeleton = Skeleton(joints, joints + [0.3, 0, 0], [-1, 0, 1], names)
    frames = sequence.frame_count
    rest = linear_blend_skinning(sequence.vertices[0], np.eye(len(joints))[weights.argmax(axis=1)], motion[0])
    return Rig(
        skeleton, weights, motion, rest, sequence.faces, 3, np.array([1e4, -1e4, 2.0]), 29.97,
        np.arange(10, 10 + 2 * frames, 2), np.arange(frames) * 2, np.ones(3, bool), np.zeros(3), np.zeros(frames),
    )  # fmt: skip


def test_a_rig_comes_back_as_the_documented_table(rig, tmp_path):
    npz.write_rig(tmp_path / "rig.npz", rig)
    assert [path.name for path in tmp_path.iterdir()] == ["rig.npz"]
    with np.load(tmp_path / "rig.npz", allow_pickle=False) as stored:
        types = {key: (stored[key].shape, stored[key].dtype.kind + str(stored[key].dtype.itemsize)) for key in stored}
    count, frames = len(rig.rest_vertices), len(rig.frame_index)
    assert types.pop("joint_names")[0] == (3,)
    assert types == {
        "rest_vertices": ((count, 3), "f4"), "faces": (rig.faces.shape, "i4"), "parents": ((3,), "i4"),
        "joints_rest": ((3, 3), "f4"), "tails_rest": ((3, 3), "f4"), "weights": ((count, 3), "f4"),
        "bone_rest": ((3, 4, 4), "f4"), "bone_world": ((frames, 3, 4, 4), "f4"), "frame_index": ((frames,), "i4"),
        "anchor_frame": ((), "i4"), "fps": ((), "f8"),
    }  # fmt: skip
    back = npz.read_rig(tmp_path / "rig.npz")
    assert back["joint_names"] == ("root", "Bein.L", "関節")
    assert back["anchor_frame"] == 3 and back["fps"] == 29.97
    for key in ("weights", "faces", "frame_index"):
        assert np.array_equal(back[key], getattr(rig, key))
    assert back["parents"].tolist() == [-1, 0, 1]


def test_bone_matrices_pose_the_mesh_in_world_space(rig, tmp_path):
    """bone_world @ inv(bone_rest) on world rest vertices is the rig's own skinning, moved to the origin."""
    npz.write_rig(tmp_path / "rig.npz", rig)
    back = npz.read_rig(tmp_path / "rig.npz")
    relative = back["bone_world"].astype(np.float64) @ np.linalg.inv(back["bone_rest"].astype(np.float64))
    for f in (0, 5, -1):
        posed = linear_blend_skinning(back["rest_vertices"], back["weights"], relative[f])
        ours = linear_blend_skinning(rig.rest_vertices, rig.weights, rig.motion[f]) + rig.origin
        # float32 at 10 km: positions in steps of 1 mm, rotations off by 6e-8 that act over 10 km
        assert np.abs(posed - ours).max() < 4e-3


def test_the_same_rig_gives_the_same_bytes(rig, tmp_path):
    for name in "ab":
        npz.write_rig(tmp_path / f"{name}.npz", rig)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_existing_file_is_replaced(rig, tmp_path):
    (tmp_path / "rig.npz").write_text("old")
    npz.write_rig(tmp_path / "rig.npz", rig)
    assert npz.read_rig(tmp_path / "rig.npz")["joint_names"][0] == "root"


def test_a_rig_that_cannot_be_written_leaves_nothing(rig, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for path in (tmp_path / "missing" / "rig.npz", tmp_path / "folder.npz"):
        with pytest.raises(SprigError, match="cannot be written"):
            npz.write_rig(path, rig)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_a_full_disk_leaves_the_old_file(rig, tmp_path):
    """A limit on the size of files stands in for the disk: the system refuses to write in the middle of the archive."""
    resource = pytest.importorskip("resource", reason="Windows has no limits on the size of files")
    path = tmp_path / "rig.npz"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(SprigError, match="cannot be written"):
            npz.write_rig(path, rig)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rig.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "lacks the array 'weights'"),
        ({"weights": np.zeros((4, 3), np.float32)}, "weights of shape"),
        ({"parents": np.array([-1.0, 0, 1])}, "parents of shape"),
        ({"parents": np.zeros((0,), np.int32)}, "0 joints"),
        ({"joint_names": np.array([1, 2, 3])}, "joint_names"),
        ({"joint_names": np.array(["a", "b", None], dtype=object)}, "Python objects"),
        ({"joint_names": np.array(["a", "b", "c" * 2000])}, "more than 1000 letters"),
        ({"bone_world": np.zeros((2, 4, 4), np.float32)}, "bone_world of shape"),
    ],
)
def test_a_damaged_rig_is_refused(change, message, rig, tmp_path):
    npz.write_rig(tmp_path / "rig.npz", rig)
    with np.load(tmp_path / "rig.npz") as stored:
        arrays = {**stored, **change}
    np.savez(tmp_path / "bad.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(SprigError, match=message):
        npz.read_rig(tmp_path / "bad.npz")


def test_a_sequence_is_no_rig_and_quads_are_no_triangles(tmp_path):
    with pytest.raises(SprigError, match="is no rig"):
        npz.read_rig(write_npz(tmp_path / "a.npz", MOVING))
    with pytest.raises(SprigError, match="export triangles"):
        read_sequence_file(write_npz(tmp_path / "b.npz", MOVING, QUADS))
