"""`/api/v1/usage` and `/api/v1/usage/invoice`: what the ledger says of everybody, or of a user."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from serving.api import openapi, schemas
from serving.api.control_requests import PREFIX, ControlRequests
from serving.api.queries import parsed
from serving.api.routes import DirectRoute, json_response
from serving.api.usage_queries import InvoiceParameters, UsageParameters
from serving.domain.invoice_forms import CSV_COLUMNS, invoice_csv, invoice_json, usage_json
from serving.ports import Clock, Ledger

CSV = "text/csv"


def usage_router(ledger: Ledger, requests: ControlRequests, clock: Clock) -> APIRouter:
    router = APIRouter(route_class=DirectRoute, prefix=PREFIX, tags=["usage"])

    @router.get(
        "/usage",
        summary="What is in the ledger, added up",
        response_model=schemas.Usage,
        **openapi.control("By group, in order", 401, 403, 422, asks=UsageParameters),
    )
    async def usage(request: Request) -> Response:
        caller = requests.caller(request)
        query = parsed(UsageParameters, request.query_params).query(clock.now())
        query = replace(query, user=caller.own(query.user))
        return json_response(usage_json(await ledger.usage(query), query))

    @router.get(
        "/usage/invoice",
        summary="What is owed for a month, in priced lines",
        response_model=schemas.Invoice,
        **openapi.control(
            "The invoice", 401, 403, 422, asks=InvoiceParameters, also={CSV: ",".join(CSV_COLUMNS)}
        ),
    )
    async def invoice(request: Request) -> Response:
        caller = requests.caller(request)
        asked = parsed(InvoiceParameters, request.query_params)
        bill = await ledger.invoice(asked.month, user=caller.own(asked.user))
        if asked.format == "csv" or (asked.format is None and _prefers_csv(request.headers)):
            headers = {"Content-Disposition": f'attachment; filename="invoice-{bill.month}.csv"'}
            return Response(invoice_csv(bill), media_type=CSV, headers={**headers, "Vary": "Accept"})
        return json_response(invoice_json(bill), headers={"Vary": "Accept"})

    for path, get in (("/usage", usage), ("/usage/invoice", invoice)):
        router.add_api_route(path, get, methods=["HEAD"], include_in_schema=False)
    return router


def _prefers_csv(headers: Headers) -> bool:
    """Where `text/csv` is named and JSON is not: whoever takes both, or anything, gets JSON."""
    named = {part.partition(";")[0].strip().lower() for part in headers.get("accept", "").split(",")}
    return CSV in named and "application/json" not in named
