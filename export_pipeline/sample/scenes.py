"""Scenes of drawn shapes on photographs, with exact boxes: the sample detector's training data.

    scene = draw_scene(seed=7)
    scene.picture_rgb          # uint8 [height, width, 3]
    scene.objects[0].xyxy      # (x_min, y_min, x_max, y_max), pixels

A scene follows from its seed and `SceneStyle` alone. The photographs are those that scikit-image ships under
CC0 or in the public domain, so that everything drawn from them can be published; `PHOTOGRAPHS` names them.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data

PictureU8 = npt.NDArray[np.uint8]
"""RGB picture, uint8 [height, width, 3]."""

PointsXY = npt.NDArray[np.float64]
"""Outline of a polygon, float64 [points, 2], x before y, pixels."""

OwnerMap = npt.NDArray[np.int16]
"""int16 [height, width]: the index of the object drawn last on each pixel, -1 where the photograph shows."""

CLASS_NAMES: Final = ("circle", "square", "triangle", "star")

PHOTOGRAPHS: Final = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "rocket",
)
"""Functions of `skimage.data`: CC0, or public domain (NASA, SpaceX)."""

HUE_DEGREES: Final = (0.0, 220.0, 130.0, 52.0)
"""The usual hue of each class: red circles, blue squares, green triangles, yellow stars."""

HUE_JITTER_DEGREES: Final = 18.0
STAR_INNER_RADIUS: Final = 0.45
SUBPIXEL_BITS: Final = 4
"""Outlines are drawn on a grid of 1/16 pixel: OpenCV takes fixed-point coordinates."""

MIN_VISIBLE_FRACTION: Final = 0.45
"""An object showing less than this is drawn but not labelled: nobody could ask a detector to find it."""


@dataclass(frozen=True)
class SceneStyle:
    """What may vary between scenes. Diameters are fractions of the longer side; all ranges are inclusive."""

    side_range_px: tuple[int, int] = (320, 640)
    count_range: tuple[int, int] = (1, 16)
    diameter_range: tuple[float, float] = (0.045, 0.40)
    empty_probability: float = 0.04
    crowd_probability: float = 0.06
    crowd_count_range: tuple[int, int] = (40, 75)
    grey_probability: float = 0.10
    any_hue_probability: float = 0.15
    max_overlap: float = 0.25
    """Largest share of a new object's bounding square that an earlier one may already take."""

    def __post_init__(self) -> None:
        for low, high in (self.side_range_px, self.count_range, self.diameter_range, self.crowd_count_range):
            if not 0 <= low <= high:
                raise ValueError(f"{low}..{high} is not a range of sizes or counts")


@dataclass(frozen=True)
class SceneObject:
    """A labelled shape: the tight box of its visible pixels, outline included, inside the picture."""

    class_id: int
    xyxy: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    picture_rgb: PictureU8
    objects: tuple[SceneObject, ...]

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.picture_rgb.shape[1], self.picture_rgb.shape[0]


@dataclass(frozen=True)
class Shape:
    """One shape to draw: where, how large, how turned, in which colours (RGB 0-255)."""

    class_id: int
    centre_xy: tuple[float, float]
    diameter_px: float
    turn_radians: float = 0.0
    fill_rgb: tuple[int, int, int] = (220, 30, 30)
    outline_rgb: tuple[int, int, int] = (255, 255, 255)

    @property
    def outline_px(self) -> int:
        return max(2, round(self.diameter_px * 0.09))


def draw_scene(seed: int, style: SceneStyle | None = None, size_wh: tuple[int, int] | None = None) -> Scene:
    """Draw the scene that belongs to `seed`, at a size of its own choosing unless `size_wh` fixes it."""
    style = style or SceneStyle()
    rng = np.random.default_rng(seed)
    size_wh = size_wh or _choose_size_wh(rng, style)
    background_rgb = draw_background(rng, size_wh)
    scene = draw_shapes(background_rgb, _place_shapes(rng, style, background_rgb))
    picture_rgb = _camera_effects(rng, scene.picture_rgb, grey=rng.random() < style.grey_probability)
    return replace(scene, picture_rgb=picture_rgb)


def draw_shapes(background_rgb: PictureU8, shapes: list[Shape]) -> Scene:
    """Draw `shapes` over a copy of the background, later ones on top, and label what stays visible."""
    picture_rgb = background_rgb.copy()
    owners: OwnerMap = np.full(picture_rgb.shape[:2], -1, np.int16)
    for index, shape in enumerate(shapes):
        _draw_shape(picture_rgb, owners, shape, index)
    labelled = (_label(owners, shape, index) for index, shape in enumerate(shapes))
    return Scene(picture_rgb, tuple(label for label in labelled if label is not None))


def draw_background(rng: np.random.Generator, size_wh: tuple[int, int]) -> PictureU8:
    """A random cut of a random photograph, flipped, tinted and brightened at random, at `size_wh`."""
    whole = photograph(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))])
    cut = _random_cut(rng, whole, aspect=size_wh[0] / size_wh[1])
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    if rng.random() < 0.25:
        cut = cut[::-1]
    resized = cv2.resize(np.ascontiguousarray(cut), size_wh, interpolation=cv2.INTER_LINEAR)
    gain_rgb = rng.uniform(0.55, 1.2) * rng.uniform(0.88, 1.12, size=3)
    return _to_u8(resized * gain_rgb + rng.uniform(-15, 25))


def outline_points(shape: Shape) -> PointsXY:
    """Corners of the shape's polygon; a circle has 64."""
    corners = (64, 4, 3, 10)[shape.class_id]
    angles = shape.turn_radians + np.arange(corners) * (2 * np.pi / corners)
    radii = np.full(corners, shape.diameter_px / 2)
    if CLASS_NAMES[shape.class_id] == "star":
        radii[1::2] *= STAR_INNER_RADIUS
    points: PointsXY = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    points += np.array(shape.centre_xy)
    return points


@cache
def photograph(name: str) -> PictureU8:
    pixels: PictureU8 = getattr(skimage.data, name)()
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def _random_cut(rng: np.random.Generator, whole: PictureU8, aspect: float) -> PictureU8:
    """The largest window of this aspect (width over height), shrunk to 45-100 %, at a random place."""
    height, width = whole.shape[:2]
    scale = rng.uniform(0.45, 1.0)
    cut_w = int(min(width, height * aspect) * scale)
    cut_h = int(min(height, width / aspect) * scale)
    x, y = rng.integers(width - cut_w + 1), rng.integers(height - cut_h + 1)
    return whole[y : y + cut_h, x : x + cut_w]


def _choose_size_wh(rng: np.random.Generator, style: SceneStyle) -> tuple[int, int]:
    longer = int(rng.integers(style.side_range_px[0], style.side_range_px[1] + 1))
    shorter = int(longer * rng.uniform(0.6, 1.0))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def _choose_count(rng: np.random.Generator, style: SceneStyle) -> int:
    kind = rng.random()
    if kind < style.empty_probability:
        return 0
    crowded = kind < style.empty_probability + style.crowd_probability
    low, high = style.crowd_count_range if crowded else style.count_range
    return int(rng.integers(low, high + 1))


def _place_shapes(rng: np.random.Generator, style: SceneStyle, background_rgb: PictureU8) -> list[Shape]:
    """Shapes at random places; one that finds no room after a few tries is left out."""
    count = _choose_count(rng, style)
    # A crowd has to be of small shapes, or there is no room for it.
    largest = max(style.diameter_range[0] * 1.2, min(style.diameter_range[1], 0.85 / max(count, 1) ** 0.5))
    shapes: list[Shape] = []
    for _ in range(count):
        for _attempt in range(12):
            shape = _random_shape(rng, style, background_rgb, largest)
            if all(_overlap(shape, other) <= style.max_overlap for other in shapes):
                shapes.append(shape)
                break
    return shapes


def _random_shape(
    rng: np.random.Generator, style: SceneStyle, background_rgb: PictureU8, largest: float
) -> Shape:
    height, width = background_rgb.shape[:2]
    class_id = int(rng.integers(len(CLASS_NAMES)))
    # Log-uniform: as many shapes between 16 and 32 px as between 64 and 128.
    diameter = float(np.exp(rng.uniform(np.log(style.diameter_range[0]), np.log(largest))))
    centre_xy = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
    return Shape(
        class_id=class_id,
        centre_xy=centre_xy,
        diameter_px=diameter * max(width, height),
        turn_radians=float(rng.uniform(0, 2 * np.pi)),
        fill_rgb=_random_fill_rgb(rng, class_id, style.any_hue_probability),
        outline_rgb=_contrasting_rgb(background_rgb, centre_xy),
    )


def _contrasting_rgb(background_rgb: PictureU8, centre_xy: tuple[float, float]) -> tuple[int, int, int]:
    """White on a dark photograph, nearly black on a bright one, judged around the centre."""
    x, y = int(centre_xy[0]), int(centre_xy[1])
    around = background_rgb[max(0, y - 12) : y + 12, max(0, x - 12) : x + 12]
    return (255, 255, 255) if around.mean() < 128 else (15, 15, 15)


def _random_fill_rgb(
    rng: np.random.Generator, class_id: int, any_hue_probability: float
) -> tuple[int, int, int]:
    """The class's hue with jitter; sometimes any hue, so that colour alone does not settle the class."""
    hue = HUE_DEGREES[class_id] + rng.uniform(-HUE_JITTER_DEGREES, HUE_JITTER_DEGREES)
    if rng.random() < any_hue_probability:
        hue = rng.uniform(0, 360)
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, rng.uniform(0.65, 1.0), rng.uniform(0.6, 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def _overlap(shape: Shape, other: Shape) -> float:
    """Intersection of the two bounding squares over the area of the smaller one."""
    reach = (shape.diameter_px + other.diameter_px) / 2
    sides = [
        min(reach - abs(a - b), shape.diameter_px, other.diameter_px)
        for a, b in zip(shape.centre_xy, other.centre_xy, strict=True)
    ]
    return max(0.0, sides[0]) * max(0.0, sides[1]) / min(shape.diameter_px, other.diameter_px) ** 2


def _draw_shape(picture_rgb: PictureU8, owners: OwnerMap, shape: Shape, index: int) -> None:
    """Paint the shape into both arrays, in place."""
    points = _fixed_point(outline_points(shape))
    cv2.fillPoly(picture_rgb, [points], shape.fill_rgb, cv2.LINE_AA, SUBPIXEL_BITS)
    cv2.polylines(
        picture_rgb, [points], True, shape.outline_rgb, shape.outline_px, cv2.LINE_AA, SUBPIXEL_BITS
    )
    _draw_silhouette(owners, shape, index)


def _draw_silhouette(canvas: OwnerMap, shape: Shape, value: int) -> None:
    points = _fixed_point(outline_points(shape))
    cv2.fillPoly(canvas, [points], (value,), cv2.LINE_8, SUBPIXEL_BITS)
    cv2.polylines(canvas, [points], True, (value,), shape.outline_px, cv2.LINE_8, SUBPIXEL_BITS)


def _fixed_point(points_xy: PointsXY) -> npt.NDArray[np.int32]:
    points: npt.NDArray[np.int32] = np.round(points_xy * 2**SUBPIXEL_BITS).astype(np.int32)
    return points


def _label(owners: OwnerMap, shape: Shape, index: int) -> SceneObject | None:
    rows, columns = np.nonzero(owners == index)
    if rows.size < MIN_VISIBLE_FRACTION * _whole_area_px(shape):
        return None
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return SceneObject(shape.class_id, box)


def _whole_area_px(shape: Shape) -> int:
    """Pixels the shape would cover with nothing over it and no picture edge near."""
    side = int(shape.diameter_px) + 2 * shape.outline_px + 4
    canvas: OwnerMap = np.zeros((side, side), np.int16)
    _draw_silhouette(canvas, replace(shape, centre_xy=(side / 2, side / 2)), 1)
    return int(np.count_nonzero(canvas))


def _camera_effects(rng: np.random.Generator, picture_rgb: PictureU8, grey: bool) -> PictureU8:
    """Sensor noise, sometimes a slight blur, and no colour at all if `grey`."""
    if grey:
        picture_rgb = np.repeat(_to_u8(cv2.cvtColor(picture_rgb, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    if rng.random() < 0.25:
        picture_rgb = _to_u8(cv2.GaussianBlur(picture_rgb, (3, 3), 0))
    noise = rng.normal(0, rng.uniform(0, 6), size=picture_rgb.shape[:2])
    return _to_u8(picture_rgb + noise[..., None])


def _to_u8(pixels: npt.NDArray[Any]) -> PictureU8:
    rounded: PictureU8 = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return rounded
