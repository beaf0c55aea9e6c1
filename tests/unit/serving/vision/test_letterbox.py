from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export_pipeline import reference
from serving.domain.geometry import LetterboxGeometry, Size
from serving.vision.letterbox import ColorSpace, letterbox_batch, letterbox_into, undo_letterbox

FILL = 114
SIDES = st.integers(1, 700)
SIZES = st.builds(Size, SIDES, SIDES)
INPUT_SIZES = st.builds(Size, st.integers(32, 128), st.integers(32, 128))


def noise(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


def letterbox_one(
    picture: NDArray[np.uint8], input_size: Size, color_space: ColorSpace = "RGB"
) -> NDArray[np.uint8]:
    batch = np.empty((1, input_size.height, input_size.width, 3), np.uint8)
    letterbox_batch([picture], out=batch, fill_value=FILL, color_space=color_space)
    (boxed,) = batch
    return np.asarray(boxed)


@given(picture_size=SIZES, input_size=INPUT_SIZES, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pixels_equal_the_oracles(picture_size: Size, input_size: Size, seed: int) -> None:
    picture = noise(picture_size, seed)

    expected = reference.letterbox(picture, input_size.width, input_size.height, FILL)

    np.testing.assert_array_equal(letterbox_one(picture, input_size), expected)


@given(
    picture=st.builds(Size, st.integers(1, 20_000), st.integers(1, 20_000)),
    input_size=st.builds(Size, st.integers(1, 2_000), st.integers(1, 2_000)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(deadline=None)
def test_a_point_comes_back_to_within_half_a_pixel(
    picture: Size, input_size: Size, place: tuple[float, float]
) -> None:
    """The way there is worked out from the picture's share of the inner rectangle, not from the scales."""
    geometry = LetterboxGeometry.fit(picture, input_size)
    x, y = place[0] * picture.width, place[1] * picture.height
    x_input = geometry.pad_left + place[0] * geometry.inner.width
    y_input = geometry.pad_top + place[1] * geometry.inner.height

    (back,) = undo_letterbox(np.array([[x_input, y_input, x_input, y_input]], np.float32), geometry)

    np.testing.assert_allclose(back, [x, y, x, y], rtol=0, atol=0.5)


@given(picture_size=SIZES, input_size=INPUT_SIZES)
@settings(deadline=None)
def test_what_the_pixels_show_of_a_picture_comes_back_as_the_whole_picture(
    picture_size: Size, input_size: Size
) -> None:
    white = np.full((picture_size.height, picture_size.width, 3), 255, np.uint8)
    boxed = letterbox_one(white, input_size)
    rows, columns = (boxed[..., 0] == 255).nonzero()
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)

    (back,) = undo_letterbox(seen, LetterboxGeometry.fit(picture_size, input_size))

    np.testing.assert_allclose(back, [0, 0, picture_size.width, picture_size.height], rtol=0, atol=0.5)


@given(picture=SIZES, input_size=INPUT_SIZES, box=st.tuples(*[st.floats(-500, 500, width=32)] * 4))
@settings(deadline=None)
def test_boxes_come_back_as_the_oracle_says_clipped_to_the_picture(
    picture: Size, input_size: Size, box: reference.Box
) -> None:
    expected = reference.unletterbox_box(
        box, picture.width, picture.height, input_size.width, input_size.height
    )

    (back,) = undo_letterbox(np.array([box], np.float32), LetterboxGeometry.fit(picture, input_size))

    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-3)


def test_no_boxes_come_back_as_no_boxes() -> None:
    geometry = LetterboxGeometry.fit(Size(640, 480), Size(320, 320))

    back = undo_letterbox(np.empty((0, 4), np.float32), geometry)

    assert back.shape == (0, 4)
    assert back.dtype == np.float32


def test_undoing_leaves_the_callers_boxes_alone() -> None:
    boxes = np.array([[10, 50, 20, 70]], np.float32)

    undo_letterbox(boxes, LetterboxGeometry.fit(Size(640, 480), Size(320, 320)))

    assert boxes.tolist() == [[10, 50, 20, 70]]


def test_an_empty_batch_is_an_empty_batch() -> None:
    nothing = np.empty((0, 32, 64, 3), np.uint8)

    assert letterbox_batch([], out=nothing, fill_value=FILL, color_space="RGB") == []


def test_each_picture_of_a_batch_has_its_own_slot_and_geometry() -> None:
    sizes = [Size(64, 48), Size(10, 200), Size(32, 32)]
    pictures = [noise(size, seed) for seed, size in enumerate(sizes)]
    batch = np.empty((3, 32, 32, 3), np.uint8)

    geometries = letterbox_batch(pictures, out=batch, fill_value=FILL, color_space="RGB")

    assert [geometry.picture for geometry in geometries] == sizes
    for slot, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(slot, letterbox_one(picture, Size(32, 32)))


@pytest.mark.parametrize("size", [Size(32, 32), Size(100, 40)])
def test_bgr_is_rgb_with_its_channels_turned_round(size: Size) -> None:
    picture = noise(size)

    bgr = letterbox_one(picture, Size(32, 32), "BGR")

    np.testing.assert_array_equal(bgr[..., ::-1], letterbox_one(picture, Size(32, 32), "RGB"))


@pytest.mark.parametrize("size", [Size(1, 1), Size(32, 32), Size(1000, 1), Size(1, 1000), Size(77, 99)])
def test_a_slot_is_overwritten_whole_and_its_neighbours_are_not(size: Size) -> None:
    slots = np.full((3, 32, 32, 3), 7, np.uint8)

    letterbox_into(noise(size), slots[1], fill_value=FILL, color_space="RGB")

    np.testing.assert_array_equal(slots[1], letterbox_one(noise(size), Size(32, 32)))
    assert (slots[[0, 2]] == 7).all()


@pytest.mark.parametrize("color_space", ["RGB", "BGR"])
def test_the_picture_itself_is_left_alone(color_space: ColorSpace) -> None:
    picture = noise(Size(32, 32))

    letterbox_one(picture, Size(32, 32), color_space)

    np.testing.assert_array_equal(picture, noise(Size(32, 32)))
