"""Checkpoints from where they are kept: a path, a `file://` address, or `s3://bucket/key`.

S3 is any server that speaks it, found as AWS's own tools find it: `AWS_ENDPOINT_URL`, `AWS_REGION`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, or the role of the machine. Sentences name
bucket and key only: what follows a `?`, and what is in the environment, may be a secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from export_pipeline.errors import BadInput, ExportError, reading
from export_pipeline.facts import Facts
from export_pipeline.job import JobFolder, JobRecord, sha256_of
from export_pipeline.progress import Say

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Store

FETCHED: Final = "fetched.json"
CHUNK_BYTES: Final = 4 * 1024**2
MOST_BYTES: Final = 16 * 1024**3
SILENCE: Final = timedelta(seconds=30)
"""How long a server may send nothing."""
WHOLE: Final = timedelta(hours=2)
"""How long 16 GiB may take: 2.4 MB/s."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that is open for reading. name: fit for a file. shown: the address without its secrets.

    etag: the server's name for this content, of an object.
    """

    name: str
    shown: str
    size_bytes: int
    chunks: Iterator[bytes]
    etag: str | None = None


class Fetched(Facts):
    """`fetched.json`: which of the contents of an object the job has."""

    etag: str | None
    size_bytes: int


@contextlib.contextmanager
def open_address(address: str) -> Iterator[Source]:
    """Raises BadInput for what the caller can mend, ExportError for a server that does not answer."""
    match = _SCHEME.fullmatch(address)
    if match is None:
        source = _open_file(Path(_without_zero(address)))
    elif match[1].lower() == "file":
        source = _open_file(_path_of(address))
    elif match[1].lower() == "s3":
        source = _open_s3(match[2])
    else:
        raise BadInput(
            f"A checkpoint comes from a path, a file:// or an s3:// address; {match[1]}:// is none of them."
        )
    with source as opened:
        if opened.size_bytes == 0:
            raise BadInput(f"The checkpoint {opened.shown} is empty.")
        if opened.size_bytes > MOST_BYTES:
            raise BadInput(
                f"The checkpoint {opened.shown} has {opened.size_bytes:,} bytes; {MOST_BYTES:,} is the most."
            )
        yield opened


def fetch(folder: JobFolder, record: JobRecord, say: Say) -> None:
    """Copy the checkpoint into the job, whole or not at all, reading it once."""
    with (
        open_address(record.request.checkpoint) as source,
        folder.drafting(folder.checkpoint_folder) as draft,
        (draft / source.name).open("wb") as file,
    ):
        origin = Fetched(etag=source.etag, size_bytes=source.size_bytes)
        sha256 = hashlib.sha256()
        fetched_bytes = 0
        for chunk in source.chunks:
            fetched_bytes += len(chunk)
            if fetched_bytes > source.size_bytes:
                raise ExportError(f"The checkpoint {source.shown} grew while it was read.")
            file.write(chunk)
            sha256.update(chunk)
            say(
                f"{fetched_bytes / 1e6:.1f} of {source.size_bytes / 1e6:.1f} MB",
                fetched_bytes / source.size_bytes,
            )
        if fetched_bytes < source.size_bytes:
            raise ExportError(f"The checkpoint {source.shown} ended early.")
        say(f"{source.name}, {fetched_bytes / 1e6:.1f} MB, SHA-256 {sha256.hexdigest()}", 1.0)
    folder.write(FETCHED, origin.to_json())


def has_changed(folder: JobFolder, address: str) -> bool:
    """Whether another checkpoint lies there now than was fetched. What cannot be seen has not changed."""
    here = sha256_at(address)
    if here is not None:
        return sha256_of(folder.checkpoint_file) != here
    if not (folder.path / FETCHED).exists():
        return False
    fetched = Fetched.load(folder.path / FETCHED)
    with contextlib.suppress(ExportError), open_address(address) as source:
        return Fetched(etag=source.etag, size_bytes=source.size_bytes) != fetched
    return False


def sha256_at(address: str) -> str | None:
    """Of a checkpoint on this machine, to see whether it is still the one that was fetched; else None."""
    match = _SCHEME.fullmatch(address)
    path = Path(address) if match is None else _path_of(address) if match[1].lower() == "file" else None
    if path is None or not path.is_file():
        return None
    with reading(path, "the checkpoint"):
        return sha256_of(path)


def absolute_address(address: str) -> str:
    """The same from any folder: a job may be resumed elsewhere."""
    return address if _SCHEME.fullmatch(address) else str(Path(_without_zero(address)).absolute())


def _without_zero(address: str) -> str:
    if not address.strip() or "\0" in address:
        raise BadInput("The checkpoint's address is empty.")
    return address


def _path_of(address: str) -> Path:
    """Of `file:///folder/best.pt`, percent-encoded where need be."""
    host, slash, path = address.partition("://")[2].partition("/")
    if host not in {"", "localhost"} or not slash or "?" in path or "#" in path:
        raise BadInput("A file:// address is written file:///folder/best.pt: no host, no ? and no #.")
    return Path("/" + _without_zero(unquote(path)))


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[Source]:
    with reading(path, "the checkpoint"):
        # Opening a pipe would wait for somebody to write into it.
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - closed below; only opening may fail so
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"The checkpoint {path} is not a regular file.")
        chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
        yield Source(_file_name(path.name), str(path), status.st_size, chunks)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def _open_s3(address: str) -> Iterator[Source]:
    bucket, _, key = address.partition("/")
    if not _BUCKET.fullmatch(bucket) or not key or key.endswith("/"):
        raise BadInput("An S3 address is written s3://bucket/folder/best.pt: no user, no port, and a key.")
    shown = f"s3://{bucket}/{key.partition('?')[0]}"
    # The library would read another key than this one.
    if not {"", ".", ".."}.isdisjoint(key.split("/")) or not key.isprintable():
        raise BadInput(f"{shown!a} does not parse: a key has no empty part, no `.` and no `..`.")
    store = _s3_store(bucket, shown)
    import obstore  # noqa: PLC0415 - an extra: only who uses S3 has it

    with _s3_errors(shown):
        found = obstore.get(store, key)
    name, etag = _file_name(shown.rpartition("/")[2]), found.meta["e_tag"]
    yield Source(name, shown, found.meta["size"], _streamed(found, shown), etag)


def _streamed(found: GetResult, shown: str) -> Iterator[bytes]:
    with _s3_errors(shown):
        for chunk in found.stream(CHUNK_BYTES):
            yield bytes(chunk)


def _s3_store(bucket: str, shown: str) -> S3Store:
    try:
        from obstore.store import S3Store  # noqa: PLC0415 - as above
    except ImportError as exc:
        raise ExportError(f"{shown} needs the extra `s3`: pip install 'visiongate[s3]'.") from exc
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    with _s3_errors(shown):
        return S3Store(
            bucket,
            client_options={
                # Only where the operator named such a server.
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": SILENCE,
                "timeout": WHOLE,
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )


@contextlib.contextmanager
def _s3_errors(shown: str) -> Iterator[None]:
    """One sentence of ours: the library's tell addresses, headers and the server's whole answer."""
    import obstore.exceptions as problems  # noqa: PLC0415 - as above

    try:
        yield
    except FileNotFoundError as exc:
        missing = "bucket" if "NoSuchBucket" in str(exc) else "object"
        raise BadInput(f"{shown} does not exist: there is no such {missing}.") from exc
    except (problems.PermissionDeniedError, problems.UnauthenticatedError) as exc:
        raise BadInput(f"{shown} may not be read: the server denies permission.") from exc
    except problems.BaseError as exc:
        raise ExportError(f"{shown} could not be read: {_cause(str(exc))}.") from exc


def _cause(text: str) -> str:
    """In our words. `text`: what the library says, its debug output with it."""
    if "/latest/api/token" in text:  # where a machine of AWS's would ask for its role
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "kind: Timeout" in text or "TimedOut" in text:
        return "the server took too long"
    if "kind: Connect" in text:
        return "no connection to the server"
    if "BadScheme" in text:
        return "its server speaks no TLS, and no http:// endpoint is named in AWS_ENDPOINT_URL"
    status = re.search(r"status code: (\d{3})", text)
    return f"the server answered {status[1]}" if status else "the server's answer was cut off or not S3's"


def _file_name(name: str) -> str:
    """As it is, but for what would be odd in a command or hidden in a folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[-128:] or "checkpoint"
