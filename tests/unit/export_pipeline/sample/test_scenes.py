"""Scenes are reproducible, and their boxes are where the shapes are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export_pipeline.sample.scenes import (
    CLASS_NAMES,
    PHOTOGRAPHS,
    PictureU8,
    Scene,
    SceneStyle,
    Shape,
    draw_scene,
    draw_shapes,
    outline_points,
    photograph,
)

MANY = range(40)


def black(width: int, height: int) -> PictureU8:
    return np.zeros((height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in MANY]


def test_a_seed_always_draws_the_same_scene(scenes: list[Scene]) -> None:
    again = draw_scene(3)

    assert again.objects == scenes[3].objects
    np.testing.assert_array_equal(again.picture_rgb, scenes[3].picture_rgb)


def test_another_seed_draws_another_scene(scenes: list[Scene]) -> None:
    pictures = {scene.picture_rgb.tobytes() for scene in scenes}

    assert len(pictures) == len(scenes)


def test_boxes_are_inside_the_picture_and_not_empty(scenes: list[Scene]) -> None:
    for scene in scenes:
        width, height = scene.size_wh
        for item in scene.objects:
            x_min, y_min, x_max, y_max = item.xyxy
            assert 0 <= x_min < x_max <= width
            assert 0 <= y_min < y_max <= height


def test_every_class_is_drawn(scenes: list[Scene]) -> None:
    drawn = {item.class_id for scene in scenes for item in scene.objects}

    assert drawn == set(range(len(CLASS_NAMES)))


def test_some_scenes_are_empty_and_some_are_crowds() -> None:
    style = SceneStyle(empty_probability=0.5, crowd_probability=0.5)
    counts = [len(draw_scene(seed, style).objects) for seed in range(12)]

    assert min(counts) == 0
    assert max(counts) >= 30


def test_the_size_can_be_fixed() -> None:
    assert draw_scene(0, size_wh=(333, 517)).picture_rgb.shape == (517, 333, 3)


def test_sizes_stay_in_the_styles_range(scenes: list[Scene]) -> None:
    low, high = SceneStyle().side_range_px

    assert all(low <= max(scene.size_wh) <= high for scene in scenes)


def test_a_grey_scene_has_no_colour() -> None:
    picture_rgb = draw_scene(1, SceneStyle(grey_probability=1)).picture_rgb

    assert (np.ptp(picture_rgb.astype(int), axis=2) == 0).all()


@pytest.mark.parametrize("class_id", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_a_box_is_tight_around_the_pixels_drawn(class_id: int) -> None:
    shape = Shape(class_id, (70.0, 55.0), 48.0, turn_radians=0.4)

    scene = draw_shapes(black(160, 120), [shape])

    # Antialiasing fades outwards: what is half as bright as the outline counts as drawn.
    rows, columns = np.nonzero(scene.picture_rgb.max(axis=2) > 127)
    drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.subtract(scene.objects[0].xyxy, drawn)).max() <= 1


@pytest.mark.parametrize("class_id", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_corners_lie_within_the_diameter(class_id: int) -> None:
    shape = Shape(class_id, (70.0, 55.0), 48.0, turn_radians=0.4)

    distances_px = np.hypot(*(outline_points(shape) - shape.centre_xy).T)

    assert distances_px.max() == pytest.approx(24.0)


def test_a_shape_cut_by_the_edge_is_boxed_by_what_is_left() -> None:
    square_cut_in_half = Shape(1, (10.0, 60.0), 60.0)

    (item,) = draw_shapes(black(160, 120), [square_cut_in_half]).objects

    assert item.xyxy[0] == 0
    assert item.xyxy[2] < 50


def test_a_covered_shape_is_boxed_by_what_shows() -> None:
    below = Shape(0, (60.0, 60.0), 60.0)
    above = Shape(1, (85.0, 60.0), 40.0, turn_radians=np.pi / 4)

    whole = draw_shapes(black(160, 120), [below]).objects[0]
    covered = draw_shapes(black(160, 120), [below, above]).objects[0]

    assert covered.xyxy[0] == whole.xyxy[0]
    assert covered.xyxy[2] <= whole.xyxy[2]


def test_a_hidden_shape_is_not_labelled() -> None:
    below = Shape(2, (60.0, 60.0), 30.0)
    above = replace(below, class_id=0, diameter_px=60.0)

    scene = draw_shapes(black(160, 120), [below, above])

    assert [item.class_id for item in scene.objects] == [0]


def test_drawing_leaves_the_background_as_it_was() -> None:
    background_rgb = black(64, 64)

    draw_shapes(background_rgb, [Shape(0, (32.0, 32.0), 30.0)])

    assert not background_rgb.any()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_a_colour_picture(name: str) -> None:
    picture_rgb = photograph(name)

    assert picture_rgb.dtype == np.uint8
    assert picture_rgb.shape[2:] == (3,)


def test_a_style_refuses_a_range_that_runs_backwards() -> None:
    with pytest.raises(ValueError, match=r"9\.\.2 is not a range"):
        SceneStyle(count_range=(9, 2))
