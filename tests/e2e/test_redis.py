"""The whole promise on three nodes: real pods, real load, a real fix."""

import pytest
from rich.console import Console

from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.demo.result import broken_promises

pytestmark = pytest.mark.cluster
PAUSES = on_cluster.Pauses(before=3, patched=2, after=2)


@pytest.mark.parametrize("privileged", [True, False], ids=["privileged", "capabilities"])
def test_redis_under_load_is_patched_and_reverted(kubectl: Kubectl, *, privileged: bool) -> None:
    """Three servers get the fix and give it back, and no client notices; few capabilities suffice."""
    on_cluster.install(kubectl.kubeconfig, f"--set=agent.privileged={str(privileged).lower()}")
    on_cluster.deploy(kubectl)
    result = on_cluster.play(Console(), PAUSES)
    assert broken_promises(result) == []
    assert len({server.node for server in result.servers}) == 3
    assert result.threads_total == 21
