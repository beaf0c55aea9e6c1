from __future__ import annotations

from typing import Any

from rich.console import Console

from serving.cli.models import models_table, not_served
from serving.ports import CatalogModel, CatalogScan
from tests.support.world import make_contract


def described(name: str, *classes: str) -> dict[str, Any]:
    """As the gateway lists it."""
    return {
        "id": name,
        "version": "1",
        "task": "detection",
        "input_size": {"width": 320, "height": 160},
        "classes": list(classes),
        "contract": "0123456789abcdef",
    }


def test_the_table_shows_names_as_they_are() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(models_table([described("shapes", "[/x]", "\x1b[2J", "star")]))

    text = captured.get()
    assert all(shown in text for shown in ("shapes", "320 x 160", r"[/x], \x1b[2J, star", "0123456789ab"))
    assert all(line.isprintable() for line in text.splitlines())


def test_what_lies_there_and_is_not_served_has_its_reason() -> None:
    found = {name: CatalogModel(make_contract(name), max_batch_size=1) for name in ("served", "coming")}
    scan = CatalogScan(found, refused={"masks": "it is for segmentation", "changed": "half of it is missing"})

    assert list(not_served(scan, served={"served", "changed"})) == [
        ("masks", "it is for segmentation"),
        ("coming", "not loaded (see the gateway's log)"),
    ]
