"""`podgraft build` that is ended: nothing that it started goes on, or where it must, nobody else is disturbed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podgraft_builder.workspace import Workspace

LONG = "sh -c 'echo $$ > @; sleep 300; :' | cat"


class Running:
    """A build that has come as far as its build command, which does not end."""

    def __init__(self, folder: Path) -> None:
        self.source, self.note = folder / "source", folder / "note"
        self.source.mkdir()
        (self.source / "a.c").write_text("int a;\n")
        (folder / "fix.patch").write_text("--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-int a;\n+int b;\n")
        self.command = LONG.replace("@", str(self.note))
        arguments = ["--source", self.source, "--patch", folder / "fix.patch", "--build", self.command]
        # A shell that puts its tests into the background lets them ignore SIGINT, and so whatever they start.
        podgraft = ["env", "--default-signal=INT", Path(sys.executable).with_name("podgraft")]
        self.process = subprocess.Popen([*podgraft, "build", *arguments, "--binary", "a", "-o", folder / "a.graft"])
        deadline = time.monotonic() + 60
        while not (self.note.exists() and self.note.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.child = int(self.note.read_text())

    def child_runs(self) -> bool:
        """Say whether what the build command started is alive, after a while in which it may end."""
        for _ in range(100):
            try:
                state = Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return False
            if state in "ZX":
                return False
            time.sleep(0.02)
        return True

    def place_is_free(self) -> bool:
        """Say whether another build would be made where this one is; ask not too often."""
        time.sleep(0.02)
        space = Workspace.create(self.source, self.command)
        space.remove()
        return space.lasts


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A build under way."""
    monkeypatch.setenv("PODGRAFT_CACHE", str(tmp_path / "cache"))
    build = Running(tmp_path)
    group = os.getpgid(build.child)
    yield build
    build.process.kill()
    build.process.wait()
    if build.child_runs() and group != os.getpgid(0):
        os.killpg(group, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_build_command_ends_with_its_build(running: Running, number: signal.Signals) -> None:
    """A signal to podgraft alone, as from a service manager, ends the build command and all that it started."""
    running.process.send_signal(number)
    assert running.process.wait(30) not in {0, -number} or number == signal.SIGINT
    assert not running.child_runs()
    assert not list((running.source.parent / "cache").glob("build-*/tree"))


def test_what_outlives_a_killed_build_keeps_its_place(running: Running) -> None:
    """A build command whose podgraft is killed goes on writing: the next build goes elsewhere meanwhile."""
    running.process.kill()
    running.process.wait()
    assert running.child_runs()
    assert not running.place_is_free()
    os.killpg(os.getpgid(running.child), signal.SIGKILL)
    assert not running.child_runs()
    assert any(running.place_is_free() for _ in range(100))
