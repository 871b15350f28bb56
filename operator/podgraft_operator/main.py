"""`podgraft-operator`: kopf's watches and our loop, side by side until one of them ends."""

import asyncio
import logging
import os
import signal
import sys

import kopf
import structlog

from podgraft_kube.client import Kube
from podgraft_operator import handlers
from podgraft_operator.config import Config, read_config
from podgraft_operator.controller import Controller

log = structlog.get_logger(__name__)


def main() -> None:
    """Run until SIGTERM or SIGINT; exit code 1 when the loop or a watch has died."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # One line for every handled event would drown the others.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(run(read_config(dict(os.environ))))


async def run(config: Config) -> None:
    """Serve; returns when a signal asks for it."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Kube.connect() as kube:
        controller = Controller(kube, config)
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
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
