"""C++ exceptions out of, through and in new code: the runtime finds its unwind data, and the program's own after."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, run_target

from tests.torture.engines import Outcome, run

FUNCTIONS = ["thrower", "middle", "catcher"]
FLAGS = ["-O2", "-g", "-fPIC", "-Wall", "-pthread"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and two patches, the second of which replaces the first."""
    folder = tmp_path_factory.mktemp("throws")
    subprocess.run(["g++", *FLAGS, "-pie", "-o", folder / "throws", TARGETS / "throws.cpp"], check=True)
    for version, more in ((2, {}), (3, {"replaces": ["v2"]})):
        relocatable = folder / f"{version}.o"
        sections = ["-ffunction-sections", f"-DVERSION={version}"]
        subprocess.run(["g++", *FLAGS, *sections, "-c", "-o", relocatable, TARGETS / "throws_patch.cpp"], check=True)
        forge.forge(folder / "throws", relocatable, FUNCTIONS, folder / f"{version}.graft", name=f"v{version}", **more)
    return folder


@pytest.fixture
def throws(built: Path) -> Iterator[Target]:
    yield from run_target(built / "throws")


def seen(target: Target) -> set[str]:
    """Return the versions that threads see now; nothing may be wrong, and every exception must be caught."""
    target.report()
    time.sleep(0.2)
    report = target.report()
    assert (report["wrong"], report["alive"]) == (0, 0)
    return {version for version in ("old", "two", "three") if report[version]}


def unwinder(target: Target) -> bytes:
    """Return libgcc's code as it is in memory; page clones lie below it."""
    mine = [line.split() for line in target.maps() if "libgcc_s" in line]
    base = next(int(words[0].split("-")[0], 16) for words in mine if words[2] == "00000000")
    for words in mine:
        start, end = (int(x, 16) for x in words[0].split("-"))
        if words[1] == "r-xp" and start > base:
            with Path(f"/proc/{target.pid}/mem").open("rb") as memory:
                memory.seek(start)
                return memory.read(end - start)
    raise AssertionError("no libgcc is mapped")


def executable(target: Target) -> list[str]:
    """Return the executable mappings; others come and go with the program's own allocations."""
    return [line for line in target.maps() if "x" in line.split()[1]]


def test_exceptions_pass_through_new_code_and_the_runtime_is_as_before_in_the_end(
    built: Path, throws: Target, tmp_path: Path
) -> None:
    """Thrown out of, through and in new code of two patches, by four threads; then libgcc is the file's again."""

    def do(**request: str) -> Outcome:
        return run(tmp_path, pid=throws.pid, deadline=30, **request)

    before = unwinder(throws)
    for _ in range(2):
        assert do(op="apply", bundle=str(built / "2.graft")).code == 0
        assert seen(throws) == {"two"}
        assert unwinder(throws) != before
        assert do(op="apply", bundle=str(built / "3.graft")).code == 0
        assert seen(throws) == {"three"}
        assert do(op="revert", name="v3").code == 0
        assert seen(throws) == {"old"}
        assert unwinder(throws) == before
    last = throws.quit()
    assert (last["wrong"], last["alive"]) == (0, 0)


def test_a_killed_engine_leaves_the_runtime_usable_and_the_next_one_tidies_it(
    built: Path, throws: Target, tmp_path: Path
) -> None:
    """Killed at each page switch in turn; a revert in the end brings libgcc's own code home."""
    before, request = unwinder(throws), {"op": "apply", "bundle": str(built / "2.graft")}
    kills = 0
    for turn in range(1, 5):
        outcome = run(tmp_path, stop_at=f"PAGE_SWITCHED:{turn}", pid=throws.pid, deadline=30, **request)
        kills += outcome.killed
        assert seen(throws) & {"old", "two"}
    assert kills >= 2
    assert run(tmp_path, pid=throws.pid, deadline=30, **request).code == 0
    assert seen(throws) == {"two"}
    assert run(tmp_path, op="revert", name="v2", pid=throws.pid, deadline=30).code == 0
    assert (seen(throws), unwinder(throws) == before) == ({"old"}, True)


def test_a_program_with_a_runtime_of_its_own_is_refused(built: Path, tmp_path: Path) -> None:
    """A static libgcc does not ask the shared one: nothing is touched."""
    program = tmp_path / "throws"
    static = ["-static-libgcc", "-static-libstdc++"]
    subprocess.run(["g++", *FLAGS, "-pie", *static, "-o", program, TARGETS / "throws.cpp"], check=True)
    forge.forge(program, built / "2.o", FUNCTIONS, tmp_path / "2.graft", name="v2")
    for target in run_target(program):
        mapped = executable(target)
        outcome = run(tmp_path, op="apply", bundle=str(tmp_path / "2.graft"), pid=target.pid)
        assert (outcome.code, outcome.reason) == (3, "ExceptionTable")
        assert executable(target) == mapped
