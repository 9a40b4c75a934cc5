"""Bad files are refused in one sentence: no crash, no other exception, no memory that the file has not earned."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprig.backend.errors import SprigError
from sprig.backend.formats import alembic, checks, dymesh, read_sequence_file
from sprig.backend.sequence import MeshSequence

from .small_files import (
    CUBE,
    QUADS,
    TRIANGLES,
    AbcMesh,
    AbcTransform,
    tumbling_cube,
    write_abc,
    write_anime,
    write_dymesh,
    write_folder,
    write_mdd,
    write_npz,
    write_obj,
    write_pc2,
    write_ply,
    z_to_y_up,
)

MOVING = tumbling_cube()
ONE_FACE_LESS = QUADS[:, ::-1].tolist()[:5]


def refused(path, **options) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(SprigError) as caught:
        read_sequence_file(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def with_value(positions, index, value):
    changed = positions.copy()
    changed[index] = value
    return changed


# --- every refusal ---------------------------------------------------------------------------------------------------


def test_names_that_cannot_be_read(tmp_path):
    assert "does not exist" in refused(tmp_path / "missing.abc")
    assert "does not exist" in refused(tmp_path / "missing.xyz")
    (tmp_path / "notes.txt").write_text("hello")
    assert "give .npz, .abc" in refused(tmp_path / "notes.txt")
    os.mkfifo(tmp_path / "pipe.npz")  # opening it would wait for ever
    assert "not a regular file" in refused(tmp_path / "pipe.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    assert "cannot be read" in refused(tmp_path / "loop.npz")


@pytest.mark.parametrize("suffix", [".npz", ".abc", ".mdd", ".pc2", ".anime", ".bin"])
@pytest.mark.parametrize("content", [b"", b"\0", b"hello, I am no mesh at all\n" * 20, bytes(2000), b"\xff" * 2000])
def test_files_that_are_something_else(suffix, content, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    rest = write_obj(tmp_path / "rest.obj", CUBE) if suffix in (".mdd", ".pc2") else None
    refused(tmp_path / f"a{suffix}", rest=rest)


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"ply\nformat ascii 1.0\nend_header\n", b"\xff\0" * 500])
def test_mesh_files_that_are_something_else(suffix, content, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path)


def test_options_that_do_not_fit(tmp_path):
    rest = write_obj(tmp_path / "rest.obj", CUBE)
    cache = write_pc2(tmp_path / "a.pc2", MOVING)
    plain = write_npz(tmp_path / "a.npz", MOVING)
    assert "--rest mesh.obj" in refused(cache)
    assert "--rest belongs to .mdd and .pc2" in refused(plain, rest=rest)
    assert "give y or z" in refused(plain, up="x")
    for fps in (0, -1.0, float("nan"), float("inf")):
        assert "frame rate" in refused(plain, fps=fps)
        assert "frame rate" in refused(write_abc(tmp_path / "a.abc", AbcMesh(MOVING)), fps=fps)
    assert "does not exist" in refused(cache, rest=tmp_path / "other.obj")
    assert "give an .obj or a .ply" in refused(cache, rest=cache)
    assert "has 4 vertices and a.pc2 moves 8" in refused(cache, rest=write_obj(tmp_path / "small.obj", CUBE[:4], []))
    assert "no faces" in refused(cache, rest=write_obj(tmp_path / "cloud.obj", CUBE, []))


WRITERS = {
    "npz": lambda folder, positions, faces: write_npz(folder / "a.npz", positions, faces),
    "anime": lambda folder, positions, faces: write_anime(folder / "a.anime", positions, faces),
    "dymesh": lambda folder, positions, faces: write_dymesh(folder / "a.bin", positions, faces),
    "obj": lambda folder, positions, faces: write_folder(folder / "a", positions, ".obj", polygons=faces),
    "ply": lambda folder, positions, faces: write_folder(folder / "a", positions, ".ply", polygons=faces),
    "abc": lambda folder, positions, faces: write_abc(folder / "a.abc", AbcMesh(positions, polygons=faces.tolist())),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite_say_where(kind, value, tmp_path):
    positions = with_value(with_value(MOVING, (2, 5), value), (2, 6, 1), value)
    message = refused(WRITERS[kind](tmp_path, positions, TRIANGLES))
    assert "2 vertices of frame 3" in message and "1 of 4 frames" in message


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("corner", [8, -1, 2**31 - 1, -(2**31)])
def test_corners_outside_the_mesh(kind, corner, tmp_path):
    if kind == "obj" and corner < 0:
        corner -= 20  # -1 is the last of the eight vertices there, and write_obj adds one
    message = refused(WRITERS[kind](tmp_path, MOVING, with_value(TRIANGLES, (3, 1), corner)))
    assert str(corner + 9 if kind == "obj" and corner < 0 else corner) in message


@pytest.mark.parametrize("kind", WRITERS)
def test_meshes_without_faces_or_with_too_few_vertices(kind, tmp_path):
    for folder in ("none", "few"):
        (tmp_path / folder).mkdir()
    assert "no faces" in refused(WRITERS[kind](tmp_path / "none", MOVING, TRIANGLES[:0]))
    assert "needs at least 4" in refused(WRITERS[kind](tmp_path / "few", MOVING[:, :3], np.array([[0, 1, 2]])))


def test_topology_that_changes_in_a_folder(tmp_path):
    for suffix, write in ((".obj", write_obj), (".ply", write_ply)):
        folder = write_folder(tmp_path / f"faces{suffix}", MOVING, suffix)
        write(folder / f"box_2{suffix}", MOVING[2], np.roll(QUADS, 1, axis=0))
        assert f"box_2{suffix} (frame 3) has other faces than box_0{suffix}" in refused(folder)
        write(folder / f"box_2{suffix}", np.vstack([MOVING[2], MOVING[2]]))
        assert f"box_2{suffix} (frame 3) has 16 vertices" in refused(folder)


def test_topology_that_changes_in_an_archive(tmp_path):
    good = z_to_y_up(MOVING)
    ends = AbcMesh(good, polygons_of_frame={2: ONE_FACE_LESS})
    assert "frame 3 on" in refused(write_abc(tmp_path / "a.abc", AbcTransform([ends], name="coat")))
    assert "'coat'" in refused(tmp_path / "a.abc")
    turned = [polygon[1:] + polygon[:1] for polygon in QUADS[:, ::-1].tolist()]
    assert "frame 2 on" in refused(write_abc(tmp_path / "b.abc", AbcMesh(good, polygons_of_frame={1: turned})))
    grown = AbcMesh([*good[:3], np.vstack([good[3], good[3]])])
    assert "frame 4 on" in refused(write_abc(tmp_path / "c.abc", grown))
    back = {1: QUADS[:, ::-1].tolist(), 2: QUADS[:, ::-1].tolist()}  # written again, but the same
    assert read_sequence_file(write_abc(tmp_path / "d.abc", AbcMesh(good, polygons_of_frame=back))).frame_count == 4


def test_archives_without_a_usable_mesh(tmp_path):
    assert "no polygon mesh" in refused(write_abc(tmp_path / "a.abc"))
    assert "no polygon mesh" in refused(write_abc(tmp_path / "b.abc", AbcTransform([])))
    assert "no polygon mesh" in refused(write_abc(tmp_path / "c.abc", AbcMesh(np.zeros((3, 0, 3)), polygons=[])))
    good, rate = write_abc(tmp_path / "d.abc", AbcMesh(MOVING)).read_bytes(), struct.pack("<d", 1 / 24)
    assert good.count(rate) == 2  # the spacing and the start of the only time sampling
    (tmp_path / "d.abc").write_bytes(good.replace(rate, struct.pack("<d", 1e-30), 1))  # lost beside the start
    assert "do not increase" in refused(tmp_path / "d.abc")
    (tmp_path / "d.abc").write_bytes(good.replace(rate, struct.pack("<d", np.nan)))
    assert "damaged" in refused(tmp_path / "d.abc")
    sheared = np.eye(4)
    sheared[0, 0] = np.nan
    tree = AbcTransform([AbcMesh(MOVING)], sheared[None])
    assert "not finite" in refused(write_abc(tmp_path / "e.abc", tree))
    (tmp_path / "f.abc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "HDF5" in refused(tmp_path / "f.abc")
    unfinished = bytearray((tmp_path / "d.abc").read_bytes())
    unfinished[5] = 0
    (tmp_path / "g.abc").write_bytes(unfinished)
    assert "not written to its end" in refused(tmp_path / "g.abc")


def test_folders_that_are_no_sequence(tmp_path):
    assert "holds no .obj or .ply" in refused(tmp_path)
    write_obj(tmp_path / "a.obj", CUBE)
    write_ply(tmp_path / "a.ply", CUBE)
    assert "both .obj and .ply" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"faces": TRIANGLES}, "no array 'vertices'"),
        ({"vertices": MOVING}, "no array 'faces'"),
        ({"vertices": MOVING[0], "faces": TRIANGLES}, "(frames, vertices, 3)"),
        ({"vertices": MOVING[..., :2], "faces": TRIANGLES}, "(frames, vertices, 3)"),
        ({"vertices": MOVING.astype(complex), "faces": TRIANGLES}, "complex"),
        ({"vertices": MOVING.astype(str), "faces": TRIANGLES}, "with numbers"),
        ({"vertices": MOVING[:0], "faces": TRIANGLES}, "0 frames"),
        ({"vertices": MOVING, "faces": TRIANGLES.astype(float)}, "whole numbers"),
        ({"vertices": MOVING, "faces": TRIANGLES.ravel()}, "(faces, 3)"),
        ({"vertices": MOVING, "faces": TRIANGLES.astype(np.int64) + 2**32}, "4294967303"),  # wraps to 7 as int32
        ({"vertices": MOVING.astype(np.float64) * 1e300, "faces": TRIANGLES}, "not finite"),
        ({"vertices": MOVING, "faces": TRIANGLES, "object_id": np.zeros(5, int)}, "object_id"),
        ({"vertices": MOVING, "faces": TRIANGLES, "object_id": np.zeros(8)}, "object_id"),
        ({"vertices": MOVING, "faces": TRIANGLES, "fps": np.array([24.0, 25.0])}, "fps"),
        ({"vertices": MOVING, "faces": TRIANGLES, "fps": 0.0}, "frame rate"),
        ({"vertices": MOVING.astype(object), "faces": TRIANGLES}, "Python objects"),
        ({"vertices": MOVING, "faces": np.array([None])}, "Python objects"),
    ],
)
def test_npz_with_other_arrays(content, words, tmp_path):
    np.savez(tmp_path / "a.npz", **content)
    assert words in refused(tmp_path / "a.npz")


# --- claims that would take all the memory ---------------------------------------------------------------------------

SMALL_ENOUGH = 20_000_000  # bytes; the claims below are for gigabytes


@pytest.fixture
def little_memory():
    """Fails when reading has allocated more than a bad file deserves."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SMALL_ENOUGH


def npy_header(shape, dtype="<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "shape", [(10**5, 2500, 3), (10**6, 10**6, 3), (1, 10**15, 3), (10, 10, 3), (-4, 8, 3), (2**70, 1, 3)]
)
def test_npz_that_claims_more_than_it_holds(shape, tmp_path, little_memory):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("vertices.npy", npy_header(shape) + bytes(100))
        archive.writestr("faces.npy", npy_header((12, 3), "<i4") + bytes(144))
    refused(tmp_path / "a.npz")


def test_npz_whose_directory_lies(tmp_path, little_memory):
    """The sizes in the archive's directory are raised to gigabytes; no compression packs that well."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vertices.npy", npy_header((1000, 200_000, 3)) + bytes(100))
        archive.writestr("faces.npy", npy_header((12, 3), "<i4") + bytes(144))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2_400_000_128)
    (tmp_path / "a.npz").write_bytes(data)
    assert "more than it can hold" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("counts", [(2**31 - 1, 8), (4, 2**31 - 1), (10**5, 10**7), (-1, 8), (4, -8), (0, 8), (4, 0)])
def test_headers_of_binary_formats_that_claim_too_much(counts, tmp_path, little_memory):
    frames, vertices = counts
    rest = write_obj(tmp_path / "rest.obj", CUBE)
    (tmp_path / "a.pc2").write_bytes(struct.pack("<12siiffi", b"POINTCACHE2\0", 1, vertices, 0, 1, frames) + bytes(384))
    (tmp_path / "a.mdd").write_bytes(struct.pack(">ii", frames, vertices) + bytes(400))
    (tmp_path / "a.anime").write_bytes(struct.pack("<iii", frames, vertices, 12) + bytes(528))
    for name in ("a.pc2", "a.mdd"):
        refused(tmp_path / name, rest=rest)
    refused(tmp_path / "a.anime")


@pytest.mark.parametrize("counts", [(8, 2**31), (2**31, 6), (8, -6), (10**30, 6), (8, 10**7)])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_ply_that_claims_too_much(counts, kind, tmp_path, little_memory):
    write_ply(tmp_path / "a.ply", CUBE, kind=kind)
    data = (tmp_path / "a.ply").read_bytes()
    data = data.replace(b"vertex 8", b"vertex %d" % counts[0]).replace(b"face 6", b"face %d" % counts[1])
    (tmp_path / "a.ply").write_bytes(data)
    refused(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"property float x", b"property list uchar float x"),
        (b"property list uchar int vertex_indices", b"property int vertex_indices"),
        (b"property list uchar int", b"property list float int"),
        (b"property list uchar int", b"property list uchar float"),
        (b"property list uchar int", b"property list char int"),
        (b"property float x", b"property float y"),
        (b"property float x", b"property quaternion x"),
        (b"format binary_little_endian 1.0\n", b""),
        (b"binary_little_endian", b"binary_middle_endian"),
        (b"end_header\n", b""),
        (b"comment", b"remark"),
    ],
)
def test_ply_with_a_wrong_header(old, new, tmp_path):
    polygons = [[0, 1, 3, 2], [255] * 200] if b"list char" in new else QUADS
    write_ply(tmp_path / "a.ply", CUBE, polygons)
    data = (tmp_path / "a.ply").read_bytes()
    assert old in data
    (tmp_path / "a.ply").write_bytes(data.replace(old, new))
    refused(tmp_path)


def test_archives_with_too_much_in_them(tmp_path, monkeypatch):
    path = write_abc(tmp_path / "a.abc", AbcTransform([AbcMesh(z_to_y_up(MOVING))], name="box"))
    for limit, value, words in (
        ("MAX_FRAMES", 3, "4 samples of 'box'"),
        ("MAX_POSITIONS", 31, "more than 31 vertex positions in 'box'"),
        ("MAX_VERTICES", 7, "8 vertices"),
        ("MAX_CORNERS", 23, "24 face corners"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checks, limit, value)
            assert words in refused(path)
    monkeypatch.setattr(alembic, "MAX_OBJECTS", 2)  # the top, the transform and the mesh are three
    assert "more than 2 objects" in refused(path)


def test_mesh_files_that_are_too_long(tmp_path, monkeypatch):
    write_obj(tmp_path / "a.obj", CUBE)
    monkeypatch.setattr(checks, "MAX_MESH_BYTES", 100)
    assert "more than the 100" in refused(tmp_path)


# --- pickles ---------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["instead", "beside", "inside", "dtype"])
def test_a_pickle_that_imports_is_refused_and_nothing_runs(place, protocol, tmp_path):
    marker = tmp_path / "it ran"
    trap = Calls(os.mkdir, str(marker))
    content = {
        "instead": trap,
        "beside": {"vertices": MOVING, "faces": TRIANGLES, "caption": trap},
        "inside": {"vertices": [MOVING[0], trap], "faces": TRIANGLES},
        "dtype": {"vertices": np.array([trap, None]), "faces": TRIANGLES},
    }[place]
    (tmp_path / "a.bin").write_bytes(pickle.dumps(content, protocol))
    message = refused(tmp_path / "a.bin")
    assert "asks for" in message and ("mkdir" in message or "object" in message)
    assert not marker.exists()


@pytest.mark.parametrize(
    "wanted",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"cos\nsystem\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.tofile.x\x93.",
        b"c__main__\n__dict__\n.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"Pid\n.",  # data outside the pickle
        b"\x97.",  # out-of-band buffer
    ],
)
def test_other_ways_out_of_a_pickle(wanted, tmp_path):
    (tmp_path / "a.bin").write_bytes(wanted)
    refused(tmp_path / "a.bin")


def test_a_pickle_cannot_tamper_with_the_reader(tmp_path):
    """BUILD sets attributes on whatever is on the stack, also on what stands in for numpy's own functions."""
    tamper = b"cnumpy.core.multiarray\n_reconstruct\n(N}S'make'\nNstb."
    (tmp_path / "a.bin").write_bytes(tamper)
    refused(tmp_path / "a.bin")
    assert read_sequence_file(write_dymesh(tmp_path / "b.bin", MOVING)).frame_count == 4


@pytest.mark.parametrize(
    "content",
    [
        [1, 2, 3],
        {"vertices": MOVING},
        {"vertices": MOVING, "faces": TRIANGLES.astype(float)},
        {"vertices": MOVING[0], "faces": TRIANGLES},
        {"vertices": "text", "faces": TRIANGLES},
        {"vertices": [[1, 2], [3]], "faces": TRIANGLES},
        {"vertices": [[[1, 2, "3"]]], "faces": TRIANGLES},
        {"vertices": [], "faces": TRIANGLES},
        {"vertices": MOVING.astype(str), "faces": TRIANGLES},
        {"vertices": MOVING.astype("M8[s]"), "faces": TRIANGLES},
        {"vertices": np.zeros((4, 8, 3), dtype=[("x", "f4")]), "faces": TRIANGLES},
        {"vertices": [[[10**400] * 3] * 8], "faces": TRIANGLES},
    ],
)
def test_pickles_of_other_things(content, tmp_path):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(content))
    refused(tmp_path / "a.bin")


def test_lists_within_themselves(tmp_path):
    endless = []
    endless.append(endless)
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"vertices": endless, "faces": TRIANGLES}))
    refused(tmp_path / "a.bin")


def test_pickles_that_claim_memory(tmp_path, little_memory, monkeypatch):
    claims = {
        "memo": b"\x80\x04Nr\xff\xff\xff\x7f.",  # place 2147483647 of an array that would grow to 16 GB
        "bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3f.",
        "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3f.",
        "text": b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00.",
        "shape": pickle.dumps(
            {"vertices": Calls(np.core.multiarray._reconstruct, np.ndarray, (10**12,), b"b"), "faces": 0}
        ),
    }
    for name, data in claims.items():
        (tmp_path / f"{name}.bin").write_bytes(data)
        refused(tmp_path / f"{name}.bin")
    monkeypatch.setattr(dymesh, "MAX_OPERATIONS", 10)
    assert "more than 10 steps" in refused(write_dymesh(tmp_path / "steps.bin", MOVING))
    monkeypatch.setattr(dymesh, "MAX_BYTES", 10)
    assert "more than the 10" in refused(tmp_path / "steps.bin")


# --- damage at any place ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The bytes of one small good file of every kind: {name: (suffix, bytes)}."""
    folder = tmp_path_factory.mktemp("samples")
    compressed = folder / "compressed.npz"
    np.savez_compressed(compressed, vertices=MOVING, faces=TRIANGLES, fps=30.0, object_id=np.zeros(8, int))
    paths = [
        write_npz(folder / "plain.npz", MOVING, fps=30.0, object_id=np.zeros(8, int)),
        compressed,
        write_pc2(folder / "a.pc2", MOVING),
        write_mdd(folder / "a.mdd", MOVING),
        write_anime(folder / "a.anime", MOVING),
        *(write_dymesh(folder / f"{protocol}.bin", MOVING, protocol=protocol) for protocol in (0, 2, 4, 5)),
        write_dymesh(folder / "lists.bin", MOVING.tolist(), TRIANGLES.tolist()),
        write_obj(folder / "a.obj", CUBE),
        write_ply(folder / "a.ply", CUBE),
        write_ply(folder / "mixed.ply", CUBE, [*QUADS[:5].tolist(), *TRIANGLES[10:].tolist()]),
        write_ply(folder / "text.ply", CUBE, kind="ascii"),
        write_abc(folder / "a.abc", AbcTransform([AbcMesh(z_to_y_up(MOVING))], np.stack([np.eye(4)] * 4))),
    ]
    return {path.name: (path.suffix, path.read_bytes()) for path in paths}


IN_PROCESS = (
    "plain.npz compressed.npz a.pc2 a.mdd a.anime 0.bin 2.bin 4.bin 5.bin lists.bin a.obj a.ply mixed.ply text.ply"
).split()


def read_bytes(suffix, good, bad, folder):
    """Read `bad` as a file, or between two good frames of a folder: the sequence, or None if it was refused."""
    rest = None
    if suffix in (".obj", ".ply"):
        path = folder / "frames"
        path.mkdir(exist_ok=True)
        for f, data in enumerate((good, bad, good)):
            (path / f"{f}{suffix}").write_bytes(data)
    else:
        path = folder / f"bad{suffix}"
        path.write_bytes(bad)
        if suffix in (".pc2", ".mdd"):
            rest = write_obj(folder / "rest.obj", CUBE)
    try:
        sequence = read_sequence_file(path, rest=rest)
    except SprigError as refusal:
        assert "\n" not in str(refusal)
        return None
    assert isinstance(sequence, MeshSequence) and np.isfinite(sequence.vertices).all()
    return sequence


@pytest.mark.parametrize("name", IN_PROCESS)
def test_truncated_anywhere(name, samples, tmp_path):
    """Binary formats notice every missing byte; of text only the last line break, and in a pickle nothing, is idle."""
    suffix, data = samples[name]
    idle = {".obj": 3, ".ply": 2}.get(suffix, 0)  # the last corner of the last OBJ face, or a line break, may go
    for length in sorted({*np.linspace(0, len(data) - 1, 80).astype(int), *range(len(data) - 20, len(data))}):
        read = read_bytes(suffix, data, data[:length], tmp_path)
        assert read is None or length >= len(data) - idle, length
    assert read_bytes(suffix, data, data, tmp_path) is not None


def damage(data: bytes, edits) -> bytes:
    """Bytes with some of them replaced (kind 0), taken out (1) or put in (2); places are shares of the length."""
    changed = bytearray(data)
    for kind, share, value in edits:
        place = int(share * len(changed))
        if kind == 0 and place < len(changed):
            changed[place] = value
        elif kind == 1:
            del changed[place : place + 1 + value % 9]
        else:
            changed[place:place] = bytes([value]) * (1 + value % 5)
    return bytes(changed)


EDITS = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 2]), st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", IN_PROCESS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damaged_anywhere(name, samples, tmp_path, edits):
    suffix, data = samples[name]
    read_bytes(suffix, data, damage(data, edits), tmp_path)


# Alembic, whose library runs in a process of its own: a tenth of a second for each file that it gets to see


def test_truncated_archives(samples, tmp_path):
    """The structure is checked before the library sees the file, so all lengths can be tried."""
    suffix, data = samples["a.abc"]
    for length in range(0, len(data), 7):
        assert read_bytes(suffix, data, data[:length], tmp_path) is None, length
    assert read_bytes(suffix, data, data, tmp_path) is not None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damaged_archives(samples, tmp_path, edits):
    suffix, data = samples["a.abc"]
    read_bytes(suffix, data, damage(data, edits), tmp_path)


def test_archives_whose_groups_and_data_are_mixed_up(samples, tmp_path):
    """Offsets that point at data are made to point at groups: alembic3d crashes on some, its process and not ours."""
    suffix, data = samples["a.abc"]
    crashed = 0
    for place in dims_of_arrays(data)[:10]:
        changed = bytearray(data)
        changed[place + 7] ^= 128
        (tmp_path / f"bad{suffix}").write_bytes(changed)
        try:
            read_sequence_file(tmp_path / f"bad{suffix}")
        except SprigError as refusal:
            crashed += "library failed" in str(refusal)
    assert crashed > 0  # else the process of its own may not be needed any more


def dims_of_arrays(data: bytes) -> list[int]:
    """Where offsets of empty data blocks are: array properties have one for each sample of rank one."""
    return [place for place in range(16, len(data) - 7) if data[place : place + 8] == bytes(7) + b"\x80"]


def test_archives_that_contain_themselves(samples, tmp_path):
    """A group that is its own child would be walked for ever."""
    suffix, data = samples["a.abc"]
    root = struct.unpack_from("<Q", data, 8)[0]
    changed = bytearray(data)
    changed[root + 8 + 16 : root + 8 + 24] = struct.pack("<Q", root)  # the third child is the top object
    assert read_bytes(suffix, data, bytes(changed), tmp_path) is None
