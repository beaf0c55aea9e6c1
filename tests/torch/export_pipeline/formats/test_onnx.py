from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from export_pipeline.certificate.tensors import Run, compare_tensors
from export_pipeline.certificate.tolerances import Allowance, Tolerances
from export_pipeline.errors import Unsupported
from export_pipeline.facts import ModelFacts
from export_pipeline.formats import onnx as onnx_format
from export_pipeline.formats import write_model
from export_pipeline.frameworks import OpenedModel
from export_pipeline.job import sha256_of
from export_pipeline.request import ExportConfig
from tests.torch.networks import FAMILIES, SUFFIXES, draw_pictures

COMMITTED = Path(__file__).parents[4] / "model_repo" / "shapes"
FP32 = Tolerances(
    iou_min=1,
    confidence_max=0,
    at_threshold_share=0,
    disagreeing_share=0,
    tensors={
        "boxes": Allowance(atol=2e-3, rtol=1e-5),  # pixels
        "scores": Allowance(atol=2e-5, rtol=0),
        "classes": Allowance(atol=0, rtol=0),
        "keypoints": Allowance(atol=2e-3, rtol=1e-5),  # pixels, too
        "other": Allowance(atol=2e-4, rtol=1e-4),
    },
)
FP16 = Tolerances(
    **{
        **FP32.model_dump(),
        "tensors": {
            "boxes": {"atol": 1, "rtol": 0},
            "scores": {"atol": 0.01, "rtol": 0},
            "other": {"atol": 1, "rtol": 0},
        },
    }
)


def write(opened: OpenedModel, config: ExportConfig, folder: Path) -> ModelFacts:
    folder.mkdir(exist_ok=True)
    return write_model(opened.graph(config), folder, config, "onnx")


def run(folder: Path, batch: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, {"images": batch})
    return outputs


def pictures(count: int, config: ExportConfig, seed: int) -> NDArray[Any]:
    """As the graph's input."""
    assert config.imgsz is not None
    pixels = draw_pictures(count, config.imgsz, seed)
    if config.embed_preprocessing:
        return pixels
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def require_agreement(
    opened: OpenedModel, config: ExportConfig, facts: ModelFacts, folder: Path, counts: tuple[int, ...]
) -> None:
    batches = [pictures(count, config, seed=count) for count in counts]
    runs = [Run(opened.raw_outputs(config, batch), run(folder, batch)) for batch in batches]
    agreement = compare_tensors(facts.outputs, runs, FP32 if config.precision == "fp32" else FP16)
    assert agreement.passed, [part for part in agreement.parts if not part.passed]
    for one in runs:
        for output, answered in zip(facts.outputs, one.answered, strict=True):
            assert answered.shape == tuple(len(one.answered[0]) if n == -1 else n for n in output.shape)


def require_contrast(facts: ModelFacts, outputs: Sequence[NDArray[Any]]) -> None:
    """Two pictures have other answers in every part, by far more than is tolerated: parity says something."""
    for output, (first, second, *_) in zip(facts.outputs, outputs, strict=True):
        axis = output.parts_axis - 1
        for part, (begin, end) in (output.parts or {"all": (0, first.shape[axis])}).items():
            gap = np.abs(first - second).take(range(begin, end), axis)
            tolerated = FP32.for_part(part).atol
            assert np.median(gap.max(axis=axis)) > 50 * tolerated if tolerated else gap.any(), part


CASES = [
    pytest.param(family, task_type, head, id=f"{family}-{task_type}-{head}")
    for family in FAMILIES
    for task_type in SUFFIXES
    for head in ("raw", "end_to_end")
    if head == "raw" or (family == "yolo26n" and task_type != "classification")
]


@pytest.mark.parametrize(("family", "task_type", "head"), CASES)
def test_the_file_answers_as_the_network_for_every_family_and_task(
    opened: Callable[[str, str], OpenedModel], family: str, task_type: str, head: Any, tmp_path: Path
) -> None:
    model = opened(family, task_type)
    square = task_type == "classification"
    config = ExportConfig(imgsz=(64, 64) if square else (96, 64), head="native" if square else head)
    facts = write(model, config, tmp_path)
    require_agreement(model, config, facts, tmp_path, (1, 3))
    require_contrast(facts, model.raw_outputs(config, pictures(2, config, seed=9)))
    assert facts.head == {
        "detection": f"yolo_{head}",
        "classification": "classification",
    }.get(task_type, f"yolo_{head}_{task_type}")
    assert [output.name for output in facts.outputs] == (
        ["predictions", "prototypes"] if task_type == "segmentation" else ["predictions"]
    )


def test_the_committed_sample_model_is_what_is_made_of_the_committed_checkpoint(
    sample: OpenedModel, tmp_path: Path
) -> None:
    facts = write(sample, ExportConfig(), tmp_path)
    assert facts.sha256 == sha256_of(COMMITTED / "1" / "model.onnx")


@pytest.mark.parametrize(
    "config",
    [ExportConfig(), ExportConfig(embed_nms=True, precision="fp16")],
    ids=["fp32", "nms-fp16"],
)
def test_the_same_export_gives_the_same_bytes(
    sample: OpenedModel, config: ExportConfig, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("first", "a-folder-of-another-name")]
    first, second = (write(sample, config, folder) for folder in folders)
    assert first == second
    content = (folders[0] / "model.onnx").read_bytes()
    assert len(content) == first.size_bytes
    assert sha256_of(folders[1] / "model.onnx") == first.sha256
    assert str(tmp_path).encode() not in content
    assert b"shapes.pt" not in content
    assert b"/home" not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize(
    "options",
    [
        {"embed_preprocessing": False},
        {"dynamic_axes": False, "max_batch_size": 1},
        {"dynamic_axes": False, "max_batch_size": 1, "embed_preprocessing": False},
        {"precision": "fp16"},
        {"precision": "fp16", "embed_preprocessing": False},
        {"opset_version": 11},
        {"opset_version": 20},
        {"imgsz": (160, 96)},
    ],
    ids=str,
)
def test_every_variant_answers_as_the_network(
    sample: OpenedModel, options: dict[str, Any], tmp_path: Path
) -> None:
    config = ExportConfig(**{"imgsz": (96, 96), **options})
    facts = write(sample, config, tmp_path)
    require_agreement(sample, config, facts, tmp_path, (1, 3) if config.dynamic_axes else (1,))
    model = onnx.load(tmp_path / "model.onnx")
    assert model.ir_version == facts.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", config.opset_version)]
    assert [shape_of(value) for value in (*model.graph.input, *model.graph.output)] == [
        ["batch" if size == -1 else size for size in tensor.shape]
        for tensor in (*facts.inputs, *facts.outputs)
    ]


def shape_of(value: Any) -> list[int | str]:
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def test_a_fixed_batch_takes_one_picture(sample: OpenedModel, tmp_path: Path) -> None:
    config = ExportConfig(imgsz=(64, 64), dynamic_axes=False, max_batch_size=1)
    write(sample, config, tmp_path)
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        run(tmp_path, pictures(2, config, seed=0))


def test_half_precision_halves_the_file_and_keeps_the_tensors(sample: OpenedModel, tmp_path: Path) -> None:
    whole = write(sample, ExportConfig(), tmp_path / "fp32")
    half = write(sample, ExportConfig(precision="fp16"), tmp_path / "fp16")
    assert half.size_bytes < 0.6 * whole.size_bytes
    assert (half.inputs, half.outputs) == (whole.inputs, whole.outputs)
    assert half.made_with.keys() - whole.made_with.keys() == {"onnxruntime"}


def test_a_network_beyond_one_file_is_refused_before_it_is_traced(
    sample: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "MOST_BYTES", 1_000_000)
    with pytest.raises(Unsupported, match="bytes of weights do not fit into one ONNX file"):
        write(sample, ExportConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_opset_that_cannot_be_traced_is_refused(sample: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="opset_version 21 is newer than 20"):
        write(sample, ExportConfig(opset_version=21), tmp_path)


def test_another_format_is_refused(sample: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no exporter for coreml yet; there is one for onnx"):
        write_model(sample.graph(ExportConfig()), tmp_path, ExportConfig(), "coreml")
