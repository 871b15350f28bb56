"""The commands of whoever makes a patch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    more = ("--cve", "CVE-2025-32023", "--name", "my-fix", "--version", "3")
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) { return a + 1; }\n", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"bundle {project.folder}/fix.graft: 1 functions, 0 hazards overruled"
    assert (project.folder / "fix.prog").read_bytes()[:4] == b"\x7fELF"
    shown = run("inspect", project.folder / "fix.graft")
    assert all(word in shown.stdout for word in ("my-fix 3", "CVE-2025-32023", "work", "sha256:"))
    manifest = json.loads(run("inspect", "--json", project.folder / "fix.graft").stdout)
    assert manifest["functions"][0]["entry"]["symbol"] == "work"


def test_refusal(project: Any) -> None:
    """A refusal is one line with its reason, words on standard error, and exit code 3."""
    done = build(
        project, "int n = 1;\nint work(int a) { return n += a; }\n", "int n = 2;\nint work(int a) { return n += a; }\n"
    )
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "refused: ChangedData"
    assert "initial value of n" in done.stderr
    assert "hint: " in done.stderr
    done = build(project, "int work(int a) { return a; }\n", "int work(int a) {return a; }\n", "--json")
    assert (done.returncode, json.loads(done.stdout)["reason"]) == (3, "NoChange")


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
