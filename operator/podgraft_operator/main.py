"""`podgraft-operator`: kopf's watch, our own ones and the loop, side by side until one of them ends."""

import asyncio
import os
import signal
from importlib.metadata import version

import structlog
from prometheus_client import REGISTRY

from podgraft_kube.client import Kube
from podgraft_kube.logs import configure_logs
from podgraft_kube.metrics import BUILD, observe, serve_health, serve_metrics
from podgraft_operator import handlers
from podgraft_operator.config import Config, read_config
from podgraft_operator.controller import Controller
from podgraft_operator.metrics import WorldCollector
from podgraft_operator.watches import follow
from podgraft_operator.world import MANY

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
        servers = [
            await serve_metrics(config.metrics_port),
            await serve_health(controller.problem, config.liveness_port),
        ]
        log.info("operator is up", version=version("podgraft"))
        parts = {asyncio.create_task(follow(kube, controller.world, kind)) for kind in MANY}
        parts |= {asyncio.create_task(handlers.follow(controller.world)), asyncio.create_task(controller.run())}
        ending = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait(parts | {ending}, return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        for server in servers:
            await server.cleanup()
        for one in done - {ending}:
            one.result()
