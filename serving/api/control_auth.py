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
from pydantic import SecretStr

from serving.api.token_keys import verification_key
from serving.domain.key_record import checked_name
from serving.errors import NoControlToken, OperatorError, OperatorOnly

MINIMUM_ADMIN_TOKEN_BYTES = 16
CLOCK_SKEW_SECONDS = 10


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
        self._key, self._algorithm = verification_key(key.get_secret_value())
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


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
