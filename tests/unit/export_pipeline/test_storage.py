"""Checkpoints from files, and from a real server that speaks S3."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from export_pipeline import storage
from export_pipeline.errors import BadInput, ExportError
from export_pipeline.job import JobFolder
from export_pipeline.storage import absolute_address, fetch, has_changed, open_address, sha256_at
from tests.support.export_stages import new_job

CONTENT = bytes(range(256)) * 40_000  # 10 MB: more than two chunks
SECRET = "hunter2/very+secret"  # pragma: allowlist secret

UNKNOWN_SCHEME = "A checkpoint comes from a path, a file:// or an s3:// address; http:// is none of them."
NO_FILE_ADDRESS = "A file:// address is written file:///folder/best.pt: no host, no ? and no #."
NO_S3_ADDRESS = "An S3 address is written s3://bucket/folder/best.pt: no user, no port, and a key."
NO_OBJECT = "does not exist: there is no such object."
NO_KEY = "does not parse: a key has no empty part, no `.` and no `..`."


def fetched(tmp_path: Path, address: str) -> tuple[JobFolder, list[tuple[str, float | None]]]:
    folder = new_job(tmp_path / "job", checkpoint=address)
    said: list[tuple[str, float | None]] = []
    fetch(folder, folder.record(), lambda message, fraction=None: said.append((message, fraction)))
    return folder, said


def refusal(tmp_path: Path, address: str) -> ExportError:
    """The error of a fetch that has to fail, leaving nothing."""
    with pytest.raises(ExportError) as caught:
        fetched(tmp_path, address)
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["job.json"]
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("address", ["{path}", "file://{path}", "file://localhost{path}", "FILE://{path}"])
def test_a_file_is_copied_whole(tmp_path: Path, checkpoint: Path, address: str) -> None:
    folder, said = fetched(tmp_path, address.format(path=checkpoint))

    assert folder.checkpoint_file.name == "best.pt"
    assert folder.checkpoint_file.read_bytes() == CONTENT
    assert said[-1] == (f"best.pt, 10.2 MB, SHA-256 {hashlib.sha256(CONTENT).hexdigest()}", 1.0)
    fractions = [fraction for _, fraction in said if fraction is not None]
    assert len(said) > 3
    assert fractions == sorted(fractions)


def test_a_file_address_may_be_percent_encoded(tmp_path: Path) -> None:
    (tmp_path / "my best.pt").write_bytes(b"x")

    assert fetched(tmp_path, f"file://{tmp_path}/my%20best.pt")[0].checkpoint_file.name == "my_best.pt"


@pytest.mark.parametrize(
    ("name", "stored"),
    [("-rf.pt", "rf.pt"), (".hidden.pt", "hidden.pt"), ("é;$(x).pt", "____x_.pt"), ("...", "checkpoint")],
)
def test_odd_names_are_stored_under_plain_ones(tmp_path: Path, name: str, stored: str) -> None:
    (tmp_path / name).write_bytes(b"x")

    assert fetched(tmp_path, str(tmp_path / name))[0].checkpoint_file.name == stored


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("{folder}/gone.pt", "The checkpoint {folder}/gone.pt does not exist."),
        ("file://{folder}/gone.pt", "The checkpoint {folder}/gone.pt does not exist."),
        ("{folder}", "The checkpoint {folder} is a folder, not a file."),
        ("{folder}/best.pt/x", "The checkpoint {folder}/best.pt/x cannot be read: Not a directory."),
        ("{folder}/empty.pt", "The checkpoint {folder}/empty.pt is empty."),
        ("{folder}/pipe", "The checkpoint {folder}/pipe is not a regular file."),
        ("/dev/zero", "The checkpoint /dev/zero is not a regular file."),
        (" ", "The checkpoint's address is empty."),
        ("http://host/best.pt", UNKNOWN_SCHEME),
        ("file://host/best.pt", NO_FILE_ADDRESS),
        ("file://best.pt", NO_FILE_ADDRESS),
        ("file:///best.pt?x#y", NO_FILE_ADDRESS),
        ("file:///best%00.pt", "The checkpoint's address is empty."),
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere(tmp_path: Path, checkpoint: Path, address: str, sentence: str) -> None:
    (tmp_path / "empty.pt").touch()
    os.mkfifo(tmp_path / "pipe")

    error = refusal(tmp_path, address.format(folder=tmp_path))

    assert isinstance(error, BadInput)
    assert str(error) == sentence.format(folder=tmp_path)


def test_a_file_over_the_bound_is_refused(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_BYTES", len(CONTENT) - 1)

    error = refusal(tmp_path, str(checkpoint))

    assert isinstance(error, BadInput)
    assert str(error) == f"The checkpoint {checkpoint} has 10,240,000 bytes; 10,239,999 is the most."


@pytest.mark.parametrize(("change", "sentence"), [(b"more", "grew while it was read"), (None, "ended early")])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, checkpoint: Path, change: bytes | None, sentence: str
) -> None:
    folder = new_job(tmp_path / "job", checkpoint=str(checkpoint))

    def say(message: str, fraction: float | None = None) -> None:
        with checkpoint.open("ab") as file:
            file.write(change) if change else file.truncate(storage.CHUNK_BYTES)

    with pytest.raises(ExportError, match=sentence):
        fetch(folder, folder.record(), say)
    assert not folder.checkpoint_folder.exists()


def test_the_same_address_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert absolute_address("best.pt") == str(tmp_path / "best.pt")
    assert absolute_address("s3://bucket/best.pt") == "s3://bucket/best.pt"


def test_what_lies_there_now(checkpoint: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()

    assert sha256_at(str(checkpoint)) == sha256_at(f"file://{checkpoint}") == sha256
    assert sha256_at(f"{checkpoint}.gone") is sha256_at("s3://bucket/best.pt") is None


# S3


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A real server that speaks S3 over HTTP, with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"{url}/models", method="PUT"), timeout=10):
        pass
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_at(monkeypatch, url)
        store = S3Store("models", client_options={"allow_http": True})
        for key, content in {"runs/best.pt": CONTENT, "empty.pt": b""}.items():
            obstore.put(store, key, content)
    yield url
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    point_at(monkeypatch, s3_server)
    return s3_server


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)


def test_another_object_of_the_same_name_is_noticed(tmp_path: Path, s3: str) -> None:
    store = S3Store("models", client_options={"allow_http": True})
    address = "s3://models/changing.pt"
    obstore.put(store, "changing.pt", b"trained once")
    folder, _ = fetched(tmp_path, address)

    assert not has_changed(folder, address)
    obstore.put(store, "changing.pt", b"trained more")  # as many bytes
    assert has_changed(folder, address)
    obstore.delete(store, "changing.pt")
    assert not has_changed(folder, address)


def test_an_object_is_copied_whole(tmp_path: Path, s3: str) -> None:
    folder, said = fetched(tmp_path, "s3://models/runs/best.pt")

    assert folder.checkpoint_file.name == "best.pt"
    assert folder.checkpoint_file.read_bytes() == CONTENT
    assert len(said) > 3
    assert said[-1] == (f"best.pt, 10.2 MB, SHA-256 {hashlib.sha256(CONTENT).hexdigest()}", 1.0)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://models/gone.pt", f"s3://models/gone.pt {NO_OBJECT}"),
        (f"s3://models/gone.pt?X-Amz-Signature={SECRET}", f"s3://models/gone.pt {NO_OBJECT}"),
        ("s3://nobodys/best.pt", "s3://nobodys/best.pt does not exist: there is no such bucket."),
        ("s3://models/empty.pt", "The checkpoint s3://models/empty.pt is empty."),
        ("s3://models//best.pt", f"'s3://models//best.pt' {NO_KEY}"),
        ("s3://models/../best.pt", f"'s3://models/../best.pt' {NO_KEY}"),
        ("s3://models/a\nb.pt", f"'s3://models/a\\nb.pt' {NO_KEY}"),
        *(
            (address, NO_S3_ADDRESS)
            for address in ("s3://", "s3://models", "s3://models/", "s3:///best.pt", "s3://models/runs/",
                            f"s3://somebody:{SECRET.replace('/', '')}@models/best.pt", "s3://models:9000/best.pt")
        ),
    ],
)  # fmt: skip
def test_objects_that_are_not_there(tmp_path: Path, s3: str, address: str, sentence: str) -> None:
    error = refusal(tmp_path, address)

    assert isinstance(error, BadInput)
    assert str(error) == sentence


@pytest.fixture
def no_permission(s3: str) -> Iterator[None]:
    """The server knows no keys and asks for some."""

    def set_free_calls(count: str) -> None:
        request = urllib.request.Request(
            f"{s3}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=10):
            pass

    set_free_calls("0")
    yield
    set_free_calls("inf")


def test_an_object_that_may_not_be_read(tmp_path: Path, no_permission: None) -> None:
    error = refusal(tmp_path, "s3://models/runs/best.pt")

    assert isinstance(error, BadInput)
    assert str(error) == "s3://models/runs/best.pt may not be read: the server denies permission."


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        point_at(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")

        error = refusal(tmp_path, "s3://models/best.pt")

    assert type(error) is ExportError
    assert str(error) == "s3://models/best.pt could not be read: no connection to the server."


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SILENCE", timedelta(milliseconds=200))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")

        error = refusal(tmp_path, "s3://models/best.pt")

    assert type(error) is ExportError
    assert str(error) == "s3://models/best.pt could not be read: the server took too long."


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that gives everybody this answer and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


HEAD = (
    b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 1000\r\n'
    b"Last-Modified: Sat, 21 Nov 2026 09:17:33 GMT\r\n\r\n"
)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (HEAD + b"ten bytes.", "the server's answer was cut off or not S3's"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the server's answer was cut off or not S3's"),
        (b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n", "the server answered 418"),
    ],
    ids=["cut off", "not HTTP", "not S3"],
)
def test_a_server_that_answers_oddly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, sentence: str
) -> None:
    with answering(answer) as url:
        point_at(monkeypatch, url)
        error = refusal(tmp_path, "s3://models/best.pt")

    assert str(error) == f"s3://models/best.pt could not be read: {sentence}."


def test_nobody_said_who_asks(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(
        refusal(tmp_path, "s3://models/runs/best.pt")
    )


def test_without_tls_only_where_the_operator_says_so(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT", s3)  # read by the library, not by AWS's own tools

    assert "http:// endpoint is named in AWS_ENDPOINT_URL" in str(
        refusal(tmp_path, "s3://models/runs/best.pt")
    )


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def gone(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return there(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", gone)

    assert str(refusal(tmp_path, "s3://models/best.pt")) == (
        "s3://models/best.pt needs the extra `s3`: pip install 'visiongate[s3]'."
    )


def test_an_error_while_writing_is_not_the_sources(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), open_address(str(checkpoint)):
        raise FileNotFoundError("elsewhere")
