from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.domain.invoice_forms import CSV_COLUMNS, invoice_csv, invoice_json, usage_json
from serving.domain.month import Month
from serving.domain.usage import Invoice, InvoiceLine, UsageQuery, UsageTotals

NOVEMBER = Month(2026, 11)
PICTURES = InvoiceLine("ada", "key_1", "pro", "shapes", "pictures", 3, 500, 2)
SUBSCRIPTION = InvoiceLine("ada", "key_1", "pro", None, "subscription", 1, 500_000_000, 500_000_000)
INVOICE = Invoice(NOVEMBER, (PICTURES, SUBSCRIPTION))


def line_of(user: str) -> InvoiceLine:
    return InvoiceLine(user, "key_1", "pro", "shapes", "pictures", 3, 500, 2)


def test_csv_has_a_header_and_a_record_for_each_line() -> None:
    assert invoice_csv(INVOICE) == (
        '"month","user","key_id","tier","deployment","what","quantity","unit_price","amount"\r\n'
        '"2026-11","ada","key_1","pro","shapes","pictures","3","0.000500","0.000002"\r\n'
        '"2026-11","ada","key_1","pro","","subscription","1","500.000000","500.000000"\r\n'
    )


def test_an_empty_invoice_is_its_header() -> None:
    assert invoice_csv(Invoice(NOVEMBER, ())) == ",".join(map('"{}"'.format, CSV_COLUMNS)) + "\r\n"


@pytest.mark.parametrize(
    ("user", "cell"),
    [
        ("ada", "ada"),
        ("ada+bob@example.org", "ada+bob@example.org"),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\r=1", "'\r'=1"),
        ("\ttab", "'\ttab"),
        ("a;b|c", "a;b|c"),
        ("a;=1", "a;'=1"),
        ("a; =1", "a;' =1"),
        ('a;"=1', "a;'\"=1"),
        ("a|@SUM(A1)", "a|'@SUM(A1)"),
        ("a\t-1;+1", "a\t'-1;'+1"),
        ("a\n=1", "a\n'=1"),
        ("a;\uff1d1", "a;'\uff1d1"),
        ("\uff1d1+1", "'\uff1d1+1"),  # full width: some spreadsheets take it for =
        ('=HYPERLINK("http://x";"y")', '\'=HYPERLINK("http://x";"y")'),
        ('a","=1', 'a","=1'),  # quoted, so that no cell begins inside
    ],
)
def test_no_name_is_a_formula(user: str, cell: str) -> None:
    records = list(csv.reader(io.StringIO(invoice_csv(Invoice(NOVEMBER, (line_of(user),))), newline="")))

    assert records[1][1] == cell


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_csv_is_read_back_as_it_was(user: str) -> None:
    text = invoice_csv(Invoice(NOVEMBER, (line_of(user),)))

    header, record = csv.reader(io.StringIO(text, newline=""), strict=True)

    assert header == list(CSV_COLUMNS)
    assert record[1].replace("'", "") == user.replace("'", "")
    assert record[-1] == "0.000002"


@given(st.text(st.sampled_from("a=+-@\uff1d;|\t\n,'\" ")), st.sampled_from(",;|\t"))
def test_nor_is_what_another_separator_makes_of_it(user: str, separator: str) -> None:
    text = invoice_csv(Invoice(NOVEMBER, (line_of(user),)))

    for record in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        assert not any(re.match(r"[\s\"]*[-=+@\uff1d]", cell) for cell in record)


def test_json_has_money_as_text_and_in_micros() -> None:
    form = invoice_json(INVOICE)

    assert json.loads(json.dumps(form)) == {
        "month": "2026-11",
        "total": "500.000002",
        "total_micros": 500_000_002,
        "lines": [
            {
                "user": "ada",
                "key_id": "key_1",
                "tier": "pro",
                "deployment": "shapes",
                "what": "pictures",
                "quantity": 3,
                "unit_price": "0.000500",
                "unit_price_micros": 500,
                "amount": "0.000002",
                "amount_micros": 2,
            },
            {
                "user": "ada",
                "key_id": "key_1",
                "tier": "pro",
                "deployment": None,
                "what": "subscription",
                "quantity": 1,
                "unit_price": "500.000000",
                "unit_price_micros": 500_000_000,
                "amount": "500.000000",
                "amount_micros": 500_000_000,
            },
        ],
    }


def test_usage_says_of_what_period_it_is_in_utc() -> None:
    begin = datetime(2026, 11, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    query = UsageQuery(begin, datetime(2026, 11, 2, tzinfo=UTC), "day")

    form = usage_json([UsageTotals("2026-11-01", 1, 2, 3, 4, 5, 6)], query)

    assert json.loads(json.dumps(form)) == {
        "from": "2026-11-01T00:00:00Z",
        "to": "2026-11-02T00:00:00Z",
        "group_by": "day",
        "rows": [
            {
                "group": "2026-11-01",
                "requests": 1,
                "pictures": 2,
                "pixels": 3,
                "received_bytes": 4,
                "inference_microseconds": 5,
                "amount": "0.000006",
                "amount_micros": 6,
            }
        ],
    }
