"""Shadow variables (podgraft.h) under many threads."""

import subprocess
from pathlib import Path

from podgraft_builder.hooks import INCLUDE

SOURCE = Path(__file__).parent.parent / "targets" / "shadow.c"


def test_threads_and_forked_children_never_wait_or_mix_variables(tmp_path: Path) -> None:
    """One of many makers wins, blocks never overlap, a child forked at any instant goes on, a full arena says NULL."""
    program = tmp_path / "shadow"
    flags = ["-O2", "-pthread", "-Wall", "-finstrument-functions", "-idirafter", INCLUDE]
    subprocess.run(["gcc", *flags, "-o", program, SOURCE], check=True)
    done = subprocess.run([program, "100"], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout[:2000]) == (0, "")
