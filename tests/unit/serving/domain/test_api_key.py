from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from serving.domain.api_key import BASE62, SCANNER_PATTERN, ApiKey, KeyHasher, checksum
from serving.errors import OperatorError, Unauthenticated

KEY = ApiKey("abcdefghijkl", "0" * 32)


@pytest.mark.parametrize(
    ("text", "crc32"),
    [
        ("", 0),
        ("a", 0xE8B7BE43),
        ("123456789", 0xCBF43926),  # the algorithm's published check value
    ],
)
def test_the_checksum_is_crc32_in_base_62(text: str, crc32: int) -> None:
    digits = [BASE62.index(character) for character in checksum(text)]

    assert sum(digit * 62**power for power, digit in enumerate(reversed(digits))) == crc32


def test_the_text_has_the_documented_form() -> None:
    assert re.fullmatch(r"pk_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}", ApiKey.generate().reveal())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ('"Authorization: Bearer ', '"'),
        ("VISIONGATE_KEY=", "\n"),
        ("https://ada:", "@gateway/v1"),
    ],
)
def test_secret_scanners_find_a_key_whole_in_any_text(before: str, after: str) -> None:
    key = KEY.reveal()

    assert re.findall(SCANNER_PATTERN, before + key + after) == [key]


@pytest.mark.parametrize(
    "text",
    [
        KEY.reveal()[:-1],
        KEY.reveal() + "0",
        "s" + KEY.reveal(),
        KEY.reveal().replace("_", "-"),
        f"pk_{KEY.prefix}",  # what is listed and logged is no secret
    ],
)
def test_secret_scanners_find_nothing_shorter_or_longer(text: str) -> None:
    assert re.findall(SCANNER_PATTERN, text) == []


def test_generated_keys_come_back_from_their_text_and_differ() -> None:
    keys = [ApiKey.generate() for _ in range(200)]

    assert [ApiKey.parse(key.reveal()) for key in keys] == keys
    assert len({key.prefix for key in keys}) == len({key.secret for key in keys}) == 200


@given(position=st.integers(3, 53), character=st.sampled_from(BASE62))
def test_any_one_wrong_character_is_noticed(position: int, character: str) -> None:
    text = KEY.reveal()
    typo = text[:position] + character + text[position + 1 :]
    if typo == text:
        assert ApiKey.parse(typo) == KEY
        return

    with pytest.raises(Unauthenticated):
        ApiKey.parse(typo)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda text: text[:-1],  # copied incompletely
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.replace("pk_", "sk_"),
        lambda text: text.replace("abc", "bac"),  # two neighbours changed places
        lambda text: text.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}", 1),  # a digit, but not an ASCII one
    ],
)
def test_a_spoilt_key_is_refused_without_being_quoted(spoil: Callable[[str], str]) -> None:
    spoilt = spoil(KEY.reveal())

    with pytest.raises(Unauthenticated, match="malformed") as caught:
        ApiKey.parse(spoilt)

    assert not spoilt or spoilt not in caught.value.detail


def test_printing_shows_the_public_part_only() -> None:
    key = ApiKey.generate()

    for shown in (repr(key), str(key), f"{key}", repr([key])):
        assert key.prefix in shown
        assert key.secret not in shown


def test_the_hash_depends_on_the_key_and_on_the_secret() -> None:
    one, other = KeyHasher(SecretStr("one secret of ours")), KeyHasher(SecretStr("another secret!!"))
    keys = [KEY, ApiKey(KEY.prefix, "1" * 32), ApiKey("bbcdefghijkl", KEY.secret)]

    hashes = {hasher.hash(key) for hasher in (one, other) for key in keys}

    assert len(hashes) == 6
    assert one.hash(KEY) == KeyHasher(SecretStr("one secret of ours")).hash(KEY)
    assert all(re.fullmatch(r"[0-9a-f]{64}", text) for text in hashes)


@pytest.mark.parametrize("secret", ["", "fifteen bytes !"])
def test_a_secret_that_can_be_guessed_is_refused(secret: str) -> None:
    with pytest.raises(OperatorError, match="16 bytes") as caught:
        KeyHasher(SecretStr(secret))

    assert not secret or secret not in caught.value.detail
