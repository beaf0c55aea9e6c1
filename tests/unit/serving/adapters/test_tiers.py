from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from serving.adapters.tiers import MAX_COUNT, MAX_FILE_BYTES, load_tiers
from serving.domain.money import micros
from serving.errors import OperatorError

ROW = """\
tiers:
  own:
    rate_limit_per_minute: 60
    burst: 10
    monthly_quota: null
    max_pictures_per_request: 4
    max_concurrent_requests: 8
    priority: 2
    gpu: true
    price_per_1000: "0.10"
    price_per_month: "20"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tiers.yaml"
    path.write_text(text)
    return path


def test_the_shipped_table_is_the_specified_one() -> None:
    tiers = load_tiers(None)

    facts = {
        name: (
            tier.monthly_quota,
            tier.rate_limit_per_minute,
            tier.gpu,
            str(tier.price_per_1000),
            str(tier.price_per_month),
        )
        for name, tier in tiers.items()
    }
    assert facts == {
        "free": (1_000, 10, False, "0", "0"),
        "pro": (100_000, 100, True, "0.50", "0"),
        "enterprise": (None, 1_000, True, "0", "500"),
    }
    assert all(tier.name == name for name, tier in tiers.items())
    assert {name: (tier.priority, tier.max_concurrent_requests) for name, tier in tiers.items()} == {
        "free": (3, 2),
        "pro": (2, 16),
        "enterprise": (1, None),
    }


def test_an_operators_own_table_replaces_the_shipped_one(tmp_path: Path) -> None:
    (tier,) = load_tiers(written(tmp_path, ROW)).values()

    assert (tier.name, tier.burst, tier.max_pictures_per_request) == ("own", 10, 4)
    assert (tier.max_concurrent_requests, tier.priority) == (8, 2)
    assert tier.price_per_1000 == Decimal("0.10")


def test_the_table_cannot_be_changed_by_its_readers(tmp_path: Path) -> None:
    tiers = load_tiers(written(tmp_path, ROW))

    with pytest.raises(TypeError):
        tiers["free"] = tiers["own"]  # type: ignore[index]  # the point of the test


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (ROW, "", "the file is empty"),
        (ROW, "# only words\n", "the file is empty"),
        (ROW, "[]", "line 1, top level"),
        (ROW, "tiers: {}", "line 1, tiers"),
        (ROW, "tiers: [", "line 1"),
        (ROW, "tiers:\n  own:\n", "line 2, tiers.own"),
        ("burst: 10", "burst: 0", "line 4, tiers.own.burst: .*greater than or equal to 1"),
        ("burst: 10", "burst: ten", "line 4, tiers.own.burst: .*integer"),
        ("burst: 10", "burst: 10.0", "line 4, tiers.own.burst: .*integer"),
        ("burst: 10", "burst: true", "line 4, tiers.own.burst: .*integer"),
        ("burst: 10", "burst: 3", "line 2, tiers.own: .*4 is more than the burst of 3"),
        ("burst: 10", "bursts: 10", "line 4, tiers.own.bursts: Extra inputs"),
        ("burst: 10", "bursts: 10", "line 2, tiers.own.burst: Field required"),
        ("burst: 10", "burst: 10\n    burst: 12", "line 5: 'burst' is given twice"),
        ("gpu: true", 'gpu: "yes"', "line 9, tiers.own.gpu: .*boolean"),
        ("monthly_quota: null", "monthly_quota: -1", "line 5, tiers.own.monthly_quota"),
        ("    monthly_quota: null\n", "", "line 2, tiers.own.monthly_quota: Field required"),
        ('"0.10"', "0.10", "line 10, tiers.own.price_per_1000: write a price as a quoted decimal"),
        ('"0.10"', '"ten cents"', "line 10, tiers.own.price_per_1000: 'ten cents' is not a decimal"),
        ('"0.10"', '"-1"', "line 10, tiers.own.price_per_1000"),
        ('"0.10"', '"NaN"', "line 10, tiers.own.price_per_1000"),
        ('"0.10"', '"0.0000001"', "line 10, tiers.own.price_per_1000: .*no more than 6 decimal places"),
        ('"0.10"', '"0.' + "0" * 30 + '1"', "line 10, tiers.own.price_per_1000: .*no more than"),
        ('"0.10"', '"1e15"', "line 10, tiers.own.price_per_1000: .*no more than"),
        ('"20"', '"20.1234567"', "line 11, tiers.own.price_per_month: .*no more than 6 decimal places"),
        ("    priority: 2\n", "", "line 2, tiers.own.priority: Field required"),
        ("priority: 2", "priority: 0", "line 8, tiers.own.priority: .*greater than or equal to 1"),
        ("priority: 2", "priority: 4", "line 8, tiers.own.priority: .*less than or equal to 3"),
        ("priority: 2", "priority: high", "line 8, tiers.own.priority: .*integer"),
        ("    max_concurrent_requests: 8\n", "", "tiers.own.max_concurrent_requests: Field required"),
        ("_requests: 8", "_requests: 0", "line 7, tiers.own.max_concurrent_requests: .*or equal to 1"),
        ("_requests: 8", "_requests: true", "line 7, tiers.own.max_concurrent_requests: .*integer"),
        (
            "burst: 10",
            f"burst: {MAX_COUNT + 1}",
            "line 4, tiers.own.burst: .*less than or equal to 100000000",
        ),
        ("  own:", "  Own Tier:", "line 2, tiers.Own Tier"),
        ("  own:", "  !!python/object:os.system own:", "could not determine a constructor"),
        ("burst: 10", "burst: !!int ten", "invalid literal"),
        ("burst: 10", "burst: 2026-99-99", "month must be in"),
        ("burst: 10", "? [1] : 2", "unhashable"),
        (ROW, "[" * 2000 + "]" * 2000, "recursion"),
        (ROW, "tiers: &all {own: *all}", "line 1, tiers.own"),
        (ROW, ROW + "#" * MAX_FILE_BYTES, "has more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = written(tmp_path, ROW.replace(old, new))

    with pytest.raises(OperatorError, match=complaint) as caught:
        load_tiers(path)

    assert str(path) in caught.value.detail


def test_null_is_no_limit(tmp_path: Path) -> None:
    (tier,) = load_tiers(written(tmp_path, ROW.replace("_requests: 8", "_requests: null"))).values()

    assert (tier.max_concurrent_requests, tier.monthly_quota) == (None, None)


@pytest.mark.parametrize("price", ["0", "0.000001", "0.50", "1E+2", "999999999.999999", "0.1000000000"])
def test_a_price_is_whole_in_micros(tmp_path: Path, price: str) -> None:
    (tier,) = load_tiers(written(tmp_path, ROW.replace('"0.10"', f'"{price}"'))).values()

    assert micros(tier.price_per_1000) == Decimal(price) * 1_000_000


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, ROW.replace("burst: 10", "burst: 0").replace("gpu: true", "gpu: maybe"))

    with pytest.raises(OperatorError) as caught:
        load_tiers(path)

    assert len(caught.value.detail.splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"nowhere\.yaml"):
        load_tiers(tmp_path / "nowhere.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiers.yaml"
    path.write_bytes(b"\xff\xfe\x00tiers")

    with pytest.raises(OperatorError, match=r"tiers\.yaml"):
        load_tiers(path)
