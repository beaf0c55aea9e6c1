"""Every error a client can meet, as one tree.

::

    VisiongateError
    ├── RequestError              the caller's doing: 4xx, never retried unchanged
    │   ├── Unauthenticated 401 ── KeyExpired, KeyRevoked, NoControlToken
    │   ├── Forbidden 403 ── OperatorOnly
    │   ├── ModelNotFound 404 ── ModelRefused; UnknownKey, RouteNotFound 404, MethodNotAllowed 405
    │   ├── PayloadTooLarge 413
    │   ├── UnsupportedMediaType 415
    │   ├── InvalidRequest 422 ── PictureUndecodable, PictureTooLarge
    │   └── IdempotencyKeyReused 422, IdempotencyKeyInUse 409 ── IdempotencyKeyUnsure, AnswerNotKept 409
    ├── RefusalError              ours to refuse, the caller's to repeat later: 429 and 503
    │   ├── LimitReached 429 ── RateLimited, TooManyAtOnce, QuotaExceeded
    │   └── Overloaded 503, BackendUnavailable 503 ── VersionGone, AccountsUnavailable
    ├── DeadlineExceeded 504
    ├── InternalError 500
    └── OperatorError             start-up trouble, printed to the operator, never sent to a client

`code` is the stable, documented name that clients may branch on; `title` is the same for every
occurrence; `str(error)` is the detail of this one. Details never hold a path, an address or a secret.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from serving.domain.limits import LimitState

AccountsTrouble = Literal["down", "slow", "read_only", "full", "loading", "failing_over", "unprimed", "other"]
"""Why Redis could not be relied on, as logs and metrics say it."""


class VisiongateError(Exception):
    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    type_uri: ClassVar[str] = "about:blank"

    retry_after_seconds: float | None = None

    @property
    def detail(self) -> str:
        return str(self)


class RequestError(VisiongateError):
    pass


class Unauthenticated(RequestError):
    code = "unauthenticated"
    status = 401
    title = "No valid API key"

    def __init__(self, why: str = "Send the header 'Authorization: Bearer pk_…' with a valid key.") -> None:
        super().__init__(why)


class KeyExpired(Unauthenticated):
    code = "key_expired"
    title = "API key expired"

    def __init__(self) -> None:
        super().__init__("This API key has expired; ask its owner for a new one.")


class KeyRevoked(Unauthenticated):
    code = "key_revoked"
    title = "API key revoked"

    def __init__(self, why: str = "This API key has been revoked.") -> None:
        super().__init__(why)


class NoControlToken(Unauthenticated):
    title = "No valid token"

    def __init__(self) -> None:
        super().__init__("Send the header 'Authorization: Bearer …' with the admin token or a user's token.")


class Forbidden(RequestError):
    code = "forbidden"
    status = 403
    title = "Not allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"This API key may not use the model {model!r}.")


class OperatorOnly(Forbidden):
    def __init__(self) -> None:
        RequestError.__init__(self, "Only the operator may do this, with the admin token.")


class ModelNotFound(RequestError):
    code = "model_not_found"
    status = 404
    title = "Unknown model"

    def __init__(self, model: str | None) -> None:
        super().__init__(
            f"There is no model {model!r}."
            if model is not None
            else "Name a model: this key is allowed on none, or on more than one."
        )


class ModelRefused(ModelNotFound):
    """It is in the repository, and this gateway cannot serve it."""

    def __init__(self, model: str, why: str) -> None:
        RequestError.__init__(self, f"The model {model!r} cannot be served by this gateway: {why}")


class RouteNotFound(RequestError):
    code = "not_found"
    status = 404
    title = "No such route"

    def __init__(self) -> None:
        super().__init__("There is nothing at this path; /docs lists what there is.")


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"

    def __init__(self) -> None:
        super().__init__("This path does not take this method; /docs lists what it takes.")


class UnknownKey(RequestError):
    code = "key_not_found"
    status = 404
    title = "Unknown key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key {key_id!r}.")


class PayloadTooLarge(RequestError):
    code = "payload_too_large"
    status = 413
    title = "Request body too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.")


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"

    def __init__(self, media_type: str) -> None:
        super().__init__(
            f"{media_type!r} is not accepted; send JPEG, PNG, WebP or BMP as it is, "
            "as multipart/form-data, or base64 in application/json."
        )


class InvalidRequest(RequestError):
    code = "invalid_request"
    status = 422
    title = "Invalid request"


class PictureUndecodable(InvalidRequest):
    code = "image_undecodable"
    title = "Picture cannot be decoded"

    def __init__(self, why: str = "The data is not a complete picture.") -> None:
        super().__init__(why)


class PictureTooLarge(InvalidRequest):
    code = "image_too_large"
    title = "Picture has too many pixels"

    def __init__(self, width: int, height: int, limit_pixels: int) -> None:
        super().__init__(f"{width} x {height} pixels is more than the limit of {limit_pixels} pixels.")


class IdempotencyKeyReused(RequestError):
    code = "idempotency_key_reused"
    status = 422
    title = "Idempotency-Key used for another request"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key came with another request within 24 hours; choose a new one.")


class IdempotencyKeyInUse(RequestError):
    code = "idempotency_key_in_use"
    status = 409
    title = "Request still in progress"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("The first request with this Idempotency-Key is still in progress.")
        self.retry_after_seconds = retry_after_seconds


class IdempotencyKeyUnsure(IdempotencyKeyInUse):
    """Redis knows whether it was used before, and cannot be asked."""

    title = "Idempotency-Key cannot be looked up"

    def __init__(self, retry_after_seconds: float) -> None:
        RequestError.__init__(
            self,
            "Whether this Idempotency-Key came with an earlier request cannot be told now; repeat it soon.",
        )
        self.retry_after_seconds = retry_after_seconds


class AnswerNotKept(RequestError):
    """Answering it again would bill it again, of which the client has not been asked."""

    code = "answer_not_kept"
    status = 409
    title = "Answered before, and not kept"

    def __init__(self) -> None:
        super().__init__(
            "The request with this Idempotency-Key was answered and billed once; there was no room to keep "
            "its answer. To have it answered, and billed, again, send another Idempotency-Key."
        )


class RefusalError(VisiongateError):
    def __init__(self, why: str, *, retry_after_seconds: float) -> None:
        super().__init__(why)
        self.retry_after_seconds = retry_after_seconds


class LimitReached(RefusalError):
    """violated_policies: by the names that the `RateLimit-Policy` field gives them.

    limits: what was left when it was refused; None where that is not known.
    """

    status = 429
    type_uri = "https://iana.org/assignments/http-problem-types#quota-exceeded"
    violated_policies: ClassVar[tuple[str, ...]]

    def __init__(self, why: str, *, retry_after_seconds: float, limits: LimitState | None = None) -> None:
        super().__init__(why, retry_after_seconds=retry_after_seconds)
        self.limits = limits


class RateLimited(LimitReached):
    code = "rate_limited"
    title = "Rate limit reached"
    violated_policies = ("burst",)


class TooManyAtOnce(RateLimited):
    title = "Too many requests at once"
    violated_policies = ("concurrent",)


class QuotaExceeded(LimitReached):
    code = "quota_exceeded"
    title = "Monthly quota used up"
    violated_policies = ("month",)


class Overloaded(RefusalError):
    code = "overloaded"
    status = 503
    title = "Too busy"
    type_uri = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

    def __init__(self, why: str = "Every queue is full.", *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(why, retry_after_seconds=retry_after_seconds)


class BackendUnavailable(RefusalError):
    code = "backend_unavailable"
    status = 503
    title = "Inference server unavailable"

    def __init__(
        self, why: str = "No inference server is ready for this model.", *, retry_after_seconds: float = 1.0
    ) -> None:
        super().__init__(why, retry_after_seconds=retry_after_seconds)


class AccountsUnavailable(BackendUnavailable):
    """Redis is down, slow, read-only, full, or has forgotten its counters: the fallback takes over."""

    title = "Accounts unavailable"

    def __init__(self, why: str, *, reason: AccountsTrouble = "other") -> None:
        super().__init__(why)
        self.reason = reason

    @property
    def is_of_one_call(self) -> bool:
        """Redis is there, and answered that it cannot do this: one key's account may be all that is wrong."""
        return self.reason == "other"


class VersionGone(BackendUnavailable):
    """The server is there, and does not serve this version of the model, or no longer: another may be."""


class DeadlineExceeded(VisiongateError):
    code = "timeout"
    status = 504
    title = "Deadline exceeded"

    def __init__(self, what: str = "The request") -> None:
        super().__init__(f"{what} took longer than allowed.")


class InternalError(VisiongateError):
    code = "internal"
    status = 500
    title = "Internal error"

    def __init__(self) -> None:
        super().__init__("Something went wrong on our side; quote the request id when you report it.")


class OperatorError(VisiongateError):
    """Start-up or configuration trouble: shown on the operator's terminal, never to a client."""
