"""A whole life of a patch in a real process."""

import json
import signal
import time
from pathlib import Path

import forge
from conftest import Target, engine, start_engine

NAME = "pairs-2"


def settle(target: Target) -> dict[str, int]:
    """Drop what was counted so far and count anew for a moment."""
    target.report()
    time.sleep(0.15)
    return target.report()


def test_apply_moves_every_thread_and_revert_brings_all_back(target: Target, bundle: str) -> None:
    """All threads run new code after apply and old code after revert; each changed once each way, no call was cut."""
    assert settle(target)["new"] == 0
    applied = engine(target.pid, op="apply", bundle=bundle)
    assert applied.code == 0, applied
    assert applied.last["event"] == "finalized"
    assert {e["tid"] for e in applied.of("migrated")} == set(target.tids())
    after = settle(target)
    assert (after["old"], after["wrong"], after["changes"]) == (0, 0, 1)
    assert after["new"] > 0
    reverted = engine(target.pid, op="revert", name=NAME)
    assert reverted.code == 0, reverted
    assert settle(target)["new"] == 0
    last = target.quit()
    assert (last["wrong"], last["eintr"], last["changes"]) == (0, 0, 2)


def test_after_a_revert_the_text_is_the_files_again_and_nothing_of_ours_executes(target: Target, bundle: str) -> None:
    """Text is byte for byte the same, and the helper thread has left."""
    before, tids = target.text(), target.tids()
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert target.text() != before
    assert target.tids() == tids
    assert engine(target.pid, op="revert", name=NAME).code == 0
    assert target.text() == before
    assert target.tids() == tids


def test_many_cycles_leave_no_maps_behind(target: Target, bundle: str) -> None:
    """The number of mappings is the same after the second and the seventh cycle."""
    counts = []
    for _ in range(7):
        assert engine(target.pid, op="apply", bundle=bundle).code == 0
        assert engine(target.pid, op="revert", name=NAME).code == 0
        counts.append(len(target.maps()))
    assert counts[1:] == [counts[1]] * 6


def test_no_page_is_ever_writable_and_executable(target: Target, bundle: str) -> None:
    """Neither while a patch is in nor after its revert."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert not [line for line in target.maps() if "wx" in line.split()[1]]
    assert engine(target.pid, op="revert", name=NAME).code == 0
    assert not [line for line in target.maps() if "wx" in line.split()[1]]


def test_check_touches_nothing(target: Target, bundle: str) -> None:
    """A check names sites and leaves maps and text as they are."""
    maps, text = target.maps(), target.text()
    answer = engine(target.pid, op="check", bundle=bundle)
    assert answer.code == 0
    assert {s["function"] for s in answer.last["sites"]} == {"left", "right", "linger"}
    assert (target.maps(), target.text()) == (maps, text)


def test_status_is_read_from_the_process(target: Target, bundle: str) -> None:
    """Status shows nothing, then the patch, then nothing again."""
    assert engine(target.pid, op="status").last["patches"] == []
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    (patch,) = engine(target.pid, op="status").last["patches"]
    assert (patch["name"], patch["phase"]) == (NAME, "finalized")
    assert set(patch["functions"]) == {"left", "right", "linger"}
    assert engine(target.pid, op="revert", name=NAME).code == 0
    assert engine(target.pid, op="status").last["patches"] == []


def test_applying_twice_is_the_same_as_once(target: Target, bundle: str) -> None:
    """The second apply answers finalized at once and touches nobody."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    maps = target.maps()
    again = engine(target.pid, op="apply", bundle=bundle)
    assert (again.code, [e["event"] for e in again.events]) == (0, ["finalized"])
    assert target.maps() == maps


def test_a_straggler_is_named_and_converges_when_it_leaves(target: Target, bundle: str) -> None:
    """While one thread sleeps inside a replaced function the others migrate; the deadline ends in exit code 4."""
    tids, tid = target.tids(), int(target.ask("tid"))
    assert target.ask("linger") == "lingering"
    first = engine(target.pid, op="apply", bundle=bundle, deadline=3)
    assert first.code == 4, first
    assert first.last["reason"] == "DeadlinePassed"
    waiting = first.of("waiting")[-1]
    assert (waiting["tid"], waiting["function"]) == (tid, "linger")
    # After a held look the kernel shows restart_syscall in its place.
    assert waiting["syscall"] in {"poll", "restart_syscall"}
    assert tid not in {e["tid"] for e in first.of("migrated")}
    assert {e["tid"] for e in first.of("migrated")} == set(tids) - {tid}
    (patch,) = engine(target.pid, op="status").last["patches"]
    assert patch["phase"] == "migrating"
    target.ask("go on")
    second = engine(target.pid, op="apply", bundle=bundle, deadline=20)
    assert (second.code, second.last["event"]) == (0, "finalized")
    assert target.quit()["changes"] == 1


def test_an_engine_that_was_stopped_for_long_takes_another_helper(target: Target, bundle: str) -> None:
    """The helper leaves in the middle of a transition; the engine borrows again, and the command comes to its end."""
    tids = target.tids()
    target.ask("linger")
    child = start_engine(target.pid, op="apply", bundle=bundle, deadline=60)
    assert any('"waiting"' in line for line in child.stdout)
    child.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 30
    while target.tids() != tids and time.monotonic() < until:
        time.sleep(0.1)
    assert target.tids() == tids
    child.send_signal(signal.SIGCONT)
    target.ask("go on")
    out, _ = child.communicate(timeout=60)
    last = json.loads(out.splitlines()[-1])
    assert (child.returncode, last["event"], last["helpers"]) == (0, "finalized", 2)
    assert settle(target)["old"] == 0
    assert target.quit()["changes"] == 1


def test_a_function_that_nothing_replaces_can_be_old_code(target: Target, built: Path, tmp_path: Path) -> None:
    """A thread in a function that the new source lacks does not migrate before it has left it."""
    patch = built / "patch.o"
    forge.forge(target.program, patch, ["left", "right"], tmp_path / "gone.graft", gone=("linger",))
    tid = int(target.ask("tid"))
    target.ask("linger")
    first = engine(target.pid, op="apply", bundle=str(tmp_path / "gone.graft"), deadline=3)
    assert (first.code, first.of("waiting")[-1]["tid"], first.of("waiting")[-1]["function"]) == (4, tid, "linger")
    target.ask("go on")
    assert engine(target.pid, op="apply", bundle=str(tmp_path / "gone.graft"), deadline=20).code == 0


def test_an_unfinished_patch_can_be_reverted(target: Target, bundle: str) -> None:
    """With a straggler on old code and the others on new, a revert brings all to old code at once."""
    before = target.text()
    target.ask("linger")
    assert engine(target.pid, op="apply", bundle=bundle, deadline=1.5).code == 4
    reverted = engine(target.pid, op="revert", name=NAME, deadline=20)
    assert reverted.code == 0, reverted
    assert target.text() == before
    assert settle(target)["new"] == 0
    assert target.report()["changes"] == 2


def test_a_revert_that_is_called_off_is_finished_before_the_patch_comes_back(target: Target, bundle: str) -> None:
    """Deleted and created again while threads lag: the process must not be stuck in between."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name=NAME, deadline=0.001).code == 4
    (patch,) = engine(target.pid, op="status").last["patches"]
    assert patch["phase"] == "reverting"
    again = engine(target.pid, op="apply", bundle=bundle)
    assert (again.code, again.last["event"]) == (0, "finalized"), again
    assert settle(target)["old"] == 0
    assert target.report()["changes"] == 3
