"""A container has name spaces of its own; the engine stands outside."""

from pathlib import Path

from conftest import Target, engine, run_target


def test_a_process_in_a_pid_name_space_of_its_own(built: Path, bundle: str) -> None:
    """The helper knows itself by another number than we do: it is no thread of the program, and it leaves."""
    for outer in run_target(
        Path("/usr/bin/unshare"), "--pid", "--fork", "--kill-child", str(built / "pairs"), "1", "2"
    ):
        pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        tids = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())
        applied = engine(pid, op="apply", bundle=bundle)
        assert applied.code == 0, applied
        assert sorted(e["tid"] for e in applied.of("migrated")) == tids
        assert "wakeup" in {e["how"] for e in applied.of("migrated")}
        assert sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()) == tids
        assert engine(pid, op="revert", name="pairs-2").code == 0
        assert Target.report(outer)["changes"] == 2
