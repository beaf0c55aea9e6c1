"""Who calls the control plane: the operator with the admin token, or a user with a JSON Web Token.

::

    Authorization: Bearer <admin token>     the operator: everything
    Authorization: Bearer eyJ…              a user, named by `sub`: their own keys, usage and invoice
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import SecretStr

from serving.domain.key_record import checked_name
from serving.errors import NoControlToken, OperatorError, OperatorOnly

MINIMUM_ADMIN_TOKEN_BYTES = 16
MINIMUM_SHARED_SECRET_BYTES = 32
MINIMUM_RSA_BITS = 2048
CLOCK_SKEW_SECONDS = 10

_VerificationKey = str | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Caller:
    """user: None is the operator. actor: what the audit table calls them."""

    user: str | None

    @property
    def actor(self) -> str:
        return "admin" if self.user is None else f"user:{self.user}"

    def require_operator(self) -> None:
        if self.user is not None:
            raise OperatorOnly

    def own(self, user: str | None) -> str | None:
        """Whose keys and usage are asked for: a user's are their own, whether they say so or not.

        Raises OperatorOnly where they name somebody else.
        """
        if self.user is not None and user not in (None, self.user):
            raise OperatorOnly
        return self.user or user


class ControlAuth:
    def __init__(
        self, *, admin_token: SecretStr, user_jwt_key: SecretStr | None, user_jwt_audience: str
    ) -> None:
        """Raises OperatorError for a token that can be guessed, and for a key that proves nothing."""
        token = admin_token.get_secret_value().encode()
        if len(token) < MINIMUM_ADMIN_TOKEN_BYTES:
            raise OperatorError(f"admin_token needs at least {MINIMUM_ADMIN_TOKEN_BYTES} bytes.")
        self._admin_digest = _digest(token)
        self._users = None if user_jwt_key is None else _UserTokens(user_jwt_key, user_jwt_audience)

    def caller(self, token: str | None) -> Caller:
        """Raises NoControlToken, which never says what is wrong with a token: that would help a forger."""
        if token is None:
            raise NoControlToken
        # Digests, so that neither the length nor the first bytes of ours can be timed.
        if hmac.compare_digest(_digest(token.encode()), self._admin_digest):
            return Caller(None)
        if self._users is None:
            raise NoControlToken
        return Caller(self._users.user(token))


class _UserTokens:
    def __init__(self, key: SecretStr, audience: str) -> None:
        self._key, self._algorithm = _verification_key(key.get_secret_value())
        self._audience = audience

    def user(self, token: str) -> str:
        try:
            claims = jwt.decode(
                token,
                self._key,
                # By our key's kind, never by the token: `none` and HS256 under a public key are forgeries.
                algorithms=[self._algorithm],
                audience=self._audience,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "sub", "aud"]},
            )
            return checked_name("user", claims["sub"])
        except (jwt.PyJWTError, OperatorError) as exc:
            raise NoControlToken from exc


def _verification_key(text: str) -> tuple[_VerificationKey, str]:
    """And the one algorithm that it is for. Raises OperatorError."""
    if not text.lstrip().startswith("-----BEGIN"):
        if len(text.encode()) < MINIMUM_SHARED_SECRET_BYTES:
            raise OperatorError(f"A shared user_jwt_key needs at least {MINIMUM_SHARED_SECRET_BYTES} bytes.")
        return text, "HS256"
    try:
        key = load_pem_public_key(text.encode())
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


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
