"""config.pbtxt: golden files for each kind of model, and everything that is not one of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.facts import Tensor
from export_pipeline.repository.triton_config import (
    PRIORITY_LEVELS,
    QueuePolicy,
    TensorConfig,
    TritonConfig,
    config_of,
    read_config,
    select_versions,
    selected_versions,
)
from serving.domain.tenant import LOWEST_PRIORITY
from tests.support.export_jobs import KINDS, make_job

REPOSITORY = Path(__file__).parents[4]
GOLDEN = REPOSITORY / "tests/assets/config_pbtxt"
SHAPES = TritonConfig(
    name="shapes",
    backend="onnxruntime",
    default_model_filename="model.onnx",
    max_batch_size=16,
    inputs=(TensorConfig("images", "TYPE_UINT8", (320, 320, 3)),),
    outputs=(TensorConfig("predictions", "TYPE_FP32", (8, 2100)),),
    versions=(1,),
)


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_for(kind: str, path: Path, *, version: int = 1) -> TritonConfig:
    folder, record = make_job(path, kind, name=kind)
    return config_of(record.request.name, version, folder.model())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_has_its_golden_file(tmp_path: Path, kind: str) -> None:
    config = config_for(kind, tmp_path)

    assert config.to_pbtxt() == (GOLDEN / "valid" / f"{kind}.pbtxt").read_text()


@pytest.mark.parametrize("path", sorted((GOLDEN / "valid").iterdir()), ids=lambda path: path.stem)
def test_what_is_written_is_read_back(path: Path) -> None:
    config = read_config(path.read_text())

    assert config.name == path.stem
    assert read_config(config.to_pbtxt()) == config


@pytest.mark.parametrize("path", sorted((GOLDEN / "invalid").iterdir()), ids=lambda path: path.stem)
def test_what_is_not_ours_is_refused(path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.pbtxt"):
        read_config(path.read_text())


def test_the_sample_has_been_tuned_to_what_is_written() -> None:
    """The committed file, but for the choice of versions, which is the publisher's."""
    committed = parsed((REPOSITORY / "model_repo/shapes/config.pbtxt").read_text())
    written = parsed(SHAPES.to_pbtxt())

    for config in (committed, written):
        config.version_policy.Clear()
    assert {warmup.name: warmup for warmup in committed.model_warmup} == {
        warmup.name: warmup for warmup in written.model_warmup
    }
    assert written == committed


def test_a_batch_of_any_size_is_warmed_up_at_both_ends() -> None:
    assert [(each.name, each.batch_size) for each in parsed(SHAPES.to_pbtxt()).model_warmup] == [
        ("one", 1),
        ("full", 16),
    ]
    assert [
        each.batch_size for each in parsed(replace(SHAPES, max_batch_size=1).to_pbtxt()).model_warmup
    ] == [1]


def test_a_fixed_batch_is_not_batched_by_triton(tmp_path: Path) -> None:
    """NVIDIA's backend refuses a `max_batch_size` where a model's first dimension is not -1."""
    config = config_for("fixed", tmp_path)

    assert config.max_batch_size == 0
    assert config.inputs[0].dims == (1, 32, 32, 3)
    assert config.outputs[0].dims == (1, 8, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float32"])
def test_every_dtype_has_tritons_name(tmp_path: Path, dtype: Any) -> None:
    folder, _ = make_job(tmp_path)
    output = folder.model().outputs[0].model_copy(update={"dtype": dtype})

    config = config_of("m", 1, folder.model().model_copy(update={"outputs": (output,)}))

    (given,) = parsed(config.to_pbtxt()).output
    assert (
        model_config_pb2.DataType.Name(given.data_type)
        == {
            **{name: f"TYPE_{name.upper()}" for name in ("uint8", "int8", "int32", "int64")},
            "float16": "TYPE_FP16",
            "float32": "TYPE_FP32",
        }[dtype]
    )


def test_tensors_of_different_batches_are_refused(tmp_path: Path) -> None:
    folder, _ = make_job(tmp_path)
    fixed = Tensor(name="p", shape=(1, 8, 2), dtype="float32", layout="NCA", description="fixed")

    with pytest.raises(ExportError, match=r"different batches: \[-1, 1\]"):
        config_of("m", 1, folder.model().model_copy(update={"outputs": (fixed,)}))


def test_the_queue_is_bounded() -> None:
    policy = parsed(
        replace(SHAPES, queue=QueuePolicy(7, 1000)).to_pbtxt()
    ).dynamic_batching.default_queue_policy

    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 1000)
    assert policy.allow_timeout_override
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


def test_there_are_as_many_priorities_as_tiers_can_have_and_who_says_none_is_last() -> None:
    batching = parsed(SHAPES.to_pbtxt()).dynamic_batching

    assert PRIORITY_LEVELS == LOWEST_PRIORITY
    assert (batching.priority_levels, batching.default_priority_level) == (3, 3)
    assert not batching.priority_queue_policy  # so that the default policy is each one's


@pytest.mark.parametrize(
    "path", ["model_repo/shapes/config.pbtxt", "tests/assets/config_pbtxt/valid/raw.pbtxt"]
)
def test_versions_are_chosen_whoever_wrote_the_rest(path: str) -> None:
    text = (REPOSITORY / path).read_text()

    chosen = select_versions(text, [5, 3])

    assert selected_versions(chosen) == (3, 5)
    before, after = parsed(text), parsed(chosen)
    for config in (before, after):
        config.version_policy.Clear()
    assert after == before


@pytest.mark.parametrize(
    "policy", ["", "version_policy { latest { num_versions: 1 } }", "version_policy { all {} }"]
)
def test_no_versions_where_the_choice_is_tritons(policy: str) -> None:
    assert selected_versions(policy) == ()
