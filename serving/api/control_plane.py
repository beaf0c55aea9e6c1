"""`/api/v1`: keys and what they were used for, for the operator, and for users as far as it is theirs."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from serving.api.control_auth import ControlAuth
from serving.api.control_keys import key_router
from serving.api.control_requests import ControlRequests
from serving.api.control_usage import usage_router
from serving.budget import Budget
from serving.ports import Clock, KeyAdministration, Ledger


@dataclass(frozen=True, slots=True)
class ControlPlane:
    keys: KeyAdministration
    ledger: Ledger
    auth: ControlAuth
    clock: Clock
    held_bytes: Budget
    body_timeout_seconds: float


def control_plane_router(control: ControlPlane) -> APIRouter:
    requests = ControlRequests(control.auth, control.held_bytes, control.body_timeout_seconds)
    router = APIRouter()
    router.include_router(key_router(control.keys, requests, control.clock))
    router.include_router(usage_router(control.ledger, requests, control.clock))
    return router
