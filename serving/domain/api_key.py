"""The text form of an API key.

::

    pk_4fQ8sXw2LmZa_Jr0c…32 characters…9TgB1x2Y3z
    │  │            │                     └ checksum: CRC-32 of all before it, 6 characters
    │  │            └ secret
    │  └ prefix: public, what a key is looked up and shown by
    └ marker that secret scanners know

All parts are base 62. The checksum refuses a typo without a look-up; it proves nothing else.

Secret scanners find a key by `SCANNER_PATTERN`; with the checksum compared, as `ApiKey.parse` does, what they
report is a key and not a text that looks like one (of those, one in 2^32 passes).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass

from pydantic import SecretStr

from serving.errors import OperatorError, Unauthenticated

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX_CHARACTERS = 12
SECRET_CHARACTERS = 32
CHECKSUM_CHARACTERS = 6
MINIMUM_HASH_SECRET_BYTES = 16

SCANNER_PATTERN = r"\bpk_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}\b"
"""Every key in a text and nothing shorter or longer, in the syntax that all scanners share."""

_FORM = re.compile(
    rf"pk_([0-9A-Za-z]{{{PREFIX_CHARACTERS}}})_"
    rf"([0-9A-Za-z]{{{SECRET_CHARACTERS}}})([0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})"
)


def random_base62(characters: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(characters))


def checksum(text: str) -> str:
    """CRC-32 of `text` (ASCII) as 6 base-62 digits, most significant first."""
    rest = zlib.crc32(text.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        rest, digit = divmod(rest, len(BASE62))
        digits.append(BASE62[digit])
    return "".join(reversed(digits))


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """A well-formed key. Only `reveal` gives the whole text; printing and logging give the prefix."""

    prefix: str
    secret: str

    @classmethod
    def generate(cls) -> ApiKey:
        return cls(random_base62(PREFIX_CHARACTERS), random_base62(SECRET_CHARACTERS))

    @classmethod
    def parse(cls, text: str) -> ApiKey:
        """Raises Unauthenticated, never quoting the text, where it is not a key or has a typo."""
        match = _FORM.fullmatch(text)
        if match is None or checksum(text[:-CHECKSUM_CHARACTERS]) != match[3]:
            raise Unauthenticated("The API key is malformed; check that it was copied completely.")
        return cls(match[1], match[2])

    def reveal(self) -> str:
        body = f"pk_{self.prefix}_{self.secret}"
        return body + checksum(body)

    def __repr__(self) -> str:
        return f"ApiKey(pk_{self.prefix}_…)"

    __str__ = __repr__


class KeyHasher:
    """The one way a key is kept: HMAC-SHA-256 of its text under a secret that the database does not hold."""

    def __init__(self, server_secret: SecretStr) -> None:
        """Raises OperatorError for a secret that can be guessed."""
        self._secret = server_secret.get_secret_value().encode()
        if len(self._secret) < MINIMUM_HASH_SECRET_BYTES:
            raise OperatorError(f"key_hash_secret needs at least {MINIMUM_HASH_SECRET_BYTES} bytes.")

    def hash(self, key: ApiKey) -> str:
        """64 lower-case hexadecimal digits."""
        return hmac.new(self._secret, key.reveal().encode("ascii"), hashlib.sha256).hexdigest()
