"""The anchor frame: greatest surface area, with the tie rule."""

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from sprig.backend.anchor import TIE, anchor_frame
from sprig.backend.surface import surface_areas


@pytest.mark.parametrize(
    "areas, expected",
    [
        ([1, 3, 2], 1),
        ([5], 0),
        ([3, 1, 2], 0),
        ([1, 2, 3], 2),
        ([1, 1, 1, 1, 1], 2),  # a rigid motion ties everywhere
        ([1, 1, 1, 1], 1),  # the earlier of the two middles
        ([1, 2, 2, 2, 1], 2),
        ([1, 2, 2, 2.0001, 1], 2),  # the largest itself is at the end of its run
        ([2.0001, 1, 2, 2, 2], 0),  # the longer run is elsewhere: not the largest one's
        ([2, 1.997, 2.0001, 1.9985, 1.9], 2),  # 1.9985 ties with 2.0001, 1.997 does not
    ],
)
def test_by_hand(areas, expected):
    assert anchor_frame(areas) == expected


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(1e-6, 1e6))
def test_the_anchor_has_nearly_the_largest_area_whatever_the_unit(areas, unit):
    areas = np.array(areas)
    anchor = anchor_frame(areas)
    assert areas[anchor] >= (1 - TIE) * areas.max()
    # a power of two scales every area exactly, so that no tie is decided by rounding
    assert anchor_frame(areas * 2.0 ** np.round(np.log2(unit))) == anchor


def test_a_breathing_sphere_is_anchored_where_it_is_widest():
    sphere = trimesh.creation.icosphere(subdivisions=2)
    radius = 1 + 0.3 * np.sin(np.linspace(0, np.pi, 31))
    assert anchor_frame(surface_areas(radius[:, None, None] * sphere.vertices, sphere.faces)) == 15
