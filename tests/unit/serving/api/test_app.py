"""Whatever happens at the start, or between it and the end, the end comes."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from serving.api.app import build_app
from serving.api.crowd import Crowd
from serving.clock import SystemClock
from serving.metrics import Metrics


def app_that(notes: list[str], *, start_fails: bool = False) -> FastAPI:
    async def start() -> None:
        notes.append("start")
        if start_fails:
            raise RuntimeError("no start")

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            notes.append("background over")

    async def shutdown() -> None:
        notes.append("shutdown")

    metrics = Metrics(CollectorRegistry())
    return build_app(
        [],
        metrics=metrics,
        crowd=Crowd(1, metrics),
        clock=SystemClock(),
        on_startup=start,
        in_background=background,
        on_shutdown=shutdown,
    )


@pytest.mark.parametrize("fails", [False, True])
async def test_what_runs_beside_the_requests_ends_before_the_rest(fails: bool) -> None:
    notes: list[str] = []
    app = app_that(notes)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
            if fails:
                raise RuntimeError("the server fell over")

    if fails:
        with pytest.raises(RuntimeError, match="fell over"):
            await live()
    else:
        await live()

    assert notes == ["start", "background over", "shutdown"]


async def test_a_start_that_fails_is_cleared_up_after() -> None:
    notes: list[str] = []
    app = app_that(notes, start_fails=True)

    with pytest.raises(RuntimeError, match="no start"):
        async with app.router.lifespan_context(app):
            pass

    assert notes == ["start", "shutdown"]
