"""The sequence: what its constructor refuses, the origin, frame numbers and objects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprig.backend.errors import SprigError
from sprig.backend.sequence import MeshSequence

FACES = np.array([[0, 1, 2], [0, 2, 3]])
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=np.float64)


def square(frames=3, **fields):
    return MeshSequence(np.stack([SQUARE + [0, 0, f] for f in range(frames)]), FACES, **fields)


def test_defaults():
    sequence = square(5)
    assert (sequence.frame_count, sequence.vertex_count, sequence.fps) == (5, 4, 24.0)
    assert sequence.frame_numbers.tolist() == [1, 2, 3, 4, 5] and sequence.frame_index.tolist() == [0, 1, 2, 3, 4]
    assert sequence.object_id.tolist() == [0, 0, 0, 0] and sequence.origin.tolist() == [0, 0, 0]
    assert sequence.vertices.dtype == np.float32 and sequence.faces.dtype == np.int32
    assert sequence.origin.dtype == np.float64 and sequence.vertices.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    "vertices, message",
    [
        (np.zeros((4, 3)), r"shape \(frames, vertices, 3\), shape is \(4, 3\)"),
        (np.zeros((2, 4, 2)), r"shape is \(2, 4, 2\)"),
        (np.zeros((0, 4, 3)), r"shape is \(0, 4, 3\)"),
        (np.zeros((2, 3, 3)), "has 3 vertices; a rig needs at least 4"),
        (np.zeros((2, 0, 3)), "has 0 vertices"),
        (np.array([[["a"] * 3] * 4]), "should be numbers"),
        (np.zeros((2, 4, 3), object), "should be numbers"),
        (np.zeros((2, 4, 3), complex), "should be numbers"),
    ],
)
@pytest.mark.parametrize("build", [MeshSequence, MeshSequence.from_world])
def test_vertices_that_are_none_are_refused(build, vertices, message):
    with pytest.raises(SprigError, match=message):
        build(vertices, FACES)


@pytest.mark.parametrize(
    "faces, message",
    [
        (np.zeros((0, 3), int), "no faces"),
        ([], "no faces"),
        ([[0, 1, 2, 3]], r"shape \(faces, 3\), shape is \(1, 4\)"),
        ([0, 1, 2], r"shape is \(3,\)"),
        (1, r"shape is \(\)"),
        ([[0, 1, 4]], "run from 0 to 4, but the mesh has 4 vertices"),
        ([[-1, 1, 2]], "run from -1 to 2"),
        ([[0, 1, 2**32 + 2]], "to 4294967298"),  # would be 2 if narrowed first
        (np.array([[0, 1, 2**63 + 2]], np.uint64), "to 9223372036854775810"),
        ([[0.0, 1.0, 2.0]], "whole numbers, they hold float64"),
    ],
)
def test_faces_that_do_not_fit_are_refused(faces, message):
    with pytest.raises(SprigError, match=message):
        MeshSequence(SQUARE[None], faces)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fps": 0}, "frame rate is 0.0"),
        ({"fps": float("nan")}, "frame rate is nan"),
        ({"fps": float("inf")}, "frame rate is inf"),
        ({"origin": [0, 0]}, "three finite numbers"),
        ({"origin": [0, 0, float("nan")]}, "three finite numbers"),
        ({"object_id": [0, 0, 0]}, r"object_id should have shape \(4,\)"),
        ({"object_id": [0, 0, 0, 1]}, "outside the list of objects"),
        ({"object_id": [0, 0, 0, -1]}, "outside the list of objects"),
        ({"frame_numbers": [1, 2]}, r"frame_numbers should have shape \(3,\)"),
        ({"frame_numbers": [1, 2, 2]}, "increase"),
        ({"frame_index": [0]}, r"frame_index should have shape \(3,\)"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(SprigError, match=message):
        square(3, **fields)


@pytest.mark.parametrize("build", [MeshSequence, MeshSequence.from_world])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])  # the last is too large for float32
def test_positions_that_are_not_finite_are_counted(build, value):
    vertices = np.tile(SQUARE, (4, 1, 1))
    vertices[1, 2:, 0] = value
    vertices[3, 0] = value
    with pytest.raises(SprigError, match=r"2 vertices of frame 11 have .* not finite \(2 of 4 frames are affected\)"):
        build(vertices, FACES, frame_numbers=[10, 11, 12, 13])


def test_a_first_frame_that_is_not_finite_is_reported_too():
    vertices = np.tile(SQUARE, (2, 1, 1))
    vertices[0] = np.nan
    with pytest.raises(SprigError, match="4 vertices of frame 1 "):
        MeshSequence.from_world(vertices, FACES)


@given(st.tuples(*[st.floats(-1e7, 1e7)] * 3), st.sampled_from([1e-4, 1.0, 1e4]))
def test_the_origin_keeps_the_precision_of_distant_characters(place, scale):
    """World positions in float64 come back to float32 of the character's size, not of its distance from the origin."""
    world = np.stack([scale * SQUARE + place, scale * (SQUARE + [0, 0, 1]) + place])
    sequence = MeshSequence.from_world(world, FACES)
    spacing = np.spacing(np.float32(scale)) + 4 * np.spacing(np.abs(world).max())
    for frame in range(2):
        assert np.abs(sequence.world_vertices(frame) - world[frame]).max() <= spacing
    assert np.abs(sequence.vertices).max() <= 1.01 * scale + spacing


def test_integer_positions_are_positions():
    assert MeshSequence.from_world(SQUARE[None].astype(np.int64), FACES).world_vertices(0).tolist() == SQUARE.tolist()


@pytest.mark.parametrize(
    "choice, kept",
    [
        ((11, 14), [11, 12, 13, 14]),
        ((11, 14, 2), [11, 13]),
        ((0, 99, 5), [10, 15]),  # steps are counted from the start asked for
        ((1, 99, 5), [11, 16]),
        ((16, 16), [16]),
        ((-(10**30), 10**30), list(range(10, 17))),
        ((10, 16, 10**30), [10]),
    ],
)
def test_a_frame_range_is_by_number_and_keeps_both_ends(choice, kept):
    sequence = square(7, frame_numbers=np.arange(10, 17)).with_frames(*choice)
    assert sequence.frame_numbers.tolist() == kept
    assert sequence.frame_index.tolist() == [number - 10 for number in kept]
    assert sequence.vertices[:, 0, 2].tolist() == [number - 10 for number in kept]


def test_a_range_of_a_range_remembers_where_the_frames_came_from():
    sequence = square(9).with_frames(2, 8, 2).with_frames(4, 8)
    assert sequence.frame_numbers.tolist() == [4, 6, 8] and sequence.frame_index.tolist() == [3, 5, 7]


def test_frame_numbers_far_apart_cost_nothing():
    sequence = square(2, frame_numbers=[1, 2_000_000_000])
    assert sequence.with_frames(1, 2_000_000_000).frame_count == 2


@pytest.mark.parametrize(
    "choice, message",
    [
        ((5, 4), "5:4 is reversed"),
        ((20, 30), "No frame lies in 20:30; the input has frames 10 to 16"),
        ((1, 9), "No frame lies in 1:9"),
        ((9, 17, 9), "No frame lies in 9:17"),
        ((10, 16, 0), "step is 0"),
        ((10, 16, -1), "step is -1"),
    ],
)
def test_frame_ranges_without_a_frame_are_refused(choice, message):
    with pytest.raises(SprigError, match=message):
        square(7, frame_numbers=np.arange(10, 17)).with_frames(*choice)


def test_position_of_a_frame_number():
    sequence = square(3, frame_numbers=[10, 20, 30])
    assert [sequence.position_of(number) for number in (10, 20, 30)] == [0, 1, 2]
    for number in (0, 15, 31, 10**30):
        with pytest.raises(SprigError, match=f"Frame {number} is not in the sequence; choose one from 10 to 30"):
            sequence.position_of(number)


def two_objects():
    vertices = np.concatenate([SQUARE, SQUARE + 5, SQUARE + 9])
    return MeshSequence(
        np.stack([vertices, vertices + 1]),
        np.concatenate([FACES, FACES + 4, FACES + 8]),
        object_id=np.repeat([2, 0, 1], 4),
        object_names=("b", "c", "a"),
    )


def test_objects_are_kept_by_name_in_the_sequences_own_order():
    sequence = two_objects().with_objects(["a", "b"])
    assert sequence.object_names == ("b", "a")
    assert sequence.object_id.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert sequence.vertices[0].tolist() == np.concatenate([SQUARE, SQUARE + 5]).tolist()
    assert sequence.faces.tolist() == np.concatenate([FACES, FACES + 4]).tolist()
    last = two_objects().with_objects(["c"])
    assert last.vertices[1].tolist() == (SQUARE + 10).tolist() and last.faces.tolist() == FACES.tolist()
    assert last.object_id.tolist() == [0] * 4


def test_a_missing_object_is_named_with_those_that_are_there():
    with pytest.raises(SprigError, match="no object 'hat'; the input has b, c, a"):
        two_objects().with_objects(["a", "hat"])
