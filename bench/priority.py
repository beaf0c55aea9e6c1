"""What an urgent caller waits while others flood the gateway, over what it waits alone.

::

    python -m bench.priority [--quick] [--json FILE]

The sample model on a real Triton, and one lane of a gateway in this process, from JPEG to boxes: all places
where pictures wait, without HTTP, whose cost is the same for everybody. One caller asks for one picture after
the other, alone, and beside a flood: more callers than fit into all batches under way, each asking again as
soon as it is answered. In alternating rounds of one run, so the figures that count are ratios. They are at
their worst on a machine without a GPU, where the pictures of a batch are computed one after the other: there,
a smaller VISIONGATE_MAX_BATCH_SIZE buys a shorter wait.

- `urgent_over_alone`: the median wait at priority 1 in a flood of priority 3, over the median alone. What is
  left is the batch that runs already, which nothing interrupts, and what decodes for others meanwhile.
- `equal_over_alone`: the same at the flood's own priority: what it would be without priorities.
- `flood_kept`: pictures a second of the flood beside the urgent caller, over those beside its equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from serving.adapters.shared_memory import allocate
from serving.adapters.triton import TritonBackend
from serving.budget import Budget
from serving.clock import SystemClock
from serving.detector import Detector, DetectorLimits
from serving.domain.contract import ModelContract
from serving.domain.tenant import LOWEST_PRIORITY
from serving.metrics import Metrics
from serving.settings import Settings
from serving.threads import PriorityThreads
from serving.triton.launcher import TritonServer
from tests.support.ports import free_triton_ports

REPOSITORY = Path(__file__).parents[1] / "model_repo"
MODEL = "shapes"
START_TIMEOUT_SECONDS = 90.0
ANSWER_TIMEOUT_SECONDS = 60.0
FLOOD_CALLERS = 64


@dataclass(frozen=True)
class Report:
    urgent_over_alone: float
    equal_over_alone: float
    flood_kept: float
    alone_ms: float
    urgent_ms: float
    equal_ms: float
    flood_pictures_per_second: float


@dataclass(frozen=True)
class Round:
    waited_ms: float
    flood_pictures_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a look")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    rounds, seconds = (2, 3.0) if arguments.quick else (5, 8.0)
    report = asyncio.run(measure(rounds=rounds, seconds=seconds))
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


async def measure(*, rounds: int, seconds: float) -> Report:
    async with _running_lane() as lane:
        await lane.round(flood=FLOOD_CALLERS, priority=1, seconds=seconds / 2)  # warm
        alone, urgent, equal = [], [], []
        for _ in range(rounds):
            alone.append(await lane.round(flood=0, priority=1, seconds=seconds / 2))
            urgent.append(await lane.round(flood=FLOOD_CALLERS, priority=1, seconds=seconds))
            equal.append(await lane.round(flood=FLOOD_CALLERS, priority=LOWEST_PRIORITY, seconds=seconds))
    waits = {
        name: statistics.median(each.waited_ms for each in measured)
        for name, measured in (("alone", alone), ("urgent", urgent), ("equal", equal))
    }
    floods = [
        statistics.median(each.flood_pictures_per_second for each in measured) for measured in (urgent, equal)
    ]
    return Report(
        urgent_over_alone=waits["urgent"] / waits["alone"],
        equal_over_alone=waits["equal"] / waits["alone"],
        flood_kept=floods[0] / floods[1],
        alone_ms=waits["alone"],
        urgent_ms=waits["urgent"],
        equal_ms=waits["equal"],
        flood_pictures_per_second=floods[0],
    )


class Lane:
    def __init__(self, detector: Detector, contract: ModelContract) -> None:
        self._detector = detector
        self._contract = contract
        self._picture = (REPOSITORY / MODEL / "sample.jpg").read_bytes()

    async def round(self, *, flood: int, priority: int, seconds: float) -> Round:
        """The median wait of one caller, and the flood's pictures a second meanwhile."""
        begin = time.perf_counter()
        callers = [
            asyncio.create_task(self._ask_until(begin + seconds, priority=LOWEST_PRIORITY))
            for _ in range(flood)
        ]
        waited = await self._ask_until(begin + seconds, priority=priority)
        answered = sum(len(each) for each in await asyncio.gather(*callers))
        return Round(statistics.median(waited), answered / (time.perf_counter() - begin))

    async def _ask_until(self, end: float, *, priority: int) -> list[float]:
        """What each picture took, in milliseconds."""
        waited = []
        while (begin := time.perf_counter()) < end:
            await self._detector.detect(
                self._picture,
                self._contract.options(),
                deadline=time.monotonic() + ANSWER_TIMEOUT_SECONDS,
                priority=priority,
            )
            waited.append((time.perf_counter() - begin) * 1000)
        return waited


@asynccontextmanager
async def _running_lane() -> AsyncIterator[Lane]:
    """As the gateway builds it by default."""
    defaults = Settings()
    contract = ModelContract.parse((REPOSITORY / MODEL / "metadata.json").read_bytes())
    size = contract.input_size
    with (
        tempfile.TemporaryDirectory(prefix="visiongate-bench-") as folder,
        TritonServer(REPOSITORY, [MODEL], free_triton_ports(), run_directory=Path(folder)) as server,
        ThreadPoolExecutor(defaults.vision_threads) as executor,
    ):
        server.wait_ready(START_TIMEOUT_SECONDS)
        slots = allocate(
            slots=defaults.shared_memory_slots,
            slot_bytes=size.height * size.width * 3 * defaults.max_batch_size,
        )
        backend = TritonBackend(server.grpc_url, SystemClock(), shared_memory=slots)
        detector = Detector(
            contract,
            backend=backend,
            limits=DetectorLimits(
                max_batch_size=defaults.max_batch_size,
                max_batches_in_flight=defaults.max_batches_in_flight,
                max_queued_pictures=defaults.max_queued_pictures,
                max_picture_pixels=defaults.max_picture_pixels,
            ),
            decoded_pixels=Budget(
                defaults.max_decoded_pixels, left_to_the_urgent=defaults.max_decoded_pixels // 8
            ),
            threads=PriorityThreads(executor, defaults.vision_threads),
            clock=SystemClock(),
            metrics=Metrics(CollectorRegistry()),
        )
        try:
            yield Lane(detector, contract)
        finally:
            await detector.close()
            await backend.close()


def _print(report: Report) -> None:
    table = Table("figure", "measured")
    for row in (
        ("alone, ms", f"{report.alone_ms:.1f}"),
        (f"urgent among {FLOOD_CALLERS} others, ms", f"{report.urgent_ms:.1f}"),
        (f"one of {FLOOD_CALLERS + 1} equals, ms", f"{report.equal_ms:.1f}"),
        ("urgent over alone", f"{report.urgent_over_alone:.2f}"),
        ("equal over alone", f"{report.equal_over_alone:.2f}"),
        ("flood, pictures/s", f"{report.flood_pictures_per_second:.1f}"),
        ("flood beside the urgent over beside an equal", f"{report.flood_kept:.2f}"),
    ):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
