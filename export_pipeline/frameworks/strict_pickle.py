"""An unpickler for networks that never runs anything of the file's own.

A pickle is a program: it names functions and says what to call them with. Allowing "safe classes" by name, as
`torch.load(weights_only=True)` with `safe_globals` does, is not enough for networks: a constructor may be
called (`DetectionModel(cfg)` evaluates text out of `cfg`), a class may be hung on an object as its
`__setstate__` or `append`, and be called by the next opcode. So here a pickle never gets what it names:

* A name becomes a `_Reference`, which cannot be called. A name that is not expected ends the reading.
* A network's class is only ever made empty (`cls.__new__(cls)`) and given its attributes; nothing callable
  among them may hide a method. Its classes are those of torch.nn and ultralytics.nn that were imported before
  the file was opened; the file imports nothing.
* Called are the functions of `_FUNCTIONS` alone: they make tensors, plain containers, and an object's own
  `forward` bound to it.
* Everything else a training run leaves behind (losses, paths, numpy scalars, transforms) becomes a `Remnant`:
  its name, arguments and state, as data. No code of it is imported.
* Lists, dictionaries and sets are filled only where they are exactly that.

What remains is a network of well-known layers with numbers, texts and other layers for attributes.
"""

from __future__ import annotations

import collections
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import ultralytics.nn.tasks as networks

from export_pipeline.errors import Unsupported

NETWORKS: Final = ("DetectionModel", "ClassificationModel", "SegmentationModel", "PoseModel", "OBBModel")
_LAYERS: Final = ("torch.nn.modules", "ultralytics.nn.modules")
_REMNANT_MODULES: Final = ("ultralytics.utils.loss", "ultralytics.utils.tal", "ultralytics.yolo.utils.loss")
_REMNANTS: Final = frozenset(
    f"{module}.{name}"
    for modules, names in (
        (("_codecs",), ("encode",)),
        (("builtins",), ("dict",)),
        (("collections",), ("defaultdict",)),
        (("numpy",), ("dtype", "ndarray")),
        (("numpy.core.multiarray", "numpy._core.multiarray"), ("scalar", "_reconstruct")),
        (("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        (("torch",), ("bfloat16", "device", "float16", "float32", "float64", "int64")),
        (("torchvision.transforms.functional",), ("InterpolationMode",)),
        (
            ("torchvision.transforms.transforms",),
            ("CenterCrop", "Compose", "Normalize", "Resize", "ToTensor"),
        ),
        (("ultralytics.utils", "ultralytics.yolo.utils"), ("IterableSimpleNamespace",)),
    )
    for module in modules
    for name in names
)


class Refused(Exception):
    """A pickle that asks for more than the data of a network. `str()` goes on after "The checkpoint"."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a pickle named: a layer to be made empty, a function of ours, or (neither) a remnant."""

    name: str
    layer: type[torch.nn.Module] | None = None
    function: Callable[..., Any] | None = None


@dataclass(slots=True, eq=False)
class Remnant:
    """Some object of the training run, not made, only described."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def _reference(module: str, name: str) -> _Reference:
    """Raises Refused, Unsupported."""
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in _FUNCTIONS:
        return _Reference(full, function=_FUNCTIONS[full])
    if full in _REMNANTS or module in _REMNANT_MODULES:
        return _Reference(full)
    layer = _layer(module, name)
    if layer is not None:
        return _Reference(full, layer=layer)
    if module == networks.__name__ and isinstance(getattr(networks, name, None), type):
        raise Unsupported(
            f"There is no exporter for Ultralytics' {name} yet; there is one for {', '.join(NETWORKS)}."
        )
    raise Refused(f"refers to {full}, which no model needs. Nothing of it was run.")


def _layer(module: str, name: str) -> type[torch.nn.Module] | None:
    if module == networks.__name__:
        return getattr(networks, name) if name in NETWORKS else None
    if not any(module == root or module.startswith(f"{root}.") for root in _LAYERS):
        return None
    found = getattr(sys.modules.get(module), name, None)
    is_layer = isinstance(found, type) and issubclass(found, torch.nn.Module)
    return found if is_layer and found.__module__.startswith(_LAYERS) else None


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """Without gradient and without hooks. torch itself refuses a size beyond the storage."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: torch.Tensor, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad=False)


def _attribute(owner: object, name: str) -> Any:
    """`getattr` of a pickle: a fused layer's `forward`. Of a name, it is as inert as the name."""
    if isinstance(owner, torch.nn.Module) and name in {"forward", "forward_fuse"}:
        return getattr(type(owner), name).__get__(owner)
    if isinstance(owner, _Reference):
        return Remnant(f"{owner.name}.{name}", ())
    raise Refused(f"asks for the attribute {name!r} of a {type(owner).__name__}, which no model needs.")


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": torch.Size,
    "collections.OrderedDict": collections.OrderedDict,
    "builtins.set": set,
    "builtins.getattr": _attribute,
}


def _set_attributes(layer: torch.nn.Module, state: dict[Any, Any]) -> None:
    for name, value in state.items():
        if not isinstance(name, str):
            raise Refused(f"sets an attribute {name!r}, which is not a name.")
        if name != "forward" and callable(value) and callable(getattr(type(layer), name, None)):
            raise Refused(f"hides {type(layer).__name__}.{name}, which no model needs.")
    type(layer).__setstate__(layer, state)


class StrictUnpickler(pickle._Unpickler):
    """Python's own, in Python, with each opcode that runs something replaced.

    records: size in bytes of each tensor's record in the archive, by its key.
    """

    records: ClassVar[dict[str, int]] = {}
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        return _reference(module, name)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        reference = self._reference_below(arguments)
        if reference.layer is not None:
            raise Refused(f"calls {reference.name}, which no model needs. Nothing of it was run.")
        make = reference.function
        self.stack.append(Remnant(reference.name, arguments) if make is None else make(*arguments))

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        reference = self._reference_below(arguments)
        if reference.function is not None or (reference.layer is not None and arguments):
            raise Refused(f"makes a {reference.name} out of arguments, which no model needs.")
        layer: Any = reference.layer
        self.stack.append(Remnant(reference.name, arguments) if layer is None else layer.__new__(layer))

    def _reference_below(self, arguments: object) -> _Reference:
        reference = self.stack.pop()
        if not isinstance(reference, _Reference) or not isinstance(arguments, tuple):
            raise Refused(f"calls a {type(reference).__name__}, which no model needs.")
        return reference

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Remnant):
            target.state = state
        elif isinstance(target, torch.nn.Module) and isinstance(state, dict):
            _set_attributes(target, state)
        elif not isinstance(target, collections.OrderedDict):  # a state_dict's notes on itself; not needed
            raise Refused(f"sets the state of a {type(target).__name__}, which no model needs.")

    def load_append(self) -> None:
        value = self.stack.pop()
        self._fill(list, lambda target: target.append(value))

    def load_appends(self) -> None:
        values = self.pop_mark()
        self._fill(list, lambda target: target.extend(values))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, lambda target: target.update({key: value}))

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(dict, lambda target: target.update(zip(items[::2], items[1::2], strict=True)))

    def load_additems(self) -> None:
        values = self.pop_mark()
        self._fill(set, lambda target: target.update(values))

    def _fill(self, kind: type, fill: Callable[[Any], None]) -> None:
        target = self.stack[-1]
        if type(target) is kind or (kind is dict and type(target) is collections.OrderedDict):
            fill(target)
        elif not isinstance(target, Remnant):
            raise Refused(f"fills a {type(target).__name__} as if it were a {kind.__name__}.")

    def load_binpersid(self) -> None:
        """A tensor's storage. torch does not compare the length that is asked for with what there is."""
        match self.stack.pop():
            case ("storage", kind, str(key), str(), int(count)) as wanted if self._holds(kind, key, count):
                self.stack.append(self.persistent_load(wanted))
            case _:
                raise Refused("holds a tensor that is not as long as its record.")

    def _holds(self, kind: object, key: str, count: int) -> bool:
        dtype = getattr(kind, "dtype", None)
        return isinstance(dtype, torch.dtype) and self.records.get(key) == count * dtype.itemsize

    def refuse(self) -> None:
        raise Refused("is pickled in a way that torch.save does not use.")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.BINPERSID[0]: load_binpersid,
        **dict.fromkeys((pickle.PERSID[0], pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ_EX[0]), refuse),
        **dict.fromkeys((pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]), refuse),
        **dict.fromkeys((pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0]), refuse),
    }
