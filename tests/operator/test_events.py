"""The recorder of Events against the real API server: bounded for each LivePatch, and counting what comes again."""

import asyncio
from pathlib import Path

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from stage import Cluster

from podgraft_kube.client import Kube
from podgraft_operator.events import BURST, REFILL_SECONDS, SERIES_SECONDS, Recorder
from podgraft_operator.turns import Turn


class Clock:
    """A clock that the test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def connected(cluster: Cluster, folder: Path) -> Kube:
    configuration = Configuration()
    path = cluster.api.kubeconfig(folder / "config")
    await load_kube_config(str(path), client_configuration=configuration)
    return Kube(ApiClient(configuration))


def turn(number: int) -> Turn:
    return Turn("Normal", f"Reason{number}", "Test", f"note {number}")


def test_many_are_held_back_and_same_ones_counted(cluster: Cluster, tmp_path: Path) -> None:
    """A flood ends at the burst and goes on at the refill; another LivePatch is not held back by it."""
    one, two = (
        {"metadata": {"name": name, "namespace": cluster.name, "uid": f"uid-{name}"}} for name in ("one", "two")
    )
    clock = Clock()

    def posted(name: str) -> dict[str, int]:
        found = cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{cluster.name}/events")["items"]
        mine = (event for event in found if event["regarding"]["name"] == name)
        return {event["reason"]: event.get("series", {}).get("count", 1) for event in mine}

    async def flood() -> None:
        async with await connected(cluster, tmp_path) as kube:
            recorder = Recorder(kube, clock)
            for number in range(BURST + 15):
                await recorder.post(one, turn(number))
            assert len(posted("one")) == BURST
            await recorder.post(two, turn(0))
            assert posted("two") == {"Reason0": 1}
            clock.now += REFILL_SECONDS
            for number in range(100, 103):
                await recorder.post(one, turn(number))
            assert len(posted("one")) == BURST + 1
            for _ in range(4):
                clock.now += 31
                await recorder.post(two, turn(0))
            assert posted("two") == {"Reason0": 5}
            clock.now += SERIES_SECONDS + 1
            await recorder.post(two, turn(0))
            found = cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{cluster.name}/events")["items"]
            assert len([event for event in found if event["regarding"]["name"] == "two"]) == 2

    asyncio.run(flood())


def test_a_namespace_that_takes_no_events_stops_nobody(cluster: Cluster, tmp_path: Path) -> None:
    """An Event that the API server refuses is lost, and that is all."""
    gone = {"metadata": {"name": "lp", "namespace": "no-such-namespace", "uid": "x"}}

    async def post() -> None:
        async with await connected(cluster, tmp_path) as kube:
            await Recorder(kube).post(gone, turn(1))

    asyncio.run(post())
