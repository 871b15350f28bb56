"""What the API server tells, told to the world; nothing is decided here."""

from podgraft_api.model import API_VERSION
from podgraft_kube.client import Kube
from podgraft_kube.watch import watch
from podgraft_operator.world import Kind, World

LISTS: dict[Kind, tuple[str, dict[str, str]]] = {
    "livepatches": (f"/apis/{API_VERSION}/livepatches", {}),
    "nodepatches": (f"/apis/{API_VERSION}/nodepatches", {}),
    "pods": ("/api/v1/pods", {"fieldSelector": "status.phase=Running"}),
}


async def follow(kube: Kube, world: World, kind: Kind) -> None:
    """Watch all objects of a kind until cancelled."""
    path, query = LISTS[kind]
    there: set[str] = set()
    async for change in watch(kube, path, query):
        if change.kind == "listed":
            there = set() if change.first else there
            there |= {body["metadata"]["uid"] for body in change.objects}
        for body in change.objects:
            world.see(kind, body, deleted=change.kind == "deleted")
        if change.kind == "listed" and change.last:
            world.only(kind, there, int(change.version))
            world.listed(kind)


async def compare(kube: Kube, world: World, kind: Kind) -> None:
    """List a kind beside its watch, which shows a watch that tells nothing; raises as Kube.get."""
    path, query = LISTS[kind]
    there: set[str] = set()
    version = 0
    async for page in kube.pages(path, **query):
        version = int(page["metadata"]["resourceVersion"])
        there |= {body["metadata"]["uid"] for body in page["items"]}
        for body in page["items"]:
            world.see(kind, body, watched=False)
    world.only(kind, there, version)
