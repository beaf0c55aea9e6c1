from __future__ import annotations

import pytest

from serving.adapters.sql.database import parse_database_url
from serving.errors import OperatorError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///keys.db", "sqlite+aiosqlite:///keys.db"),
        ("sqlite:////var/lib/keys.db", "sqlite+aiosqlite:////var/lib/keys.db"),
        ("sqlite+aiosqlite:///keys.db", "sqlite+aiosqlite:///keys.db"),
        ("postgresql://ada:pw@db:5433/keys", "postgresql+asyncpg://ada:pw@db:5433/keys"),
        ("postgres://db/keys", "postgresql+asyncpg://db/keys"),  # as hosting services write it
        ("postgresql+asyncpg://db/keys", "postgresql+asyncpg://db/keys"),
    ],
)
def test_plain_urls_get_their_driver(url: str, expected: str) -> None:
    assert parse_database_url(url).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keys.db",
        "mysql://ada:hunter2@db/keys",
        "postgresql+psycopg2://ada:hunter2@db/keys",
        "postgresql://ada:hunter2@db:port/keys",
        "sqlite://",  # in memory: gone with the process
        "sqlite:///",
        "sqlite:///:memory:",
    ],
)
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_database_url(url)

    assert "hunter2" not in caught.value.detail
