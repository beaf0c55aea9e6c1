"""Who the control plane takes a caller for: the operator, one user, or nobody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr

from serving.api.control_auth import Caller, ControlAuth
from serving.errors import NoControlToken, OperatorError, OperatorOnly

ADMIN = "an admin token that only tests use"
SHARED = "a shared secret that only tests use, long enough"
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()

Signing = tuple[PrivateKeyTypes | str, str]


def public_pem(private: Any) -> str:
    pem: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private_pem(private: Any) -> str:
    pem: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def auth(key: str | None, *, admin: str = ADMIN) -> ControlAuth:
    return ControlAuth(
        admin_token=SecretStr(admin),
        user_jwt_key=None if key is None else SecretStr(key),
        user_jwt_audience="visiongate",
    )


def claims(**changed: Any) -> dict[str, Any]:
    """Without those that are changed to None."""
    valid = {"sub": "ada", "aud": "visiongate", "exp": int(time.time()) + 600}
    return {name: value for name, value in (valid | changed).items() if value is not None}


SIGNINGS: list[tuple[str, Any, str]] = [
    (SHARED, SHARED, "HS256"),
    (public_pem(RSA), RSA, "RS256"),
    (public_pem(P256), P256, "ES256"),
    (public_pem(ED25519), ED25519, "EdDSA"),
]
KINDS = [algorithm for _, _, algorithm in SIGNINGS]


@pytest.mark.parametrize("key", [None, *(key for key, _, _ in SIGNINGS)], ids=["no users", *KINDS])
def test_the_admin_token_is_the_operators(key: str | None) -> None:
    caller = auth(key).caller(ADMIN)
    assert (caller.user, caller.actor) == (None, "admin")


@pytest.mark.parametrize(("key", "signing_key", "algorithm"), SIGNINGS, ids=KINDS)
def test_a_users_token_is_that_users(key: str, signing_key: Any, algorithm: str) -> None:
    caller = auth(key).caller(jwt.encode(claims(), signing_key, algorithm))
    assert (caller.user, caller.actor) == ("ada", "user:ada")


def test_no_user_is_taken_for_the_operator() -> None:
    named_admin = auth(SHARED).caller(jwt.encode(claims(sub="admin"), SHARED, "HS256"))

    assert named_admin.actor == "user:admin"
    with pytest.raises(OperatorOnly):
        named_admin.require_operator()


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        ADMIN[:-1],
        ADMIN + "x",
        ADMIN.upper(),
        "eyJhbGciOiJIUzI1NiJ9",
        "a.b.c",
        "..",
        "ümlaut",
        "x" * 50_000,
    ],
)
@pytest.mark.parametrize("key", [None, SHARED, public_pem(RSA)], ids=["no users", "HS256", "RS256"])
def test_what_is_no_token_is_nobodys(key: str | None, token: str | None) -> None:
    with pytest.raises(NoControlToken):
        auth(key).caller(token)


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": None},
        {"exp": int(time.time()) - 60},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 600},
        {"sub": None},
        {"sub": ""},
        {"sub": " "},
        {"sub": "a\nb"},
        {"sub": "a" * 201},
        {"sub": 7},
        {"sub": ["ada"]},
        {"aud": None},
        {"aud": "another service"},
        {"aud": ["another service"]},
    ],
)
def test_a_token_that_does_not_say_all_of_it_is_nobodys(changed: dict[str, Any]) -> None:
    token = _hand_made({"alg": "HS256"}, claims(**changed), SHARED.encode())
    with pytest.raises(NoControlToken):
        auth(SHARED).caller(token)


def test_the_hand_made_tokens_of_this_module_are_well_made() -> None:
    token = _hand_made({"alg": "HS256"}, claims(aud=["visiongate", "another"]), SHARED.encode())
    assert auth(SHARED).caller(token) == Caller("ada")


@pytest.mark.parametrize("key", [key for key, _, _ in SIGNINGS], ids=KINDS)
@pytest.mark.parametrize(
    "forge",
    [
        lambda key: _hand_made({"alg": "none"}, claims(), None),
        lambda key: _hand_made({"alg": "None"}, claims(), None),
        lambda key: _hand_made({"alg": "HS256"}, claims(), b""),
        # The public key is no secret: whoever lets the token choose takes it for one.
        lambda key: _hand_made({"alg": "HS256"}, claims(), key.encode() + b"\n"),
        lambda key: _hand_made({"alg": "HS512"}, claims(), key.encode()),
        lambda key: jwt.encode(claims(), rsa.generate_private_key(65537, 2048), "RS256"),
        lambda key: jwt.encode(claims(), RSA, "PS256"),
        lambda key: jwt.encode(claims(), RSA, "RS256", headers={"crit": ["new"], "new": 1}),
    ],
    ids=["none", "None", "no secret", "public key", "HS512", "another key", "PS256", "critical"],
)
def test_the_algorithm_is_ours_to_choose(key: str, forge: Callable[[str], str]) -> None:
    with pytest.raises(NoControlToken):
        auth(key).caller(forge(key))


@pytest.mark.parametrize("key", [public_pem(RSA), public_pem(P256), public_pem(ED25519)], ids=KINDS[1:])
def test_a_public_key_is_never_a_shared_secret(key: str) -> None:
    with pytest.raises(NoControlToken):
        auth(key).caller(_hand_made({"alg": "HS256"}, claims(), key.encode()))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x" * 31,
        "-----BEGIN PUBLIC KEY-----\nbm9uc2Vuc2U=\n-----END PUBLIC KEY-----\n",
        "-----BEGIN " + "x" * 40,
        private_pem(RSA),
        private_pem(ED25519),
        public_pem(rsa.generate_private_key(65537, 1024)),
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["empty", "short", "nonsense", "half", "private", "private_ed", "rsa_1024", "p384", "k256"],
)
def test_a_key_that_proves_nothing_stops_the_start(key: str) -> None:
    with pytest.raises(OperatorError, match="user_jwt_key") as refused:
        auth(key)
    assert "nonsense" not in str(refused.value)


def der(private: Any) -> bytes:
    encoded: bytes = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def ssh(private: Any) -> str:
    encoded: bytes = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return encoded.decode()


def body(pem: str) -> str:
    """Without its armour."""
    return "\n".join(pem.splitlines()[1:-1])


PEM = public_pem(RSA)


@pytest.mark.parametrize(
    "key",
    [
        *(base64.b64encode(der(private)).decode() for private in (RSA, P256, ED25519)),
        *(body(public_pem(private)) for private in (RSA, P256, ED25519)),
        base64.urlsafe_b64encode(der(RSA)).decode().rstrip("="),
        body(private_pem(RSA)),
        body(PEM).replace("\n", "\\n"),
        body(PEM)[:128],  # and the rest was lost
        der(P256).hex(),
        der(P256).hex().upper(),
        base64.b64encode(PEM.encode()).decode(),
        *(ssh(private) for private in (RSA, P256, ED25519)),
        *(ssh(private).split()[1] for private in (RSA, P256, ED25519)),
        "---- BEGIN SSH2 PUBLIC KEY ----\n" + ssh(RSA).split()[1],
        f'"{PEM}"',
        f"'{PEM}'",
        f"\ufeff{PEM}",
        f"user_jwt_key={PEM}",
        orjson.dumps(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)).decode(),
        base64.b64encode(b'{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQH"}').decode(),
        '  [{"kty": "oct", "k": "c2VjcmV0IG9mIG5vYm9keSdz"}]',
        "https://login.example.org/.well-known/jwks.json",
        "HTTPS://login.example.org/realms/visiongate/certs",
        "file:/run/secrets/the-users-public-key-of-visiongate",
        "/run/secrets/visiongate/users-public-key",
        "/etc/visiongate/keys/the_key_of_the_users.pem",
        "./secrets/of/the/gateway/usersPublicKey1",
        "~/secrets/of the gateway/users_public_key",
        "secrets-of-the-gateway/users-public-key.pub",
        "C:\\secrets\\of\\the\\gateway\\users-public-key",
        __file__,
    ],
)
def test_what_looks_like_a_public_key_is_not_taken_for_a_secret(key: str) -> None:
    with pytest.raises(OperatorError, match="user_jwt_key") as refused:
        auth(key)
    assert key.strip()[:20] not in str(refused.value)


@pytest.mark.parametrize(
    "secret",
    [
        SHARED,
        "/" + base64.b64encode(hashlib.sha512(b"7").digest()).decode()[1:],
        "/" + base64.b64encode(hashlib.sha384(b"1").digest()).decode().replace("+", "x")[1:],
        hashlib.sha256(b"1").hexdigest(),
        base64.b64encode(b"0" + bytes(31)).decode(),
        "correct horse battery staple, and more of it",
        "".join(map(chr, range(33, 127))),
        "7" * 32,
    ],
)
def test_a_random_secret_is_one(secret: str) -> None:
    token = _hand_made({"alg": "HS256"}, claims(), secret.encode())
    assert auth(secret).caller(token) == Caller("ada")


@pytest.mark.parametrize("token", ["", "x" * 15])
def test_an_admin_token_that_can_be_guessed_stops_the_start(token: str) -> None:
    with pytest.raises(OperatorError, match="admin_token"):
        auth(None, admin=token)


@pytest.mark.parametrize(
    ("caller", "asked", "user"),
    [(None, None, None), (None, "bob", "bob"), ("ada", None, "ada"), ("ada", "ada", "ada")],
)
def test_whose_things_are_shown(caller: str | None, asked: str | None, user: str | None) -> None:
    assert Caller(caller).own(asked) == user


@pytest.mark.parametrize("asked", ["bob", "", "ADA"])
def test_a_user_does_not_see_what_is_anothers(asked: str) -> None:
    with pytest.raises(OperatorOnly):
        Caller("ada").own(asked)


def _hand_made(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None) -> str:
    """What PyJWT would refuse to write. Signed with HMAC by `alg`; None leaves the signature empty."""
    signed = b".".join(_segment(orjson.dumps(part)) for part in (header, payload))
    digest = hashlib.sha512 if header["alg"] == "HS512" else hashlib.sha256
    signature = b"" if secret is None else hmac.new(secret, signed, digest).digest()
    return b".".join((signed, _segment(signature))).decode()


def _segment(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
