"""The way of every HTTP request to a registry, redirects and token services included: where to, how much, how long."""

import time
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from podgraft_bundle.errors import Reason, Refusal

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0


class Guard(HTTPAdapter):
    """A transport that refuses plain http but to named hosts, answers above a limit, and what takes too long.

    plain_http: host:port as in the URL. limit: bytes of one answer. seconds: for all requests together.
    """

    def __init__(self, plain_http: set[str], limit: int, seconds: float) -> None:
        super().__init__()
        self._plain_http, self._limit = plain_http, limit
        self._deadline = time.monotonic() + seconds

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        """Send a request and read the whole answer, for nobody after us counts.

        Raises:
            Refusal: REGISTRY_NOT_ALLOWED, BUNDLE_TOO_LARGE.
            requests.RequestException: as the library does; Timeout when the time is used up.
        """
        url = urlsplit(request.url or "")
        host = url.netloc.rpartition("@")[2]
        if url.scheme != "https" and host not in self._plain_http:
            raise Refusal(Reason.REGISTRY_NOT_ALLOWED, f"{host} would be asked without TLS")
        left = self._left()
        # Stream: else the library reads all of it, however much that is.
        times = (min(_CONNECT_SECONDS, left), min(_READ_SECONDS, left))
        response = super().send(request, **options | {"stream": True, "timeout": times})
        try:
            body = self._read(response, host)
        except HTTPError as error:
            raise requests.ConnectionError("the answer broke off") from error
        finally:
            response.close()
        response._content = body  # noqa: SLF001 - the library offers no way to say that it has been read
        return response

    def _read(self, response: requests.Response, host: str) -> bytes:
        body = bytearray()
        # read1 returns what has come: iter_content would wait for a whole chunk, however slowly it comes.
        while chunk := response.raw.read1(65536):
            body += chunk
            self._left()
            if len(body) > self._limit:
                raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{host} sends more than {self._limit} bytes")
        return bytes(body)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise requests.Timeout("the time for this registry is used up")
        return left
