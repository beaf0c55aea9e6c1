"""What the gateway costs: JPEG in and boxes out over HTTP, against ONNX Runtime alone on ready tensors.

::

    python -m bench.gateway [--quick] [--json FILE]

Both sides run on this machine, on the same cores, in alternating rounds of one run, so the figures that count
are ratios. ONNX Runtime has its best batch size and nothing else to do: no decoding, no HTTP, no copy; beside
it the stack idles, which takes some hundredths of the machine. The end-to-end side pays for everything, this
load generator and Ray's own processes included. For a machine without a GPU: with one, Triton would use it.

- `end_to_end_over_onnxruntime`: pictures a second through HTTP at 16 connections over pictures a second of
  ONNX Runtime alone, as one uses it: one session with all the threads that the model's instances have
  together. The median of the rounds. Target: at least 0.75 with the 320 px sample model.
- `end_to_end_over_parallel_sessions`: the same over a harder baseline without a target, one single-threaded
  session for each of those threads, which is how the model's `config.pbtxt` arranges them.
- `added_latency_ms`: at one connection, what the client waits beyond the sum of the stages that the answer
  reports; the median. Target: at most 4 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from tests.support.stack import ROOT, Stack, running_stack

MODEL = ROOT / "model_repo" / "shapes" / "1" / "model.onnx"
SAMPLE = ROOT / "model_repo" / "shapes" / "sample.jpg"
CONNECTIONS = 16
THREADS = 2  # in model_repo/shapes/config.pbtxt: two instances, each with `intra_op_thread_count` 1
BATCH_SIZES = (1, 2, 4, 8, 16)
UNLIMITED_TIER = """\
tiers:
  bench:
    rate_limit_per_minute: 100000000
    burst: 100000000
    monthly_quota: null
    max_pictures_per_request: 16
    max_concurrent_requests: null
    priority: 1
    gpu: true
    price_per_1000: "0"
    price_per_month: "0"
"""


@dataclass(frozen=True)
class Report:
    end_to_end_over_onnxruntime: float
    end_to_end_over_parallel_sessions: float
    end_to_end_pictures_per_second: list[float]
    onnxruntime_pictures_per_second: list[float]
    onnxruntime_batch_size: int
    parallel_sessions_pictures_per_second: list[float]
    parallel_sessions_batch_size: int
    added_latency_ms: float
    latency_ms_at_one_connection: float
    connections: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a look")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    rounds, seconds = (3, 2.0) if arguments.quick else (7, 6.0)

    with tempfile.TemporaryDirectory(prefix="visiongate-bench-") as folder:
        tiers = Path(folder) / "tiers.yaml"
        tiers.write_text(UNLIMITED_TIER)
        with running_stack(Path(folder) / ".run", TIERS_FILE=str(tiers)) as stack:
            report = measure(stack, rounds=rounds, seconds=seconds)
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


def measure(stack: Stack, *, rounds: int, seconds: float) -> Report:
    one = OnnxRuntimeAlone(sessions=1, threads_each=THREADS)
    parallel = OnnxRuntimeAlone(sessions=THREADS, threads_each=1)
    client = Client(stack, SAMPLE.read_bytes())
    asyncio.run(client.pictures_per_second(CONNECTIONS, seconds / 2))  # warm
    for baseline in (one, parallel):
        baseline.find_best_batch_size(seconds / 2)
    ours, ones, parallels = [], [], []
    for _ in range(rounds):
        ones.append(one.pictures_per_second(seconds))
        ours.append(asyncio.run(client.pictures_per_second(CONNECTIONS, seconds)))
        parallels.append(parallel.pictures_per_second(seconds))
    waited, added = asyncio.run(client.latencies_ms(seconds))
    return Report(
        end_to_end_over_onnxruntime=_median_ratio(ours, ones),
        end_to_end_over_parallel_sessions=_median_ratio(ours, parallels),
        end_to_end_pictures_per_second=ours,
        onnxruntime_pictures_per_second=ones,
        onnxruntime_batch_size=one.batch_size,
        parallel_sessions_pictures_per_second=parallels,
        parallel_sessions_batch_size=parallel.batch_size,
        added_latency_ms=statistics.median(added),
        latency_ms_at_one_connection=statistics.median(waited),
        connections=CONNECTIONS,
    )


class OnnxRuntimeAlone:
    """The sample model in this process, on tensors that are ready; default options but for the threads."""

    def __init__(self, *, sessions: int, threads_each: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads_each
        options.inter_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
            for _ in range(sessions)
        ]
        self.batch_size = 1

    def find_best_batch_size(self, seconds: float) -> None:
        rates = {}
        for self.batch_size in BATCH_SIZES:
            rates[self.batch_size] = self.pictures_per_second(seconds)
        self.batch_size = max(BATCH_SIZES, key=rates.__getitem__)

    def pictures_per_second(self, seconds: float) -> float:
        with ThreadPoolExecutor(len(self._sessions)) as threads:
            return sum(threads.map(lambda session: self._rate(session, seconds), self._sessions))

    def _rate(self, session: onnxruntime.InferenceSession, seconds: float) -> float:
        (pixels,) = session.get_inputs()
        _, height, width, channels = pixels.shape
        batch = np.random.default_rng(0).integers(
            0, 255, (self.batch_size, height, width, channels), np.uint8
        )
        session.run(None, {pixels.name: batch})
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            session.run(None, {pixels.name: batch})
            done += self.batch_size
        return done / (time.perf_counter() - begin)


class Client:
    """As lean as a client in Python gets: one request, ready as bytes, over connections that stay open."""

    def __init__(self, stack: Stack, picture: bytes) -> None:
        address = urlsplit(stack.url)
        self._host, self._port = address.hostname, address.port
        head = [
            "POST /v1/infer/shapes HTTP/1.1",
            f"Host: {address.netloc}",
            f"Authorization: {stack.bearer['Authorization']}",
            "Content-Type: image/jpeg",
            f"Content-Length: {len(picture)}",
        ]
        self._request = "\r\n".join([*head, "", ""]).encode() + picture

    async def pictures_per_second(self, connections: int, seconds: float) -> float:
        begin = time.perf_counter()
        done = await asyncio.gather(*(self._ask_until(begin + seconds) for _ in range(connections)))
        return sum(done) / (time.perf_counter() - begin)

    async def latencies_ms(self, seconds: float) -> tuple[Sequence[float], Sequence[float]]:
        """At one connection: what the client waited, and that less the stages that the answer reports."""
        waited, added = [], []
        reader, writer = await asyncio.open_connection(self._host, self._port)
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            answer = json.loads(await self._ask(reader, writer))
            waited.append((time.perf_counter() - begin) * 1000)
            added.append(waited[-1] - sum(answer["timings_ms"].values()))
        writer.close()
        return waited, added

    async def _ask_until(self, end: float) -> int:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        done = 0
        while time.perf_counter() < end:
            await self._ask(reader, writer)
            done += 1
        writer.close()
        return done

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        if not head.startswith(b"http/1.1 200") or b'"bbox"' not in body:
            raise RuntimeError(body.decode(errors="replace"))
        return body


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def _print(report: Report) -> None:
    ours = statistics.median(report.end_to_end_pictures_per_second)
    one = statistics.median(report.onnxruntime_pictures_per_second)
    parallel = statistics.median(report.parallel_sessions_pictures_per_second)
    rows = (
        (f"end to end, {report.connections} connections, pictures/s", f"{ours:.1f}", ""),
        (f"ONNX Runtime alone, batch {report.onnxruntime_batch_size}, pictures/s", f"{one:.1f}", ""),
        (
            f"{THREADS} sessions, batch {report.parallel_sessions_batch_size}, pictures/s",
            f"{parallel:.1f}",
            "",
        ),
        ("end to end over ONNX Runtime", f"{report.end_to_end_over_onnxruntime:.3f}", ">= 0.75"),
        ("end to end over parallel sessions", f"{report.end_to_end_over_parallel_sessions:.3f}", ""),
        ("latency at one connection, ms", f"{report.latency_ms_at_one_connection:.2f}", ""),
        ("added to the reported stages, ms", f"{report.added_latency_ms:.2f}", "<= 4"),
    )
    table = Table("figure", "measured", "target")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
