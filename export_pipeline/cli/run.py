"""`visiongate-export run`: a job from its checkpoint to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from export_pipeline import api
from export_pipeline.cli.console import cancellable
from export_pipeline.cli.display import ProgressForm, showing, tell
from export_pipeline.cli.values import PictureSize, duration, memory, picture_size
from export_pipeline.request import (
    ExportConfig,
    ExportFormat,
    ExportRequest,
    FailThreshold,
    Framework,
    HeadChoice,
    Precision,
    read_request,
)

GRAPH = "The graph"
CERTIFICATE = "The certificate"
PROCESS = "The process"


def _default(model: type[ExportConfig | ExportRequest | FailThreshold], field: str) -> str:
    """As request.py says it, so that it is said once."""
    return str(model.model_fields[field].default)


def run(
    *,
    checkpoint: Annotated[str, typer.Option(help="A path, a file:// or an s3:// address.")],
    name: Annotated[str, typer.Option(help="What the model is called in the repository.")],
    out: Annotated[Path, typer.Option(help="The job's folder: new, empty, or that of this very job.")],
    export_format: Annotated[
        ExportFormat, typer.Option("--format", help="What is made of the checkpoint.")
    ] = "onnx",
    framework: Annotated[Framework, typer.Option(help="What trained the checkpoint.")] = "ultralytics",
    publish: Annotated[
        Path | None, typer.Option(help="Triton's model repository. Default: publish nothing.")
    ] = None,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="The name may be taken: this is its next version.")
    ] = False,
    imgsz: Annotated[
        PictureSize | None,
        typer.Option(
            parser=picture_size,
            metavar="320|640x384",
            rich_help_panel=GRAPH,
            help="Pixels. Default: what the checkpoint was trained with.",
        ),
    ] = None,
    opset_version: Annotated[
        int | None, typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "opset_version"))
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "precision")),
    ] = None,
    head: Annotated[
        HeadChoice | None,
        typer.Option(
            rich_help_panel=GRAPH,
            show_default=_default(ExportConfig, "head"),
            help="native: the one that the checkpoint's own predict uses.",
        ),
    ] = None,
    embed_preprocessing: Annotated[
        bool | None,
        typer.Option(
            "--embed-preprocessing/--no-embed-preprocessing",
            rich_help_panel=GRAPH,
            show_default="embedded",
            help="The graph takes bytes of pixels and normalises by itself.",
        ),
    ] = None,
    embed_nms: Annotated[
        bool | None,
        typer.Option(
            "--embed-nms/--no-embed-nms",
            rich_help_panel=GRAPH,
            show_default="not embedded",
            help="Suppression inside the graph, at the thresholds below.",
        ),
    ] = None,
    dynamic_axes: Annotated[
        bool | None,
        typer.Option(
            "--dynamic-axes/--no-dynamic-axes",
            rich_help_panel=GRAPH,
            show_default="dynamic",
            help="A batch of any size; without, one picture.",
        ),
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "max_batch_size"))
    ] = None,
    confidence_threshold: Annotated[
        float | None,
        typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "confidence_threshold")),
    ] = None,
    iou_threshold: Annotated[
        float | None,
        typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "iou_threshold")),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(rich_help_panel=GRAPH, show_default=_default(ExportConfig, "max_detections"))
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CERTIFICATE,
            help="A folder of golden pictures. Default: two photographs that come with Ultralytics.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CERTIFICATE,
            help="A data.yaml, or a folder of class folders. Default: no accuracy is measured.",
        ),
    ] = None,
    max_pictures: Annotated[
        int | None, typer.Option(rich_help_panel=CERTIFICATE, help="Of the data set. Default: all of it.")
    ] = None,
    accuracy_drop_max: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CERTIFICATE,
            show_default=_default(FailThreshold, "accuracy_drop_max"),
            help="Of mAP50-95 or top-1, 0 to 1.",
        ),
    ] = None,
    no_validation: Annotated[
        bool,
        typer.Option(
            "--no-validation", rich_help_panel=CERTIFICATE, help="Prove nothing; then nothing is published."
        ),
    ] = False,
    memory_limit: Annotated[
        int | None,
        typer.Option(parser=memory, metavar="12GiB", rich_help_panel=PROCESS, show_default="12GiB"),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="60m", rich_help_panel=PROCESS, show_default="60m"),
    ] = None,
    unconfined: Annotated[
        bool,
        typer.Option(
            "--unconfined",
            rich_help_panel=PROCESS,
            help="Open the checkpoint without confinement, where the kernel offers none: only one you trust.",
        ),
    ] = False,
    progress: Annotated[ProgressForm, typer.Option(help="json: a line an event, on stdout.")] = "rich",
) -> None:
    """Export a checkpoint, certify what came of it, package it, and publish it to Triton's repository."""
    request = read_request(
        _said(
            checkpoint=checkpoint,
            name=name,
            export_format=export_format,
            framework=framework,
            publish=publish,
            new_version=new_version,
            export_config=_said(
                imgsz=imgsz,
                opset_version=opset_version,
                dynamic_axes=dynamic_axes,
                embed_preprocessing=embed_preprocessing,
                embed_nms=embed_nms,
                head=head,
                precision=precision,
                max_batch_size=max_batch_size,
                confidence_threshold=confidence_threshold,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            ),
            validation_config=_said(
                enabled=not no_validation,
                pictures=pictures,
                dataset=dataset,
                max_pictures=max_pictures,
                fail_threshold=_said(accuracy_drop_max=accuracy_drop_max),
            ),
            limits=_said(memory_bytes=memory_limit, time_seconds=time_limit),
        )
    )
    with cancellable(), showing(progress) as shown:
        result = api.export(request, out, executor=api.ConfinedHere(unconfined=unconfined), progress=shown)
    tell(result, progress)


def _said(**values: Any) -> dict[str, Any]:
    """Without what was not said: request.py knows the defaults."""
    return {name: value for name, value in values.items() if value is not None}
