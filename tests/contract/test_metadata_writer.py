"""What the export pipeline writes, the gateway understands: `metadata.json` and `config.pbtxt`."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.adapters.model_config import read_max_batch_size
from serving.domain.contract import ModelContract
from serving.errors import OperatorError
from tests.support.export_jobs import CLASS_NAMES, KINDS, make_entry

SERVED = ("raw", "end_to_end", "embedded_nms", "classification")
REFUSED = ("segmentation", "normalised_outside")


@pytest.mark.parametrize("kind", SERVED)
def test_the_gateway_reads_what_it_serves(tmp_path: Path, kind: str) -> None:
    entry = make_entry(tmp_path, kind, name="mine", version=7)

    contract = ModelContract.parse((entry / "metadata.json").read_bytes())

    assert (contract.name, contract.model_info.version) == ("mine", "7")
    assert contract.class_names == CLASS_NAMES
    assert contract.input.name == "images"
    assert read_max_batch_size((entry / "config.pbtxt").read_bytes(), contract) == 16


@pytest.mark.parametrize("kind", REFUSED)
def test_the_gateway_refuses_what_it_has_no_head_or_no_pixels_for(tmp_path: Path, kind: str) -> None:
    entry = make_entry(tmp_path, kind)

    with pytest.raises(OperatorError, match=r"metadata\.json"):
        ModelContract.parse((entry / "metadata.json").read_bytes())


def test_every_kind_is_of_one_or_the_other() -> None:
    assert {*SERVED, *REFUSED, "half", "fixed"} == set(KINDS)
