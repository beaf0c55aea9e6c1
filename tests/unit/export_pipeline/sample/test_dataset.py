from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export_pipeline.datasets import open_dataset
from export_pipeline.sample.dataset import HELD_OUT_SEED, draw_held_out
from export_pipeline.sample.scenes import CLASS_NAMES, SceneStyle, draw_scene

COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "held-out-scenes"
    draw_held_out(path, COUNT)
    return path


def test_the_certificate_reads_the_labels_that_were_drawn(folder: Path) -> None:
    dataset = open_dataset(folder, "detection", CLASS_NAMES, None)

    assert (dataset.name, len(dataset.pictures)) == ("held-out-scenes", COUNT)
    for index, picture in enumerate(dataset.pictures):
        scene = draw_scene(HELD_OUT_SEED + index, SceneStyle())
        assert picture.xyxy is not None
        pixels = picture.xyxy * np.tile(scene.size_wh, 2)
        assert picture.class_id.tolist() == [item.class_id for item in scene.objects]
        np.testing.assert_allclose(pixels, [item.xyxy for item in scene.objects], atol=0.01)
    assert any(len(picture.class_id) for picture in dataset.pictures)


def test_the_same_scenes_are_drawn_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "leftover.jpg").touch()
    draw_held_out(tmp_path / "again", COUNT)

    def files(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert files(tmp_path / "again") == files(folder)


def test_it_may_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    try:
        assert len(open_dataset(moved / "data.yaml", "detection", CLASS_NAMES, None).pictures) == COUNT
    finally:
        moved.rename(folder)
