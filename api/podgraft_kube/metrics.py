"""What the operator and the agent measure alike, and the ports on which Prometheus and the kubelet read."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

API_REQUESTS = Counter("podgraft_api_requests", "Requests to the API server; code 0: no answer", ["method", "code"])
API_SECONDS = Histogram(
    "podgraft_api_request_seconds",
    "Time to the head of the API server's answer",
    ["method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BUILD = Gauge("podgraft_build_info", "Always 1; which version runs", ["program", "version"])


def observe(method: str, code: int, seconds: float) -> None:
    """Count one request to the API server (an observer for Kube)."""
    API_REQUESTS.labels(method, str(code)).inc()
    API_SECONDS.labels(method).observe(seconds)


async def serve_metrics(port: int) -> web.AppRunner:
    """Serve /metrics in this event loop, where nothing that is collected can change meanwhile.

    Raises:
        OSError: the port is taken.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    # A second series for each counter and histogram, which nobody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types for it
    return await _serve("/metrics", metrics, port)


async def serve_health(problem: Callable[[], str | None], port: int) -> web.AppRunner:
    """Serve /healthz in this event loop: 200, or 500 with the problem, for which the kubelet restarts us.

    Raises:
        OSError: the port is taken.
    """

    async def health(_: web.Request) -> web.Response:
        wrong = problem()
        return web.Response(text=f"{wrong or 'ok'}\n", status=500 if wrong else 200)

    return await _serve("/healthz", health, port)


async def _serve(path: str, handler: Callable[[web.Request], Awaitable[web.Response]], port: int) -> web.AppRunner:
    app = web.Application()
    app.add_routes([web.get(path, handler)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - Prometheus and the kubelet come from elsewhere
    return runner
