from __future__ import annotations

from pathlib import Path

import pytest

from export_pipeline import preflight
from export_pipeline.certificate.golden_pictures import copy_pictures
from export_pipeline.errors import BadInput

PICTURES = Path(__file__).parents[3] / "golden" / "pictures"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two golden pictures, and what else lies in a folder."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tiny.png", "grey.jpg"):
        (folder / name).write_bytes((PICTURES / name).read_bytes())
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_text("not ours")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_pictures_are_copied_as_they_are_and_nothing_else(source: Path, target: Path) -> None:
    assert copy_pictures(source, target) == 2
    assert sorted(path.name for path in target.iterdir()) == ["grey.jpg", "tiny.png"]
    assert (target / "tiny.png").read_bytes() == (source / "tiny.png").read_bytes()


def test_a_folder_without_pictures_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(BadInput, match="holds no picture"):
        copy_pictures(tmp_path, target)


def test_a_broken_picture_is_named(source: Path, target: Path) -> None:
    (source / "grey.jpg").write_bytes((PICTURES / "grey.jpg").read_bytes()[:2000])

    with pytest.raises(BadInput, match=r"grey\.jpg cannot be decoded"):
        copy_pictures(source, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("limit", "most", "sentence"),
    [
        ("MAX_PICTURE_BYTES", 1000, r"grey\.jpg is larger than"),
        ("MAX_PICTURES", 1, "holds 2 pictures; 1 golden ones are the most"),
    ],
)
def test_too_many_and_too_large_pictures_are_refused_before_one_is_decoded(
    limit: str, most: int, sentence: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "grey.jpg").write_bytes((PICTURES / "grey.jpg").read_bytes()[:2000])
    monkeypatch.setattr(preflight, limit, most)

    with pytest.raises(BadInput, match=sentence):
        preflight.require_decodable(source)
