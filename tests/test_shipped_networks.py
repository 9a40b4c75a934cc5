"""The networks in weights/: they load, say where they come from, fit their limits, and rig the example sensibly."""

from pathlib import Path

import numpy as np
import pytest

from sprig.backend.anchor import anchor_frame
from sprig.backend.checkpoint import fingerprint, kinds_in, read_provenance
from sprig.backend.formats.alembic import read
from sprig.backend.learned import KINDS, load_networks, rig_shape, shipped_file
from sprig.backend.surface import prepare

CARD = Path(__file__).resolve().parents[1] / "weights" / "MODEL_CARD.md"
MOST_BYTES = 16_000_000
RELEASE_LINE = 0.08  # CD-J2J in the unit cube: worse networks are not released
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "elephant_walk.abc"


@pytest.fixture(scope="module")
def networks():
    return load_networks()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_small_and_says_where_it_comes_from(kind):
    file = shipped_file(kind)
    assert file.stat().st_size <= MOST_BYTES and kinds_in(file) == (kind,)
    provenance = read_provenance(file)
    assert f"pretrain_{kind}" in provenance["command"] and provenance["commit"] and provenance["characters drawn"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_and_the_scores_are_about_these_files(kind):
    scores = (CARD.parents[1] / "training" / "evaluation" / "static.md").read_text(encoding="utf-8")
    assert fingerprint(shipped_file(kind)) in scores
    assert shipped_file(kind).name in CARD.read_text(encoding="utf-8")


def test_the_elephant_gets_a_sensible_rig(networks):
    prepared = prepare(read(EXAMPLE))
    rest = prepared.trajectories[anchor_frame(prepared.areas)].astype(np.float64)
    rig = rig_shape(rest, prepared.faces, networks)
    assert 15 <= len(rig.parents) <= 60
    low, high = rest.min(axis=0), rest.max(axis=0)
    inside = ((rig.joints > low - 0.05 * (high - low)) & (rig.joints < high + 0.05 * (high - low))).all(axis=1)
    assert inside.all()
    assert np.median(rig.confidence) > 0.5
    # a leg in every corner: weights of joints near the ground lie in four quarters
    feet = rig.joints[rig.joints[:, 2] < low[2] + 0.25 * (high[2] - low[2])][:, :2]
    quarters = {tuple(quarter) for quarter in feet > (low + high)[:2] / 2}
    assert len(quarters) == 4
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-5)
    assert ((rig.weights > 0).sum(axis=1) <= 4).all()


@pytest.mark.slow
def test_validation_characters_are_below_the_line(networks, shared):
    from sprig.training.evaluate import attempt, network_skeleton, posed_shapes
    from sprig.training.rigbank import read_rigbank, split

    found = [
        attempt(lambda shape=shape: network_skeleton(shape, networks, seed=0))
        for character in split(read_rigbank(shared / "data" / "rigbank"))[1]
        for shape in posed_shapes(character, 1, seed=0)
    ]
    assert all("error" not in one for one in found)
    assert np.median([one["cd_j2j"] for one in found]) <= RELEASE_LINE
