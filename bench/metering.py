"""What becomes of usage events: whether the ledger's consumer keeps up, and what a million of them cost.

::

    python -m bench.metering [--quick] [--json FILE]

Two gateways, the consumer, Redis and Triton run on this machine, in alternating rounds of one run: first the
gateways under load, the consumer standing still, then the consumer alone, with events waiting for it. Once
with SQLite and once with PostgreSQL, which writes through to its disk. The model does nothing and pictures
are as small as they get, so the gateways' peak is as high as it gets.

- `consumer_over_gateways`: events a second that one consumer moves from the stream to the ledger, over the
  requests a second of both gateways. The median of the rounds. Target: at least 5.
- `reconcile_seconds`, `invoice_seconds`: of `visiongate usage reconcile` and `visiongate usage invoice`, the
  start of the interpreter included, on the ledger with all its events. Target: seconds.
- `…_mebibytes`: most memory that each held, after the first round and after the last. Target: the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from serving.adapters import usage_codec
from serving.adapters.redis import keyspace
from serving.domain.month import Month
from serving.domain.usage import UsageEvent
from serving.triton.launcher import TritonServer
from tests.support import fixed_box
from tests.support.chaos_terms import tier
from tests.support.load import Load
from tests.support.ports import free_triton_ports
from tests.support.postgresql import running_postgresql
from tests.support.site import Site, running_site
from tests.support.stack import COMMAND

CONNECTIONS = 16
KEYS = 500
TRITON_START_SECONDS = 120.0
POLL_SECONDS = 0.02
CHUNK = 1000
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Effort:
    """seconds: of a round of requests. events: of a round of the consumer's."""

    rounds: int
    seconds: float
    events: int


@dataclass(frozen=True)
class Report:
    """The pairs: after the first round and after the last."""

    database: str
    events: int
    consumer_over_gateways: float
    consumer_events_per_second: list[float]
    gateways_requests_per_second: list[float]
    reconcile_seconds: tuple[float, float]
    invoice_seconds: tuple[float, float]
    consumer_mebibytes: tuple[float, float]
    reconcile_mebibytes: tuple[float, float]
    invoice_mebibytes: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few events, for a look")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    reports = measure(Effort(3, 2.0, 10_000) if arguments.quick else Effort(10, 4.0, 100_000))
    _print(reports)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")


def measure(effort: Effort) -> list[Report]:
    with tempfile.TemporaryDirectory(prefix="visiongate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        repository = folder / "models"
        fixed_box.write_repository(repository)
        triton = stack.enter_context(
            TritonServer(repository, [fixed_box.NAME], free_triton_ports(), run_directory=folder)
        )
        triton.wait_ready(TRITON_START_SECONDS)
        return [
            _measure(folder, repository, triton.grpc_url, effort, database=each)
            for each in ("sqlite", "postgresql")
        ]


def _measure(folder: Path, repository: Path, triton_url: str, effort: Effort, *, database: str) -> Report:
    with _site(folder / database, repository, triton_url, database) as site:
        api_key = site.issue_key("unlimited").api_key
        consumer = psutil.Process(site.meter.pid)
        requests, events, costs = [], [], []
        for number in range(effort.rounds):
            site.meter.freeze()
            requests.append(_requests_per_second(site, api_key, effort.seconds))
            _fill(site, effort.events, seed=number)
            events.append(_events_per_second(site))
            if number in {0, effort.rounds - 1}:
                costs.append(
                    (
                        consumer.memory_info().rss / MEBIBYTE,
                        *_cost_of(site, "usage", "reconcile"),
                        *_cost_of(site, "usage", "invoice", "--month", str(Month.of(datetime.now(UTC)))),
                    )
                )
    first, last = costs[0], costs[-1]
    consumer_, reconcile_s, reconcile_m, invoice_s, invoice_m = zip(first, last, strict=True)
    return Report(
        database=database,
        events=effort.rounds * effort.events,
        consumer_over_gateways=statistics.median(
            done / asked for done, asked in zip(events, requests, strict=True)
        ),
        consumer_events_per_second=events,
        gateways_requests_per_second=requests,
        reconcile_seconds=reconcile_s,
        invoice_seconds=invoice_s,
        consumer_mebibytes=consumer_,
        reconcile_mebibytes=reconcile_m,
        invoice_mebibytes=invoice_m,
    )


@contextmanager
def _site(folder: Path, repository: Path, triton_url: str, database: str) -> Iterator[Site]:
    folder.mkdir()
    with ExitStack() as stack:
        server = None
        if database == "postgresql":
            server = stack.enter_context(running_postgresql(durable=True))
        site = Site(
            folder,
            postgresql=server,
            triton_url=triton_url,
            model_repository=repository,
            tiers=yaml.safe_dump({"tiers": {"unlimited": tier(rate_limit_per_minute=60_000_000)}}),
            accounts=("real", "real"),
        )
        yield stack.enter_context(running_site(site))


def _requests_per_second(site: Site, api_key: str, seconds: float) -> float:
    async def run() -> Load:
        load = Load(
            site.gateways,
            [api_key],
            fixed_box.NAME,
            fixed_box.picture(),
            clients=CONNECTIONS,
            seed=0,
            idempotent=False,
        )
        async with load:
            await asyncio.sleep(seconds)
        return load

    began = time.perf_counter()
    statuses = asyncio.run(run()).books.statuses()
    if statuses.keys() != {200}:
        raise RuntimeError(f"not all were answered: {statuses}")
    return statuses[200] / (time.perf_counter() - began)


def _events_per_second(site: Site) -> float:
    """With the consumer standing still at first, and events waiting for it."""
    waiting = _waiting(site)
    began = time.perf_counter()
    site.meter.thaw()
    while _waiting(site):
        time.sleep(POLL_SECONDS)
    return waiting / (time.perf_counter() - began)


def _waiting(site: Site) -> int:
    with site.redis.client() as client, client.pipeline(transaction=False) as pipeline:
        for partition in range(keyspace.PARTITIONS):
            pipeline.xlen(keyspace.usage_stream(partition))
        return sum(pipeline.execute())


def _fill(site: Site, count: int, *, seed: int) -> None:
    """As settling does: each event an entry of the stream, and its pictures charged."""
    events = _events(seed)
    with site.redis.client() as client:
        for _ in range(0, count, CHUNK):
            with client.pipeline(transaction=False) as pipeline:
                for event in islice(events, CHUNK):
                    account = keyspace.account(event.key_id)
                    stream = keyspace.usage_stream(keyspace.partition_of(event.key_id))
                    pipeline.hincrby(account, keyspace.used_field(event.month), event.pictures)
                    pipeline.xadd(stream, {"e": usage_codec.encode(event)})
                pipeline.execute()


def _events(seed: int) -> Iterator[UsageEvent]:
    """Of this month, up to now, of many keys, on three models, some of them lists of pictures."""
    rng, now = random.Random(seed), datetime.now(UTC)  # noqa: S311 - figures, no secrets
    month_seconds = (now - Month.of(now).begin).total_seconds()
    while True:
        number = rng.randrange(KEYS)
        pictures = rng.choice((1, 1, 1, 4))
        yield UsageEvent(
            request_id=secrets.token_hex(16),
            key_id=f"key_{number:04}",
            user=f"user_{number % 50}",
            tier="unlimited",
            deployment=f"model_{number % 3}",
            model_version="1",
            pictures=pictures,
            pixels=pictures * 307_200,
            received_bytes=pictures * 60_000,
            decode_microseconds=rng.randrange(5_000),
            preprocess_microseconds=rng.randrange(2_000),
            queue_microseconds=rng.randrange(2_000),
            inference_microseconds=rng.randrange(20_000),
            postprocess_microseconds=rng.randrange(1_000),
            price_micros_per_1000=500_000,
            price_micros_per_month=0,
            trace_id=secrets.token_hex(16),
            admitted_at=now - timedelta(seconds=rng.random() * month_seconds),
        )


def _cost_of(site: Site, *arguments: str) -> tuple[float, float]:
    """Of `visiongate …`: seconds, and the most memory that it held, in mebibytes."""
    began = time.perf_counter()
    with (site.folder / "command.txt").open("w+") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [COMMAND, *arguments], env=site.environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"visiongate {' '.join(arguments)}: {output.read()}")
    return time.perf_counter() - began, used.ru_maxrss / 1024


def _print(reports: list[Report]) -> None:
    targets = {
        "consumer_over_gateways": ">= 5",
        "reconcile_seconds": "seconds",
        "invoice_seconds": "seconds",
        "consumer_mebibytes": "flat",
        "reconcile_mebibytes": "flat",
        "invoice_mebibytes": "flat",
    }
    table = Table("figure", *(report.database for report in reports), "target")
    for name in asdict(reports[0]):
        if name != "database":
            values = (_shown(getattr(report, name)) for report in reports)
            table.add_row(name.replace("_", " "), *values, targets.get(name, ""))
    Console().print(table)


def _shown(value: float | list[float] | tuple[float, ...]) -> str:
    match value:
        case list():
            return f"{statistics.median(value):.0f}"
        case tuple():
            return " → ".join(f"{each:.1f}" for each in value)
        case _:
            return f"{value:g}" if isinstance(value, int) else f"{value:.2f}"


if __name__ == "__main__":
    main()
