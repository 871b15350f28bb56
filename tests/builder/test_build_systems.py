"""What build systems do to a copy of a tree, and to compilers that are not quite the compiler."""

import subprocess
from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int c, char **v) { (void)v; return work(c); }\n"
OLD = {"main.c": MAIN, "lib.c": '#include "one.h"\nint work(int a) { return a + ONE; }\n', "one.h": "#define ONE 1\n"}
FIX = {"lib.c": '#include "one.h"\nint work(int a) { return a * 3 + ONE; }\n'}
BUILD = "gcc -O2 -fPIE -pie -Wl,-z,now -o prog main.c lib.c"


def names(outcome: Any) -> list[str]:
    return [f.entry.symbol for f in outcome.bundle.manifest.functions]


def test_folder_that_cmake_configured_elsewhere(project: Any) -> None:
    """Cmake refuses a copy of a folder that it configured: it is left out and made anew."""
    project.command = f"! grep -s old out/CMakeCache.txt && mkdir -p out && echo new > out/CMakeCache.txt && {BUILD}"
    assert names(project.build({**OLD, "out/CMakeCache.txt": "/the/old/place\n"}, FIX)) == ["work"]
    project.command = "ls out/CMakeCache.txt"
    with pytest.raises(Refusal) as caught:
        project.build({**OLD, "out/CMakeCache.txt": "/the/old/place\n"}, FIX)
    assert caught.value.reason == Reason.BUILD_FAILED
    assert "out" in caught.value.hint


def test_patched_header_that_is_read_in_the_original_tree(project: Any) -> None:
    """A header that is found by its old absolute path has no patch: half of the fix would be missing."""
    project.command = BUILD.replace("gcc", f"gcc -I{project.folder}/a/include")
    old = {"main.c": MAIN, "lib.c": "#include <one.h>\nint work(int a) { return a + ONE; }\n"}
    old["include/one.h"] = "#define ONE 1\n"
    new = {"lib.c": "#include <one.h>\nint work(int a) { return a * 3 + ONE; }\n", "include/one.h": "#define ONE 5\n"}
    with pytest.raises(Refusal) as caught:
        project.build(old, new)
    assert caught.value.reason == Reason.UNSUPPORTED_CHANGE
    assert "include/one.h" in caught.value.detail


def test_verbose_compiler(project: Any) -> None:
    """With -v a compiler still compiles, and finds its parts: cmake learns from it where headers are."""
    compile_ = "gcc -v -O2 -fPIE -c"
    project.command = f"{compile_} main.c && {compile_} lib.c && gcc -v -fPIE -pie -Wl,-z,now -o prog main.o lib.o"
    assert names(project.build(OLD, FIX)) == ["work"]


@pytest.mark.parametrize(("name", "refused"), [("libone.so.1", False), ("one.so", True)])
def test_library_of_another_program(project: Any, name: str, *, refused: bool) -> None:
    """A library that only another program loads may change with the patch; what may be a plugin may not."""
    project.command = f"gcc -O2 -fPIC -shared -Wl,-soname,{name} -o {name} lib.c && {BUILD}"
    if not refused:
        assert names(project.build(OLD, FIX)) == ["work"]
        return
    with pytest.raises(Refusal) as caught:
        project.build(OLD, FIX)
    assert caught.value.reason == Reason.OTHER_MODULE_CHANGED


def test_tree_that_libtool_built_in_place(project: Any) -> None:
    """What make looks at are libtool's scripts, not the objects behind them: without these they go as well."""
    makefile = """
prog: main.c libone.la
\tgcc -O2 -fPIE -pie -Wl,-z,now -o prog main.c .libs/lib.o
libone.la: lib.lo
\tgcc -shared -o .libs/libone.so .libs/lib.o
\techo "# libone.la - a libtool library file" > $@
lib.lo: lib.c one.h
\tmkdir -p .libs && gcc -O2 -fPIC -c -o .libs/lib.o lib.c
\techo "# lib.lo - a libtool object file" > $@
"""
    project.command = "make"
    (project.folder / "a").mkdir()
    for name, text in {**OLD, "Makefile": makefile}.items():
        (project.folder / "a" / name).write_text(text)
    subprocess.run(["make"], cwd=project.folder / "a", check=True)
    # Written last: they are newer than the sources.
    scripts = {"lib.lo": "# lib.lo - a libtool object file\n", "libone.la": "# libone.la - a libtool library file\n"}
    assert names(project.build({**OLD, "Makefile": makefile, **scripts}, FIX)) == ["work"]
