"""`max_batch_size` of a model as Triton will read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.adapters.model_config import read_max_batch_size
from serving.errors import OperatorError

SHAPES = Path(__file__).parents[4] / "model_repo" / "shapes" / "config.pbtxt"


def test_the_sample_takes_sixteen() -> None:
    assert read_max_batch_size(SHAPES) == 16


@pytest.mark.parametrize("text", ["", "max_batch_size: 0", "max_batch_size: x", "surprise: 1", "{"])
def test_a_model_without_batches_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_text(text)
    with pytest.raises(OperatorError, match=r"config\.pbtxt"):
        read_max_batch_size(config)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError):
        read_max_batch_size(tmp_path / "config.pbtxt")
