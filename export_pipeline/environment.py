"""The export environment: torch and Ultralytics, apart from the gateway's own packages, built on first use.

It holds the requirements of the extra `export`, within constraints.txt beside this file, and one thing of
ours: a link to the package `export_pipeline`. A build that was killed goes on; changed requirements build it
anew; where nothing has changed it costs a millisecond. Of several processes that need it at once, one builds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import export_pipeline
from export_pipeline.errors import BadInput, ExportError, writing

FOLDER_VARIABLE: Final = "VISIONGATE_EXPORT_ENVIRONMENT"
DISTRIBUTION: Final = "visiongate"
INSTALL_SECONDS: Final = 3600.0

_STAMP, _BUILDING = ".visiongate-export", ".visiongate-export-building"
_PACKAGE = Path(export_pipeline.__file__).resolve().parent
_OF_EXTRA = re.compile(
    r"""(?P<requirement>[^;]+?)\s*;\s*(\(?(?P<marker>.+?)\)?\s+and\s+)?extra == ["']export["']"""
)
# What uv needs, and nothing else of ours: it runs the build scripts of packages.
_FOR_UV = re.compile(
    r"(?i:https?_proxy|no_proxy|all_proxy)|UV_.*|XDG_.*|SSL_CERT_(FILE|DIR)|HOME|PATH|LANG|TMPDIR|NETRC"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """requirements: as pip takes them. constraints: the text of a constraints file."""

    requirements: tuple[str, ...]
    constraints: str

    @property
    def fingerprint(self) -> str:
        """Of everything that makes one environment differ from another."""
        python = f"{sys.base_prefix} {sys.version}"
        return hashlib.sha256("\n".join([python, *self.requirements, self.constraints]).encode()).hexdigest()


def own_recipe() -> Recipe:
    """Raises ExportError where this package was not installed, so that nobody knows its requirements."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise ExportError(f"{DISTRIBUTION} is not installed: `pip install {DISTRIBUTION}`.") from exc
    found = [match for match in map(_OF_EXTRA.fullmatch, lines) if match]
    requirements = (" ; ".join(filter(None, (match["requirement"], match["marker"]))) for match in found)
    return Recipe(tuple(sorted(requirements)), (_PACKAGE / "constraints.txt").read_text())


def folder_of(environment: Mapping[str, str]) -> Path:
    """Beside the environment that we run in, if the variable names no other."""
    named = environment.get(FOLDER_VARIABLE)
    return Path(named).absolute() if named else Path(sys.prefix).parent / ".venv-export"


def ensure_environment(
    say: Callable[[str], None], *, folder: Path | None = None, recipe: Recipe | None = None
) -> Path:
    """The Python of an environment that is up to date. say: takes lines for a person while it is built.

    Raises BadInput where the folder holds something else, ExportError where the installer fails.
    """
    folder = folder or folder_of(os.environ)
    recipe = recipe or own_recipe()
    if not _is_up_to_date(folder, recipe):
        with writing(folder), _locked(folder, say) as lock:
            if not _is_up_to_date(folder, recipe):
                _build(folder, recipe, say, lock)
    return folder / "bin" / "python"


def _is_up_to_date(folder: Path, recipe: Recipe) -> bool:
    return (
        _content(folder / _STAMP) == recipe.fingerprint
        and (folder / "bin" / "python").exists()
        and _link(folder).resolve() == _PACKAGE
    )


def _build(folder: Path, recipe: Recipe, say: Callable[[str], None], lock: int) -> None:
    if importlib.util.find_spec("uv") is None:
        raise ExportError(
            f"Building the export environment takes uv: `pip install '{DISTRIBUTION}[local]'`, or uv itself."
        )
    _require_ours(folder)
    building = folder / _BUILDING
    if _content(building) != recipe.fingerprint:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        building.write_text(recipe.fingerprint)
    say(f"Installing {', '.join(recipe.requirements)} into {folder} …")
    constraints = folder / "constraints.txt"
    constraints.write_text(recipe.constraints)
    python = folder / "bin" / "python"
    _uv(["venv", "--allow-existing", "--no-project", "--python", sys.executable, str(folder)], say, lock)
    _uv(
        [
            *("pip", "install", "--python", str(python), "--constraint", str(constraints)),
            # The process that runs in it may write nothing there, and would compile everything every time.
            "--compile-bytecode",
            *recipe.requirements,
        ],
        say,
        lock,
    )
    link = _link(folder)
    link.unlink(missing_ok=True)
    link.symlink_to(_PACKAGE)
    building.rename(folder / _STAMP)


def _require_ours(folder: Path) -> None:
    """What is replaced is what we made; a folder that the variable names by mistake is left alone."""
    is_ours = (folder / _STAMP).exists() or (folder / _BUILDING).exists()
    if folder.exists() and not is_ours and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(
            f"{folder} was not made by visiongate-export, so it is not replaced: remove it, or name another "
            f"folder for the export environment by {FOLDER_VARIABLE}."
        )


def _uv(arguments: Sequence[str], say: Callable[[str], None], lock: int) -> None:
    """Raises ExportError with the end of what uv said."""
    said: deque[str] = deque(maxlen=20)
    with subprocess.Popen(  # noqa: S603 - our own installer, as a list
        [sys.executable, "-m", "uv", *arguments],
        env=installer_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Killed, we leave a uv that works on: the lock is its own too, so nobody builds beside it.
        pass_fds=(lock,),
        text=True,
        errors="replace",
    ) as uv:
        timer = threading.Timer(INSTALL_SECONDS, uv.kill)
        timer.start()
        try:
            for line in cast("Iterator[str]", uv.stdout):
                said.append(line.rstrip())
                say(line.rstrip())
            code = uv.wait()
        finally:
            timer.cancel()
            uv.kill()
    if code != 0:
        last = "\n".join(said)
        raise ExportError(f"The export environment could not be built; uv ended with {code}:\n{last}")


def installer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if _FOR_UV.fullmatch(name)}
    if "PIP_INDEX_URL" in environment:
        kept.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
    return kept


@contextlib.contextmanager
def _locked(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """The lock lies beside the folder, which is replaced at times."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that builds the export environment …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _link(folder: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages" / "export_pipeline"


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None
