from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.logs import log_to

logger = logging.getLogger("serving.tests")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """`log_to` is for a whole process; other tests of this one read the records that go up to the root."""
    ours = logging.getLogger("serving")
    level, propagate, handlers = ours.level, ours.propagate, ours.handlers[:]
    yield
    for handler in ours.handlers:
        handler.close()
    ours.handlers[:] = handlers
    ours.setLevel(level)
    ours.propagate = propagate


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_one_json_object_with_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "gateway.jsonl"
    log_to(path, level="info")

    logger.info("request", extra={"facts": {"request_id": "r1", "status": 200, "model": "two\nlines"}})
    logger.debug("too little")

    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "serving.tests",
        "event": "request",
        "request_id": "r1",
        "status": 200,
        "model": "two\nlines",
    }


def test_an_exception_is_in_the_same_line_with_its_traceback(tmp_path: Path) -> None:
    log_to(tmp_path / "log", level="INFO")

    try:
        int("not a number")
    except ValueError:
        logger.exception("unhandled")

    (line,) = lines(tmp_path / "log")
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("'not a number'")


def test_a_fact_that_json_does_not_know_is_written_as_text(tmp_path: Path) -> None:
    log_to(tmp_path / "log", level="INFO")

    logger.info("started", extra={"facts": {"folder": Path("/srv")}})

    assert lines(tmp_path / "log")[0]["folder"] == "/srv"


def test_a_fact_that_cannot_be_written_as_it_is_does_not_cost_the_line(tmp_path: Path) -> None:
    log_to(tmp_path / "log", level="INFO")

    logger.info("refused", extra={"facts": {"model": "caf\udce9", "bytes": 2**64, "folder": Path("/srv")}})

    (line,) = lines(tmp_path / "log")
    assert (line["model"], line["bytes"], line["folder"]) == ("caf\udce9", 2**64, "/srv")


def test_only_what_is_ours_is_written_and_only_to_the_last_file_named(tmp_path: Path) -> None:
    log_to(tmp_path / "first", level="INFO")
    log_to(tmp_path / "second", level="WARNING")

    logging.getLogger("a.library").error("not ours")
    logger.info("not severe enough")
    logger.warning("ours")

    assert lines(tmp_path / "first") == []
    assert [line["event"] for line in lines(tmp_path / "second")] == ["ours"]
