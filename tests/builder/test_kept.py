"""The old build that is kept for the next patch to the same tree: used where nothing changed, and only there."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder import kept
from podgraft_builder.workspace import Workspace
from podgraft_bundle.errors import Refusal

KEPT = "old build: the one that is kept from an earlier patch"
RULES = "prog: main.o work.o more.o\n\tgcc -fPIE -pie -o $@ $^\n%.o: %.c one.h\n\tgcc -O2 -fPIE $(EXTRA) -c $<\n"
OLD = {
    "Makefile": RULES,
    "main.c": "int f(int);\nint g(int);\nint main(int c, char **v) { (void)v; return f(c) + g(c); }\n",
    "more.c": '#include "one.h"\nint g(int a) { return a + ONE; }\n',
    "work.c": "int f(int a) { return a * 3; }\n",
    "one.h": "#define ONE 1\n",
}
FIX = {"work.c": "int f(int a) { return a * 5 + 1; }\n"}


@pytest.fixture
def again(project: Any) -> Any:
    """Return a function that builds a bundle and tells whether that used a kept build."""
    project.command = "make"

    def build(old: dict[str, str], new: dict[str, str]) -> tuple[Any, bool]:
        project.log.clear()
        outcome = project.build(old, new)
        return outcome, KEPT in project.log

    build.folder = project.folder  # type: ignore[attr-defined]
    return build


def test_second_patch_uses_the_old_build(again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another patch for the same tree is built on the kept one, and gives what a build from scratch gives."""
    assert again(OLD, {"one.h": "#define ONE 7\n"})[1] is False
    monkeypatch.setenv("CCACHE_MAXSIZE", "1G")  # says nothing about what is built
    second, from_kept = again(OLD, FIX)
    assert from_kept is True
    assert [one.new_symbol for one in second.bundle.manifest.functions] == ["f"]
    for note in (again.folder / "cache").glob("build-*/kept.json"):
        note.unlink()
    scratch, from_kept = again(OLD, FIX)
    assert from_kept is False
    assert second.bundle.digest == scratch.bundle.digest


@pytest.mark.parametrize("what", ["source", "environment", "compiler"])
def test_other_inputs_need_another_build(again: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed tree, environment or compiler is never answered with the kept build."""
    again(OLD, FIX)
    old = OLD
    if what == "source":
        old = {**OLD, "one.h": "#define ONE 3\n"}
    elif what == "environment":
        monkeypatch.setenv("EXTRA", "-fno-inline")
    else:
        folder = again.folder / "bin"
        folder.mkdir()
        (folder / "gcc").write_text('#!/bin/sh\nexec /usr/bin/gcc "$@"\n')
        (folder / "gcc").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert again(old, FIX)[1] is False


def test_headers_outside_the_tree_count(again: Any) -> None:
    """A system header that has changed makes the kept build another program's."""
    outside = again.folder / "outside"
    outside.mkdir()
    (outside / "more.h").write_text("#define MORE 1\n")
    work = "#include <more.h>\nint f(int a) { return a @ 3 + MORE; }\n"
    old = {**OLD, "Makefile": RULES.replace("-O2", f"-O2 -isystem {outside}"), "work.c": work.replace("@", "*")}
    again(old, {"work.c": work.replace("@", "/")})
    (outside / "more.h").write_text("#define MORE 25\n")
    assert again(old, {"work.c": work.replace("@", "/")})[1] is False


def test_only_the_last_builds_are_kept(project: Any) -> None:
    """A cache that grows without end fills disks."""
    for number in range(4):
        project.command = f"make && : {number}"
        project.build(OLD, FIX)
    assert len(list((project.folder / "cache").glob("build-*/kept.json"))) == 3


def test_the_next_copy_is_made_while_comparing(project: Any) -> None:
    """After a patch, refused or not, a copy of the kept build lies ready, and it is what make left, times and all."""
    project.command = "make"
    for new in (FIX, {"work.c": "int f(int a) { return a * 3; }\n\n"}, FIX):
        with suppress(Refusal):
            project.build(OLD, new)
        (root,) = (project.folder / "cache").glob("build-????????????????")
        assert subprocess.run(["diff", "-r", root / "kept", root / "spare"], check=False).returncode == 0
        assert (root / "kept/work.o").stat().st_mtime_ns == (root / "spare/work.o").stat().st_mtime_ns


def test_half_a_copy_is_never_used(tmp_path: Path) -> None:
    """A copy that was ended by a signal, or cannot be made, is an error or made anew, and never a tree."""
    root, tree, kept_tree = tmp_path / "root", tmp_path / "tree", tmp_path / "root" / "kept"
    kept_tree.mkdir(parents=True)
    (kept_tree / "a.c").write_text("int a;\n")
    (root / "kept.json").write_text('{"state": "as it was", "outside": {}}')
    (root / "spare.partial").mkdir()
    (root / "spare.partial" / "half").touch()
    assert kept.restore(root, tree, lambda: "as it was", tmp_path / "store") == []
    assert [path.name for path in tree.iterdir()] == ["a.c"]
    (root / "spare.partial").touch()  # in the way
    with kept.sparing(root):
        pass
    assert not (root / "spare").exists()
    with pytest.raises(FileExistsError, match="partial"):
        kept.restore(root, tree, lambda: "as it was", tmp_path / "store")
    assert not (root / "kept.json").exists()  # the next one is built from scratch


def test_a_copy_is_of_the_build_that_is_kept_now(tmp_path: Path) -> None:
    """What was copied of an earlier build is not what the next one is restored from."""
    root, tree, store = tmp_path / "root", tmp_path / "tree", tmp_path / "store"
    for path in (root, tree, store):
        path.mkdir()
    for state in ("first", "second"):
        (tree / "a.c").write_text(state)
        kept.keep(root, tree, state, store, time.time_ns())
        with kept.sparing(root):
            pass
    assert kept.restore(root, tree, lambda: "second", store) == []
    assert (tree / "a.c").read_text() == "second"


@pytest.mark.parametrize("what", ["kept.json", "old/*.o", "old/*.map", "kept"])
def test_half_a_kept_build_is_none(again: Any, what: str) -> None:
    """Whoever is killed while it keeps a build, or has its cache swept, leaves something half: it is built anew."""
    again(OLD, FIX)
    for path in (again.folder / "cache").glob(f"build-*/{what}"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".json":
            path.write_text(path.read_text()[:40])
        else:
            path.unlink()
    assert again(OLD, FIX)[1] is False
    assert again(OLD, FIX)[1] is True


def test_header_outside_with_the_old_time(again: Any) -> None:
    """Package managers and archives set the time of modification: one of the same size may be another file."""
    outside = again.folder / "outside"
    outside.mkdir()
    (outside / "more.h").write_text("#define MORE 1\n")
    times = (outside / "more.h").stat()
    work = "#include <more.h>\nint f(int a) { return a @ 3 + MORE; }\n"
    old = {**OLD, "Makefile": RULES.replace("-O2", f"-O2 -isystem {outside}"), "work.c": work.replace("@", "*")}
    again(old, {"work.c": work.replace("@", "/")})
    (outside / "more.h").write_text("#define MORE 2\n")
    os.utime(outside / "more.h", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again(old, {"work.c": work.replace("@", "/")})[1] is False


@pytest.mark.parametrize("name", ["gcc", "gcc-99"])
def test_compiler_that_is_called_behind_another_or_by_a_version(
    again: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compiler that a build calls counts, whatever its name, and what a cache before it calls."""
    first, second = again.folder / "first", again.folder / "second"
    for folder, text in ((first, f'exec {second}/{name} "$@"'), (second, 'exec /usr/bin/gcc "$@"')):
        folder.mkdir()
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{first}:{second}:{os.environ['PATH']}")
    old = {**OLD, "Makefile": RULES.replace("gcc", name)}
    again(old, FIX)
    assert again(old, FIX)[1] is True
    (second / name).write_text('#!/bin/sh\nexec /usr/bin/gcc -fno-inline "$@"\n')
    assert again(old, FIX)[1] is False


@pytest.mark.parametrize("what", ["one.h", "../outside.h"])
def test_input_that_changes_while_it_is_built(again: Any, what: str, project: Any) -> None:
    """A build of which nobody knows what it read is not kept."""
    (again.folder / "outside.h").write_text("#define OUT 1\n")
    old = {**OLD, "work.c": f'#include "{again.folder}/outside.h"\nint f(int a) {{ return a * 3; }}\n'}
    new = {"work.c": old["work.c"].replace("a * 3", "a * 5 + 1")}
    project.command = f"make && case $PODGRAFT_STORE in */old) echo '/* */' >> {again.folder}/a/{what};; esac"
    again(old, new)
    project._write = lambda *_: None  # it stays as it is now
    assert again(old, new)[1] is False


def test_library_that_is_linked(again: Any) -> None:
    """A library outside of the tree is a part of the program as a header is."""
    library = again.folder / "libout.a"

    def make(text: str) -> None:
        (again.folder / "out.c").write_text(text)
        subprocess.run(["gcc", "-O2", "-fPIE", "-c", "out.c"], cwd=again.folder, check=True)
        subprocess.run(["ar", "rc", library, "out.o"], cwd=again.folder, check=True)

    make("int h(int a) { return a; }\n")
    main = "int f(int);\nint h(int);\nint main(int c, char **v) { (void)v; return f(c) + h(c); }\n"
    old = {**OLD, "main.c": main, "Makefile": RULES.replace("$^", f"$^ {library}")}
    again(old, FIX)
    assert again(old, FIX)[1] is True
    make("int h(int a) { return a + 1; }\n")
    assert again(old, FIX)[1] is False


def test_what_killed_builds_left_goes(tmp_path: Path) -> None:
    """Folders of builds that nobody uses fill the disk; those in use stay."""
    killed, used, other = (tmp_path / f"build-{name}" for name in ("0" * 16, "1" * 16, "of-another-program"))
    for folder in (killed, used, other):
        (folder / "tree").mkdir(parents=True)
    lock = kept.try_lock(used)
    assert lock is not None
    kept.prune(tmp_path)
    assert not killed.exists()
    assert used.exists()
    assert other.exists()
    lock.close()


def test_second_build_of_the_same_has_a_place_of_its_own(project: Any) -> None:
    """Two builds at once in one folder would mix their objects."""
    project._write(OLD, FIX)
    first = Workspace.create(project.folder / "a", "make")
    second = Workspace.create(project.folder / "a", "make")
    assert second.root != first.root
    kept.prune(project.folder / "cache")
    assert second.root.exists()
    second.remove()
    first.remove()
    assert [path.suffix for path in (project.folder / "cache").iterdir()] == [".lock"]
