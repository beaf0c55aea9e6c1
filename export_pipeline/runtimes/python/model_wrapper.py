"""Runs an exported model by its `metadata.json`: a picture in, predictions out, as the gateway answers them.

    model = ModelWrapper("the/package")
    model.predict("street.jpg")
    # {"predictions": [{"class": "car", "class_id": 2, "confidence": 0.91, "bbox": [10.0, 20.0, 99.5, 80.0]}],
    #  "image": {"width": 640, "height": 480}}

This one file is all there is: copy it wherever you like. It needs Python 3.10, numpy, OpenCV, ONNX Runtime,
and Pillow for models whose pictures are shrunk with `antialias`. A contract it does not fully understand is
refused with a ValueError, as is a picture that cannot be decoded or an option out of its range.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Its Linux builds report the models they load to their maker unless told not to, before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from numpy.typing import NDArray

Picture = bytes | str | Path | NDArray[np.uint8]
"""An encoded file's bytes, its path, or upright RGB pixels, (H, W, 3) uint8."""

PICTURES_AT_A_TIME = 16
"""Of `predict_batch`; bounds what it needs of memory."""

LONGEST_STRIP = 1000
"""Of pictures whose shorter side is what they are resized by; bounds what the resized strip takes."""

_BOXES_OF_HEAD = {"yolo_raw": "cxcywh", "yolo_end_to_end": "xyxy"}
_TENSOR_HEADS = {f"{head}_{task}" for head in _BOXES_OF_HEAD for task in ("segmentation", "pose", "obb")} | {
    "embedding"
}
"""Their tensors are answered by `run`; what they mean is not worked out here, so `predict` refuses."""


class ModelWrapper:
    """folder: holds `metadata.json` and the model file it names. threads: None is one a core."""

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        folder = Path(folder)
        self.metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_bytes())
        try:
            self._contract = _read_contract(self.metadata)
        except (KeyError, TypeError, IndexError, AttributeError) as exc:
            raise ValueError(f"metadata.json is not a model's contract: {exc!r}") from exc
        self._session = _open_session(folder, self.metadata, threads)

    def predict(
        self,
        picture: Picture,
        *,
        confidence_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Iterable[str | int] | None = None,
    ) -> dict[str, Any]:
        """`bbox`: in pixels of the upright picture. classes: names or ids to keep. None: the model's own."""
        (answer,) = self.predict_batch(
            [picture],
            confidence_threshold=confidence_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            classes=classes,
        )
        return answer

    def predict_batch(
        self,
        pictures: Sequence[Picture],
        *,
        confidence_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Iterable[str | int] | None = None,
    ) -> list[dict[str, Any]]:
        """One answer a picture, in order, whatever number of them the model takes at a time."""
        options = _options(self._contract, confidence_threshold, iou_threshold, max_detections, classes)
        answers: list[dict[str, Any]] = []
        for begin in range(0, len(pictures), PICTURES_AT_A_TIME):
            pixels = [_pixels(each) for each in pictures[begin : begin + PICTURES_AT_A_TIME]]
            rows = self.run(np.stack([self.preprocess(each) for each in pixels]))[0]
            answers += [
                _answer(self._contract, row.astype(np.float32), options, each.shape)
                for row, each in zip(rows, pixels, strict=True)
            ]
        return answers

    def preprocess(self, picture_rgb: NDArray[np.uint8]) -> NDArray[Any]:
        """(H, W, 3) uint8 RGB to one row of the model's input, which has no batch axis."""
        contract = self._contract
        placement = _place(contract, picture_rgb.shape)
        resized = _resize(picture_rgb, placement, contract)
        row = _crop_or_pad(resized, placement, contract)
        if contract.color_space == "BGR":
            row = row[..., ::-1]
        if not contract.embedded:
            normalized = (row.astype(np.float32) * contract.scale - contract.mean) / contract.std
            row = normalized.astype(contract.input_dtype)
        return np.ascontiguousarray(row if contract.input_layout == "NHWC" else row.transpose(2, 0, 1))

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """The model's outputs as they are, in the order of `output_spec`, for a batch of any size from 1."""
        step = len(batch) if self._contract.batch_size == -1 else self._contract.batch_size
        if len(batch) < 1 or len(batch) % step:
            raise ValueError(f"This model takes {step} pictures at a time, not {len(batch)}.")
        names = [output["name"] for output in self.metadata["output_spec"]]
        feed_name = self.metadata["input_spec"][0]["name"]
        parts = [
            self._session.run(names, {feed_name: batch[begin : begin + step]})
            for begin in range(0, len(batch), step)
        ]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


@dataclass(frozen=True)
class _Contract:
    """The parts of metadata.json that pictures and rows go through, each of a value that is known here."""

    task_type: str
    head: str
    class_names: list[str]
    method: str
    width: int
    height: int
    fill_value: int
    interpolation: str
    antialias: bool
    color_space: str
    embedded: bool
    scale: np.float32
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    input_layout: str
    input_dtype: str
    batch_size: int
    nms: dict[str, Any]
    top: dict[str, Any]
    box_unit_wh: tuple[int, int]


def _read_contract(metadata: dict[str, Any]) -> _Contract:
    info, preprocessing, postprocessing = (
        metadata[part] for part in ("model_info", "preprocessing", "postprocessing")
    )
    resize, normalize, pixels = (preprocessing[part] for part in ("resize", "normalize", "format"))
    output_format = postprocessing["output_format"]
    taken = metadata["input_spec"][0]
    major = metadata["schema_version"].partition(".")[0]
    _require("schema_version", major, {"1"})
    _require("input_spec", len(metadata["input_spec"]), {1})
    _require("resize.method", resize["method"], {"letterbox", "stretch", "center_crop"})
    _require("resize.interpolation", resize["interpolation"], {"bilinear", "bicubic"})
    _require("resize.fill_value", resize["fill_value"], range(256))
    _require("resize.antialias", resize["antialias"], {True, False})
    _require("format.input_layout", pixels["input_layout"], {"NHWC", "NCHW"})
    _require("format.color_space", pixels["color_space"], {"RGB", "BGR"})
    _require("embedded", preprocessing["embedded"], {True, False})
    dtypes = {"uint8"} if preprocessing["embedded"] else {"float16", "float32"}
    _require("format.dtype", pixels["dtype"], dtypes)
    _require(
        "output_format.coordinates", output_format.get("coordinates", "pixels"), {"pixels", "normalized"}
    )
    width, height = resize["size"]
    contract = _Contract(
        task_type=info["task_type"],
        head=output_format["head"],
        class_names=[entry["name"] for entry in metadata["classes"]],
        method=resize["method"],
        width=width,
        height=height,
        fill_value=resize["fill_value"],
        interpolation=resize["interpolation"],
        antialias=resize["antialias"],
        color_space=pixels["color_space"],
        embedded=preprocessing["embedded"],
        scale=np.float32(normalize["scale"]),
        mean=np.array(normalize["mean"], np.float32),
        std=np.array(normalize["std"], np.float32),
        input_layout=pixels["input_layout"],
        input_dtype=pixels["dtype"],
        batch_size=taken["shape"][0],
        nms=postprocessing.get("nms", {}),
        top=postprocessing.get("classification", {}),
        box_unit_wh=(width, height) if output_format.get("coordinates") == "normalized" else (1, 1),
    )
    _require_input(contract, taken)
    _require_head(contract, output_format.get("bbox_format"), metadata["output_spec"])
    _require("classes", [entry["id"] for entry in metadata["classes"]], [[*range(len(metadata["classes"]))]])
    return contract


def _require(where: str, value: Any, known: Iterable[Any]) -> None:
    if value not in known:
        raise ValueError(f"metadata.json, {where}: {value!r} is not understood here.")


def _require_input(contract: _Contract, taken: dict[str, Any]) -> None:
    if contract.method == "center_crop" and contract.width != contract.height:
        raise ValueError("metadata.json, resize.size: center_crop is for equal sides.")
    for values in (contract.mean, contract.std):
        _require("normalize", values.shape, {(1,), (3,)})
    hwc = [contract.height, contract.width, 3]
    _require(
        "input_spec.shape", taken["shape"][1:], [hwc if contract.input_layout == "NHWC" else [3, *hwc[:2]]]
    )
    _require("input_spec.dtype", taken["dtype"], {contract.input_dtype})
    if contract.batch_size != -1 and contract.batch_size < 1:
        raise ValueError(f"metadata.json, input_spec.shape: a batch of {contract.batch_size}.")


def _require_head(contract: _Contract, bbox_format: str | None, answered: list[dict[str, Any]]) -> None:
    if contract.head in _TENSOR_HEADS:
        return
    heads = {"detection": set(_BOXES_OF_HEAD), "classification": {"classification"}}
    _require("task_type", contract.task_type, heads)
    _require("output_format.head", contract.head, heads[contract.task_type])
    shape = answered[0]["shape"][1:]
    count = len(contract.class_names)
    fits = {
        "yolo_raw": len(shape) == 2 and shape[0] == 4 + count,
        "yolo_end_to_end": len(shape) == 2 and shape[1] == 6,
        "classification": shape == [count],
    }
    if len(answered) != 1 or not fits[contract.head]:
        raise ValueError(f"metadata.json, output_spec: {count} classes do not fit a {contract.head} head.")
    if contract.task_type == "classification":
        _require_numbers("postprocessing.classification", contract.top, ("confidence_threshold", "top_k"))
        return
    _require("output_format.bbox_format", bbox_format, {_BOXES_OF_HEAD[contract.head]})
    _require_numbers("nms", contract.nms, ("confidence_threshold", "iou_threshold", "max_detections"))
    for switch in ("enabled", "embedded", "class_agnostic"):
        _require(f"nms.{switch}", contract.nms[switch], {True, False})
    if contract.nms["embedded"] and contract.head != "yolo_end_to_end":
        raise ValueError("metadata.json, nms.embedded: only end-to-end rows have gone through suppression.")


def _require_numbers(where: str, values: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if type(values[name]) not in (int, float):
            raise ValueError(f"metadata.json, {where}.{name}: {values[name]!r} is not a number.")


def _open_session(
    folder: Path, metadata: dict[str, Any], threads: int | None
) -> onnxruntime.InferenceSession:
    stated = metadata["model_info"]["model_file"]
    _require("model_info.export_format", metadata["model_info"]["export_format"], {"onnx"})
    if Path(stated["name"]).name != stated["name"]:
        raise ValueError(f"metadata.json, model_file.name: {stated['name']!r} is not beside it.")
    content = (folder / stated["name"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != stated["sha256"]:
        raise ValueError(f"{folder / stated['name']} is not the file that metadata.json was written for.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for what, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
        names = [entry["name"] for entry in metadata[f"{what}_spec"]]
        _require(f"{what}_spec", names, [[node.name for node in nodes]])
    return session


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    if isinstance(picture, (str, Path)):
        picture = Path(picture).read_bytes()
    if isinstance(picture, bytes):
        return decode_rgb(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"Pixels are (H, W, 3) uint8 RGB, not {picture.shape} {picture.dtype}.")
    return np.ascontiguousarray(picture)


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """JPEG, PNG, WebP or BMP to upright (H, W, 3) uint8 RGB.

    Alpha is dropped, of 16 bits the upper 8 stay, grey and CMYK are converted. Raises ValueError for anything
    else and for animations. What can be shown of a damaged file is OpenCV's to say.
    """
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not is_webp and not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")):
        raise ValueError("The data is not a JPEG, PNG, WebP or BMP picture.")
    if _is_animated(data, is_webp):
        raise ValueError("The picture is animated.")
    # OpenCV turns a WebP upright from 5.0 on, the others always: so a WebP is turned here.
    flags = cv2.IMREAD_COLOR_RGB | (cv2.IMREAD_IGNORE_ORIENTATION if is_webp else 0)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if decoded is None:
        raise ValueError("The picture cannot be decoded.")
    turn = _TURNS.get(_webp_orientation(data) if is_webp else 1, lambda stored: stored)
    return np.ascontiguousarray(turn(decoded), dtype=np.uint8)


def _is_animated(data: bytes, is_webp: bool) -> bool:
    if is_webp:
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    return data[:4] == b"\x89PNG" and b"acTL" in data[: max(data.find(b"IDAT"), 0)]


_TURNS: dict[int, Any] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def _webp_orientation(data: bytes) -> int:
    """1 to 8, from the EXIF chunk; 1, upright, where there is none that can be read."""
    try:
        start = 12
        while data[start : start + 4] != b"EXIF":
            (size,) = struct.unpack_from("<I", data, start + 4)
            start += 8 + size + size % 2
        tiff = data[start + 8 :].removeprefix(b"Exif\x00\x00")
        order = {b"II*\x00": "<", b"MM\x00*": ">"}[tiff[:4]]
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            if struct.unpack_from(order + "H", tiff, entry)[0] == 0x0112:
                return int(struct.unpack_from(order + "H", tiff, entry + 8)[0])
    except (struct.error, KeyError):
        pass
    return 1


@dataclass(frozen=True)
class _Placement:
    """Where the resized picture lies in the input: x_input = x_picture * width / picture_width + left."""

    picture_width: int
    picture_height: int
    width: int
    height: int
    left: int
    top: int


def _place(contract: _Contract, shape_hwc: Sequence[int]) -> _Placement:
    height, width = shape_hwc[:2]
    to_width, to_height = contract.width, contract.height
    if contract.method == "stretch":
        return _Placement(width, height, to_width, to_height, 0, 0)
    if contract.method == "center_crop":
        short, side = min(width, height), to_width
        if max(width, height) > LONGEST_STRIP * short:
            raise ValueError(f"The picture is more than {LONGEST_STRIP} times as long as it is wide.")
        inner = (side * width // short, side * height // short)
        left, top = (-round((length - side) / 2) for length in inner)
        return _Placement(width, height, *inner, left, top)
    scale = min(to_width / width, to_height / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    return _Placement(width, height, *inner, (to_width - inner[0]) // 2, (to_height - inner[1]) // 2)


def _resize(picture_rgb: NDArray[np.uint8], placement: _Placement, contract: _Contract) -> NDArray[np.uint8]:
    size_wh = (placement.width, placement.height)
    if size_wh == (placement.picture_width, placement.picture_height):
        return picture_rgb
    if contract.antialias:
        from PIL import Image  # noqa: PLC0415  # only such models need it

        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        return np.asarray(Image.fromarray(picture_rgb).resize(size_wh, filters[contract.interpolation]))
    filter_of_opencv = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[contract.interpolation]
    return np.asarray(cv2.resize(picture_rgb, size_wh, interpolation=filter_of_opencv), np.uint8)


def _crop_or_pad(resized: NDArray[np.uint8], placement: _Placement, contract: _Contract) -> NDArray[np.uint8]:
    left, top = placement.left, placement.top
    if contract.method == "center_crop":
        return resized[-top : contract.height - top, -left : contract.width - left]
    row = np.full((contract.height, contract.width, 3), contract.fill_value, np.uint8)
    row[top : top + placement.height, left : left + placement.width] = resized
    return row


@dataclass(frozen=True)
class _Options:
    """confidence_threshold: predictions are above it. class_ids: to keep; None is all."""

    confidence_threshold: float
    iou_threshold: float
    max_detections: int
    class_ids: list[int] | None


def _options(
    contract: _Contract,
    confidence: float | None,
    iou: float | None,
    count: int | None,
    classes: Iterable[str | int] | None,
) -> _Options:
    if contract.head in _TENSOR_HEADS:
        raise ValueError(f"What a {contract.head} head answers is not read here: use preprocess and run.")
    if contract.task_type == "classification":
        if iou is not None:
            raise ValueError("iou_threshold: a classification has no boxes.")
        defaults = {**contract.top, "iou_threshold": 0.0, "max_detections": contract.top["top_k"]}
    else:
        defaults = contract.nms
        if iou is not None and not defaults["enabled"]:
            raise ValueError("iou_threshold: no boxes of this model compete.")
        if defaults["embedded"]:
            _require_within_the_graph(defaults, confidence, iou, count)
    chosen = [
        defaults[name] if asked is None else asked
        for name, asked in (
            ("confidence_threshold", confidence),
            ("iou_threshold", iou),
            ("max_detections", count),
        )
    ]
    if not (0 <= chosen[0] <= 1 and 0 <= chosen[1] <= 1 and 1 <= chosen[2] <= 1000):
        raise ValueError(f"Thresholds lie between 0 and 1 and max_detections between 1 and 1000: {chosen}.")
    ids = None if classes is None else [_class_id(contract.class_names, each) for each in classes]
    return _Options(float(chosen[0]), float(chosen[1]), int(chosen[2]), ids)


def _require_within_the_graph(
    nms: dict[str, Any], confidence: float | None, iou: float | None, count: int | None
) -> None:
    """Suppression took place in the model already: what it dropped cannot be asked for."""
    if confidence is not None and confidence < nms["confidence_threshold"]:
        raise ValueError(
            f"confidence_threshold: this model answers none below {nms['confidence_threshold']}."
        )
    if iou is not None and iou != nms["iou_threshold"]:
        raise ValueError(f"iou_threshold: it is {nms['iou_threshold']} inside this model.")
    if count is not None and count > nms["max_detections"]:
        raise ValueError(f"max_detections: this model answers {nms['max_detections']} at most.")


def _class_id(names: list[str], name_or_id: str | int) -> int:
    if name_or_id in names:
        return names.index(str(name_or_id))
    text = str(name_or_id)
    if text.isascii() and text.isdigit() and int(text) < len(names):
        return int(text)
    raise ValueError(f"The model has no class {name_or_id!r}.")


def _answer(
    contract: _Contract, rows: NDArray[np.float32], options: _Options, shape_hwc: Sequence[int]
) -> dict[str, Any]:
    if contract.task_type == "classification":
        confidence, class_id = _top(rows, options)
        boxes: list[list[float]] | None = None
    else:
        xyxy, confidence, class_id = _detect(contract, rows, options)
        boxes = _to_picture(xyxy, _place(contract, shape_hwc)).tolist()
    predictions = []
    for index, (score, number) in enumerate(zip(confidence.tolist(), class_id.tolist(), strict=True)):
        entry = {"class": contract.class_names[number], "class_id": number, "confidence": round(score, 6)}
        if boxes is not None:
            entry["bbox"] = [round(side, 3) for side in boxes[index]]
        predictions.append(entry)
    return {"predictions": predictions, "image": {"width": shape_hwc[1], "height": shape_hwc[0]}}


def _top(scores: NDArray[np.float32], options: _Options) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(C,) to the best, most confident first, of equal ones the lower class first; 0 lets all through."""
    asked = np.ones(len(scores), np.bool_) if options.class_ids is None else np.zeros(len(scores), np.bool_)
    asked[options.class_ids or []] = True
    threshold = options.confidence_threshold
    above = scores > np.float32(threshold) if threshold > 0 else scores >= 0
    chosen = (asked & above & np.isfinite(scores)).nonzero()[0]
    best = chosen[np.argsort(-scores[chosen], kind="stable")][: options.max_detections]
    return scores[best], best


Rows = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""(N, 4) xyxy in input pixels, (N,) confidence, (N,) class id."""


def _detect(contract: _Contract, rows: NDArray[np.float32], options: _Options) -> Rows:
    read = _read_raw if contract.head == "yolo_raw" else _read_end_to_end
    threshold = np.float32(options.confidence_threshold)
    xyxy, confidence, class_id = read(rows, threshold, len(contract.class_names))
    xyxy = xyxy * np.array(contract.box_unit_wh * 2, np.float32)
    stays = np.isfinite(xyxy).all(axis=1) & np.isfinite(confidence)
    if options.class_ids is not None:
        stays &= np.isin(class_id, options.class_ids)
    order = stays.nonzero()[0]
    order = order[np.argsort(-confidence[order], kind="stable")]
    xyxy, confidence, class_id = xyxy[order], confidence[order], class_id[order]
    if contract.nms["enabled"] and not contract.nms["embedded"]:
        group = class_id * (not contract.nms["class_agnostic"])
        kept = _survivors(xyxy.astype(np.float64), group, options.iou_threshold, options.max_detections)
    else:
        kept = np.arange(min(len(order), options.max_detections))
    return xyxy[kept], confidence[kept], class_id[kept]


def _read_raw(rows: NDArray[np.float32], threshold: np.float32, class_count: int) -> Rows:
    """(4 + C, A): for each anchor cx, cy, w, h, then a score for each class, of which the best counts."""
    if len(rows) != 4 + class_count:
        raise ValueError(f"The model answers rows of {len(rows)} numbers, not of 4 and {class_count} scores.")
    anchors = rows[:, rows[4:].max(axis=0) > threshold].T
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is left out
        half = anchors[:, 2:4] / 2
        xyxy = np.concatenate([anchors[:, :2] - half, anchors[:, :2] + half], axis=1)
    return xyxy, anchors[:, 4:].max(axis=1), anchors[:, 4:].argmax(axis=1)


def _read_end_to_end(rows: NDArray[np.float32], threshold: np.float32, class_count: int) -> Rows:
    """(R, 6): x_min, y_min, x_max, y_max, confidence, class."""
    named = (rows[:, 5] >= 0) & (rows[:, 5] < class_count)
    rows = rows[named & (rows[:, 4] > threshold)]
    return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)


def _survivors(
    xyxy: NDArray[np.float64], group: NDArray[np.int64], iou_threshold: float, at_most: int
) -> NDArray[np.intp]:
    """Of boxes that come best first: a box goes if one that stays overlaps it by more than the threshold."""
    sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    area = sides[:, 0] * sides[:, 1]
    kept: list[int] = []
    left = np.arange(len(xyxy))
    while len(left) and len(kept) < at_most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        shared_sides = np.minimum(xyxy[left, 2:], xyxy[best, 2:]) - np.maximum(xyxy[left, :2], xyxy[best, :2])
        shared = np.maximum(shared_sides, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which is above no threshold
            overlaps = shared / (area[best] + area[left] - shared) > iou_threshold
        left = left[~(overlaps & (group[left] == group[best]))]
    return np.array(kept, np.intp)


def _to_picture(xyxy: NDArray[np.float32], placement: _Placement) -> NDArray[np.float32]:
    """From input pixels to the picture's, each axis by its own rounded sides, clipped to the picture."""
    size = np.array([placement.picture_width, placement.picture_height] * 2, np.float32)
    inner = np.array([placement.width, placement.height] * 2, np.float64)
    pad = np.array([placement.left, placement.top] * 2, np.float32)
    scale = (inner / size).astype(np.float32)
    return np.clip((xyxy - pad) / scale, 0, size)
