"""What one Triton knows of our shared memory: registered with the first request, unregistered at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from serving.adapters.shared_memory import SharedSlots, is_orphan

_LOGGER = logging.getLogger(__name__)
_REGISTER = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"
_UNREGISTER = "/inference.GRPCInferenceService/SystemSharedMemoryUnregister"
_STATUS = "/inference.GRPCInferenceService/SystemSharedMemoryStatus"
_TIMEOUT_SECONDS = 1.0
_LOGGED_CHARACTERS = 500
_OF_AN_ABSENT_SERVER = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch lies, in the words of a request; `registration` is what makes Triton know the region."""

    region: str
    offset: int
    byte_size: int
    registration: asyncio.Task[bool] = field(compare=False)


class TritonRegion:
    """Closes the slots at its own end, or as soon as Triton says that it will not use them."""

    def __init__(self, slots: SharedSlots, channel: grpc.aio.Channel) -> None:
        self._slots = slots
        self._registration: asyncio.Task[bool] | None = None
        self._was_tried = False
        self._register_call = channel.unary_unary(
            _REGISTER,
            request_serializer=service_pb2.SystemSharedMemoryRegisterRequest.SerializeToString,
            response_deserializer=service_pb2.SystemSharedMemoryRegisterResponse.FromString,
        )
        self._unregister_call = channel.unary_unary(
            _UNREGISTER,
            request_serializer=service_pb2.SystemSharedMemoryUnregisterRequest.SerializeToString,
            response_deserializer=service_pb2.SystemSharedMemoryUnregisterResponse.FromString,
        )
        self._status_call = channel.unary_unary(
            _STATUS,
            request_serializer=service_pb2.SystemSharedMemoryStatusRequest.SerializeToString,
            response_deserializer=service_pb2.SystemSharedMemoryStatusResponse.FromString,
        )

    @contextlib.contextmanager
    def buffer(self, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
        """An uninitialised array in a slot; a plain one where no slot is free or the batch is too large.

        That is meant so: what is over the measure is served by copying, which is slower but never a wait.
        """
        byte_size = math.prod(shape)
        slot = self._slots.take() if byte_size <= self._slots.slot_bytes else None
        if slot is None:
            yield np.empty(shape, np.uint8)
            return
        try:
            yield slot.memory[:byte_size].reshape(shape)
        finally:
            # Triton may still be reading for a request that was cancelled or ran out of time, and then sees
            # the next batch, or half of it. Nobody waits for that answer, and gRPC drops it. A request that
            # was answered has been read to its end. So every answer that arrives is of what it was asked for.
            self._slots.give_back(slot)

    async def place_of(self, batch: NDArray[np.uint8], *, timeout_seconds: float) -> Place | None:
        """None where the batch has to travel in the message."""
        offset = self._slots.offset_of(batch)
        if offset is None:
            return None
        if self._registration is None:
            self._was_tried = True
            self._registration = asyncio.create_task(self._register())
        registration = self._registration
        if not registration.done():  # whoever waits may be cancelled, but not what others wait for too
            await asyncio.wait([registration], timeout=timeout_seconds)
        if not registration.done() or not registration.result():
            return None
        return Place(self._slots.name, offset, batch.nbytes, registration)

    def forget(self, place: Place) -> None:
        """Register again before the next request, unless another has seen to that."""
        if self._registration is place.registration:
            self._registration = None

    async def close(self) -> None:
        self._slots.close()  # from here on nobody asks to register
        if self._registration is not None:
            await asyncio.wait([self._registration])
        if self._was_tried:
            self._was_tried = False
            with contextlib.suppress(grpc.aio.AioRpcError):  # a Triton that is gone has forgotten it anyway
                await self._unregister(self._slots.name)

    async def _register(self) -> bool:
        name = self._slots.name
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=f"/{name}", byte_size=self._slots.total_bytes
        )
        try:
            await self._register_call(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as exc:
            return self._is_registered_after(exc)
        with contextlib.suppress(grpc.aio.AioRpcError):  # the next one to register tries again
            await self._unregister_orphans()
        return True

    async def _unregister_orphans(self) -> None:
        """Those of processes that were killed: Triton would keep their memory for as long as it lives."""
        status = await self._status_call(
            service_pb2.SystemSharedMemoryStatusRequest(), timeout=_TIMEOUT_SECONDS
        )
        for name in filter(is_orphan, status.regions):
            await self._unregister(name)

    async def _unregister(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        await self._unregister_call(request, timeout=_TIMEOUT_SECONDS)

    def _is_registered_after(self, error: grpc.aio.AioRpcError) -> bool:
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:  # by an attempt of ours whose answer was lost
            return True
        self._registration = None
        if is_refusal(error.code(), error.details() or ""):
            _LOGGER.warning(
                "Triton refuses shared memory, so pictures travel in messages: %s: %s",
                error.code().name,
                (error.details() or "")[:_LOGGED_CHARACTERS],
            )
            self._slots.close()
        return False


def is_refusal(code: grpc.StatusCode, text: str) -> bool:
    """Whether asking again is of no use. A server that is just absent may be back for the next request."""
    lowered = text.lower()
    return code not in _OF_AN_ABSENT_SERVER or "shared memory" in lowered or "shm" in lowered


def is_unknown_region(text: str) -> bool:
    """Triton's words for a region that nobody registered, which it looks for before it runs anything."""
    return "unable to find shared memory region" in text.lower()
