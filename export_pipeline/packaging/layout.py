"""What a package holds, and the files in it that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CONTRACT: Final = "metadata.json"
CERTIFICATE: Final = "validation.json"
LABELS: Final = "labels.txt"
README: Final = "README.md"
CHECKSUMS: Final = "SHA256SUMS"
WRAPPERS: Final = {"python": ("model_wrapper.py", "requirements.txt", "example.py")}
"""By language, the files below `runtimes/<language>/`."""


def files_of(metadata: dict[str, Any]) -> set[str]:
    """The paths of all files of the package that this contract lies in."""
    wrappers = {
        f"runtimes/{language}/{name}"
        for language in metadata["runtime_wrappers"]
        for name in WRAPPERS.get(language, ())
    }
    certificate = {CERTIFICATE} if "validation" in metadata else set()
    model = metadata["model_info"]["model_file"]["name"]
    return {model, CONTRACT, LABELS, README, CHECKSUMS} | wrappers | certificate


def labels(metadata: dict[str, Any]) -> str:
    """One class a line, in the order of their ids; the schema lets no name end a line."""
    return "".join(f"{entry['name']}\n" for entry in metadata["classes"])


def checksums(sha256_by_path: Mapping[str, str]) -> str:
    """As `sha256sum -c` reads them; CHECKSUMS itself is left out."""
    return "".join(
        f"{sha256}  {path}\n" for path, sha256 in sorted(sha256_by_path.items()) if path != CHECKSUMS
    )
