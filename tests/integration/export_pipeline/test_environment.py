"""A real uv builds real environments, of one tiny wheel each."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipeline import environment
from export_pipeline.environment import Recipe, ensure_environment
from export_pipeline.errors import BadInput, ExportError
from tests.support.waiting import eventually

ASK = "import tiny, export_pipeline.errors; print(tiny.__version__, export_pipeline.__file__)"


def tiny_wheel(folder: Path, version: str) -> str:
    """A requirement that needs no index."""
    folder.mkdir(exist_ok=True)
    wheel = folder / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"tiny @ {wheel.as_uri()}"


def ask(python: Path) -> list[str]:
    answer = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, check=True, timeout=30)
    return answer.stdout.split()


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def ensure(version: str = "1.0", say: Callable[[str], None] = lambda _line: None, **recipe: str) -> Path:
        requirement = recipe.get("requirement") or tiny_wheel(tmp_path / "wheels", version)
        constraints = recipe.get("constraints", "")
        return ensure_environment(say, folder=tmp_path / "env", recipe=Recipe((requirement,), constraints))

    return ensure


def test_it_holds_what_is_required_and_this_package_alone(build: Build) -> None:
    said: list[str] = []

    python = build("1.0", said.append)

    version, package = ask(python)
    assert version == "1.0"
    assert Path(package).parent.is_relative_to(python.parents[1])
    site_packages = Path(package).parents[1]
    installed = {path.name for path in site_packages.iterdir() if not path.name.startswith("_")}
    assert installed == {"tiny.py", "tiny-1.0.dist-info", "export_pipeline"}
    assert any(site_packages.glob("__pycache__/tiny.*.pyc"))
    assert "tiny" in said[0]
    assert any("Installed 1 package" in line for line in said)


def test_one_that_is_up_to_date_is_left_alone(build: Build) -> None:
    python = build()
    said: list[str] = []

    assert build("1.0", said.append) == python
    assert said == []


def test_changed_requirements_build_anew(build: Build) -> None:
    stray = build("1.0").parents[1] / "stray"
    stray.touch()

    assert ask(build("2.0"))[0] == "2.0"
    assert not stray.exists()


def test_a_build_that_was_killed_goes_on(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(arguments: list[str], *rest: object) -> None:
        if "install" in arguments:
            raise KeyboardInterrupt
        run(arguments, *rest)

    run: Callable[..., None] = environment._uv
    monkeypatch.setattr(environment, "_uv", killed)
    with pytest.raises(KeyboardInterrupt):
        build()
    monkeypatch.setattr(environment, "_uv", run)

    assert ask(build())[0] == "1.0"


def test_what_the_installer_cannot_do_is_quoted(build: Build, tmp_path: Path) -> None:
    missing = (tmp_path / "missing-1.0-py3-none-any.whl").as_uri()

    with pytest.raises(ExportError, match=r"uv ended with \d+:\n(.*\n)*.*missing"):
        build(requirement=f"missing @ {missing}")

    assert ask(build())[0] == "1.0"


def test_it_takes_no_longer_than_it_may(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "INSTALL_SECONDS", 0.0)

    with pytest.raises(ExportError, match="uv ended with -9"):
        build()


@pytest.mark.parametrize("content", ["a_file.txt", "pyvenv.cfg"])
def test_a_folder_that_it_did_not_make_is_left_alone(content: str, build: Build, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / content).touch()

    with pytest.raises(BadInput, match="was not made by visiongate-export"):
        build()

    assert [path.name for path in (tmp_path / "env").iterdir()] == [content]


def test_without_uv_it_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(ExportError, match=r"takes uv: `pip install 'visiongate\[local\]'`"):
        build()


def test_of_two_at_once_one_builds(build: Build) -> None:
    said: list[list[str]] = [[], []]
    may_install = threading.Event()

    def say_slowly(line: str) -> None:
        said[0].append(line)
        may_install.wait(20)

    first = threading.Thread(target=build, args=("1.0", say_slowly))
    second = threading.Thread(target=build, args=("1.0", said[1].append))
    first.start()
    assert eventually(lambda: bool(said[0]))
    second.start()
    assert eventually(lambda: bool(said[1]))
    may_install.set()
    first.join(60)
    second.join(60)

    assert said[1] == ["Waiting for another process that builds the export environment …"]
    assert ask(build())[0] == "1.0"


def test_the_python_is_this_one(build: Build) -> None:
    command: list[str | Path] = [build(), "-c", "import sys; print(sys.version, sys.base_prefix)"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)

    assert answer.stdout.rstrip() == f"{sys.version} {sys.base_prefix}"
