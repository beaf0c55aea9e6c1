from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from ultralytics.nn import tasks
from ultralytics.utils import IterableSimpleNamespace

from export_pipeline.errors import BadInput, Unsupported
from export_pipeline.frameworks import open_checkpoint
from export_pipeline.frameworks.safe_loading import load_network
from export_pipeline.request import ExportConfig
from tests.torch.networks import draw_pictures, make_network, save_checkpoint


@pytest.fixture(scope="module")
def made() -> Any:
    return make_network("yolo11n", "classification")


@pytest.fixture
def network(made: Any) -> Any:
    """Of a classification; a test's own."""
    return copy.deepcopy(made)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that appears when something of a checkpoint's own was run."""
    return tmp_path / "it-ran"


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def evil_config(marker: Path) -> dict[str, Any]:
    """Of a network: its constructor evaluates the activation's text."""
    run = f"__import__('pathlib').Path({str(marker)!r}).touch() or __import__('torch').nn.SiLU()"
    return {
        "nc": 1,
        "activation": run,
        "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
        "head": [[[0], 1, "Detect", ["nc"]]],
    }


# torch.save writes names as Python 2 knew them.
HOSTILE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a shell command", lambda marker: Calls(os.system, f"touch {marker}"), r"refers to posix\.system"),
    (
        "a process",
        lambda marker: Calls(subprocess.call, ["touch", str(marker)]),
        r"refers to commands\.call",
    ),
    (
        "an expression",
        lambda marker: Calls(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()"),
        r"refers to builtins\.eval",
    ),
    ("a nested pickle", lambda marker: Calls(pickle.loads, evil_pickle(marker)), r"refers to pickle\.loads"),
    (
        "another checkpoint",
        lambda marker: Calls(torch.load, str(marker)),
        r"refers to torch\.serialization\.load",
    ),
    (
        "a network built from a text to evaluate",
        lambda marker: Calls(tasks.DetectionModel, evil_config(marker)),
        r"calls ultralytics\.nn\.tasks\.DetectionModel",
    ),
    (
        "a layer built",
        lambda _marker: Calls(torch.nn.Conv2d, 10**6, 10**6, 1),
        r"calls torch\.nn\.modules\.conv",
    ),
    (
        "an attribute",
        lambda _marker: Calls(getattr, "text", "format"),
        "asks for the attribute 'format' of a str",
    ),
]


def evil_pickle(marker: Path) -> bytes:
    return pickle.dumps(Calls(os.system, f"touch {marker}"))


@pytest.mark.parametrize(
    ("make", "message"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
@pytest.mark.parametrize("place", ["alone", "beside the network", "inside the network"])
def test_nothing_of_a_hostile_checkpoint_is_run(
    make: Callable[[Path], Any], message: str, place: str, *, network: Any, marker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    evil = make(marker)
    if place == "alone":
        torch.save(evil, path)
    elif place == "inside the network":
        network.args = {"data": evil}
        save_checkpoint(path, network)
    else:
        save_checkpoint(path, network, train_args=evil)
    with pytest.raises(BadInput, match=rf"The checkpoint best\.pt {message}"):
        open_checkpoint(path)
    assert not marker.exists()


def test_these_attacks_work_on_a_loader_that_trusts(marker: Path, tmp_path: Path) -> None:
    torch.save(Calls(os.system, f"touch {marker}"), tmp_path / "best.pt")
    torch.load(tmp_path / "best.pt", weights_only=False)
    assert marker.exists()


def test_a_list_of_allowed_classes_alone_would_not_do(marker: Path, tmp_path: Path) -> None:
    torch.save(Calls(tasks.DetectionModel, evil_config(marker)), tmp_path / "best.pt")
    with torch.serialization.safe_globals([tasks.DetectionModel]):
        torch.load(tmp_path / "best.pt", weights_only=True)
    assert marker.exists()


def archive(path: Path, program: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file such as torch.save writes, around a pickle written by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        for key, content in (records or {}).items():
            file.writestr(f"archive/data/{key}", content)
        file.writestr("archive/version", "3\n")
    return path


def plain(value: Any) -> bytes:
    """Opcodes that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


IDENTITY = b"ctorch.nn.modules.linear\nIdentity\n"
NETWORK = b"cultralytics.nn.tasks\nDetectionModel\n"
STORAGE = b"ctorch\nFloatStorage\n"


def two_builds(marker: Path) -> bytes:
    """An empty layer is given a class for its `__setstate__`, then a state."""
    hide = b"}" + plain("__setstate__") + NETWORK + b"s"
    return b"\x80\x02" + IDENTITY + b")\x81" + hide + b"b" + plain(evil_config(marker)) + b"b."


def hidden_append(marker: Path) -> bytes:
    hide = b"}" + plain("append") + NETWORK + b"s"
    return b"\x80\x02" + IDENTITY + b")\x81" + hide + b"b" + plain(evil_config(marker)) + b"a."


def hidden_method(_marker: Path) -> bytes:
    """A layer that would be called instead of `fuse` or `float`."""
    layer = IDENTITY + b")\x81"
    return b"\x80\x02" + layer + b"}" + plain("float") + layer + b"sb."


def tensor(storage: bytes) -> bytes:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return b"\x80\x02" + rebuild + b"(" + storage + b"K\x00" + plain((100,)) + plain((1,)) + b"\x89N" + b"tR."


def storage_of(count: int) -> bytes:
    return b"(" + plain("storage") + STORAGE + plain("0") + plain("cpu") + plain(count) + b"tQ"


BY_HAND: list[tuple[str, Callable[[Path], bytes], str]] = [
    ("a class as __setstate__", two_builds, "it holds a Identity"),
    ("a class as append", hidden_append, "fills a Identity as if it were a list"),
    ("a layer as a method", hidden_method, r"hides Identity\.float"),
    (
        "INST",
        lambda marker: b"(" + plain(f"touch {marker}") + b"ios\nsystem\n.",
        "in a way that torch.save does not",
    ),
    ("OBJ", lambda marker: b"(cos\nsystem\n" + plain(f"touch {marker}") + b"o.", r"refers to os\.system"),
    ("an extension code", lambda _marker: b"\x80\x02\x82\x01.", "in a way that torch.save does not"),
    ("a text id", lambda _marker: b"Psomething\n.", "in a way that torch.save does not"),
    (
        "arguments to __new__",
        lambda _marker: b"\x80\x02" + IDENTITY + plain((1,)) + b"\x81.",
        "out of arguments",
    ),
    ("a call of a text", lambda _marker: b"\x80\x02" + plain("text") + b")R.", "calls a str"),
    ("a longer tensor than its record", lambda _marker: tensor(storage_of(100)), "not as long as its record"),
    ("a longer tensor than its storage", lambda _marker: tensor(storage_of(4)), "is damaged: RuntimeError"),
    ("no storage", lambda _marker: tensor(plain("text")), "is damaged"),
    ("an endless pickle", lambda _marker: b"\x80\x02]", "is damaged: EOFError"),
    ("an unknown opcode", lambda _marker: b"\x80\x02\xff.", "is damaged"),
]


@pytest.mark.parametrize(
    ("program", "message"), [case[1:] for case in BY_HAND], ids=[case[0] for case in BY_HAND]
)
def test_pickles_written_by_hand_get_no_further(
    program: Callable[[Path], bytes], message: str, marker: Path, tmp_path: Path
) -> None:
    path = archive(tmp_path / "best.pt", program(marker), {"0": bytes(16)})
    with pytest.raises(BadInput, match=message):
        load_network(path)
    assert not marker.exists()


def test_an_attribute_of_a_name_stays_as_inert_as_the_name(network: Any, tmp_path: Path) -> None:
    network.old_ways = Calls(getattr, tasks.ClassificationModel, "forward")
    loaded, _ = load_network(save_checkpoint(tmp_path / "best.pt", network))
    assert not callable(loaded.old_ways)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "content")
    return buffer.getvalue()


def scripted() -> bytes:
    return zipped("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py")


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def state_dict() -> dict[str, Any]:
    return dict(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).state_dict())


OTHER_FILES: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty", lambda: b"", "is empty"),
    ("text", lambda: b"<html>Not found</html>\n", "not an Ultralytics checkpoint: it is text"),
    ("JSON", lambda: b'{"error": "not found"}', "not an Ultralytics checkpoint: it is text"),
    ("a picture", lambda: b"\xff\xd8\xff\xe0" + bytes(100), r"torch\.save did not write it"),
    ("a bare pickle", lambda: pickle.dumps({"model": 1}), "it is a bare pickle"),
    ("safetensors", safetensors, "it is a safetensors file, which holds weights without a network"),
    ("a zip of something else", lambda: zipped("readme.txt"), "there is no data.pkl in it"),
    ("an Excel sheet", lambda: zipped("xl/workbook.xml"), "there is no data.pkl in it"),
    ("TorchScript", scripted, "is a TorchScript archive"),
    ("truncated", lambda: saved(state_dict())[:-200], "is cut short or damaged"),
    ("a state_dict", lambda: saved(torch.nn.Conv2d(3, 4, 1).state_dict()), "weights without a network"),
    (
        "weights in a dictionary",
        lambda: saved({"epoch": 3, "model": state_dict()}),
        "weights without a network",
    ),
    ("timm's", lambda: saved({"epoch": 1, "arch": "vit", "state_dict": state_dict()}), "it holds no network"),
    ("a list", lambda: saved([1, 2]), "it holds a list"),
    ("a tensor", lambda: saved(torch.zeros(3)), "it holds a Tensor"),
    ("nothing", lambda: saved({}), "it holds no network"),
    ("some layer", lambda: saved({"model": torch.nn.Linear(1, 1)}), "it holds no network"),
    (
        "torchvision's",
        lambda: saved(torchvision.models.resnet18()),
        r"refers to torchvision\.models\.resnet\.ResNet, which no model needs",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in OTHER_FILES], ids=[case[0] for case in OTHER_FILES]
)
def test_another_file_is_called_by_its_name(
    content: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content())
    with pytest.raises(BadInput, match=message) as caught:
        open_checkpoint(path)
    assert "best.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_the_weights_is_found(network: Any, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "best.pt", network)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"best\.pt is damaged: .* does not match its checksum"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_without_a_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none.pt"
    message = "is a folder" if kind == "folder" else "does not exist"
    with pytest.raises(BadInput, match=message):
        open_checkpoint(path)


def test_a_network_that_is_not_exported_yet_is_unsupported(tmp_path: Path) -> None:
    torch.save({"model": Named("ultralytics.nn.tasks", "WorldModel")}, tmp_path / "best.pt")
    with pytest.raises(Unsupported, match="no exporter for Ultralytics' WorldModel yet"):
        open_checkpoint(tmp_path / "best.pt")


class Named:
    """Pickles as the making of an empty object of this class."""

    def __init__(self, module: str, name: str) -> None:
        self._name = module, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr(__import__(self._name[0], fromlist=["x"]), self._name[1]), ()


def test_what_training_leaves_behind_does_no_harm(tmp_path: Path) -> None:
    """Optimiser, moving average, losses, paths, numpy's scalars: none of it is made, the network is."""
    network = make_network("yolo11n", "detection")
    network.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, tal_topk=10)
    network.criterion = network.init_criterion()
    for parameter in network.parameters():
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(network.parameters())
    network.train()(torch.rand(2, 3, 64, 64))["scores"].sum().backward()
    optimizer.step()
    path = save_checkpoint(
        tmp_path / "last.pt",
        None,
        ema=network.eval(),
        epoch=3,
        best_fitness=np.float64(0.5),
        optimizer=optimizer.state_dict(),
        train_args={"imgsz": 96, "project": Path("runs"), "data": PurePosixPath("coco8.yaml"), "amp": {1, 2}},
        train_metrics={"fitness": np.float32(0.5), "per_class": np.zeros(3)},
        notes=OrderedDict(a=torch.Size([1, 2]), b=torch.float16, c=torch.device("cpu")),
    )
    opened = open_checkpoint(path)
    assert opened.facts.trained_size_wh == (96, 96)
    assert opened.facts.class_names == ("cat", "dog", "fox")
    expected = network.eval()(torch.zeros(1, 3, 64, 64))[0].detach().numpy()
    config = ExportConfig(imgsz=(64, 64), embed_preprocessing=False)
    (found,) = opened.raw_outputs(config, np.zeros((1, 3, 64, 64), np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_that_was_saved_fused_is_opened(tmp_path: Path) -> None:
    network = make_network("yolov8n", "detection")
    whole = open_checkpoint(save_checkpoint(tmp_path / "whole.pt", network))
    config, batch = ExportConfig(imgsz=(64, 64)), draw_pictures(1, (64, 64), 0)
    expected = whole.raw_outputs(config, batch)
    fused = open_checkpoint(save_checkpoint(tmp_path / "fused.pt", network.fuse(verbose=False)))
    np.testing.assert_allclose(fused.raw_outputs(config, batch)[0], expected[0], rtol=0, atol=1e-3)
