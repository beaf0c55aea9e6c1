"""What limits and bills cost: of a gateway's time, and of what Redis can do.

::

    python -m bench.admission [--quick] [--json FILE]

All on this machine, in alternating rounds of one run, so the figures that count are ratios. Redis writes its
append-only file through with every change (`appendfsync always`), as it does in production.

- `share_of_cpu`: of the processor time that a gateway process takes for a request, the part that goes into
  admission and settlement: what one with the real accounts takes more than one that admits everybody and
  records nothing, under the same load. For the sample model's sample picture. Target: below 0.10.
- `share_of_cpu_for_the_smallest_picture`: the same for 32 x 32 pixels and a model that does nothing, where
  there is nearly nothing else to do. No target.
- `scripts_a_request`, `round_trips_a_request`: scripts that Redis ran, and messages that it read, for each of
  a single client's requests; what the gateways ask while nothing happens is taken off. Target: 2.
- `admissions_over_trivial_script`: `redis-benchmark` with `admit.lua`, as the gateway calls it and on random
  keys, over a script that says 1 and touches nothing. Target: at least 0.5.
- `admissions_over_trivial_write`: the same over a script that does a single `SET`, which has to reach the
  disk as an admission has to.
- `…_without_disk`: both again with Redis' append-only file off. No targets.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from bench.redis_scripts import TRIVIAL_READ, TRIVIAL_WRITE, Call, captured_admission
from serving.triton.launcher import TritonServer
from tests.support import fixed_box
from tests.support.chaos_terms import tier
from tests.support.gateways import GatewayProcess, RedisProcess
from tests.support.load import Load
from tests.support.ports import free_triton_ports
from tests.support.site import Site, running_site
from tests.support.stack import ROOT

SAMPLE_MODEL = ROOT / "model_repo" / "shapes"
CONNECTIONS = 16
REDIS_CONNECTIONS = 50
RANDOM_KEYS = 20_000
TRITON_START_SECONDS = 120.0


@dataclass(frozen=True)
class Report:
    share_of_cpu: float
    share_of_cpu_for_the_smallest_picture: float
    cpu_milliseconds_a_request: float
    cpu_milliseconds_for_the_smallest_picture: float
    scripts_a_request: float
    round_trips_a_request: float
    admissions_over_trivial_script: float
    admissions_over_trivial_write: float
    admissions_over_trivial_script_without_disk: float
    admissions_over_trivial_write_without_disk: float
    admissions_per_second: list[float]
    admissions_per_second_without_disk: list[float]


@dataclass(frozen=True)
class Effort:
    """rounds: of each side. seconds: of a round of requests. calls: of a round of `redis-benchmark`."""

    rounds: int
    seconds: float
    calls: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a look")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    report = measure(Effort(3, 2.0, 20_000) if arguments.quick else Effort(7, 6.0, 200_000))
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


def measure(effort: Effort) -> Report:
    with tempfile.TemporaryDirectory(prefix="visiongate-bench-") as name:
        folder = Path(name)
        with _site(folder) as site:
            api_key = site.issue_key("unlimited").api_key
            sample = Requests(site, api_key, SAMPLE_MODEL.name, (SAMPLE_MODEL / "sample.jpg").read_bytes())
            smallest = Requests(site, api_key, fixed_box.NAME, fixed_box.picture())
            share, milliseconds = sample.share_of_cpu(effort)
            smallest_share, smallest_milliseconds = smallest.share_of_cpu(effort)
            scripts, round_trips = smallest.scripts_and_round_trips(effort.seconds)
        with _redis(folder) as redis:
            admissions, over_read, over_write = _admissions(redis, effort)
            with redis.client() as client:
                client.config_set("appendonly", "no")
            quick_admissions, quick_over_read, quick_over_write = _admissions(redis, effort)
    return Report(
        share_of_cpu=share,
        share_of_cpu_for_the_smallest_picture=smallest_share,
        cpu_milliseconds_a_request=milliseconds,
        cpu_milliseconds_for_the_smallest_picture=smallest_milliseconds,
        scripts_a_request=scripts,
        round_trips_a_request=round_trips,
        admissions_over_trivial_script=over_read,
        admissions_over_trivial_write=over_write,
        admissions_over_trivial_script_without_disk=quick_over_read,
        admissions_over_trivial_write_without_disk=quick_over_write,
        admissions_per_second=admissions,
        admissions_per_second_without_disk=quick_admissions,
    )


@contextmanager
def _site(folder: Path) -> Iterator[Site]:
    """Two gateways, the first with the real accounts, the second with none."""
    repository = folder / "models"
    fixed_box.write_repository(repository)
    shutil.copytree(SAMPLE_MODEL, repository / SAMPLE_MODEL.name)
    models = [SAMPLE_MODEL.name, fixed_box.NAME]
    with TritonServer(repository, models, free_triton_ports(), run_directory=folder) as triton:
        triton.wait_ready(TRITON_START_SECONDS)
        site = Site(
            folder,
            postgresql=None,
            triton_url=triton.grpc_url,
            model_repository=repository,
            tiers=yaml.safe_dump({"tiers": {"unlimited": tier(rate_limit_per_minute=60_000_000)}}),
            accounts=("real", "none"),
        )
        with running_site(site):
            site.meter.stop()  # its own work is not the gateway's, and bench.metering's subject
            yield site


@contextmanager
def _redis(folder: Path) -> Iterator[RedisProcess]:
    alone = folder / "redis_alone"
    alone.mkdir()
    redis = RedisProcess(alone, os.environ)
    redis.start()
    try:
        redis.await_ready()
        with redis.client() as client:
            client.config_set("auto-aof-rewrite-percentage", 0)  # no second process in the middle of a round
        yield redis
    finally:
        redis.stop()


class Requests:
    """One model's, asked of either gateway."""

    def __init__(self, site: Site, api_key: str, model: str, picture: bytes) -> None:
        self._site = site
        self._api_key = api_key
        self._model = model
        self._picture = picture

    def share_of_cpu(self, effort: Effort) -> tuple[float, float]:
        """Of what a request takes of the gateway's processor time, and how many milliseconds that is."""
        with_accounts, without = self._site.gateways
        for gateway in (with_accounts, without):
            self._cpu_seconds_a_request(gateway, effort.seconds / 2)  # warm
        full, bare = [], []
        for _ in range(effort.rounds):
            full.append(self._cpu_seconds_a_request(with_accounts, effort.seconds))
            bare.append(self._cpu_seconds_a_request(without, effort.seconds))
        share = statistics.median((all_ - rest) / all_ for all_, rest in zip(full, bare, strict=True))
        return share, statistics.median(full) * 1000

    def scripts_and_round_trips(self, seconds: float) -> tuple[float, float]:
        """For each request of a single client."""
        began = time.monotonic()
        before = self._redis_counts()
        answered = self._answered(self._site.gateways[0], seconds, clients=1)
        busy, lasted = _difference(self._redis_counts(), before), time.monotonic() - began
        before = self._redis_counts()
        time.sleep(lasted)
        idle = _difference(self._redis_counts(), before)
        scripts, messages = _difference(busy, idle)
        return scripts / answered, messages / answered

    def _cpu_seconds_a_request(self, gateway: GatewayProcess, seconds: float) -> float:
        process = psutil.Process(gateway.pid)
        before = process.cpu_times()
        answered = self._answered(gateway, seconds, clients=CONNECTIONS)
        after = process.cpu_times()
        return (after.user + after.system - before.user - before.system) / answered

    def _answered(self, gateway: GatewayProcess, seconds: float, *, clients: int) -> int:
        async def run() -> Load:
            load = Load(
                [gateway],
                [self._api_key],
                self._model,
                self._picture,
                clients=clients,
                seed=0,
                idempotent=False,
            )
            async with load:
                await asyncio.sleep(seconds)
            return load

        books = asyncio.run(run()).books
        if books.statuses().keys() != {200}:
            raise RuntimeError(f"not all were answered: {books.statuses()}")
        return len(books.attempts)

    def _redis_counts(self) -> tuple[float, float]:
        """Scripts run, and messages read, since it was started."""
        with self._site.redis.client() as client:
            scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            return scripts, client.info("stats")["total_reads_processed"]


def _difference(now: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]


def _admissions(redis: RedisProcess, effort: Effort) -> tuple[list[float], float, float]:
    """Admissions a second, and over a trivial script that only reads, and one that writes."""
    admit = asyncio.run(captured_admission())
    calls = (admit, TRIVIAL_READ, TRIVIAL_WRITE)
    rates: dict[Call, list[float]] = {call: [] for call in calls}
    for _ in range(effort.rounds):
        for call in calls:
            rates[call].append(_calls_per_second(redis, call, effort.calls))
    ours, reads, writes = rates.values()
    return ours, _median_ratio(ours, reads), _median_ratio(ours, writes)


def _calls_per_second(redis: RedisProcess, call: Call, calls: int) -> float:
    with redis.client() as client:
        client.flushall()
        sha1 = client.script_load(call.script)
        call.prepare(client, random_keys=RANDOM_KEYS)
    command = [
        *(
            "redis-benchmark",
            "-p",
            redis.port,
            "-n",
            calls,
            "-c",
            REDIS_CONNECTIONS,
            "-r",
            RANDOM_KEYS,
            "--csv",
        ),
        *("EVALSHA", sha1, len(call.keys), *call.keys, *call.arguments),
    ]
    done = subprocess.run(  # noqa: S603 - of our own making
        list(map(str, command)), capture_output=True, text=True, timeout=600, check=True
    )
    header, figures, *_ = csv.reader(done.stdout.splitlines())
    return float(dict(zip(header, figures, strict=True))["rps"])


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def _print(report: Report) -> None:
    def figure(value: float | list[float]) -> str:
        return f"{statistics.median(value):.0f}" if isinstance(value, list) else f"{value:.3f}"

    targets = {
        "share_of_cpu": "< 0.10",
        "scripts_a_request": "2",
        "round_trips_a_request": "2",
        "admissions_over_trivial_script": ">= 0.5",
    }
    table = Table("figure", "measured", "target")
    for name, value in asdict(report).items():
        table.add_row(name.replace("_", " "), figure(value), targets.get(name, ""))
    Console().print(table)


if __name__ == "__main__":
    main()
