from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export_pipeline import reference
from serving.domain.geometry import Size
from serving.vision.center_crop import LONG_SIDES, center_crop_batch, center_crop_into
from serving.vision.letterbox import ColorSpace

SIDES = st.sampled_from([1, 2, 7, 32, 64])
ORDINARY = st.builds(Size, st.integers(1, 700), st.integers(1, 700))
LONG = st.tuples(st.integers(1, 12), st.integers(13, 2_000), st.booleans())


def noise(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


def cropped(picture: NDArray[np.uint8], side: int, color_space: ColorSpace = "RGB") -> NDArray[np.uint8]:
    batch = np.full((1, side, side, 3), 7, np.uint8)
    center_crop_batch([picture], out=batch, color_space=color_space)
    return np.asarray(batch[0])


@given(size=ORDINARY, side=SIDES, seed=st.integers(0, 9))
@example(size=Size(1, 1), side=64, seed=0)
@example(size=Size(64, 64), side=64, seed=0)  # as it is
@example(size=Size(64, 100), side=64, seed=0)  # cut, but not resized
@example(size=Size(65, 64), side=64, seed=0)  # half a pixel of offset
@example(size=Size(67, 64), side=64, seed=0)  # and one and a half
@example(size=Size(300, 600), side=64, seed=0)  # columns first, and from
@example(size=Size(300, 601), side=64, seed=0)  # here on rows first, in Pillow
@example(size=Size(600, 250), side=64, seed=0)  # more rows than are taken at a time
@example(size=Size(250, 600), side=64, seed=0)
@settings(max_examples=60, deadline=None)
def test_pixels_equal_the_oracles(size: Size, side: int, seed: int) -> None:
    picture = noise(size, seed)

    np.testing.assert_array_equal(cropped(picture, side), reference.center_crop(picture, side))


@given(sides=LONG, side=SIDES, seed=st.integers(0, 9))
@example(sides=(10, 10 * LONG_SIDES, True), side=32, seed=0)  # just long
@example(sides=(10, 10 * LONG_SIDES - 1, True), side=32, seed=0)  # just not
@settings(max_examples=60, deadline=None)
def test_so_do_those_of_pictures_that_are_many_times_as_long_as_wide(
    sides: tuple[int, int, bool], side: int, seed: int
) -> None:
    short, long, wide = sides
    picture = noise(Size(long, short) if wide else Size(short, long), seed)

    np.testing.assert_array_equal(cropped(picture, side), reference.center_crop(picture, side))


@pytest.mark.parametrize("size", [Size(2_000_000, 1), Size(1, 2_000_000)])
def test_the_most_extreme_of_them_cost_next_to_nothing(size: Size) -> None:
    """Resized whole, this one would have 224 times 448 million pixels."""
    picture = np.full((size.height, size.width, 3), 77, np.uint8)

    tracemalloc.start()
    try:
        result = cropped(picture, 224)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (result == 77).all()
    assert peak_bytes < 4_000_000


def test_the_middle_is_what_is_kept() -> None:
    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, 100:200] = 255

    assert (cropped(stripes, 100) == 255).all()
    assert (cropped(stripes.transpose(1, 0, 2), 100) == 255).all()


def test_an_empty_batch_is_an_empty_batch() -> None:
    center_crop_batch([], out=np.empty((0, 32, 32, 3), np.uint8), color_space="RGB")


def test_each_picture_of_a_batch_has_its_own_slot() -> None:
    pictures = [noise(size, seed) for seed, size in enumerate([Size(64, 48), Size(10, 200), Size(32, 32)])]
    batch = np.empty((3, 32, 32, 3), np.uint8)

    center_crop_batch(pictures, out=batch, color_space="RGB")

    for slot, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(slot, cropped(picture, 32))


@pytest.mark.parametrize("size", [Size(32, 32), Size(100, 40), Size(1_000, 3)])
def test_bgr_is_rgb_with_its_channels_turned_round(size: Size) -> None:
    picture = noise(size)

    np.testing.assert_array_equal(cropped(picture, 32, "BGR")[..., ::-1], cropped(picture, 32))


@pytest.mark.parametrize("size", [Size(1, 1), Size(32, 32), Size(1_000, 1), Size(1, 1_000), Size(77, 99)])
def test_a_slots_neighbours_and_the_picture_are_left_alone(size: Size) -> None:
    slots = np.full((3, 32, 32, 3), 7, np.uint8)
    picture = noise(size)

    center_crop_into(picture, slots[1], color_space="BGR")

    assert (slots[[0, 2]] == 7).all()
    np.testing.assert_array_equal(picture, noise(size))


def test_a_view_of_a_larger_picture_is_as_good_as_the_picture() -> None:
    """A decoded picture that was turned upright may be one."""
    picture = noise(Size(90, 70))

    np.testing.assert_array_equal(
        cropped(picture[::-1, ::-1], 32), cropped(np.ascontiguousarray(picture[::-1, ::-1]), 32)
    )
