"""The agents of many nodes in one process: the agent's own code, but for its eyes (/proc) and its hands (the engine).

Run as `python -m bench.scale.agents FILE`; the file says who they are (a Place as JSON). On SIGTERM it ends with one
line of JSON that says how late its event loop was.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from kubernetes.aio.client import ApiClient, Configuration
from pydantic.dataclasses import dataclass

from podgraft_agent.config import read_config
from podgraft_agent.engine import Outcome
from podgraft_agent.finder import Finder, Found, Sight
from podgraft_agent.main import Agent
from podgraft_bundle.errors import ExitCode
from podgraft_bundle.protocol import (
    Event,
    Finalized,
    Inspected,
    Migrated,
    PatchStatus,
    Prepared,
    Request,
    Reverted,
    Status,
)
from podgraft_kube.client import Kube

PATCH, BUILD_ID = "fix", "ab" * 20
THREADS, HELD_US = 8, 20.0
# As long as one engine process takes for a small server (docs/bench).
ENGINE_SECONDS = (0.6, 1.4)
TICK_SECONDS, START_SECONDS = 0.1, 0.005


@dataclass(frozen=True)
class Place:
    """Where the agents are. namespace: of operator and agents; folder: for caches; agents: node -> token."""

    url: str
    ca: str
    namespace: str
    trust: Path
    folder: Path
    agents: Mapping[str, str]


class Eyes(Finder):
    """Sees one process of the wanted build in every container."""

    def look(self, wanted: Mapping[str, set[str]]) -> Sight:
        """Return a process for each container; its id follows from the container's."""
        running = {
            (container, build): [Found(pid_of(container), 1, 0)]
            for container, builds in wanted.items()
            for build in builds
        }
        return Sight(running, frozenset(wanted))


def pid_of(container: str) -> int:
    """Return the pid that a container's process has; two on one node may share one, which does no harm here."""
    return 1 + zlib.crc32(container.encode()) % 4_000_000


class Hands:
    """Tells what an engine tells that patches or reverts a process whose threads all wake up in time."""

    def __init__(self) -> None:
        self._patched: dict[int, PatchStatus] = {}

    async def __call__(self, request: Request, hear: Callable[[Event], None]) -> Outcome:
        """Answer one request."""
        pid = request.pid
        if request.op == "status":
            patches = [self._patched[pid]] if pid in self._patched else []
            hear(Status(pid=pid, generation=len(patches), patches=patches))
            return Outcome(ExitCode.DONE)
        hear(Inspected(pid=pid, comm="app", module="app", build_id=BUILD_ID, base=0, threads=THREADS))
        hear(Prepared(generation=1, carrier=pid, carrier_held_us=HELD_US, area=0))
        seconds = random.uniform(*ENGINE_SECONDS)  # noqa: S311 - spreads the ends, keeps no secret
        await asyncio.sleep(seconds)
        for moved in range(1, THREADS + 1):
            hear(Migrated(tid=pid + moved, name="app", how="wakeup", held_us=0.0, migrated=moved, total=THREADS))
        if request.op == "apply":
            digest = f"sha256:{Path(request.bundle or '').stem}"
            self._patched[pid] = PatchStatus(
                name=PATCH, version="1", digest=digest, phase="finalized", generation=1, functions=["f"]
            )
        else:
            self._patched.pop(pid, None)
        end = Finalized if request.op == "apply" else Reverted
        how = {"wakeup": THREADS}
        hear(end(name=PATCH, generation=1, threads=THREADS, how=how, max_held_us=HELD_US, seconds=seconds))
        return Outcome(ExitCode.DONE)


class Clock:
    """How late the event loop calls: what its agents were slower by than agents with a machine of their own."""

    def __init__(self) -> None:
        self._lags: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._lags.append(loop.time() - due)

    def report(self) -> dict[str, float]:
        """Return the lateness in seconds, on average and at worst."""
        return {"mean": sum(self._lags) / max(1, len(self._lags)), "max": max(self._lags, default=0.0)}


def client(url: str, ca: str, token: str) -> Kube:
    """Return a client with connections and rights of its own."""
    chosen = Configuration()
    chosen.host, chosen.ssl_ca_cert = url, ca
    chosen.api_key["BearerToken"] = f"Bearer {token}"
    return Kube(ApiClient(chosen))


async def live(place: Place, node: str, token: str) -> None:
    """Be the agent of a node until cancelled."""
    given = {"NAMESPACE": place.namespace, "TRUST_DIR": place.trust, "CACHE_DIR": place.folder / node}
    config = read_config({"NODE_NAME": node} | {f"PODGRAFT_{key}": str(value) for key, value in given.items()})
    async with client(place.url, place.ca, token) as kube:
        agent = Agent(kube, config, Eyes(place.folder), Hands())
        async with asyncio.TaskGroup() as parts:
            for part in (agent.follow(), agent.look(), agent.answer()):
                parts.create_task(part)


async def run(place: Place) -> None:
    """Be all agents until SIGTERM, which ends the process; raises what one of them died of."""
    stop, clock = asyncio.Event(), Clock()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(clock.run())}
    for node, token in place.agents.items():
        tasks.add(asyncio.create_task(live(place, node, token), name=node))
        # A thousand handshakes at once would say more of this process than of the fleet.
        await asyncio.sleep(START_SECONDS)
    ending = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait(tasks | {ending}, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {ending}:
        task.result()
    sys.stdout.write(json.dumps(clock.report()) + "\n")
    sys.stdout.flush()
    # A thousand goodbyes take minutes; agents are made to be killed.
    os._exit(0)


def main() -> None:
    """Read who to be, and be them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(run(Place(**json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
