"""Asking Prometheus, beside the loop and never in it: a server that hangs must not hold up other LivePatches.

Source: prometheus.io, "HTTP API", instant queries. One GET, to an address that the operator's settings allow, with
limits of time and size, without redirects: who may write a LivePatch must not thereby reach what only the operator
can reach.
"""

import asyncio
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import aiohttp
import structlog

from podgraft_api.strategy import Prometheus
from podgraft_operator.health import Measurement
from podgraft_operator.problem import Problem

INTERVAL_SECONDS = 10.0
TIMEOUT = aiohttp.ClientTimeout(total=5)
MAX_BYTES = 2**20
# One answer may be lost in a restart of Prometheus; a rollout must not be taken back for that.
ATTEMPTS = 3
NOT_ALLOWED = "PrometheusNotAllowed"
NOT_ANSWERED = "PrometheusNotAnswering"
OUT_OF_BOUNDS = "MetricOutOfBounds"
log = structlog.get_logger(__name__)


class NoAnswer(Exception):
    """The query has no usable answer; the text says why."""


class Gauges:
    """The last answer for each LivePatch that is being rolled out; asks again when it is old."""

    def __init__(self, allowed: str, now: Callable[[], datetime]) -> None:
        self._now = now
        self._allowed = {one.strip().rstrip("/") for one in allowed.split(",")}
        self._known: dict[str, tuple[Prometheus, Measurement]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lost: dict[str, int] = {}

    def look(self, uid: str, query: Prometheus, answered: Callable[[], None]) -> Measurement | None:
        """Return the last answer to this query; when it is old or missing, ask, and call `answered` then."""
        asked, last = self._known.get(uid, (None, None))
        if asked != query:
            self.forget(uid)
            last = None
        if query.url.rstrip("/") not in self._allowed:
            return Measurement(self._now(), passed=False, problem=_not_allowed(query.url))
        fresh = last is not None and (self._now() - last.asked_at).total_seconds() < INTERVAL_SECONDS
        if not fresh and uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._ask(uid, query, answered), name=f"prometheus {uid}")
        return last

    def forget(self, uid: str) -> None:
        """Forget the answers to a LivePatch: its rollout is over, or it asks something else."""
        self._known.pop(uid, None)
        self._lost.pop(uid, None)
        task = self._tasks.pop(uid, None)
        if task is not None:
            task.cancel()

    async def _ask(self, uid: str, query: Prometheus, answered: Callable[[], None]) -> None:
        asked_at = self._now()
        try:
            problem = verdict(query, await ask(query))
            self._lost.pop(uid, None)
            measurement = Measurement(asked_at, passed=problem is None, problem=problem)
        except NoAnswer as error:
            self._lost[uid] = self._lost.get(uid, 0) + 1
            log.warning("Prometheus did not answer", url=query.url, error=str(error), attempt=self._lost[uid])
            lost = Problem(NOT_ANSWERED, str(error)) if self._lost[uid] >= ATTEMPTS else None
            measurement = Measurement(asked_at, passed=False, problem=lost)
        finally:
            # Whatever happened, the next look may ask again; who was cancelled has been followed already.
            if self._tasks.get(uid) is asyncio.current_task():
                del self._tasks[uid]
        self._known[uid] = (query, measurement)
        answered()


async def ask(query: Prometheus) -> list[float]:
    """Return the values that the query has now, at least one.

    Raises:
        NoAnswer: nobody answered in time, or the answer holds no number.
    """
    url = query.url.rstrip("/") + "/api/v1/query"
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.get(url, params={"query": query.query}, allow_redirects=False) as answer,
        ):
            body = await _read(answer.content)
            if answer.status != 200:
                raise NoAnswer(f"{url} answered {answer.status}")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        # What a server that is none says stays out of the status: it may be meant for the operator alone.
        raise NoAnswer(f"no answer from {url}: {type(error).__name__}") from error
    return values(body)


async def _read(content: aiohttp.StreamReader) -> bytes:
    body = b""
    async for chunk in content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MAX_BYTES:
            raise NoAnswer(f"the answer is longer than {MAX_BYTES} bytes: let the query aggregate")
    return body


def values(body: bytes) -> list[float]:
    """Return the numbers in the answer to an instant query: of a scalar, or of each element of a vector.

    Raises:
        NoAnswer: it is no such answer, or an empty vector.
    """
    try:
        data: dict[str, Any] = json.loads(body)["data"]
        kind, result = data["resultType"], data["result"]
        samples = [result] if kind == "scalar" else [one["value"] for one in result] if kind == "vector" else None
        numbers = [float(one[1]) for one in samples] if samples is not None else None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise NoAnswer("the answer is not that of a Prometheus server") from error
    if numbers is None:
        raise NoAnswer(f"the query gives a {kind}; it must give a number, or one for each series")
    if not numbers:
        raise NoAnswer("the query gives no value: no series matches")
    return numbers


def verdict(query: Prometheus, numbers: list[float]) -> Problem | None:
    """Return what is wrong with the values, None when all lie between the limits; NaN lies nowhere."""
    low = query.at_least if query.at_least is not None else -math.inf
    high = query.at_most if query.at_most is not None else math.inf
    wrong = [one for one in numbers if not low <= one <= high]
    if not wrong:
        return None
    limits = [f"at least {query.at_least:g}"] if query.at_least is not None else []
    limits += [f"at most {query.at_most:g}"] if query.at_most is not None else []
    return Problem(OUT_OF_BOUNDS, f"{query.query} is {wrong[0]:g}, wanted {' and '.join(limits)}")


def _not_allowed(url: str) -> Problem:
    return Problem(NOT_ALLOWED, f"{url} is not among the servers that the operator may ask (operator.prometheusUrls)")
