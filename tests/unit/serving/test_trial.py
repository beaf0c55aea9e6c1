from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from serving import trial
from serving.errors import OperatorError
from serving.trial import Trial, TrialSettings


@pytest.fixture(autouse=True)
def _logged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's process ends with it, and so does what it does to uvicorn's log; this one goes on."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)


async def lifeless(_scope: Any, _receive: Any, _send: Any) -> None:
    raise RuntimeError("no database")


def await_models(url: str, ended: Future[None]) -> None:
    asked = Trial(url, "pk", "2.51", served=("shapes",), refused={}, not_loaded=())
    trial._await_models(asked, ended)


def test_a_gateway_that_does_not_start_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "build", lambda *_, **__: lifeless)

    with (
        trial._served(TrialSettings(run_directory=tmp_path)) as (url, ended),
        pytest.raises(OperatorError, match="The gateway has ended: it could not start"),
    ):
        await_models(url, ended)

    assert "no database" in caplog.text


def test_a_gateway_that_cannot_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: object, *, alone: bool) -> None:
        raise OperatorError("The tier table is empty.")

    monkeypatch.setattr(trial, "build", build)

    with (
        pytest.raises(OperatorError, match="The tier table is empty"),
        trial._served(TrialSettings(run_directory=tmp_path)),
    ):
        pytest.fail("it runs")


def test_the_reason_of_its_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Future[None] = Future()
    ended.set_exception(MemoryError("no memory is left"))

    with pytest.raises(OperatorError, match="The gateway has ended: no memory is left"):
        await_models("http://127.0.0.1:9", ended)


def test_no_setting_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGATE_MAX_BATCH_SIZE", "1")
    monkeypatch.setenv("VISIONGATE_PORT", "none")

    assert TrialSettings(run_directory=tmp_path).max_batch_size > 1
