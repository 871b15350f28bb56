"""The commands of whoever makes a patch."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder.explain import Explanation, Row
from podgraft_builder.verdict import Hazard
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.protocol import Problem
from podgraft_cli import engine, rungs
from podgraft_cli.page import _page
from podgraft_cli.rungs import Rungs

PODGRAFT = Path(sys.executable).with_name("podgraft")
MAIN = "int work(int);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n"


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    words = [str(PODGRAFT), *(str(a) for a in arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def build(project: Any, old: str, new: str, *more: str) -> subprocess.CompletedProcess[str]:
    project._write({"main.c": MAIN, "lib.c": old}, {"lib.c": new})
    return run(
        *("build", "--source", project.folder / "a", "--patch", project.folder / "fix.patch"),
        *("--build", project.command, "--binary", "prog", "-o", project.folder / "fix.graft", *more),
    )


def test_build_and_inspect(project: Any) -> None:
    """A build ends with the line that names the bundle; inspect shows what is in it."""
    more = ("--cve", "CVE-2025-32023", "--name", "my-fix", "--version", "3", "--replaces", "fix", "--over", "base")
    more += ("--point", "epoll_wait")
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) { return a + 1; }\n", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"bundle {project.folder}/fix.graft: 1 functions, 0 hazards overruled"
    assert (project.folder / "fix.prog").read_bytes()[:4] == b"\x7fELF"
    # Two instructions, and no padding behind them.
    assert "warning: apply will refuse it: NoPatchSite: work" in done.stdout
    shown = run("inspect", project.folder / "fix.graft")
    assert all(word in shown.stdout for word in ("my-fix 3", "CVE-2025-32023", "work", "sha256:"))
    manifest = json.loads(run("inspect", "--json", project.folder / "fix.graft").stdout)
    assert manifest["functions"][0]["entry"]["symbol"] == "work"
    assert (manifest["replaces"], manifest["over"], manifest["points"]) == (["fix"], ["base"], ["epoll_wait"])
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) { return a + 1; }\n", "--point", "work")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "refused: NoPatchSite")


def test_refusal(project: Any) -> None:
    """A refusal is one line with its reason, words on standard error, and exit code 3."""
    done = build(
        project, "int n = 1;\nint work(int a) { return n += a; }\n", "int n = 2;\nint work(int a) { return n += a; }\n"
    )
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "refused: ChangedData"
    assert "initial value of n" in done.stderr
    assert "hint: " in done.stderr
    assert "podgraft-engine" not in done.stderr  # the one that was to name rungs is ended without a word
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) {return a; }\n", "--json")
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (3, "NoChange")


def test_an_engine_that_dies_while_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is written by then: its rungs are not known, and that is all."""
    stub = tmp_path / "podgraft-engine"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    for module in (engine, rungs):
        monkeypatch.setattr(module, "installed", lambda: stub)
    with rungs.ready_engine() as started:
        assert started is not None
        time.sleep(0.5)  # longer than a shell takes to end
        found = rungs.find_rungs(started, tmp_path / "bundle", tmp_path / "binary")
    assert found.unknown == "the engine ended with 1"


def test_bad_usage(project: Any) -> None:
    """Names that no bundle may have are a usage error before anything is built."""
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) { return 1; }\n", "--cve", "CVE-1")
    assert done.returncode == 2
    assert run("inspect", project.folder / "nothing.graft").returncode == 1


def test_diff_of_two_object_trees(tmp_path: Path) -> None:
    """Two finished object trees are compared as two builds are."""
    for side, number in (("old", "1"), ("new", "2")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "t.c").write_text(f"int f(int a) {{ return a + {number}; }}\nint g(void) {{ return 3; }}\n")
        flags = ["-O2", "-g", "-ffunction-sections", "-fdata-sections", "-c", "t.c"]
        subprocess.run(["gcc", *flags], cwd=tmp_path / side, check=True)
    done = run("diff", "--json", tmp_path / "old", tmp_path / "new")
    assert done.returncode == 0
    assert [row["function"] for row in json.loads(done.stdout)["functions"]] == ["f"]
    done = run("diff", tmp_path / "old", tmp_path / "old")
    assert (done.returncode, done.stdout) == (3, "refused: NoChange\n")


LOOP = """
int n;
__attribute__((noinline)) static int step(int a) { return a + n; }
static inline int part(int a) { return a * @; }
int outer(int a) { return part(a) + 1; }
int work(int a) { for (;;) n = step(n) ^ (a > "<&>"[0]) @; }
"""


def test_overruled_hazard(project: Any) -> None:
    """A hazard that a human overrules is in the table, in the last line, and in the bundle; others are refused."""
    halves = LOOP.replace("@", "+ 1"), LOOP.replace("@", "+ 2")
    page = project.folder / "page.html"
    done = build(project, *halves, "--html", str(page))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "refused: NeverQuiescent")
    assert "refused: NeverQuiescent: lib.o: work never returns" in done.stdout
    assert '<p class="refused">refused: NeverQuiescent' in page.read_text()
    done = build(project, *halves, "--allow", "NeverQuiescent", "--html", str(page))
    assert done.stdout.splitlines()[-1] == f"bundle {project.folder}/fix.graft: 2 functions, 1 hazards overruled"
    shown = run("inspect", project.folder / "fix.graft").stdout
    assert "overruled  NeverQuiescent: lib.o: work never returns" in shown
    text = page.read_text()
    assert text.count('<table class="code">') == 2
    assert "inlines part" in text
    assert "<td>source</td>" in text
    assert re.search(r'<td class="gone">[^<]*</td><td class="came">[^<]*</td>', text)
    assert not re.search(r"<script|<link|src=|https?:", text)
    assert build(project, *halves, "--allow", "ChangedLayout").returncode == 2


def test_page_escapes_everything() -> None:
    """No text of a program or a patch becomes a part of the page."""
    evil = "<script>alert('&')</script>"
    hazard = Hazard(Reason.NEVER_QUIESCENT, evil, evil, evil, "warning")
    row = Row(evil, evil, evil, evil, 1, 2, evil, (hazard,), (evil,), (evil + "2",))
    refusal = Refusal(Reason.CHANGED_DATA, evil, evil)
    rungs = Rungs({evil: evil}, (Problem(reason=Reason.NO_PATCH_SITE, detail=evil, hint=evil),))
    text = "".join(_page(evil, Explanation((row,), (hazard,), refusal), rungs))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 14


def test_machine_readable(project: Any) -> None:
    """With --json nothing but JSON is on standard output, with cause, outlook and hazards of each function."""
    halves = LOOP.replace("@", "+ 1"), LOOP.replace("@", "+ 2")
    done = build(project, *halves, "--json", "--allow", "NeverQuiescent")
    document = json.loads(done.stdout)
    rows = {row["function"]: row for row in document["functions"]}
    assert rows["outer"]["cause"] == "inlines part"
    assert rows["outer"]["outlook"] == "soon: returns"
    assert {row["rung"].partition("-")[0] for row in rows.values()} == {"jmp"}
    assert document["no_site"] == []
    assert rows["work"]["hazards"] == ["overruled: NeverQuiescent"]
    assert [hazard["state"] for hazard in document["hazards"]] == ["overruled"]
