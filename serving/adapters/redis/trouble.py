"""Every error of redis-py's, of Redis' own or of the network's becomes one of ours here, and nowhere else."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator

from redis import exceptions

from serving.errors import AccountsTrouble, AccountsUnavailable
from serving.metrics import Metrics

logger = logging.getLogger(__name__)

_LOGGED_CHARACTERS = 300

BY_CLASS: dict[type[BaseException], AccountsTrouble] = {
    OSError: "down",
    EOFError: "down",
    TimeoutError: "slow",
    exceptions.RedisError: "other",
    exceptions.ConnectionError: "down",
    exceptions.TimeoutError: "slow",
    exceptions.AuthenticationError: "other",
    exceptions.AuthorizationError: "other",
    exceptions.BusyLoadingError: "loading",
    exceptions.InvalidResponse: "other",
    exceptions.ResponseError: "other",  # or what `_BY_WORD` says
    exceptions.DataError: "other",
    exceptions.PubSubError: "other",
    exceptions.WatchError: "other",
    exceptions.NoScriptError: "other",  # it is loaded where it is missing, so Redis forgot it at once
    exceptions.OutOfMemoryError: "full",
    exceptions.ExecAbortError: "other",
    exceptions.ReadOnlyError: "read_only",
    exceptions.NoPermissionError: "other",
    exceptions.ModuleError: "other",
    exceptions.NoSuchFieldsetError: "other",
    exceptions.LockError: "other",
    exceptions.LockNotOwnedError: "other",
    exceptions.ChildDeadlockedError: "other",
    exceptions.AuthenticationWrongNumberOfArgsError: "other",
    exceptions.RedisClusterException: "failing_over",
    exceptions.ClusterError: "failing_over",
    exceptions.ClusterDownError: "failing_over",
    exceptions.AskError: "failing_over",
    exceptions.TryAgainError: "failing_over",
    exceptions.ClusterCrossSlotError: "other",
    exceptions.MovedError: "failing_over",
    exceptions.MasterDownError: "failing_over",
    exceptions.SlotNotCoveredError: "failing_over",
    exceptions.MaxConnectionsError: "slow",
    exceptions.CrossSlotTransactionError: "other",
    exceptions.InvalidPipelineStack: "other",
    exceptions.ExternalAuthProviderError: "other",
    exceptions.IncorrectPolicyType: "other",
}

_BY_WORD: dict[str, AccountsTrouble] = {
    # The error's first word, or, from a script on Redis 6.2, one in the midst of its text.
    "OOM": "full",
    "MISCONF": "full",  # it cannot write its append-only file
    "READONLY": "read_only",
    "LOADING": "loading",
    "BUSY": "slow",  # with somebody else's script
    "CLUSTERDOWN": "failing_over",
    "MASTERDOWN": "failing_over",
    "NOREPLICAS": "failing_over",
    "TRYAGAIN": "failing_over",
    "UNBLOCKED": "failing_over",  # it became a replica while we waited
}
_WORD = re.compile(rf"\b({'|'.join(_BY_WORD)})\b")

_WHY: dict[AccountsTrouble, str] = {
    "down": "The accounts cannot be reached.",
    "slow": "The accounts do not answer in time.",
    "read_only": "The accounts cannot be written to.",
    "full": "The accounts have no room left.",
    "loading": "The accounts are being loaded.",
    "failing_over": "The accounts are moving to another server.",
    "unprimed": "The accounts have not been filled from the ledger yet.",
    "other": "The accounts do not work.",
}


def trouble_of(error: BaseException) -> AccountsTrouble:
    """Of an error that came out of redis-py, whatever it is."""
    if isinstance(error, exceptions.ResponseError) and (word := _WORD.search(str(error))):
        return _BY_WORD[word[1]]
    return next((BY_CLASS[each] for each in type(error).__mro__ if each in BY_CLASS), "other")


def unavailable(reason: AccountsTrouble) -> AccountsUnavailable:
    return AccountsUnavailable(_WHY[reason], reason=reason)


@contextlib.contextmanager
def translated(metrics: Metrics) -> Iterator[None]:
    """Around calls of redis-py and nothing else: whatever they raise becomes AccountsUnavailable, counted."""
    try:
        yield
    except AccountsUnavailable as exc:
        metrics.accounts_failures.labels(exc.reason).inc()
        raise
    except Exception as exc:
        reason = trouble_of(exc)
        metrics.accounts_failures.labels(reason).inc()
        level = logging.ERROR if reason == "other" else logging.INFO
        logger.log(level, "Redis, %s: %s: %.*s", reason, type(exc).__name__, _LOGGED_CHARACTERS, exc)
        raise unavailable(reason) from exc
