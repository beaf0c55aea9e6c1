from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput
from export_pipeline.preflight import (
    check_inputs,
    check_outputs,
    from_any_folder,
    picture_files,
    require_decodable,
)
from export_pipeline.request import ExportRequest, read_request

GOLDEN = Path(__file__).parents[2] / "golden" / "pictures"


def asked(tmp_path: Path, **validation: object) -> ExportRequest:
    (tmp_path / "best.pt").write_bytes(b"a checkpoint")
    return read_request(
        {"checkpoint": str(tmp_path / "best.pt"), "name": "cats", "validation_config": validation}
    )


def test_every_golden_picture_of_ours_can_be_decoded() -> None:
    require_decodable(GOLDEN)

    assert len(picture_files(GOLDEN)) == len(list(GOLDEN.iterdir()))


def test_pictures_are_told_by_their_suffix_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.webp", "notes.txt", ".hidden.png", "c.jpeg.bak"):
        (tmp_path / name).touch()

    assert [path.name for path in picture_files(tmp_path)] == ["a.webp", "b.JPG"]


@pytest.mark.parametrize("name", ["grey.jpg", "alpha.png", "webp.webp", "bitmap.bmp", "sixteen_bit.png"])
@pytest.mark.parametrize("how", ["empty", "half", "text"])
def test_a_broken_picture_is_named(tmp_path: Path, name: str, how: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    content = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"not a picture"}[how]
    shutil.copy(GOLDEN / "tiny.png", tmp_path)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(BadInput, match=rf"^The golden picture .*/{name} cannot be decoded\.$"):
        check_inputs(asked(tmp_path, pictures=tmp_path))


@pytest.mark.parametrize(
    ("validation", "sentence"),
    [
        ({"pictures": "/gone"}, "The folder of golden pictures /gone does not exist."),
        (
            {"pictures": "/dev/null"},
            "The folder of golden pictures /dev/null cannot be read: Not a directory.",
        ),
        ({"pictures": "{tmp_path}"}, "holds no picture: .bmp, .jpeg, .jpg, .png, .webp are read."),
        ({"dataset": "/gone.yaml"}, "The data set /gone.yaml does not exist."),
    ],
)
def test_inputs_that_are_not_there(tmp_path: Path, validation: dict[str, str], sentence: str) -> None:
    said = {name: value.format(tmp_path=tmp_path) for name, value in validation.items()}

    with pytest.raises(BadInput) as caught:
        check_inputs(asked(tmp_path, **said))

    assert sentence in str(caught.value)


def test_without_validation_nobody_looks_at_pictures(tmp_path: Path) -> None:
    check_inputs(asked(tmp_path, enabled=False, pictures="/gone", dataset="/gone"))


def test_a_folder_for_the_job_need_not_exist_yet(tmp_path: Path) -> None:
    check_outputs(asked(tmp_path), tmp_path / "new" / "and" / "deep")

    assert not (tmp_path / "new").exists()


def test_a_link_into_the_repository_is_in_the_repository(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "models")
    request = asked(tmp_path).model_copy(update={"publish": tmp_path / "models"})

    with pytest.raises(BadInput, match="lies in the model repository"):
        check_outputs(request, tmp_path / "elsewhere" / "job")


def test_paths_become_absolute_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_request(
        {
            "checkpoint": "s3://models/best.pt",
            "name": "cats",
            "publish": "models",
            "validation_config": {"pictures": "golden", "dataset": "data.yaml"},
        }
    )

    found = from_any_folder(request)

    assert (found.checkpoint, found.publish) == ("s3://models/best.pt", tmp_path / "models")
    assert found.validation_config.pictures == tmp_path / "golden"
    assert found.validation_config.dataset == tmp_path / "data.yaml"
    assert from_any_folder(found) == found
