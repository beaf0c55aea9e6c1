"""The package's README.md, written from its metadata.json: nothing in it is said twice by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

CLASSES_NAMED: Final = 20
FRAMEWORKS: Final = {"ultralytics": "Ultralytics", "timm": "timm", "huggingface": "Hugging Face"}
PATHS: Final = {"file": "this file, by the wrapper in `runtimes/python`", "gateway": "visiongate, over HTTP"}


def package_readme(metadata: dict[str, Any]) -> str:
    """Markdown. metadata: valid by the schema."""
    parts = [
        _what_it_is(metadata),
        _tensors(metadata),
        _classes(metadata["classes"]),
        _how_to_run_it(metadata),
        _certificate(metadata.get("validation")),
        _performance(metadata.get("performance")),
        _how_to_check_it(),
        _licence(metadata["model_info"]["framework"]),
    ]
    return "\n".join(part for part in parts if part)


def _what_it_is(metadata: dict[str, Any]) -> str:
    info = metadata["model_info"]
    file = info["model_file"]
    return f"""# {info["model_name"]}, version {info["version"]}

A model for {info["task_type"]}, exported from {_article(FRAMEWORKS[info["framework"]])} checkpoint to \
{info["export_format"].upper()}. `metadata.json` says everything that a program needs to know of it.

| | |
| --- | --- |
| Model file | `{file["name"]}`, {file["size_bytes"]:,} bytes |
| SHA-256 of it | `{file["sha256"]}` |
| SHA-256 of the checkpoint | `{info["source_checkpoint_sha256"]}` |
"""


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOU' else 'a'} {word}"


def _tensors(metadata: dict[str, Any]) -> str:
    lines = [
        _row(
            [
                f"{what} `{each['name']}`",
                f"{each['dtype']} {each['shape']}",
                each["layout"],
                each["description"],
            ]
        )
        for what in ("input", "output")
        for each in metadata[f"{what}_spec"]
    ]
    rows = "\n".join(lines)
    return f"""## What goes in and comes out

{_pictures(metadata["preprocessing"])}

| Tensor | Type and shape, -1 is dynamic | Layout | What it is |
| --- | --- | --- | --- |
{rows}
"""


def _pictures(preprocessing: dict[str, Any]) -> str:
    resize = preprocessing["resize"]
    width, height = resize["size"]
    ways = {
        "letterbox": f"resized to fit into {width} x {height} pixels, centred, and the border filled with "
        f"{resize['fill_value']}",
        "stretch": f"stretched to {width} x {height} pixels",
        "center_crop": f"resized so that the shorter side has {width} pixels, and cut to the middle",
    }
    then = "The graph normalises them." if preprocessing["embedded"] else "The caller normalises them, too."
    return f"Pictures are turned upright and {ways[resize['method']]}. {then}"


def _classes(classes: list[dict[str, Any]]) -> str:
    if len(classes) > CLASSES_NAMED:
        return f"## Classes\n\n{len(classes)}; `labels.txt` names them, one a line, the first is class 0.\n"
    named = ", ".join(f"{entry['id']} `{entry['name'].replace('`', chr(39))}`" for entry in classes)
    return f"## Classes\n\n{named}.\n"


def _how_to_run_it(metadata: dict[str, Any]) -> str:
    head = metadata["postprocessing"]["output_format"]["head"]
    answers = head in {"yolo_raw", "yolo_end_to_end", "classification"}
    code = f"""## How to run it

```
python -m venv .venv
.venv/bin/pip install -r runtimes/python/requirements.txt
{".venv/bin/python runtimes/python/example.py picture.jpg" if answers else ".venv/bin/python"}
```
"""
    if answers:
        return code
    return f"""{code}
The wrapper gives the tensors of a {head} head and leaves their reading to you:

```python
from model_wrapper import ModelWrapper, decode_rgb

model = ModelWrapper(".")
row = model.preprocess(decode_rgb(open("picture.jpg", "rb").read()))
outputs = model.run(row[None])
```
"""


def _certificate(validation: dict[str, Any] | None) -> str:
    if validation is None:
        return "## Certificate\n\nNone: this export was never compared with its checkpoint.\n"
    rows = "\n".join(_path_row(name, figures) for name, figures in validation["paths"].items())
    return f"""## Certificate

Compared with what the checkpoint's own framework predicts for {validation["pictures"]} pictures, \
{validation["predictions"]} predictions in all. `validation.json` is the whole report.

| Path | Least IoU | Largest difference of a confidence | Without a partner | Of raw values, at most |
| --- | --- | --- | --- | --- |
{rows}
{_accuracy(validation.get("accuracy"))}"""


def _path_row(name: str, figures: dict[str, Any]) -> str:
    fields = ("iou_min", "confidence_max", "unmatched", "tensor_max_abs")
    cells = (f"{figures[field]:.6g}" if field in figures else "" for field in fields)
    return _row([PATHS[name], *cells])


def _accuracy(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return ""
    sides = ("checkpoint", "file", "gateway")
    rows = "\n".join(
        _row([metric, *(f"{figures[side]:.4f}" if side in figures else "" for side in sides)])
        for metric, figures in accuracy["metrics"].items()
    )
    return f"""
On {accuracy["pictures"]} labelled pictures of {accuracy["dataset"]}:

| | Checkpoint | File | Gateway |
| --- | --- | --- | --- |
{rows}
"""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _performance(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    latency = measured["latency_ms"]
    return f"""## Speed, as measured when it was made

One picture takes {latency["p50"]:.1f} ms (half of all calls) and {latency["p90"]:.1f} ms (nine of ten); \
batches of {measured["batch_size"]} give {measured["throughput_ips"]:.1f} pictures a second. On \
{measured["hardware"]}.
"""


def _how_to_check_it() -> str:
    return """## Is it as it was made?

`sha256sum -c SHA256SUMS` in this folder, or `visiongate-export verify` with the zip.
"""


def _licence(framework: str) -> str:
    if framework != "ultralytics":
        return ""
    return """## Licence

The checkpoint was trained with Ultralytics, which is AGPL-3.0, and Ultralytics states that models trained
with its software come under its licence: read its terms before you build on this model. To run the model
file, nothing of Ultralytics is needed. The wrapper in `runtimes/` is Apache-2.0.
"""
