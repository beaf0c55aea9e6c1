"""From an Ultralytics checkpoint file to its network, or to one sentence on what else the file is."""

from __future__ import annotations

import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from export_pipeline.errors import BadInput, Unsupported, reading
from export_pipeline.frameworks.strict_pickle import NETWORKS, Refused, StrictUnpickler


def load_network(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network, and what else the checkpoint holds beside it, by name.

    Raises BadInput where the file is no such checkpoint, is damaged, or asks for more than its data;
    Unsupported for one of Ultralytics' networks that is not exported here.
    """
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path.name} is not an Ultralytics checkpoint: it holds a {type(content).__name__}.")
    network = content.get("ema") if content.get("ema") is not None else content.get("model")
    if isinstance(network, torch.nn.Module) and type(network).__name__ in NETWORKS:
        return network, {key: value for key, value in content.items() if isinstance(key, str)}
    if any(isinstance(value, torch.Tensor) for value in content.values()) or _is_weights(network):
        raise BadInput(
            f"{path.name} holds weights without a network (a state_dict, as timm and torchvision save it); "
            "an Ultralytics checkpoint holds its network, too."
        )
    raise BadInput(f"{path.name} is a PyTorch file, but not an Ultralytics checkpoint: it holds no network.")


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, torch.Tensor) for entry in value.values())


def _unpickle(path: Path) -> Any:
    record_bytes = _record_bytes(path)

    class Unpickler(StrictUnpickler):
        records = record_bytes

    strict = types.SimpleNamespace(__name__=StrictUnpickler.__module__, Unpickler=Unpickler)
    try:
        # `weights_only` would bring torch's own unpickler: `strict_pickle` says what it lets through.
        return torch.load(path, "cpu", pickle_module=strict, weights_only=False)
    except Refused as exc:
        raise BadInput(f"The checkpoint {path.name} {exc}") from exc
    except Unsupported:
        raise
    except Exception as exc:  # whatever torch and pickle say of bytes that make no sense
        what = str(exc).partition("\n")[0]
        raise BadInput(f"The checkpoint {path.name} is damaged: {type(exc).__name__}: {what}") from exc


def _record_bytes(path: Path) -> dict[str, int]:
    """The size of each tensor's record, by its key. Raises BadInput for what torch.save does not write."""
    with reading(path, "the checkpoint"), path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise BadInput(f"The checkpoint {path.name} is empty.")
    if not head.startswith(b"PK"):
        raise BadInput(f"{path.name} is not an Ultralytics checkpoint: {_what_else(head)}.")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            spoilt = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, ValueError) as exc:
        raise BadInput(f"The checkpoint {path.name} is cut short or damaged: {exc}.") from exc
    if spoilt is not None:
        raise BadInput(f"The checkpoint {path.name} is damaged: {spoilt} does not match its checksum.")
    pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadInput(f"{path.name} is a zip archive, but not a checkpoint: there is no data.pkl in it.")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in sizes:
        raise BadInput(f"{path.name} is a TorchScript archive: export from the checkpoint it was made of.")
    folder = f"{root}data/"
    return {name.removeprefix(folder): size for name, size in sizes.items() if name.startswith(folder)}


def _what_else(head: bytes) -> str:
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header_bytes <= 100 * 1024**2:
        return "it is a safetensors file, which holds weights without a network"
    if head.startswith(b"\x80"):
        return "it is a bare pickle, as torch before 1.6 and other programs write it"
    if head.isascii() and b"\0" not in head:
        return "it is text"
    return "torch.save did not write it"
