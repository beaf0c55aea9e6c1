from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from serving.errors import OperatorError
from serving.triton.installation import Installation

NATIVE = "backends/onnxruntime/libtriton_onnxruntime.so"
PYTHON = "backends/python/libtriton_python.so"


def install(root: Path, *files: str) -> Path:
    for name in ("bin/tritonserver", *files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "bin" / "tritonserver").chmod(0o755)
    return root / "bin" / "tritonserver"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The wheel's, whatever lies on the PATH of this machine."""
    monkeypatch.setenv("PATH", "")
    return Installation.find()


def install_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch, *, cuda: bool) -> None:
    """In place of the one that is installed: one that can use a GPU, or cannot."""
    (folder / "capi").mkdir(parents=True)
    if cuda:
        (folder / "capi" / "libonnxruntime_providers_cuda.so").touch()
    package = ModuleSpec("onnxruntime", None, is_package=True)
    package.submodule_search_locations = [str(folder)]
    monkeypatch.setattr("importlib.util.find_spec", {"onnxruntime": package}.get)


def test_one_that_is_named_wins_over_path_and_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, on_path = install(tmp_path / "named"), install(tmp_path / "on_path")
    monkeypatch.setenv("PATH", str(on_path.parent))

    assert Installation.find(named).executable == named
    assert Installation.find().executable == on_path


def test_without_another_the_wheel_is_found(wheel: Installation) -> None:
    assert wheel.is_wheel
    assert wheel.executable.parts[-4:] == ("pytriton", "tritonserver", "bin", "tritonserver")


def test_with_none_at_all_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(OperatorError, match=r"Install visiongate\[local\]"):
        Installation.find()


@pytest.mark.parametrize("name", ["absent", ".", "not_executable"])
def test_one_that_cannot_be_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "not_executable").touch(mode=0o644)

    with pytest.raises(OperatorError, match="is not a tritonserver"):
        Installation.find(tmp_path / name)


def test_a_native_onnxruntime_is_left_alone(tmp_path: Path) -> None:
    installation = Installation(install(tmp_path / "triton", NATIVE, PYTHON))

    assert installation.backend_directory(tmp_path / "ours") == tmp_path / "triton" / "backends"
    assert not (tmp_path / "ours").exists()


def test_ours_is_put_beside_the_backends_of_a_server_that_has_none(tmp_path: Path) -> None:
    installation = Installation(
        install(tmp_path / "triton", PYTHON, "backends/tensorrt/libtriton_tensorrt.so")
    )

    backends = installation.backend_directory(tmp_path / "ours")

    assert sorted(path.name for path in backends.iterdir()) == ["onnxruntime", "python", "tensorrt"]
    assert (backends / "python").resolve() == tmp_path / "triton" / "backends" / "python"
    assert [path.name for path in (backends / "onnxruntime").iterdir()] == ["model.py"]
    assert sorted(path.name for path in (tmp_path / "triton" / "backends").iterdir()) == [
        "python",
        "tensorrt",
    ]


def test_a_server_that_cannot_run_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="neither an onnxruntime nor a Python backend"):
        Installation(install(tmp_path / "triton")).backend_directory(tmp_path / "ours")


def test_somebody_elses_onnxruntime_is_not_overwritten(tmp_path: Path) -> None:
    installation = Installation(install(tmp_path / "triton", PYTHON, "backends/onnxruntime/model.py"))

    with pytest.raises(OperatorError, match="not NVIDIA's backend"):
        installation.backend_directory(tmp_path / "ours")


def test_the_wheel_gets_its_stub_and_ours(wheel: Installation, tmp_path: Path) -> None:
    backends = wheel.backend_directory(tmp_path / "ours")

    assert (backends / "onnxruntime" / "model.py").is_file()
    assert os.access(backends / "python" / "triton_python_backend_stub", os.X_OK)


def test_the_environment_has_our_python_first_and_none_of_our_settings(
    wheel: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONGATE_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    monkeypatch.setenv("PATH", "/its/path")

    env = wheel.environment()

    assert env["ORT_DISABLE_TELEMETRY"] == "1"
    assert "secret" not in env.values()
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/its/path"]
    assert "nvidia_pytriton.libs" in env["LD_LIBRARY_PATH"].split(os.pathsep)[0]
    assert env["LD_LIBRARY_PATH"].split(os.pathsep)[-1] == "/elsewhere"


@pytest.mark.parametrize(("cuda", "visible"), [(False, ""), (True, "0,1")])
def test_gpus_are_hidden_from_a_wheel_whose_onnxruntime_cannot_use_them(
    wheel: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool, visible: str
) -> None:
    install_onnxruntime(tmp_path / "onnxruntime", monkeypatch, cuda=cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    assert wheel.environment()["CUDA_VISIBLE_DEVICES"] == visible


def test_another_servers_environment_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/its/path")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    env = Installation(install(tmp_path / "triton", NATIVE)).environment()

    assert env["PATH"] == "/its/path"
    assert "CUDA_VISIBLE_DEVICES" not in env


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("", False),
        ("--allow-grpc", True),
        ("--allow-gr", False),  # the beginning of one
        ("--allow-client-shm", False),  # younger than this server
    ],
)
def test_the_wheels_server_knows_the_options_of_its_help(
    wheel: Installation, option: str, known: bool
) -> None:
    assert wheel.knows(option) is known


def test_a_server_that_cannot_even_tell_its_options_is_an_operator_error(tmp_path: Path) -> None:
    not_a_program = install(tmp_path / "triton")
    not_a_program.write_text("no #! and no ELF header")

    with pytest.raises(OperatorError, match="cannot be run"):
        Installation(not_a_program).knows("--allow-grpc")
