"""Of a data set, a confined process may read what its description names."""

from __future__ import annotations

from pathlib import Path

import pytest

from export_pipeline.datasets.paths import paths_of


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ("val: images/val", ["images/val", "labels/val"]),
        (
            "train: a\nval: [images/b, c]\ntest: d",
            ["a", "images/b", "labels/b", "c", "d"],
        ),
        ("path: elsewhere\nval: images", ["elsewhere", "elsewhere/images", "elsewhere/labels"]),
        ("val: images/images/val", ["images/images/val", "images/labels/val"]),
        ("val: 7", []),
        ("- a list", []),
        ("val: [", []),
        ("\0", []),
    ],
)
def test_a_description_and_what_it_names(description: str, named: list[str], tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(description)

    assert paths_of(file) == [file, *(tmp_path / name for name in named)]


def test_an_absolute_path_stands_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("path: /data/coco\nval: images/val")

    assert paths_of(file)[1:] == [Path("/data/coco", part) for part in ("", "images/val", "labels/val")]


def test_a_list_of_pictures_names_their_folders(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("./images/1.jpg\nimages/2.jpg\n\n/far/3.jpg\n")
    file = tmp_path / "data.yaml"
    file.write_text("val: val.txt")

    assert paths_of(file)[1:] == [
        *(tmp_path / name for name in ("val.txt", "images", "labels")),
        Path("/far"),
    ]


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("path: /data/coco\nval: v")

    assert paths_of(tmp_path) == [tmp_path, Path("/data/coco"), Path("/data/coco/v")]


def test_what_is_not_there_names_nothing_else(tmp_path: Path) -> None:
    assert paths_of(tmp_path / "missing.yaml") == [tmp_path / "missing.yaml"]
