"""Seccomp filters are simulated before anything is touched: work, or refuse, never kill."""

from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forge.compile_program(TARGETS / "filtered.c", tmp_path_factory.mktemp("filtered") / "filtered")


def start(launcher: Path, built: Path, rule: str) -> Iterator[Target]:
    return run_target(launcher, rule, str(built / "pairs"), "1", "2", program=built / "pairs")


@pytest.mark.parametrize("rule", ["allow", "docker"])
def test_a_filter_that_allows_our_calls_is_no_obstacle(launcher: Path, built: Path, bundle: str, rule: str) -> None:
    """As under the default profiles of the container runtimes."""
    for target in start(launcher, built, rule):
        assert "Seccomp:\t2" in Path(f"/proc/{target.pid}/status").read_text()
        applied = engine(target.pid, op="apply", bundle=bundle)
        assert applied.code == 0, applied
        assert "wakeup" in {e["how"] for e in applied.of("migrated")}
        assert engine(target.pid, op="revert", name="pairs-2").code == 0
        assert target.quit()["changes"] == 2


@pytest.mark.parametrize(("number", "name"), [("25", "mremap"), ("28", "madvise"), ("271", "ppoll")])
def test_a_filter_that_would_kill_is_refused_untouched(
    launcher: Path, built: Path, bundle: str, number: str, name: str
) -> None:
    """The call is named, the program lives on, its maps are as they were."""
    for target in start(launcher, built, number):
        maps = target.maps()
        answer = engine(target.pid, op="apply", bundle=bundle)
        assert (answer.code, answer.last["reason"]) == (3, "SeccompForbids")
        assert name in answer.last["detail"]
        assert target.maps() == maps
        assert target.report()["wrong"] == 0
