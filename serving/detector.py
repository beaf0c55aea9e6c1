"""One model's lane: encoded pictures in, predictions out, sharing batches of pixels and Triton calls.

::

    detect ─► decode (thread) ─► Batcher ─► preprocess (thread) ─► backend ─► postprocess (thread) ─► detect
    detect ─► decode (thread) ──┘    one batch: whatever had gathered           └─► detect
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.budget import Budget
from serving.domain.contract import ModelContract
from serving.domain.geometry import Size
from serving.domain.inference import PictureAnswer, Predictions, StageSeconds
from serving.domain.options import PredictionOptions
from serving.errors import DeadlineExceeded
from serving.metrics import Metrics
from serving.ports import Clock, InferenceBackend
from serving.threads import PriorityThreads
from serving.vision.batcher import Batcher
from serving.vision.decode import decode_rgb
from serving.vision.header import read_header
from serving.vision.postprocess import postprocess
from serving.vision.preprocess import preprocess


@dataclass(frozen=True, slots=True)
class DetectorLimits:
    """Bounds of one lane; sizes in pictures, pixels in width times height."""

    max_batch_size: int
    max_batches_in_flight: int
    max_queued_pictures: int
    max_picture_pixels: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    rgb: NDArray[np.uint8]
    options: PredictionOptions
    deadline: float
    priority: int

    @property
    def size(self) -> Size:
        height, width = self.rgb.shape[:2]
        return Size(width, height)


@dataclass(frozen=True, slots=True)
class _BatchShare:
    """What one picture gets out of its batch; the seconds are the batch's."""

    predictions: Predictions
    size: Size
    preprocess_seconds: float
    inference_seconds: float
    postprocess_seconds: float
    model_version: str


class Detector:
    def __init__(
        self,
        contract: ModelContract,
        *,
        backend: InferenceBackend,
        limits: DetectorLimits,
        decoded_pixels: Budget,
        threads: PriorityThreads,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._contract = contract
        self._backend = backend
        self._limits = limits
        self._decoded_pixels = decoded_pixels
        self._threads = threads
        self._clock = clock
        self._metrics = metrics
        self._batcher: Batcher[_Decoded, _BatchShare] = Batcher(
            self._run_batch,
            max_batch_size=limits.max_batch_size,
            max_batches_in_flight=limits.max_batches_in_flight,
            max_queue_size=limits.max_queued_pictures,
            clock=clock,
        )

    async def detect(
        self, data: bytes, options: PredictionOptions, *, deadline: float, priority: int
    ) -> PictureAnswer:
        """priority: 1 goes before 2 wherever pictures wait: for memory, a thread, a batch, and in Triton.

        Raises PictureUndecodable, PictureTooLarge, UnsupportedMediaType and what the backend raises;
        Overloaded also after it has waited, where the more urgent took the last of the queue.
        """
        pixels = read_header(data).pixels_within(self._limits.max_picture_pixels)
        try:
            async with (
                asyncio.timeout(deadline - self._clock.monotonic()),
                self._decoded_pixels.hold(pixels, priority=priority),
            ):
                started = self._clock.monotonic()
                rgb = await self._threads.run(
                    priority, decode_rgb, data, max_pixels=self._limits.max_picture_pixels
                )
                decode_seconds = self._clock.monotonic() - started
                batched = await self._batcher.submit(
                    _Decoded(rgb, options, deadline, priority), deadline=deadline, priority=priority
                )
        except TimeoutError as exc:
            raise DeadlineExceeded from exc
        share = batched.result
        seconds = StageSeconds(
            decode=decode_seconds,
            preprocess=share.preprocess_seconds,
            queue=batched.queue_seconds,
            inference=share.inference_seconds,
            postprocess=share.postprocess_seconds,
        )
        return PictureAnswer(share.predictions, share.size, seconds, share.model_version)

    async def close(self) -> None:
        await self._batcher.close()

    async def _run_batch(self, pictures: Sequence[_Decoded]) -> Sequence[_BatchShare]:
        contract = self._contract
        sizes = [picture.size for picture in pictures]
        priority = pictures[0].priority  # of all of them: a batch has one
        self._metrics.batch_pictures.observe(len(pictures))

        begin = self._clock.monotonic()
        with self._backend.batch_buffer(contract, len(pictures)) as batch_nhwc:
            await self._threads.run_to_its_end(
                priority,
                preprocess,
                contract.preprocessing,
                [picture.rgb for picture in pictures],
                out=batch_nhwc,
            )
            preprocessed = self._clock.monotonic()
            output = await self._backend.infer(
                contract,
                batch_nhwc,
                deadline=max(picture.deadline for picture in pictures),
                priority=priority,
            )
        inferred = self._clock.monotonic()
        predictions = await self._threads.run(
            priority, postprocess, contract, output.tensor, [picture.options for picture in pictures], sizes
        )
        done = self._clock.monotonic()
        return [
            _BatchShare(
                found,
                size,
                preprocessed - begin,
                inferred - preprocessed,
                done - inferred,
                output.model_version,
            )
            for found, size in zip(predictions, sizes, strict=True)
        ]
