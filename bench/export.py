"""What an export gives and what it costs: format, size, latency and accuracy of the sample detector.

::

    python -m bench.export [--pictures 100] [--json FILE]

Each row is one whole job of the pipeline, from the committed checkpoint to a certified entry in a model
repository of its own, on the same drawn held-out scenes. Size is the model file's; latency the median of one
picture in ONNX Runtime as the job's own validation measured it; mAP50-95 that of the exported file and of the
gateway's path through Triton and HTTP, beside the checkpoint's. The second table says where the seconds of
the first job went.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from export_pipeline.api import export
from export_pipeline.environment import ensure_environment
from export_pipeline.job import JobFolder
from export_pipeline.request import read_request

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "export_pipeline" / "sample" / "shapes.pt"
GOLDEN_PICTURES = ROOT / "tests" / "golden" / "pictures"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ONNX": {},
    "ONNX, FP16": {"precision": "fp16"},
    "ONNX, NMS in the graph": {"embed_nms": True},
}
DRAWING_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Row:
    """map50_95: by path, 0..1. latency_ms: median, one picture. seconds_by_step: of the job."""

    variant: str
    size_mb: float
    latency_ms: float
    map50_95: Mapping[str, float]
    seconds_by_step: Mapping[str, float]


def measure(variant: str, export_config: Mapping[str, Any], dataset: Path, scratch: Path) -> Row:
    repository = scratch / "repository"
    repository.mkdir()
    request = read_request(
        {
            "checkpoint": str(CHECKPOINT),
            "name": "shapes",
            "publish": repository,
            "export_config": {"imgsz": 320, **export_config},
            "validation_config": {"pictures": GOLDEN_PICTURES, "dataset": dataset},
        }
    )
    result = export(request, scratch / "job")
    metadata = json.loads((repository / "shapes" / "metadata.json").read_text())
    steps = JobFolder(result.job).state().steps
    return Row(
        variant=variant,
        size_mb=metadata["model_info"]["model_file"]["size_bytes"] / 1e6,
        latency_ms=metadata["performance"]["latency_ms"]["p50"],
        map50_95=metadata["validation"]["accuracy"]["metrics"]["mAP50-95"],
        seconds_by_step={name: record.seconds for name, record in steps.items()},
    )


def draw_scenes(folder: Path, pictures: int) -> Path:
    """Held-out scenes as a data set, drawn in the export environment, where the photographs are."""
    python = ensure_environment(print)
    subprocess.run(  # noqa: S603 - our own script, in our own environment
        [python, "-m", "export_pipeline.sample.dataset", folder, "--count", str(pictures)],
        cwd=ROOT,
        check=True,
        timeout=DRAWING_TIMEOUT_SECONDS,
    )
    return folder / "data.yaml"


def show(rows: list[Row]) -> None:
    console = Console()
    table = Table("format", "size, MB", "latency, ms", "mAP50-95 checkpoint", "file", "gateway")
    for row in rows:
        paths = (f"{row.map50_95[path]:.4f}" for path in ("checkpoint", "file", "gateway"))
        table.add_row(row.variant, f"{row.size_mb:.2f}", f"{row.latency_ms:.1f}", *paths)
    console.print(table)
    steps = Table("step", "seconds")
    for name, seconds in rows[0].seconds_by_step.items():
        steps.add_row(name, f"{seconds:.1f}")
    steps.add_row("together", f"{sum(rows[0].seconds_by_step.values()):.1f}")
    console.print(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the sample detector in every form, and measure it.")
    parser.add_argument("--pictures", type=int, default=100, help="of the drawn data set")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="visiongate-bench-") as folder:
        dataset = draw_scenes(Path(folder, "scenes"), arguments.pictures)
        rows = []
        for index, (variant, config) in enumerate(VARIANTS.items()):
            scratch = Path(folder, str(index))
            scratch.mkdir()
            rows.append(measure(variant, config, dataset, scratch))
            sys.stderr.write(f"{variant}: {sum(rows[-1].seconds_by_step.values()):.1f} s\n")
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
