"""`podgraft-operator`: kopf's watches and our loop, side by side until one of them ends."""

import asyncio
import os
import signal
from importlib.metadata import version

import kopf
import structlog
from prometheus_client import REGISTRY

from podgraft_kube.client import Kube
from podgraft_kube.logs import configure_logs
from podgraft_kube.metrics import BUILD, observe, serve_metrics
from podgraft_operator import handlers
from podgraft_operator.config import Config, read_config
from podgraft_operator.controller import Controller
from podgraft_operator.metrics import WorldCollector

log = structlog.get_logger(__name__)


def main() -> None:
    """Run until SIGTERM or SIGINT; exit code 1 when the loop or a watch has died."""
    configure_logs()
    BUILD.labels("operator", version("podgraft")).set(1)
    asyncio.run(run(read_config(dict(os.environ))))


async def run(config: Config) -> None:
    """Serve; returns when a signal asks for it."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Kube.connect(observe) as kube:
        controller = Controller(kube, config)
        REGISTRY.register(WorldCollector(controller.world))
        metrics = await serve_metrics(config.metrics_port)
        log.info("operator is up", version=version("podgraft"))
        registry = kopf.OperatorRegistry()
        handlers.register(registry, controller)
        watches = kopf.operator(
            registry=registry,
            settings=handlers.settings(),
            standalone=True,
            clusterwide=True,
            liveness_endpoint=f"http://0.0.0.0:{config.liveness_port}/healthz",
            stop_flag=stop,
        )
        loop = asyncio.create_task(controller.run())
        serving = asyncio.create_task(watches)
        await asyncio.wait({loop, serving}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        loop.cancel()
        outcomes = await asyncio.gather(serving, loop, return_exceptions=True)
        await metrics.cleanup()
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
