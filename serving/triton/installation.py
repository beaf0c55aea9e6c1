"""Where a tritonserver lies, and what it needs to run models that say `backend: "onnxruntime"`.

::

    <root>/bin/tritonserver
    <root>/backends/onnxruntime/libtriton_onnxruntime.so          NVIDIA's container: nothing to add
    <root>/backends/python/…                                      the wheel: our Python-based onnxruntime
    <root>/python_backend_stubs/<Python version>/…                backend is put beside its Python backend
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from serving.errors import OperatorError

_OUR_BACKEND = Path(__file__).parent / "backends" / "onnxruntime"
_STUB = "triton_python_backend_stub"
_TRIAL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver and what lies around it. `executable` is an absolute path without links."""

    executable: Path

    @classmethod
    def find(cls, executable: Path | None = None) -> Installation:
        """The one named, else the one on PATH, else the wheel's. Raises OperatorError where there is none."""
        found = str(executable) if executable is not None else shutil.which("tritonserver") or _in_wheel()
        if found is None:
            raise OperatorError(
                "There is no tritonserver: not on PATH, and nvidia-pytriton is not installed. "
                "Install visiongate[local], or give the address of a Triton that runs already."
            )
        if not os.access(found, os.X_OK) or not Path(found).is_file():
            raise OperatorError(f"{found} is not a tritonserver that can be run.")
        return cls(Path(found).resolve())

    @property
    def root(self) -> Path:
        return self.executable.parent.parent

    @property
    def backends(self) -> Path:
        return self.root / "backends"

    @property
    def has_native_onnxruntime(self) -> bool:
        return (self.backends / "onnxruntime" / "libtriton_onnxruntime.so").is_file()

    @property
    def python_stub(self) -> Path:
        """The wheel's process for Python models, for the Python that runs us."""
        return self.root / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / _STUB

    @property
    def is_wheel(self) -> bool:
        return self.python_stub.parent.parent.is_dir()

    def backend_directory(self, folder: Path) -> Path:
        """The folder to give to Triton: its own where that is complete, else one that is put together here.

        Raises OperatorError where our backend could not run in it.
        """
        if self.has_native_onnxruntime:
            return self.backends
        if (self.backends / "onnxruntime").exists():
            raise OperatorError(f"{self.backends / 'onnxruntime'} is there, but is not NVIDIA's backend.")
        if not (self.backends / "python" / "libtriton_python.so").is_file():
            raise OperatorError(f"{self.executable} has neither an onnxruntime nor a Python backend.")
        if self.is_wheel:
            # A copy: the stub is missing, and Triton refuses a library that a link leads out of its folder.
            shutil.copytree(self.backends, folder)
            self._add_stub(folder / "python" / _STUB)
        else:
            folder.mkdir()
            for backend in self.backends.iterdir():
                (folder / backend.name).symlink_to(backend)
        shutil.copytree(_OUR_BACKEND, folder / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__"))
        return folder

    def environment(self) -> dict[str, str]:
        """Our own environment without our own settings, secrets among them, and with what the wheel lacks."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("VISIONGATE_")}
        # ONNX Runtime's Linux builds report the models they load to their maker unless told not to.
        env["ORT_DISABLE_TELEMETRY"] = "1"
        if not self.is_wheel:
            return env
        # The stub embeds the `python3` that it finds first, and so finds that one's packages.
        env["PATH"] = _joined(str(Path(sys.executable).parent), env.get("PATH"))
        libraries = [self.root.parent.parent / "nvidia_pytriton.libs", *_libpython_folder()]
        env["LD_LIBRARY_PATH"] = _joined(*map(str, libraries), env.get("LD_LIBRARY_PATH"))
        if not _onnxruntime_has_cuda():
            # Nothing else in the wheel can use a GPU. KIND_AUTO then means the CPU instead of a failed load.
            env["CUDA_VISIBLE_DEVICES"] = ""
        return env

    def knows(self, option: str) -> bool:
        """Whether this tritonserver has a command-line option, by its own help. One it lacks would end it."""
        try:
            told = subprocess.run(  # noqa: S603 - the server that is to be started
                [self.executable, "--help"],
                env=self.environment(),
                capture_output=True,
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise OperatorError(f"{self.executable} cannot be run: {exc}.") from exc
        return option.encode() in (told.stdout + told.stderr).split()

    def _add_stub(self, target: Path) -> None:
        if not self.python_stub.is_file():
            raise OperatorError(
                f"nvidia-pytriton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}."
            )
        shutil.copy(self.python_stub, target)
        self._try_stub(target)

    def _try_stub(self, stub: Path) -> None:
        """Without arguments it ends with status 1; where it cannot run, say why, which Triton would not."""
        try:
            trial = subprocess.run(  # noqa: S603 - a file that we have just put there
                [stub], env=self.environment(), capture_output=True, timeout=_TRIAL_SECONDS, check=False
            )
        except OSError as exc:
            raise OperatorError(
                f"{stub} cannot be run ({exc.strerror}): is its file system mounted noexec?"
            ) from exc
        if trial.returncode != 1:
            raise OperatorError(
                f"Triton's Python stub does not start: {trial.stderr.decode(errors='replace').strip()}. "
                "It needs a Python with a shared libpython."
            )


def _in_wheel() -> str | None:
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        return None
    return str(Path(package.submodule_search_locations[0], "tritonserver", "bin", "tritonserver"))


def _joined(*parts: str | None) -> str:
    return os.pathsep.join(part for part in parts if part)


def _libpython_folder() -> list[Path]:
    """The folder of this Python's shared library: the machine may have another patch version of it."""
    folder = Path(sys.base_prefix, "lib")
    name = sysconfig.get_config_var("INSTSONAME")
    return [folder] if name and (folder / name).is_file() else []


def _onnxruntime_has_cuda() -> bool:
    package = importlib.util.find_spec("onnxruntime")
    folders = package.submodule_search_locations if package is not None else None
    return any(Path(folder, "capi", "libonnxruntime_providers_cuda.so").is_file() for folder in folders or ())
