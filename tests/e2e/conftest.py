"""The three-node cluster with the chart on it. One that is up already (`make cluster-up`) is used and left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import binaries, commands
from hack.cluster.layout import State
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.images import build

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """A cluster of three nodes with all images, and kubectl and helm on PATH."""
    layout = build.everything()
    kept = commands.is_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{binaries.ensure()}", prepend=":")
        try:
            commands.up()
            commands.push(layout)
            yield State.default().admin
        finally:
            if not kept:
                commands.down()


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """Kubectl in the demo's namespace; podgraft is not installed yet."""
    return Kubectl(kubeconfig, on_cluster.NAMESPACE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put these tests behind all others, which wait for processors while the cluster is up."""
    items.sort(key=lambda item: item.path.is_relative_to(HERE))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep a test's sentence with its report, and which of several it is."""
    outcome: Any = yield
    which = getattr(item, "callspec", None)
    sentence = (item.obj.__doc__ or item.name).strip().partition("\n")[0]
    outcome.get_result().sentence = sentence + (f" [{which.id}]" if which is not None else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tested on the cluster, sentence by sentence, with the seconds that it took."""
    reports = [one for kind in ("passed", "failed", "error") for one in terminalreporter.getreports(kind)]
    ours = {one.nodeid for one in reports if hasattr(one, "sentence") and "e2e/" in one.nodeid}
    terminalreporter.section("on the cluster")
    for name in sorted(ours):
        mine = [one for one in reports if one.nodeid == name]
        seconds = sum(one.duration for one in mine)
        good = not any(one.failed for one in mine)
        where = name.partition("e2e/")[2].partition("::")[0]
        terminalreporter.line(f"{'ok' if good else 'FAILED':6} {seconds:6.1f} s  {where:22} {mine[0].sentence}")
