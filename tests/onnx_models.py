"""The old address of `tests.support.onnx_models`, for a file that still imports it from here."""

from __future__ import annotations

from tests.support.onnx_models import MEAN_OF_EACH, probe_contract

__all__ = ["MEAN_OF_EACH", "probe_contract"]
