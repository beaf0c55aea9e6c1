from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline import datasets
from export_pipeline.datasets import open_dataset, paths
from export_pipeline.errors import BadInput
from export_pipeline.request import TaskType

NAMES = ("circle", "square")
YAML = "path: .\nval: images/val\nnames: [circle, square]\n"
LABEL = "0 0.5 0.5 0.2 0.4\n"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set of these files; pictures are not decoded when a data set is opened."""

    def write(**files: str) -> Path:
        for name, content in (
            {"data.yaml": YAML, "images/val/a.jpg": "", "labels/val/a.txt": LABEL} | files
        ).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return tmp_path

    return write


def test_boxes_become_corners_in_fractions(make: Make) -> None:
    dataset = open_dataset(make() / "data.yaml", "detection", NAMES, None)

    (picture,) = dataset.pictures
    assert dataset.name == "data"
    assert (picture.key, picture.file.name) == ("images/val/a.jpg", "a.jpg")
    assert picture.class_id.tolist() == [0]
    assert picture.xyxy is not None
    assert picture.xyxy[0] == pytest.approx([0.4, 0.3, 0.6, 0.7])


@pytest.mark.parametrize(
    "changed",
    [
        {"images/val/a.jpg": "other pixels"},
        {"images/val/b.jpg": ""},
        {"labels/val/a.txt": "1 0.5 0.5 0.2 0.4\n"},
        {"labels/val/a.txt": "0 0.5 0.5 0.2 0.4001\n"},
        {"labels/val/a.txt": LABEL + "0 0.1 0.1 0.1 0.1\n"},
    ],
)
def test_a_data_set_is_known_by_its_pictures_and_labels(make: Make, changed: dict[str, str]) -> None:
    def sha256() -> str:
        return open_dataset(tmp, "detection", NAMES, None).sha256()

    tmp = make(**{"labels/val/b.txt": LABEL})
    before = sha256()
    make(**{"data.yaml": YAML + "# as it was", "notes.txt": "-"})
    assert sha256() == before

    make(**changed)

    assert sha256() != before


def test_a_picture_without_labels_is_background(make: Make) -> None:
    root = make(**{"images/val/b.png": "", "images/val/c.png": "", "labels/val/c.txt": "\n"})

    pictures = open_dataset(root, "detection", NAMES, None).pictures

    assert [len(picture.class_id) for picture in pictures] == [1, 0, 0]
    assert all(picture.xyxy is not None and picture.xyxy.shape[1] == 4 for picture in pictures)


@pytest.mark.parametrize(
    ("yaml", "files", "keys"),
    [
        ("val: images/val\nnames: {0: circle, 1: square}\n", {}, ["images/val/a.jpg"]),
        ("path: images\nval: val\nnames: [circle, square]\n", {}, ["val/a.jpg"]),
        ("validation: images/val\nnames: [circle, square]\n", {}, ["images/val/a.jpg"]),
        (
            "val: [images/val, images/more]\nnames: [circle, square]\n",
            {"images/more/deep/b.PNG": "", "images/more/notes.md": ""},
            ["images/more/deep/b.PNG", "images/val/a.jpg"],
        ),
        (
            "val: lists/val.txt\nnames: [circle, square]\n",
            {"lists/val.txt": "\n../images/val/a.jpg\n./b.webp\n", "lists/b.webp": ""},
            ["images/val/a.jpg", "lists/b.webp"],
        ),
    ],
)
def test_pictures_are_found_as_ultralytics_finds_them(
    yaml: str, files: dict[str, str], keys: list[str], make: Make
) -> None:
    root = make(**{"data.yaml": yaml} | files)

    dataset = open_dataset(root / "data.yaml", "detection", NAMES, None)

    assert [picture.key for picture in dataset.pictures] == keys


def test_the_first_pictures_are_taken_where_not_all_are_wanted(make: Make) -> None:
    root = make(**{f"images/val/{name}.jpg": "" for name in "cb"})

    dataset = open_dataset(root, "detection", NAMES, 2)

    assert [picture.file.name for picture in dataset.pictures] == ["a.jpg", "b.jpg"]


def test_a_polygon_is_the_box_around_it_and_what_is_said_twice_counts_once(make: Make) -> None:
    root = make(**{"labels/val/a.txt": "1 0.1 0.2 0.5 0.9 0.3 0.1\n" + LABEL + LABEL})

    (picture,) = open_dataset(root, "detection", NAMES, None).pictures

    assert picture.class_id.tolist() == [1, 0]
    assert picture.xyxy is not None
    assert picture.xyxy[0].tolist() == [0.1, 0.1, 0.5, 0.9]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"data.yaml": ""}, "data.yaml does not describe a data set"),
        ({"data.yaml": "val: [\nnames"}, "data.yaml line 2 is not YAML"),
        ({"data.yaml": "names: [circle, square]"}, "data.yaml: val has to be a folder"),
        ({"data.yaml": "val: 3\nnames: [circle, square]"}, "data.yaml: val has to be a folder"),
        ({"data.yaml": "val: nowhere\nnames: [circle, square]"}, "no folder .*nowhere"),
        ({"data.yaml": "val: nowhere.txt\nnames: [circle, square]"}, "nowhere.txt does not exist"),
        ({"data.yaml": "val: images/val"}, "data.yaml: names has to be a list"),
        (
            {"data.yaml": "val: images/val\nnames: {1: circle, 2: square}"},
            "data.yaml: names has to be a list",
        ),
        ({"data.yaml": "val: images/val\nnames: [circle]"}, "has 1 classes, the checkpoint 2"),
        ({"data.yaml": "val: images/val\nnames: [square, circle]"}, "class 0 is 'square'; .* 'circle'"),
        (
            {"data.yaml": "val: val.txt\nnames: [circle, square]", "val.txt": "\nb.jpg"},
            "val.txt line 2: there is",
        ),
        (
            {"data.yaml": "val: v.txt\nnames: [circle, square]", "v.txt": "data.yaml"},
            "v.txt line 1: .* not a JPEG",
        ),
        ({"images/val/b.tif": ""}, "b.tif: accuracy is compared on JPEG"),
        ({"labels/val/a.txt": "\n0 a b c d"}, "a.txt line 2: a label is made of numbers"),
        ({"labels/val/a.txt": "0 0.5 0.5 0.1"}, "a.txt line 1: a label is a class and 4 numbers"),
        ({"labels/val/a.txt": "0 0.5 0.5 0.1 0.1 0.3"}, "a.txt line 1: a label is a class and 4 numbers"),
        ({"labels/val/a.txt": "2 0.5 0.5 0.1 0.1"}, "a.txt line 1: there is no class 2; the last is 1"),
        ({"labels/val/a.txt": "-1 0.5 0.5 0.1 0.1"}, "a.txt line 1: there is no class -1"),
        ({"labels/val/a.txt": "0.5 0.5 0.5 0.1 0.1"}, "a.txt line 1: there is no class 0.5"),
        ({"labels/val/a.txt": "nan 0.5 0.5 0.1 0.1"}, "a.txt line 1: there is no class nan"),
        ({"labels/val/a.txt": "0 50 50 10 10"}, "a.txt line 1: a label's places are fractions"),
        ({"labels/val/a.txt": "0 nan 0.5 0.1 0.1"}, "a.txt line 1: a label's places are fractions"),
        ({"labels/val/a.txt": "0 0.5 0.5 -0.01 0.1"}, "a.txt line 1: width and height are not negative"),
        ({"labels/val/a.txt": ""}, "Nothing is labelled in the 1 pictures"),
        ({"data.yaml": "val: empty.txt\nnames: [circle, square]", "empty.txt": ""}, "has no pictures"),
        ({"more.yml": YAML}, "has to hold one .yaml file; it holds 2"),
    ],
)
def test_a_broken_data_set_is_refused_with_file_and_line(
    files: dict[str, str], said: str, make: Make
) -> None:
    with pytest.raises(BadInput, match=said):
        open_dataset(make(**files), "detection", NAMES, None)


def test_bytes_that_are_no_text_and_files_without_an_end_are_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make()
    (root / "labels/val/a.txt").write_bytes(b"\xff\xfe0 0.5")
    with pytest.raises(BadInput, match=r"a\.txt is not UTF-8 text"):
        open_dataset(root, "detection", NAMES, None)

    monkeypatch.setattr(paths, "MAX_TEXT_BYTES", 4)
    with pytest.raises(BadInput, match=r"data\.yaml is larger than"):
        open_dataset(root, "detection", NAMES, None)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    tasks: tuple[TaskType, ...] = ("detection", "classification")
    for task_type in tasks:
        with pytest.raises(BadInput, match="nowhere"):
            open_dataset(tmp_path / "nowhere", task_type, NAMES, None)


def test_more_pictures_than_anybody_waits_for_are_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MAX_PICTURES", 1)

    with pytest.raises(BadInput, match="holds 2 pictures; the most are 1"):
        open_dataset(make(**{"images/val/b.jpg": ""}), "detection", NAMES, None)


def test_a_task_whose_accuracy_is_not_measured_is_refused(make: Make) -> None:
    with pytest.raises(BadInput, match="this is pose"):
        open_dataset(make(), "pose", NAMES, None)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("val/square/1.jpg", "val/circle/1.jpg", "val/circle/0.png", "test/other/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_classification_is_labelled_by_its_folders_names(folders: Path) -> None:
    """By name, not by the folders' order: the checkpoint's classes may have another."""
    dataset = open_dataset(folders, "classification", ("square", "circle"), None)

    assert [(picture.key, picture.class_id.tolist(), picture.xyxy) for picture in dataset.pictures] == [
        ("circle/0.png", [1], None),
        ("circle/1.jpg", [1], None),
        ("square/1.jpg", [0], None),
    ]


def test_pictures_of_all_classes_are_taken_where_not_all_are_wanted(folders: Path) -> None:
    dataset = open_dataset(folders, "classification", ("square", "circle"), 2)

    assert [picture.key for picture in dataset.pictures] == ["circle/0.png", "square/1.jpg"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("circle", "square", "star"), "has 2 classes, the checkpoint 3"),
        (("circle", "star"), "class 1 is 'square'; the checkpoint calls it 'star'"),
    ],
)
def test_folders_that_are_no_classes_of_the_checkpoint_are_refused(
    names: tuple[str, ...], said: str, folders: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        open_dataset(folders, "classification", names, None)


def test_class_folders_have_to_lie_in_a_part_that_is_for_validation(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has to hold a folder val or test"):
        open_dataset(tmp_path, "classification", NAMES, None)
