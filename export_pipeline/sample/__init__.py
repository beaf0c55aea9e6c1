"""The sample detector: scenes, training, the data set it is measured on, and golden predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "shapes.pt"
REPOSITORY: Final = Path(__file__).parents[2] / "model_repo"
INPUT_PX: Final = 320
