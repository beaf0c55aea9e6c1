"""Folders that somebody else may have filled, to do us harm: deeper than Python recurses or a path may be."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


def remove(path: Path) -> None:
    """Whatever it is, without following it; nothing where there is nothing.

    Folders in it are emptied into it, a level at a time, so that no path grows with the depth.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    while folders := _unlink_files(path):
        for folder in folders:
            for inner in _unlink_files(folder):
                inner.rename(path / uuid.uuid4().hex)
            folder.rmdir()
    path.rmdir()


def walk(path: Path, descend: Callable[[Path], bool] = lambda _folder: True) -> Iterator[tuple[Path, int]]:
    """What is at `path` and below it, each with its depth; no link is followed.

    descend: asked of each folder after it was given out.
    """
    open_folders = [iter([path])]
    while open_folders:
        each = next(open_folders[-1], None)
        if each is None:
            open_folders.pop()
            continue
        yield each, len(open_folders) - 1
        if each.is_dir() and not each.is_symlink() and descend(each):
            open_folders.append(each.iterdir())


def _unlink_files(folder: Path) -> list[Path]:
    """The folders that stay."""
    folder.chmod(0o700)  # whoever made it may have shut it
    with os.scandir(folder) as entries:
        inside = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_folder in inside:
        if not is_folder:
            path.unlink()
    return [path for path, is_folder in inside if is_folder]
