"""Sizes, and the ways from a picture to the model's input and back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels, both at least 1."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a size needs both sides to be at least 1, not {self.width} x {self.height}")

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class LetterboxGeometry:
    """How one picture was placed in the model's input: `x_input = x_picture * scale_x + pad_left`.

    `inner` is the resized picture without its border. Its sides are whole pixels, so the two scales differ
    slightly, and grossly for a picture so thin that a side was rounded up to one pixel.
    """

    picture: Size
    input: Size
    inner: Size
    pad_left: int
    pad_top: int

    @classmethod
    def fit(cls, picture: Size, input: Size) -> LetterboxGeometry:
        """Centre `picture` in `input`, scaled by one factor to touch two sides.

        Rounding follows Ultralytics' `LetterBox(auto=False, center=True, scaleup=True)`: `round()` of the
        scaled sides (at least one pixel), and an odd border pixel goes to the right or the bottom.
        """
        scale = min(input.width / picture.width, input.height / picture.height)
        inner = Size(max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return cls(
            picture=picture,
            input=input,
            inner=inner,
            pad_left=round((input.width - inner.width) / 2 - 0.1),
            pad_top=round((input.height - inner.height) / 2 - 0.1),
        )

    @property
    def scale_x(self) -> float:
        return self.inner.width / self.picture.width

    @property
    def scale_y(self) -> float:
        return self.inner.height / self.picture.height


@dataclass(frozen=True, slots=True)
class CenterCropGeometry:
    """Which square of a picture a classifier sees: of `resized`, the one that begins at left, top."""

    resized: Size
    left: int
    top: int

    @classmethod
    def fit(cls, picture: Size, side: int) -> CenterCropGeometry:
        """The shorter side becomes `side`, and the middle is kept.

        Rounding follows torchvision's `Resize(side)` and `CenterCrop(side)`: the longer side is rounded down,
        and half a pixel of offset to the even one.
        """
        shorter = min(picture.width, picture.height)
        resized = Size(side * picture.width // shorter, side * picture.height // shorter)
        return cls(resized, left=round((resized.width - side) / 2), top=round((resized.height - side) / 2))
