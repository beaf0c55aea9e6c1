from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from serving.cli.drawing import draw_predictions, predictions_table
from tests.support.world import encode

GREY = np.full((120, 200, 3), 128, np.uint8)


def prediction(*bbox: float, class_id: int = 0, confidence: float = 0.9) -> dict[str, Any]:
    return {"class": "cat", "class_id": class_id, "confidence": confidence, "bbox": list(bbox)}


def named(name: str, confidence: float, class_id: int = 0) -> dict[str, Any]:
    """What a classifier answers."""
    return {"class": name, "class_id": class_id, "confidence": confidence}


def drawn(target: Path, *predictions: dict[str, Any]) -> NDArray[np.uint8]:
    """(H, W, 3) BGR."""
    path = draw_predictions(encode(GREY, ".png"), list(predictions), target / "new" / "drawn.png")
    return cv2.imread(str(path)).astype(np.uint8)


def test_without_predictions_the_picture_stays_as_it_is(tmp_path: Path) -> None:
    np.testing.assert_array_equal(drawn(tmp_path), GREY)


def test_a_box_has_a_line_on_each_side_and_its_inside_stays(tmp_path: Path) -> None:
    picture = drawn(tmp_path, prediction(40.0, 50.0, 160.0, 110.0))

    for x, y in ((40, 80), (160, 80), (150, 50), (100, 110)):
        assert (picture[y, x] != GREY[0, 0]).any()
    np.testing.assert_array_equal(picture[60:100, 50:150], GREY[60:100, 50:150])
    np.testing.assert_array_equal(picture[115:], GREY[115:])


def test_classes_have_colours_of_their_own(tmp_path: Path) -> None:
    box = (40.0, 50.0, 160.0, 110.0)
    colours = {tuple(drawn(tmp_path, prediction(*box, class_id=number))[80, 40]) for number in range(6)}

    assert len(colours) == 6


def test_the_most_certain_box_is_on_top(tmp_path: Path) -> None:
    box = (40.0, 50.0, 160.0, 110.0)
    best, worst = prediction(*box, class_id=1), prediction(*box, class_id=2, confidence=0.3)

    both = drawn(tmp_path, best, worst)

    assert tuple(both[80, 40]) == tuple(drawn(tmp_path, best)[80, 40])


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 200.0, 120.0), (0.0, 0.0, 0.0, 0.0), (199.0, 119.0, 200.0, 120.0)]
)
def test_boxes_at_the_edge_are_drawn_too(tmp_path: Path, box: tuple[float, ...]) -> None:
    assert (drawn(tmp_path, prediction(*box, class_id=1_000_003)) != GREY).any()


def test_the_table_has_a_row_a_box() -> None:
    console = Console(width=120)
    rows = [prediction(1.25, 2.0, 3.0, 4.0, confidence=0.98765)]
    with console.capture() as captured:
        console.print(predictions_table(rows, title="shapes"))

    text = captured.get()
    assert text.startswith("shapes")
    assert all(part in text for part in ("cat", "0.988", "1.2", "2.0", "3.0", "4.0", "x_min", "y_max"))


def test_classes_of_the_whole_picture_stand_in_its_corner_the_best_on_top(tmp_path: Path) -> None:
    one = drawn(tmp_path, named("cat", 0.9))
    two = drawn(tmp_path, named("cat", 0.9), named("dog", 0.1, class_id=1))

    changed_rows, changed_columns = (one != GREY).any(axis=2).nonzero()
    assert (changed_rows.min(), changed_columns.min()) == (0, 0)
    assert changed_rows.max() < 40
    first, second = slice(0, changed_rows.max() + 1), slice(changed_rows.max() + 1, None)
    np.testing.assert_array_equal(two[first], one[first])
    assert (two[second] != GREY[second]).any()


def test_the_table_of_a_classification_has_no_sides() -> None:
    table = predictions_table([named("cat", 0.9), named("dog", 0.1)], title="animals")

    assert [column.header for column in table.columns] == ["class", "confidence"]
    assert table.row_count == 2


def test_names_are_shown_and_not_obeyed() -> None:
    console = Console(width=120)
    rows = [named("[/x]", 0.9), named("[red]dog[/red]", 0.8), named("\x1b[2Jcat\n\x07", 0.7)]
    with console.capture() as captured:
        console.print(predictions_table(rows, title="[/photo].jpg"))

    text = captured.get()
    assert all(shown in text for shown in ("[/photo].jpg", "[/x]", "[red]dog[/red]", r"\x1b[2Jcat\n\x07"))
    assert all(line.isprintable() for line in text.splitlines())


def test_a_table_of_nothing_is_a_table() -> None:
    assert predictions_table([], title="nothing").row_count == 0
