"""Puppeteer's networks: equal to the original's numbers, every released key table, a cache, and always a tree."""

import argparse
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprig.backend.errors import SprigError
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.puppeteer import load, parity, repair
from sprig.backend.puppeteer.__main__ import main
from sprig.backend.puppeteer.michelangelo import MichelangeloConfig, to_encoder_frame
from sprig.backend.puppeteer.partfield import PartFieldConfig, read_grid, sample_planes, scatter_mean
from sprig.backend.puppeteer.skeleton import PuppeteerSkeleton, SkeletonConfig
from sprig.backend.puppeteer.skinning import NON_COMMERCIAL, PuppeteerSkinning, SkinningConfig, hop_distances
from sprig.backend.skeleton.generate import generate
from sprig.backend.skeleton.tokens import decode, encode

from .creatures import chain
from .small_puppeteer import network

JOINTS = SkeletonConfig()
BONES = SkeletonConfig(tokens_per_slot=6, slots=100)
BONES_WITHOUT_TABLE = replace(BONES, target_table=False)
TINY_ENCODER = MichelangeloConfig(
    width=64, heads=1, latents=5, bottleneck=4, encoder_layers=1, decoder_layers=2, frequencies=3
)
TINY_SKELETON = SkeletonConfig(width=128, heads=2, layers=2, feed_forward=32, slots=5, encoder=TINY_ENCODER)
TINY_SKINNING = SkinningConfig(
    heads=2,
    head_width=4,
    feed_forward=2,
    encoder=TINY_ENCODER,
    partfield=PartFieldConfig(
        point_channels=(8, 4, 4, 8),
        plane_channels=8,
        resolution=8,
        unet_width=4,
        unet_levels=2,
        transformer_width=128,
        transformer_heads=1,
        transformer_layers=1,
        sdf_channels=4,
        part_channels=6,
    ),
)
SKELETONS = {
    "joints": TINY_SKELETON,
    "joints without table": replace(TINY_SKELETON, target_table=False),
    "bones": replace(TINY_SKELETON, tokens_per_slot=6, slots=4),
    "bones without table": replace(TINY_SKELETON, tokens_per_slot=6, slots=4, target_table=False),
}
every_skeleton = pytest.mark.parametrize("config", SKELETONS.values(), ids=SKELETONS)


def cloud(count=40, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(batch, count, 3, generator=generator) - 0.5
    normals = torch.nn.functional.normalize(torch.randn(batch, count, 3, generator=generator), dim=-1)
    return torch.cat([positions, normals], dim=-1)


# ---- the original's own numbers

PARITY = {
    "skeleton_tiny_joint_token": {"point_feature", "cond", "logits", "greedy_ids", "detok_bones"},
    "skinning_tiny_depth1": {
        *("shape_feature", "pvcnn_triplane", "triplane_out", "partfield_feat", "proj", "pe_points", "pe_joints"),
        *("block0_point", "block0_joint", "weights"),
    },
}


@pytest.mark.parametrize("name", PARITY)
def test_our_networks_give_the_originals_numbers(name, shared, tmp_path, capsys):
    files = shared / "reference" / "parity"
    weights, tensors = (str(files / f"puppeteer_{name}{suffix}") for suffix in (".pth", ".npz"))
    with np.load(tensors) as given:
        expected = {key: given[key] for key in given.files}
    inputs = {key: array for key, array in expected.items() if key not in PARITY[name]}
    np.savez(tmp_path / "inputs.npz", **inputs)

    assert main(["parity", weights, tensors]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["per_array"].keys() == PARITY[name]
    assert report["max_abs_error"] == max(report["per_array"].values()) < 1e-4
    assert report["per_array"].get("greedy_ids", 0) == 0

    assert main(["parity", weights, str(tmp_path / "inputs.npz"), "--dump", str(tmp_path / "out.npz")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"max_abs_error": None, "per_array": {}}
    with np.load(tmp_path / "out.npz") as dumped:
        assert set(dumped.files) == PARITY[name]
        for key in dumped.files:
            np.testing.assert_allclose(dumped[key], expected[key], atol=1e-4, rtol=0)


def test_the_shared_skinning_interface_is_the_original_without_its_padding(shared):
    files = shared / "reference" / "parity"
    with np.load(files / "puppeteer_skinning_tiny_depth1.npz") as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files if name != "cfg"}
        cfg = json.loads(str(file["cfg"]))
    model = load.load_skinning(files / "puppeteer_skinning_tiny_depth1.pth", parity.skinning_config(cfg))
    valid = given["valid_mask"]
    parents = torch.full(valid.shape, -1)
    parents[0, : len(given["parents"])] = given["parents"]
    np.testing.assert_array_equal(
        hop_distances(parents, valid)[0, :18, :18], given["dist_graph"][0, :18, :18].clamp(0, 9).long()
    )
    with torch.no_grad():
        streams = replace(model.encode(given["sample_points"]), shape=model.shape_tokens(given["pc_w_norm"]))
        weights = model.weights(streams, given["skeleton"][..., 3:], parents, valid)
    expected = given["weights"] * valid[:, None]
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=0)


def test_an_error_is_found_and_a_wrong_shape_is_one():
    ours = {"a": np.ones(3, np.float32), "b": np.ones(3), "c": np.array([np.nan]), "d": np.ones(1)}
    theirs = {"a": np.array([1, 1, 1.5]), "b": np.ones(2), "c": np.ones(1), "e": np.ones(1)}
    assert parity.errors(ours, theirs) == {"a": 0.5, "b": np.inf, "c": np.inf}


# ---- the released files' names and shapes


def key_table(shared, kind, variant):
    table = json.loads((shared / "reference" / f"puppeteer_{kind}_state_dict.json").read_text())
    keys = {name: tuple(shape) for name, shape in table["state_dict"].items()}
    if variant:
        changes = table["variants"][variant]
        for name in changes["removed"]:
            del keys[name]
        keys |= {name: tuple(shape) for part in ("added", "changed") for name, shape in (changes[part] or {}).items()}
        assert len(keys) == changes["tensors"]
    return keys


@pytest.mark.parametrize(
    "kind, variant, config",
    [
        ("skeleton", None, JOINTS),
        ("skeleton", "bone_token_seq_shuffle", BONES),
        ("skeleton", "magicarticulate_bone_token_no_shuffle", BONES_WITHOUT_TABLE),
        ("skinning", None, SkinningConfig()),
        ("skinning", "depth2", SkinningConfig(depth=2)),
    ],
)
def test_names_and_shapes_are_those_of_the_released_files(kind, variant, config, shared):
    keys = key_table(shared, kind, variant)
    with torch.device("meta"):
        model = {"skeleton": PuppeteerSkeleton, "skinning": PuppeteerSkinning}[kind](config)
        released = {name: torch.empty(shape) for name, shape in keys.items()}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == keys
    inferred = {"skeleton": load.skeleton_config, "skinning": load.skinning_config}[kind](released)
    assert inferred == config


@pytest.mark.parametrize(
    "kind, config",
    [
        *((PuppeteerSkeleton, config) for config in SKELETONS.values()),
        *((PuppeteerSkinning, replace(TINY_SKINNING, depth=depth)) for depth in (1, 2)),
    ],
)
def test_a_saved_network_comes_back_whole(kind, config, tmp_path):
    """In half precision and with the training arguments beside it, as released files may be."""
    model = network(kind, config).half()
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(depth=1)}, path)
    if kind is PuppeteerSkeleton:
        again = load.load_skeleton(path)
        assert again.transformer.lm_head.weight is again.transformer.model.decoder.embed_tokens.weight
        assert again.config == config
    else:
        # the voxel grid has no weights, so no shape shows it
        assert load.load_skinning(path).config == config
        again = load.load_skinning(path, config)
    assert not again.training
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and theirs.dtype == torch.float32
        torch.testing.assert_close(ours.float(), theirs, atol=0, rtol=0)


def test_the_licence_note_is_one_sentence():
    assert NON_COMMERCIAL.endswith(".") and NON_COMMERCIAL.count(". ") == 0 and "non-commercial" in NON_COMMERCIAL


# ---- files that are not what they should be


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def broken(state, name, value):
    return {"model": {**state, name: value}}


def test_bad_files_are_refused_in_one_sentence(tmp_path):
    state = network(PuppeteerSkeleton, TINY_SKELETON).state_dict()
    skinning = network(PuppeteerSkinning, TINY_SKINNING).state_dict()
    head = "transformer.lm_head.weight"
    path = tmp_path / "file.pth"
    torch.save({"model": state}, path)
    whole = path.read_bytes()
    load.load_skeleton(path)
    swollen = torch.zeros(1, dtype=torch.float16).expand(131, 128)
    contents = {
        "hostile": {"model": state, "epoch": Hostile(tmp_path / "made")},
        "no model": {"weights": state},
        "a list": [1, 2],
        "numbers for tensors": {"model": {"a": 1}},
        "the other kind": {"model": skinning},
        "one missing": {"model": {name: tensor for name, tensor in state.items() if name != head}},
        "one too many": broken(state, "extra", torch.zeros(1)),
        "a wrong shape": broken(state, head, torch.zeros(131, 64)),
        "a wrong vocabulary": broken(state, "transformer.model.decoder.embed_tokens.weight", torch.zeros(130, 128)),
        "a width without heads": broken(state, "transformer.model.decoder.embed_tokens.weight", torch.zeros(131, 100)),
        "a scalar": broken(state, "transformer.model.decoder.embed_positions.weight", torch.tensor(1.0)),
        "not a number": broken(state, head, torch.full((131, 128), torch.nan)),
        "whole numbers": broken(state, head, torch.zeros(131, 128, dtype=torch.long)),
        "swollen": broken(state, head, swollen),
        "sparse": broken(state, head, torch.zeros(131, 128).to_sparse()),
        "on no device": broken(state, head, torch.zeros(131, 128, device="meta")),
    }
    files = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"solid mesh\n",
        "plain pickle": pickle.dumps({"model": Hostile(tmp_path / "made")}),
    }
    for what, content in contents.items():
        torch.save(content, path)
        files[what] = path.read_bytes()
    for what, content in files.items():
        path.write_bytes(content)
        with pytest.raises(SprigError) as caught:
            load.load_skeleton(path)
        message = str(caught.value)
        assert message.endswith(".") and "\n" not in message and ". " not in message, (what, message)
    assert not (tmp_path / "made").exists()
    for place in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(SprigError, match="is not there"):
            load.load_skinning(place)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    weights, tensors = tmp_path / "a.pth", tmp_path / "a.npz"
    torch.save({"model": network(PuppeteerSkeleton, TINY_SKELETON).state_dict()}, weights)
    for content in (b"", b"PK\x03\x04 not a zip", None):
        if content is None:
            np.savez(tensors, cfg='{"opt": {}}')
        else:
            tensors.write_bytes(content)
        assert main(["parity", str(weights), str(tensors)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1


# ---- the skeleton decoder


@every_skeleton
def test_with_and_without_cache_the_logits_are_the_same(config):
    model = network(PuppeteerSkeleton, config)
    ids = torch.randint(3, 131, (2, model.most_tokens), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[1, 6] = 0, 2
    with torch.no_grad():
        condition = model.condition(cloud(batch=2))
        expected = model(condition, ids)
        logits, cache = model.begin(condition)
        stepped = [logits]
        for column in ids[:, 1:].T:
            logits, cache = model.step(column, cache)
            stepped.append(logits)
    assert expected.shape == (2, model.most_tokens, 131)
    torch.testing.assert_close(torch.stack(stepped, dim=1), expected, atol=1e-4, rtol=1e-5)


def test_selected_rows_of_a_cache_go_on_as_those_rows():
    model = network(PuppeteerSkeleton, TINY_SKELETON)
    ids = torch.randint(3, 131, (3, 6), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 0
    rows = torch.tensor([2, 0, 2, 2])
    with torch.no_grad():
        condition = model.condition(cloud(batch=3))
        _, cache = model.begin(condition)
        for column in ids[:, 1:4].T:
            _, cache = model.step(column, cache)
        chosen = torch.tensor([7, 90, 13, 3])
        first, after = model.step(chosen, cache.select(rows))
        second, _ = model.step(chosen, after)
        kept, _ = model.step(ids[:, 4], cache)  # the cache that was selected from is as it was
        long = torch.cat([ids[rows, :4], chosen[:, None], chosen[:, None]], dim=1)
        expected = model(condition[rows], long)
        torch.testing.assert_close(kept, model(condition, ids)[:, 4], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(first, expected[:, 4], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(second, expected[:, 5], atol=1e-4, rtol=1e-5)


@every_skeleton
def test_every_row_of_the_small_tables_acts_where_it_should(config):
    """By causality: what is added to token t changes the logits of row t + 1 and no earlier one."""
    model = network(PuppeteerSkeleton, config)
    k = config.tokens_per_slot
    ids = torch.randint(3, 131, (1, model.most_tokens), generator=torch.Generator().manual_seed(3))
    ids[0, 0], ids[0, -1] = 0, 1
    condition = model.condition(cloud()).detach()

    def first_change(table, row):
        with torch.no_grad():
            before = model.logits(condition, ids)
            table[row] += torch.linspace(-3, 3, config.width)
            after = model.logits(condition, ids)
            table[row] -= torch.linspace(-3, 3, config.width)
        changed = ((after - before).abs().amax(2)[0] > 1e-3).nonzero()
        return int(changed[0]) if len(changed) else None

    decoder = model.transformer.model.decoder
    coordinate = decoder.token_embed_positions.weight
    assert [first_change(coordinate, row) for row in range(k + 3)] == [1, model.most_tokens, None, *range(2, k + 2)]
    assert [first_change(decoder.cond_embed.weight, row) for row in (0, 1)] == [0, 1]
    positions = decoder.embed_positions.weight
    prefix = model.prefix_tokens
    assert first_change(positions, 0) is first_change(positions, 1) is None
    assert [first_change(positions, row) for row in (2, 2 + prefix, 3 + prefix)] == [0, 1, 2]
    assert first_change(positions, len(positions) - 1) == model.most_tokens
    if config.target_table:
        slots = [first_change(model.target_aware_pos_embed[0], row) for row in range(config.slots)]
        assert slots == [0, *range(2, 2 + k * (config.slots - 1), k)]
    else:
        assert "target_aware_pos_embed" not in model.state_dict()


@every_skeleton
def test_greedy_takes_the_likeliest_token_every_time(config):
    model = network(PuppeteerSkeleton, config, seed=4)
    with torch.no_grad():
        condition = model.condition(cloud(batch=2))
        ids = model.greedy(condition)
        likeliest = model.logits(condition, ids).argmax(-1)[:, :-1]
        for row, best in zip(ids, likeliest, strict=True):
            ended = (row == 1).nonzero()
            length = int(ended[0]) + 1 if len(ended) else len(row)
            assert torch.equal(row[:length], best[:length])
            assert (row[length:] == 2).all() and (length == model.most_tokens or row[length - 1] == 1)


def test_greedy_stops_at_the_end_token_and_pads_the_rows_that_wait():
    model = network(PuppeteerSkeleton, TINY_SKELETON)
    with torch.no_grad():
        model.transformer.lm_head.weight[:] = 0
        assert model.greedy(model.condition(cloud())).shape == (1, model.most_tokens)  # all ties: BOS for ever
        model.transformer.model.decoder.layers[-1].final_layer_norm.weight[:] = 0
        model.transformer.model.decoder.layers[-1].final_layer_norm.bias[:] = 1
        model.transformer.lm_head.weight[1] = 1
        assert model.greedy(model.condition(cloud(batch=2))).tolist() == [[1], [1]]


def test_condition_takes_the_unit_cube_to_the_encoders_frame():
    points = cloud()
    points[0, 0, :3], points[0, 1, :3] = torch.tensor([0.5, 0, 0]), torch.tensor([-0.25, 0, 0])
    framed = to_encoder_frame(points)
    torch.testing.assert_close(framed[0, :2, 0], torch.tensor([0.9995, -0.49975]))
    torch.testing.assert_close(framed[..., 3:], points[..., 3:], atol=0, rtol=0)
    model = network(PuppeteerSkeleton, TINY_SKELETON)
    with torch.no_grad():
        direct = model.prefix(model.point_encoder.encode(framed))
        torch.testing.assert_close(model.condition(points), direct)
        shuffled = model.condition(points[:, torch.randperm(40, generator=torch.Generator().manual_seed(0))])
        torch.testing.assert_close(shuffled, direct, atol=1e-4, rtol=1e-4)


def test_the_shared_generation_drives_joint_tokens_and_refuses_bones():
    model = network(PuppeteerSkeleton, TINY_SKELETON)
    found = generate(model, cloud(), candidates=2, temperature=1.0, seed=5)
    for skeleton in found:
        assert skeleton.parents[0] == -1 and (skeleton.parents[1:] < np.arange(1, len(skeleton.parents))).all()
        np.testing.assert_array_equal(skeleton.joints * 128, np.round(skeleton.joints * 128))  # lower edges
    bones = network(PuppeteerSkeleton, SKELETONS["bones"])
    with pytest.raises(SprigError, match="bones"):
        generate(bones, cloud())


# ---- trees


def check_tree(joints, parents):
    assert joints.shape == (len(parents), 3) and joints.dtype == np.float32 and parents.dtype == np.int64
    assert len(parents) >= 1 and parents[0] == -1
    assert (parents[1:] >= 0).all() and (parents[1:] < np.arange(1, len(parents))).all()
    assert (np.abs(joints) <= 0.5).all() and len(np.unique(joints, axis=0)) == len(joints)


def slot_ids(slots):
    return np.array([0, *(3 + bin_ for slot in slots for bin_ in slot), 1])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 130), max_size=80), st.sampled_from([4, 6]), st.integers(1, 128))
def test_any_ids_give_one_tree(ids, tokens_per_slot, bins):
    few = [min(i, 2 + bins) for i in ids]  # few bins: many equal places and parents that exist
    joints, parents = repair.one_tree([0, *few], tokens_per_slot)
    check_tree(joints, parents)
    assert len(parents) <= max(1, len(ids) // tokens_per_slot * (tokens_per_slot - 3 if tokens_per_slot == 4 else 2))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_a_valid_sequence_is_read_as_it_is(count, seed):
    rng = np.random.default_rng(seed)
    places = rng.permutation(128**3)[:count]
    joints = np.stack([places % 128, places // 128 % 128, places // 128**2], axis=1) / 128 - 0.5
    parents = np.array([-1, *(rng.integers(j) for j in range(1, count))])
    ids = encode(joints, parents)
    found = repair.one_tree(ids)
    np.testing.assert_array_equal(found[0], decode(ids, 0.0)[0])
    np.testing.assert_array_equal(found[1], parents)
    bones = repair.bones_from_bins(ids[1:] - 3, 4)
    np.testing.assert_array_equal(bones, np.stack([joints[parents[1:]], joints[1:]], axis=1))
    if count > 1:  # the same skeleton in bone tokens; it may have been read in another order
        found = repair.one_tree([0, *(3 + np.round((bones + 0.5) * 128).astype(int).ravel()), 1], 6)
        assert {(*j, *found[0][p]) for j, p in zip(found[0], found[1], strict=True) if p >= 0} == {
            (*child, *parent) for parent, child in bones
        }


@pytest.mark.parametrize(
    "slots, x, parents",
    [
        ([(10, 0, 0, 0), (20, 0, 0, 9), (30, 0, 0, 2)], [10, 20, 30], [-1, 0, 1]),  # a parent that is not there
        ([(10, 0, 0, 2), (20, 0, 0, 1), (30, 0, 0, 0)], [30, 20, 10], [-1, 0, 1]),  # a loop, and the root at the end
        ([(10, 0, 0, 1), (20, 0, 0, 1)], [10, 20], [-1, 0]),  # its own parent, and no root
        ([(10, 0, 0, 0), (90, 0, 0, 0), (80, 0, 0, 2), (20, 0, 0, 1)], [10, 20, 90, 80], [-1, 0, 1, 2]),  # two roots
        ([(10, 0, 0, 99), (20, 0, 0, 0)], [20, 10], [-1, 0]),  # the root is who says so
        ([(10, 0, 0, 0), (20, 0, 0, 1), (20, 0, 0, 1), (30, 0, 0, 3)], [10, 20, 30], [-1, 0, 1]),  # one place twice
    ],
)
def test_joint_tokens_that_make_no_tree_by_hand(slots, x, parents):
    found, found_parents = repair.one_tree(slot_ids(slots))
    assert ((found[:, 0] + 0.5) * 128).tolist() == x and found_parents.tolist() == parents


def test_bones_that_make_no_tree_by_hand():
    a, b, c, d, e = ((x, 5, 5) for x in (10, 20, 30, 60, 64))
    slots = [(*d, *d), (*b, *c), (*a, *b), (*a, *c), (*d, *e), (*e, *d)]
    joints, parents = repair.one_tree(slot_ids(slots), 6)
    assert ((joints[:, 0] + 0.5) * 128).tolist() == [10, 20, 30, 60, 64] and parents.tolist() == [-1, 0, 1, 2, 3]


def test_incomplete_and_empty_sequences_still_give_a_tree():
    cut = [0, 13, 14, 15, 3, 20, 20, 20, 4, 50, 50]
    assert repair.one_tree(cut)[1].tolist() == [-1, 0]
    assert repair.one_tree([77, *cut[1:]])[1].tolist() == [-1, 0]  # the first id counts as BOS
    assert repair.one_tree([*cut[:5], 1, *cut[5:]])[1].tolist() == [-1]
    for ids in ([], [0], [0, 1], [0, 5, 6, 1, 2, 2]):
        for tokens_per_slot in (4, 6):
            joints, parents = repair.one_tree(ids, tokens_per_slot)
            assert joints.tolist() == [[0, 0, 0]] and parents.tolist() == [-1]


@every_skeleton
def test_a_network_that_knows_nothing_still_gives_a_tree(config):
    check_tree(*repair.greedy_tree(network(PuppeteerSkeleton, config), cloud()))


# ---- the skinning network


def small_skeleton(batch=1):
    joints = torch.rand(batch, 6, 3, generator=torch.Generator().manual_seed(7)) - 0.5
    parents = torch.tensor([[-1, 0, 1, 1, 0, -1]]).expand(batch, -1)
    valid = torch.tensor([[True] * 5 + [False]]).expand(batch, -1)
    return joints, parents, valid


def test_hops_by_hand():
    parents = torch.tensor([[-1, 0, 1, 1, -1], [1, -1, -1, 2, 3]])
    valid = torch.tensor([[True, True, True, True, False], [True] * 5])
    first, second = hop_distances(parents, valid)
    assert first.tolist() == [[0, 1, 2, 2, 9], [1, 0, 1, 1, 9], [2, 1, 0, 2, 9], [2, 1, 2, 0, 9], [9, 9, 9, 9, 0]]
    assert second[0].tolist() == [0, 1, 9, 9, 9] and second[2].tolist() == [9, 9, 0, 1, 2]
    chain = torch.arange(-1, 13)[None]
    expected = (torch.arange(14)[:, None] - torch.arange(14)).abs().clamp_max(9)
    assert torch.equal(hop_distances(chain, torch.ones_like(chain, dtype=torch.bool))[0], expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_weights_are_on_the_simplex_of_the_valid_joints(depth):
    model = network(PuppeteerSkinning, replace(TINY_SKINNING, depth=depth))
    joints, parents, valid = small_skeleton(batch=2)
    with torch.no_grad():
        points = cloud(batch=2)
        weights = model(points, joints, parents, valid)
        assert weights.shape == (2, 40, 6) and (weights[..., 5] == 0).all() and (weights[..., :5] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 40))
        # Padding, however much and wherever it lies, and the company in the batch change nothing.
        alone = model(points[1:], joints[1:, :5], parents[1:, :5], valid[1:, :5])
        torch.testing.assert_close(weights[1:, :, :5], alone, atol=1e-5, rtol=1e-4)


def test_order_of_points_and_joints_does_not_matter():
    model = network(PuppeteerSkinning, TINY_SKINNING)
    joints, parents, valid = small_skeleton()
    points = cloud()
    generator = torch.Generator().manual_seed(9)
    order, rows = torch.randperm(6, generator=generator), torch.randperm(40, generator=generator)
    rank = order.argsort()
    shuffled = torch.where(parents[:, order] < 0, -1, rank[parents[:, order]])
    with torch.no_grad():
        expected = model(points, joints, parents, valid)[:, rows][:, :, order]
        found = model(points[:, rows], joints[:, order], shuffled, valid[:, order])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_frames_features_serve_several_skeletons():
    """PartField, the slow part, runs once; what is kept gives the same weights as the whole network."""
    model = network(PuppeteerSkinning, TINY_SKINNING)
    joints, parents, valid = small_skeleton()
    skeletons = [(joints, parents, valid), (joints.flip(2), parents, valid)]
    expected = [model(cloud(), *skeleton) for skeleton in skeletons]
    runs = []
    model.point_embed.register_forward_hook(lambda *_: runs.append(1))
    streams = model.encode(cloud())
    for skeleton, weights in zip(skeletons, expected, strict=True):
        torch.testing.assert_close(model.weights(streams, *skeleton), weights)
    assert len(runs) == 1 and (expected[0] - expected[1]).abs().max() > 1e-3


def test_mixed_precision_and_gradients_stay_finite_with_padding():
    model = network(PuppeteerSkinning, TINY_SKINNING)
    joints, parents, valid = small_skeleton()
    with torch.no_grad():
        streams = model.encode(cloud())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = model.weights(streams, joints, parents, valid)
    weights[..., 0].sum().backward()
    assert weights.isfinite().all()
    gradients = {name: parameter.grad for name, parameter in model.blocks.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["0.rel_pos_embedding.weight"].abs().sum() > 0


def test_grids_are_read_and_filled_as_torch_would():
    """Against grid_sample, whose coordinates come in the reverse of the axes, and means by hand."""
    generator = torch.Generator().manual_seed(11)
    volume = torch.randn(1, 2, 3, 4, 5, generator=generator)
    places = torch.rand(1, 20, 3, generator=generator) * 8 - 1.5
    scaled = (places * 2 + 1) / torch.tensor([3, 4, 5]) - 1
    expected = torch.nn.functional.grid_sample(
        volume, scaled.flip(-1)[:, :, None, None], padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(read_grid(volume, places), expected[..., 0, 0], atol=1e-5, rtol=1e-4)
    means = scatter_mean(torch.tensor([[[1.0, 3.0, 5.0]]]), torch.tensor([[2, 2, 0]]), 4)
    assert means.tolist() == [[[5, 0, 2, 0]]]
    # Plane xy holds its column number, yz ten times its row, xz nothing: x and z come back.
    column = torch.arange(5.0).expand(5, 5)
    planes = torch.stack([column, 10 * column.T, torch.zeros(5, 5)])[None, :, None]
    read = sample_planes(planes, torch.tensor([[[0.5, -1, 0], [-1, 1, 1]]]))
    torch.testing.assert_close(read[0, :, 0], torch.tensor([3.0 + 20, 0 + 40]))


# ---- in the pipeline


@pytest.mark.parametrize("kind", ["joints", "bones"])
def test_a_sequence_is_rigged_with_puppeteers_files(kind, tmp_path):
    """As its authors decode, so without confidence; the licence of the skinning file is a warning."""
    for name, model in (
        ("skeleton", network(PuppeteerSkeleton, SKELETONS[kind])),
        ("skinning", network(PuppeteerSkinning, TINY_SKINNING)),
    ):
        torch.save({"model": model.state_dict()}, tmp_path / f"{name}.pth")
    files = {f"checkpoint_{name}": tmp_path / f"{name}.pth" for name in ("skeleton", "skinning")}
    sequence, *_ = chain(3, 4)
    rig = rig_sequence(sequence, RigOptions(skeleton="learned", **files))
    assert NON_COMMERCIAL in rig.warnings and np.isnan(rig.confidence).all()
    if kind == "joints":
        chosen = rig_sequence(sequence, RigOptions(skeleton="learned", joints=4, **files))
        assert len(chosen.skeleton) == 4 and np.isfinite(chosen.confidence).all()
    else:
        with pytest.raises(SprigError):
            rig_sequence(sequence, RigOptions(skeleton="learned", joints=4, **files))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_gives_the_same_numbers():
    points = cloud(200)
    skeleton, skinning = network(PuppeteerSkeleton, TINY_SKELETON), network(PuppeteerSkinning, TINY_SKINNING)
    ids = torch.as_tensor(encode(np.zeros((3, 3)), [-1, 0, 1]))[None]
    joints = torch.rand(1, 6, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    parents, valid = torch.arange(-1, 5)[None], torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        logits = skeleton(skeleton.condition(points), ids)
        weights = skinning(points, joints, parents, valid)
        skeleton, skinning = skeleton.cuda(), skinning.cuda()
        there = skeleton(skeleton.condition(points.cuda()), ids.cuda())
        torch.testing.assert_close(there.cpu(), logits, atol=1e-3, rtol=1e-3)
        there = skinning(points.cuda(), joints.cuda(), parents.cuda(), valid.cuda())
        torch.testing.assert_close(there.cpu(), weights, atol=1e-3, rtol=1e-3)
