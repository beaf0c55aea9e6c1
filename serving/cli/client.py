"""The command's own HTTP client of a running gateway; proxies of the environment are not for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from serving.errors import OperatorError

TIMEOUT = httpx.Timeout(35.0, connect=2.0)
MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}


class GatewayClient:
    """Raises OperatorError with the gateway's own words for whatever is not a success."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"}

    def infer(
        self, picture: Path, *, model: str | None = None, confidence_threshold: float | None = None
    ) -> dict[str, Any]:
        media_type = MEDIA_TYPES.get(picture.suffix.lower())
        if media_type is None:
            raise OperatorError(f"{picture.name}: only {', '.join(MEDIA_TYPES)} can be sent.")
        try:
            body = picture.read_bytes()
        except OSError as exc:
            raise OperatorError(f"{picture}: {exc.strerror}") from exc
        options = {"model": model, "confidence_threshold": confidence_threshold}
        return self._ask(
            "POST",
            "/v1/infer",
            content=body,
            params={name: value for name, value in options.items() if value is not None},
            headers={**self._headers, "Content-Type": media_type},
        )

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/v1/models", headers=self._headers)["models"]
        return found

    def is_ready(self) -> bool:
        try:
            return (
                httpx.get(f"{self._url}/readyz", timeout=TIMEOUT, trust_env=False).status_code
                == httpx.codes.OK
            )
        except httpx.HTTPError:
            return False

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = httpx.request(method, self._url + path, timeout=TIMEOUT, trust_env=False, **request)
        except httpx.HTTPError as exc:
            raise OperatorError(f"{self._url} does not answer: {exc}") from exc
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        raise OperatorError(f"{response.status_code}: {_words(response)}")


def _words(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
