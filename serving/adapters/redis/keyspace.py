"""The names of everything in Redis; the package's docstring says what lies there.

The fields of a key's hash, which the scripts and the consumer write, are:

    level          of the token bucket, in units: a token is 60 000 000 of them
    filled_at      when that was its level, in microseconds of Redis' clock
    used:2026-11   pictures charged in a month: billed ones, and those of leases
    open           how many leases there are
    lapses_at      before that no lease lapses; none where there is no lease
    lease:<id>     what a request has reserved: `<when> <for how long> <pictures> <month>`, microseconds

and of an answer's:

    owner          the request that the idempotency key belongs to
    fingerprint    of what that asked
    since          when it was admitted, or answered, in microseconds
    microseconds   for how long that counts: a lease, or a day
    answer         `answer_codec`'s; none while the request is under way
    not_kept       in its place, where a key's answers took all of their room

A key's `kept_answers` are a hash too: the hour in which answers lapse, and how many bytes those are.
"""

from __future__ import annotations

import hashlib
import zlib

from serving.domain.idempotency import IdempotencyKey
from serving.domain.month import Month

PARTITIONS = 16
LEDGER_GROUP = "ledger"
GATEWAYS = "vg:gateways"
KEY_CHANGES = "vg:key-changes"
ACCOUNTS = "vg:{*}:key:*"
"""Pattern of each key's `account`."""
USED = "used:"
LEASE = "lease:"


def partition_of(key_id: str) -> int:
    return zlib.crc32(key_id.encode()) % PARTITIONS


def account(key_id: str) -> str:
    return f"{_tagged(partition_of(key_id))}:key:{key_id}"


def key_id_of(account: str) -> str:
    return account.split(":key:", 1)[1]


def answer(key_id: str, idempotency: IdempotencyKey) -> str:
    """What a client calls its request is of its choosing, and may be long: only its hash is stored."""
    digest = hashlib.sha256(idempotency.key.encode()).hexdigest()
    return f"{_tagged(partition_of(key_id))}:answer:{key_id}:{digest}"


def kept_answers(key_id: str) -> str:
    return f"{_tagged(partition_of(key_id))}:answers:{key_id}"


def usage_stream(partition: int) -> str:
    return f"{_tagged(partition)}:usage"


def poison_stream(partition: int) -> str:
    """Entries of the usage stream that nobody can read, kept for an operator to look at."""
    return f"{_tagged(partition)}:poison"


def counting_lock(partition: int) -> str:
    """Held by who sets counts from the ledger, so that no two do."""
    return f"{_tagged(partition)}:counting"


def epoch(partition: int) -> str:
    return f"{_tagged(partition)}:epoch"


def used_field(month: Month) -> str:
    """Of a key's hash."""
    return f"{USED}{month}"


def _tagged(partition: int) -> str:
    # What is in braces alone decides on the slot of a cluster.
    return f"vg:{{{partition}}}"
