"""Whatever redis-py, Redis or the network raise is one of our errors, by a reason of a closed set."""

from __future__ import annotations

import asyncio
import inspect
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from redis import exceptions
from redis._parsers.base import BaseParser

from serving.adapters.redis.trouble import BY_CLASS, translated, trouble_of, unavailable
from serving.errors import AccountsTrouble, AccountsUnavailable
from serving.metrics import Metrics

REASONS: tuple[AccountsTrouble, ...] = get_args(AccountsTrouble)


def test_every_exception_of_redis_py_is_mapped() -> None:
    theirs = {
        each
        for _, each in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(each, Exception) and each.__module__ == exceptions.__name__
    }

    assert len(theirs) > 30
    assert theirs - set(BY_CLASS) == set()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("ERR unknown command", "other"),
        ("READONLY You can't write against a read only replica.", "read_only"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "full"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "full"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("CLUSTERDOWN Hash slot not served", "failing_over"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "failing_over"),
        ("NOREPLICAS Not enough good replicas to write.", "failing_over"),
        ("MOVED 3999 127.0.0.1:6381", "failing_over"),
        ("ASK 3999 127.0.0.1:6381", "failing_over"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "failing_over"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "failing_over"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", "slow"),
        ("ERR max number of clients reached", "down"),
        ("NOAUTH Authentication required.", "other"),
        ("WRONGPASS invalid username-password pair", "other"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", "other"),
        # Redis 6.2 wraps what a script met.
        ("ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed", "full"),
        ("ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write", "read_only"),
    ],
)
def test_what_redis_says_has_a_reason(answer: str, reason: AccountsTrouble) -> None:
    error = BaseParser.parse_error(answer)  # type: ignore[no-untyped-call] # redis-py leaves it untyped

    assert trouble_of(error) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "down"),
        (ConnectionResetError(), "down"),
        (asyncio.IncompleteReadError(b"", 1), "down"),
        (TimeoutError(), "slow"),
        (exceptions.TimeoutError(), "slow"),
        (RuntimeError("the transport is closed"), "other"),
    ],
)
def test_what_the_network_says_has_a_reason(error: Exception, reason: AccountsTrouble) -> None:
    assert trouble_of(error) == reason


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_has_words_that_give_nothing_away(reason: AccountsTrouble) -> None:
    error = unavailable(reason)

    assert error.reason == reason
    assert str(error).startswith("The accounts ")
    assert error.status == 503


def test_what_is_translated_is_counted_once_by_its_reason() -> None:
    metrics = Metrics(CollectorRegistry())

    with pytest.raises(AccountsUnavailable) as caught, translated(metrics):
        raise exceptions.ConnectionError("Error 111 connecting to 10.0.0.1:6379")

    assert caught.value.reason == "down"
    assert "10.0.0.1" not in str(caught.value)
    assert metrics.registry.get_sample_value("visiongate_accounts_failures_total", {"reason": "down"}) == 1


async def test_being_cancelled_is_no_trouble() -> None:
    metrics = Metrics(CollectorRegistry())

    with pytest.raises(asyncio.CancelledError), translated(metrics):
        raise asyncio.CancelledError
