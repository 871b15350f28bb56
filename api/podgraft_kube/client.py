"""One connection to the API server: JSON requests over the kubernetes package's session and credentials."""

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"
REQUEST = aiohttp.ClientTimeout(total=30, sock_connect=10)
# Objects in one answer; a pod may have 20 KiB, and thrice that when it is parsed.
PAGE = "100"
# Bookmarks come about once a minute: a stream that is silent for longer is dead.
SILENCE_SECONDS = 90


class ApiError(Exception):
    """The API server said no. status: HTTP code; reason: the machine-readable word of meta/v1 Status."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message

    @classmethod
    def of(cls, status: int, body: bytes) -> Self:
        """Read a Status object; proxies answer with text, so anything is accepted."""
        try:
            said = json.loads(body)
            return cls(status, str(said.get("reason", "")), str(said.get("message", "")))
        except (ValueError, AttributeError):
            return cls(status, "", body[:500].decode("utf-8", "replace"))


# What a request can fail with while the API server is away: worth another try.
UNAVAILABLE = (aiohttp.ClientError, TimeoutError, ConnectionError)
# Told of every request: method, HTTP code (0: no answer), seconds to the head of the answer.
Observer = Callable[[str, int, float], None]


class Kube:
    """JSON requests with the credentials of the pod, or of KUBECONFIG outside of one."""

    def __init__(self, api: ApiClient, observe: Observer | None = None) -> None:
        self._api, self._observe = api, observe

    @classmethod
    async def connect(cls, observe: Observer | None = None) -> Self:
        """Load credentials; raises kubernetes.aio.config.ConfigException when there are none."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration)
        return cls(ApiClient(configuration), observe)

    async def __aenter__(self) -> Self:
        """Return itself; the connection opens with the first request."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        await self._api.close()

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], limit: aiohttp.ClientTimeout, **send: Any
    ) -> aiohttp.ClientResponse:
        _, url, headers, _, _ = await self._api.param_serialize(
            method,
            path,
            header_params={"Accept": "application/json", "Content-Type": send.get("content", JSON)},
            auth_settings=["BearerToken"],
        )
        url += f"?{urlencode(query)}" if query else ""
        began, code = time.monotonic(), 0
        try:
            answer = await self._api.rest_client.request(
                method, url, headers=headers, body=send.get("body"), _request_timeout=limit
            )
            code = answer.response.status
        finally:
            if self._observe is not None:
                self._observe(method, code, time.monotonic() - began)
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 400:
            raise ApiError.of(response.status, await response.read())
        return response

    async def request(self, method: str, path: str, body: Any = None, content: str = JSON, **query: str) -> Json:
        """Return the answer's JSON; raises ApiError, or one of UNAVAILABLE."""
        response = await self._send(method, path, query, REQUEST, body=body, content=content)
        answer: Json = json.loads(await response.read())
        return answer

    async def get(self, path: str, **query: str) -> Json:
        """Read one object or a list."""
        return await self.request("GET", path, **query)

    async def pages(self, path: str, **query: str) -> AsyncIterator[Json]:
        """Yield a collection as it was at one moment, some objects at a time: the whole of it may not fit in memory."""
        token = ""
        while True:
            page = await self.get(path, limit=PAGE, **query, **({"continue": token} if token else {}))
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def find(self, path: str) -> Json | None:
        """Read one object, None when there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def create(self, path: str, body: Json) -> Json:
        """Create an object in a collection."""
        return await self.request("POST", path, body, fieldValidation="Strict")

    async def patch(self, path: str, body: Json) -> Json:
        """Merge-patch an object; put metadata.resourceVersion or uid in it as a precondition."""
        return await self.request("PATCH", path, body, MERGE_PATCH, fieldValidation="Strict")

    async def delete(self, path: str, body: Json | None = None) -> None:
        """Delete an object; that it is already gone is no error."""
        try:
            await self.request("DELETE", path, body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def stream(self, path: str, seconds: float, **query: str) -> AsyncIterator[Json]:
        """Yield the JSON lines of a watch until the server or the time ends it; raises as request does."""
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=10, sock_read=SILENCE_SECONDS)
        response = await self._send("GET", path, query, limit)
        try:
            async for line in response.content:
                yield json.loads(line)
        finally:
            response.close()
