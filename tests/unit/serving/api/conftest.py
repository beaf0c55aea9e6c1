"""One gateway in process for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from serving.domain.tenant import Tier
from tests.support.tiers import make_tier
from tests.support.world import World, encode, running_world


@pytest.fixture
def tier() -> Tier:
    return make_tier()


@pytest.fixture
async def world(tier: Tier) -> AsyncIterator[World]:
    async with running_world(tier) as world:
        yield world


@pytest.fixture
def jpeg() -> bytes:
    """128 x 64 pixels, all white."""
    return encode(np.full((64, 128, 3), 255, np.uint8))


@pytest.fixture
def dark_png() -> bytes:
    """64 x 64 pixels, all black."""
    return encode(np.zeros((64, 64, 3), np.uint8), ".png")
