"""`user_jwt_key`: a public key or a shared secret, and the one algorithm that it is for.

Whoever means a public key and gives it in another form than PEM would get an HMAC secret that everybody can
read, and could forge tokens with. So a secret is only what looks like no key, nor like where one is kept.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from serving.errors import OperatorError

MINIMUM_SHARED_SECRET_BYTES = 32
MINIMUM_RSA_BITS = 2048

VerificationKey = str | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

_ARMOUR = re.compile(r"-{4,5} ?BEGIN")
_SSH = re.compile(r"(ssh|sk-ssh|ecdsa-sha2|sk-ecdsa-sha2)-[a-z0-9@.\-]+\s")
_URL = re.compile(r"([a-z][a-z0-9+.\-]*:/|(data|file):)", re.IGNORECASE)
_KEY_FILE = re.compile(r"\.(pem|key|pub|crt|cer|cert|der|p8|p12|pfx|jwks?|json|asc)", re.IGNORECASE)
_PATH = re.compile(r"(~|\.{1,2}|[A-Za-z]:)?([\\/][\w .\-]+)+[\\/]?")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+")
_SPACES = re.compile(r"\s+")
_DER_SEQUENCE = 0x30


def verification_key(text: str) -> tuple[VerificationKey, str]:
    """And its algorithm, as JWA names it. Raises OperatorError, without quoting what it was given."""
    if text.lstrip().startswith("-----BEGIN"):
        return _public_key(text)
    if len(text.encode()) < MINIMUM_SHARED_SECRET_BYTES:
        raise OperatorError(f"A shared user_jwt_key needs at least {MINIMUM_SHARED_SECRET_BYTES} bytes.")
    if (kind := _what_it_looks_like(text)) is not None:
        raise OperatorError(
            f"user_jwt_key looks like {kind}, which is no secret: give a random one, or a public key itself, "
            "as PEM that begins with '-----BEGIN'."
        )
    return text, "HS256"


def _public_key(pem: str) -> tuple[VerificationKey, str]:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise OperatorError("user_jwt_key is PEM, but no public key.") from exc
    match key:
        case RSAPublicKey() if key.key_size >= MINIMUM_RSA_BITS:
            return key, "RS256"
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return key, "ES256"
        case Ed25519PublicKey():
            return key, "EdDSA"
        case _:
            raise OperatorError(
                f"user_jwt_key is a key of RSA with at least {MINIMUM_RSA_BITS} bits, of P-256 or of Ed25519."
            )


def _what_it_looks_like(text: str) -> str | None:
    """Other than a secret; None for nothing else."""
    bare = text.strip("\ufeff \t\r\n\"'")
    looks = (
        ("PEM with something before it", _ARMOUR.search(bare)),
        ("an SSH key", _SSH.match(bare)),
        ("JSON", _is_json(bare)),
        ("a URL", _URL.match(bare)),
        ("a path", _is_path(bare)),
        ("an encoded key", any(_is_key_material(data) for data in _decoded(bare))),
    )
    return next((kind for kind, found in looks if found), None)


def _is_json(text: str | bytes) -> bool:
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _is_path(text: str) -> bool:
    if os.path.exists(text) or _KEY_FILE.fullmatch(os.path.splitext(text)[1]):  # noqa: PTH110, PTH122 - pathlib raises for a name that is too long
        return True
    # One base64 text in 64 begins with a slash, but it holds what few paths hold together, and nothing else.
    is_base64 = _BASE64.fullmatch(text) is not None and len(text) % 4 == 0
    is_varied = all(re.search(kind, text) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return _PATH.fullmatch(text) is not None and not (is_base64 and is_varied)


def _decoded(text: str) -> Iterator[bytes]:
    """The bytes that it may stand for, as base64 in either alphabet, padded or not, and as hexadecimal."""
    packed = _SPACES.sub("", text).replace("\\n", "")
    unpadded = packed.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        yield base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except (ValueError, binascii.Error):
        return
    try:
        yield bytes.fromhex(packed)
    except ValueError:
        return


def _is_key_material(data: bytes) -> bool:
    is_ssh = data[:3] == b"\0\0\0" and data[4:].startswith((b"ssh-", b"ecdsa-", b"sk-"))
    return is_ssh or _is_der(data) or b"-----BEGIN" in data or _is_json(data)


def _is_der(data: bytes) -> bool:
    """Whether it begins as every key does in DER: a sequence, of all the rest or longer than 127 bytes.

    Of random secrets, one in 20 000 does so too, and has to be made again.
    """
    if len(data) < 2 or data[0] != _DER_SEQUENCE:
        return False
    return data[1] in (0x81, 0x82) or data[1] == len(data) - 2
