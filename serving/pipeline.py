"""The whole journey of a request, on one screen: authenticate, admit, detect, settle, answer.

This file knows the ports and the domain. It does not know HTTP, Triton, Redis, SQL or Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serving.domain.contract import ModelContract
from serving.domain.inference import (
    InferenceAnswer,
    InferenceRequest,
    PictureAnswer,
    RenderedAnswer,
    SentPicture,
)
from serving.domain.limits import LimitState
from serving.domain.money import micros
from serving.domain.options import PredictionOptions
from serving.domain.tenant import Principal
from serving.domain.usage import UsageEvent
from serving.errors import (
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    VersionGone,
    VisiongateError,
)
from serving.lane import Lane
from serving.lanes import Lanes
from serving.ports import Admission, Clock, KeyStore, Reservation, UsageMeter

SWAP_SECONDS = 3.0
"""How long a request waits, whose version is gone, for the one that takes its place."""
MOST_SWAPS = 2
"""That one request survives."""
LEASE_GRACE_SECONDS = 5.0
"""After its deadline: what a request has reserved is not given back under its hands while it settles."""


class Gateway:
    def __init__(
        self,
        *,
        keys: KeyStore,
        admission: Admission,
        meter: UsageMeter,
        lanes: Lanes,
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._admission = admission
        self._meter = meter
        self._lanes = lanes
        self._clock = clock

    async def authenticate(self, api_key: str) -> Principal:
        return await self._keys.authenticate(api_key)

    def models(self, principal: Principal) -> list[ModelContract]:
        return [self._lanes.get(name).contract for name in self._lanes.names() if principal.may_use(name)]

    def model(self, principal: Principal, name: str) -> ModelContract:
        """Raises Forbidden, ModelNotFound, ModelRefused, BackendUnavailable while it is being loaded."""
        return self._choose_lane(principal, name).contract

    async def limits(self, principal: Principal) -> LimitState:
        return await self._admission.limits(principal)

    async def infer(
        self,
        principal: Principal,
        request: InferenceRequest,
        render: Callable[[InferenceAnswer], RenderedAnswer],
        *,
        note_limits: Callable[[LimitState], None],
    ) -> RenderedAnswer:
        """`render` makes what will be sent: nothing that can still fail comes after the bill.

        note_limits: told what is left once the request is admitted, however it ends.
        Raises any VisiongateError; a request that raises is not billed, and its tokens are given back.
        """
        try:
            lane = self._choose_lane(principal, request.model)
        except VisiongateError as refusal:
            return await self._answered_before(principal, request, refusal)
        swaps = 0
        while True:
            try:
                with lane.in_use():  # to its end: a lane that is replaced meanwhile stays open for it
                    return await self._infer_on(lane, principal, request, render, note_limits)
            except VersionGone:  # the server let go of it before this process saw what is published now
                if swaps == MOST_SWAPS:
                    raise
            swaps += 1
            left_seconds = request.deadline - self._clock.monotonic()
            lane = await self._lanes.successor(lane, within_seconds=min(SWAP_SECONDS, left_seconds))

    async def _infer_on(
        self,
        lane: Lane,
        principal: Principal,
        request: InferenceRequest,
        render: Callable[[InferenceAnswer], RenderedAnswer],
        note_limits: Callable[[LimitState], None],
    ) -> RenderedAnswer:
        contract, detector = lane.contract, lane.detector
        try:
            options = _allowed_options(contract, principal, request)
        except VisiongateError as refusal:
            return await self._answered_before(principal, request, refusal)

        reservation = await self._admission.admit(
            principal,
            request_id=request.request_id,
            pictures=len(request.pictures),
            lease_seconds=max(0.0, request.deadline - self._clock.monotonic()) + LEASE_GRACE_SECONDS,
            idempotency=request.idempotency,
        )
        if isinstance(reservation, RenderedAnswer):
            return reservation
        note_limits(reservation.limits)
        try:
            pictures = await _each_picture(
                request,
                lambda data: detector.detect(
                    data, options, deadline=request.deadline, priority=principal.tier.priority
                ),
            )
            answer = InferenceAnswer(contract, pictures)
            rendered = render(answer)
        except BaseException:
            # Also when the client has left: a cancelled request must not keep its tokens.
            await asyncio.shield(self._admission.give_back(reservation))
            raise
        # A client that leaves now finds the event recorded and its tokens spent, never one without the other.
        event = _usage_event(principal, request, answer, reservation)
        await asyncio.shield(self._settle(event, reservation, rendered))
        return rendered

    async def _answered_before(
        self, principal: Principal, request: InferenceRequest, refusal: VisiongateError
    ) -> RenderedAnswer:
        """What cannot be asked now may have been answered, and billed, when it could be.

        Raises the refusal where it was not.
        """
        if request.idempotency is not None:
            answer = await self._admission.answered(principal, request.idempotency)
            if answer is not None:
                return answer
        raise refusal

    async def _settle(self, event: UsageEvent, reservation: Reservation, answer: RenderedAnswer) -> None:
        try:
            await self._meter.settle(event, reservation, answer)
        except BaseException:
            await self._admission.give_back(reservation)
            raise

    def _choose_lane(self, principal: Principal, name: str | None) -> Lane:
        if name is None:
            name = self._only_model(principal)
        if not principal.may_use(name) and name in self._lanes.all_names():
            raise Forbidden(name)
        return self._lanes.get(name)

    def _only_model(self, principal: Principal) -> str:
        """Also one that is still being loaded: what a request means must not hang on the moment it comes."""
        if principal.only_model is not None:
            return principal.only_model
        allowed = [name for name in self._lanes.all_names() if principal.may_use(name)]
        if len(allowed) != 1:
            raise ModelNotFound(None)
        (only,) = allowed
        return only


def _allowed_options(
    contract: ModelContract, principal: Principal, request: InferenceRequest
) -> PredictionOptions:
    """Raises InvalidRequest for what the model cannot be asked, or not on this caller's terms."""
    options = contract.options(
        confidence_threshold=request.confidence_threshold,
        iou_threshold=request.iou_threshold,
        max_detections=request.max_detections,
        classes=request.classes,
    )
    most = principal.tier.max_pictures_per_request
    if len(request.pictures) > most:
        raise InvalidRequest(f"Your tier allows {most} pictures in one request.")
    return options


def _usage_event(
    principal: Principal, request: InferenceRequest, answer: InferenceAnswer, reservation: Reservation
) -> UsageEvent:
    def slowest_microseconds(stage: str) -> int:
        seconds = (getattr(picture.seconds, stage) for picture in answer.answered)
        return round(max(seconds, default=0.0) * 1_000_000)

    return UsageEvent(
        request_id=request.request_id,
        key_id=principal.key_id,
        user=principal.user,
        tier=principal.tier.name,
        deployment=answer.contract.name,
        model_version=answer.model_version,
        pictures=len(answer.answered),
        pixels=sum(picture.size.pixels for picture in answer.answered),
        received_bytes=request.received_bytes,
        decode_microseconds=slowest_microseconds("decode"),
        preprocess_microseconds=slowest_microseconds("preprocess"),
        queue_microseconds=slowest_microseconds("queue"),
        inference_microseconds=slowest_microseconds("inference"),
        postprocess_microseconds=slowest_microseconds("postprocess"),
        price_micros_per_1000=micros(principal.tier.price_per_1000),
        price_micros_per_month=micros(principal.tier.price_per_month),
        trace_id=request.trace_id,
        admitted_at=reservation.admitted_at,
    )


async def _each_picture(
    request: InferenceRequest, detect: Callable[[bytes], Awaitable[PictureAnswer]]
) -> tuple[PictureAnswer | RequestError, ...]:
    """In a list, a picture that cannot be used does not fail the rest; what is our fault fails them all."""

    async def one(picture: SentPicture) -> PictureAnswer:
        if isinstance(picture, RequestError):
            raise picture
        return await detect(picture)

    async def one_of_many(picture: SentPicture) -> PictureAnswer | RequestError:
        try:
            return await one(picture)
        except RequestError as error:
            return error

    if request.single:
        return (await one(request.pictures[0]),)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one_of_many(picture)) for picture in request.pictures]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return tuple(task.result() for task in tasks)
