"""`podgraft-agent`: watches the NodePatch of its node, and answers."""

import asyncio
import contextlib
import os
import signal
import time
from functools import partial
from importlib.metadata import version

import structlog

from podgraft_agent.bundles import BundleCache
from podgraft_agent.config import Config, read_config
from podgraft_agent.engine import run_engine
from podgraft_agent.finder import Finder
from podgraft_agent.node import Node
from podgraft_agent.status import StatusWriter
from podgraft_agent.worker import Engine, Tools
from podgraft_api.model import API_VERSION
from podgraft_api.nodepatch import PLURAL
from podgraft_bundle.trust import read_trust
from podgraft_kube.client import Json, Kube
from podgraft_kube.logs import configure_logs
from podgraft_kube.metrics import BUILD, observe, serve_health, serve_metrics
from podgraft_kube.watch import watch

PATH = f"/apis/{API_VERSION}/{PLURAL}"
STUCK_SECONDS = 120.0
log = structlog.get_logger(__name__)


def main() -> None:
    """Run until SIGTERM or SIGINT; ends at once, for whatever is cut short is continued by the next agent."""
    config = read_config(os.environ)
    configure_logs(node=config.node)
    BUILD.labels("agent", version("podgraft")).set(1)
    asyncio.run(run(config))


class Agent:
    """Joins the watch, the node and the status writer."""

    def __init__(self, kube: Kube, config: Config, finder: Finder, engine: Engine) -> None:
        self._kube, self._config = kube, config
        trust = read_trust(config.trust_dir, allow_unsigned=config.allow_unsigned)
        self._bundles = BundleCache(kube, config.namespace, config.cache_dir, trust)
        self._changed = asyncio.Event()
        self._asked = asyncio.Event()
        tools = Tools(
            run=engine,
            bundle=self._bundles.path,
            changed=self._changed.set,
            slots=asyncio.Semaphore(config.parallel),
        )
        self.node = Node(finder, tools)
        self._writer = StatusWriter(kube, f"{PATH}/{config.node}", config)
        self.alive_at = time.monotonic()

    async def follow(self) -> None:
        """Take in every version of our own NodePatch."""
        query = {"fieldSelector": f"metadata.name={self._config.node}"}
        async for change in watch(self._kube, PATH, query):
            if change.kind == "deleted" or not change.objects:
                self.node.clear()
                self._writer.forget()
            for body in change.objects if change.kind != "deleted" else ():
                self._take(body)
            self._asked.set()

    def _take(self, body: Json) -> None:
        # Our own status writes come back as changes; only a new spec is work.
        if self._writer.belongs_to(body, self.node.generation):
            return
        self._writer.attach(body)
        self.node.take(body)

    async def look(self) -> None:
        """Look for processes when the work changes, and now and then for those that come by themselves."""
        while True:
            await self.node.look()
            self._bundles.keep({item.bundle.digest for item in self.node.items.values()})
            self.alive_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._config.scan_seconds)
            self._asked.clear()

    async def answer(self) -> None:
        """Write the status when it has changed, at most so often, and as a sign of life while there is work."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._config.heartbeat_seconds)
            # Before the write: most patches are done by then, and their beginning and end are one request.
            await asyncio.sleep(self._config.status_seconds)
            self._changed.clear()
            await self._writer.write(self.node.status())

    async def last_words(self) -> None:
        """Write what is known and stop the workers; short, for the kubelet waits."""
        status = self.node.status()
        await self.node.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await self._writer.write(status)

    def problem(self) -> str | None:
        """Return what the probe must know: that the loop does not turn any more."""
        quiet = time.monotonic() - self.alive_at
        return f"last looked {quiet:.0f} s ago" if quiet > STUCK_SECONDS else None


async def run(config: Config) -> None:
    """Serve until a signal comes; raises what a part of the agent died of."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Kube.connect(observe) as kube:
        agent = Agent(kube, config, Finder(config.proc), partial(run_engine, config.engine))
        servers = [await serve_health(agent.problem, config.health_port), await serve_metrics(config.metrics_port)]
        log.info("agent is up", version=version("podgraft"))
        parts = {asyncio.create_task(part) for part in (agent.follow(), agent.look(), agent.answer())}
        ending = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait(parts | {ending}, return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            part.cancel()
        await agent.last_words()
        for server in servers:
            await server.cleanup()
        for one in done - {ending}:
            one.result()
