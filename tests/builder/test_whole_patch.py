"""All of a patch reaches the objects, or is refused: whatever the makefiles forget and whatever makes the objects."""

import os
import subprocess
from typing import Any, NamedTuple

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int f(int), g(int);\nint main(int c, char **v) { (void)v; return f(c) + g(c); }\n"
F = '#include "q.h"\nint f(int a) { return a * Q; }\n'
G = F.replace("f(", "g(")
MAKE = """
prog: main.o x.o y.o
\tgcc -fPIE -pie -Wl,-z,now -o $@ $^
%.o: %.c
\tgcc -O2 -fPIE $(FLAGS) -c -o $@ $<
"""
FORGETFUL = {"main.c": MAIN, "x.c": F, "y.c": G, "q.h": "#define Q 9\n"}
Q = {"q.h": "#define Q 13\n"}
FOLDERS = {
    "main.c": MAIN,
    "a/x.c": "int f(int a) { return a * 3; }\n",
    "b/x.c": "int g(int a) { return a * 5; }\n",
    "Makefile": MAKE.replace("x.o y.o", "a/x.o b/x.o"),
}
BOTH = {"a/x.c": "int f(int a) { return a * 7 + 2; }\n", "b/x.c": "int g(int a) { return a * 11 + 2; }\n"}
GENERATOR = """
#include <stdio.h>
#include "q.h"
int main(void) { printf("#define K %d\\n", Q); return 0; }
"""
LINES = """
__attribute__((noipa)) int lines(void) {
    return
#include "k.h"
    ;
}
int main(void) { return lines(); }
"""
ELSEWHERE = "o=$(pwd)/../elsewhere; mkdir -p $o/a $o/b;"
COMPILE = "gcc -O2 -fPIE -c -o"


class Pair(NamedTuple):
    """Files, what the patch makes of them, and what is replaced, or the reason of the refusal."""

    found: set[str] | Reason
    old: dict[str, str]
    new: dict[str, str]
    command: str = "make"


PAIRS = {
    "two files of one name, compiled and linked in one call": Pair(
        {"f", "g"}, FOLDERS, BOTH, "gcc -O2 -fPIE -pie -Wl,-z,now -o prog main.c a/x.c b/x.c"
    ),
    "two files, compiled in one call": Pair(
        {"f", "g"}, FORGETFUL, Q, "gcc -O2 -fPIE -c main.c x.c y.c && gcc -pie -o prog main.o x.o y.o"
    ),
    "objects outside of the tree": Pair(
        Reason.UNSUPPORTED_CHANGE, FOLDERS, BOTH,
        f"{ELSEWHERE} for i in main a/x b/x; do {COMPILE} $o/$i.o $i.c || exit 1; done;"
        " gcc -pie -o prog $o/main.o $o/a/x.o $o/b/x.o",
    ),
    "archive outside of the tree": Pair(
        Reason.UNSUPPORTED_CHANGE, FOLDERS, BOTH,
        f"{ELSEWHERE} {COMPILE} $o/x.o a/x.c; rm -f $o/x.a; ar rc $o/x.a $o/x.o;"
        " gcc -O2 -fPIE -pie -o prog main.c b/x.c $o/x.a",
    ),
    "archive that is deleted": Pair(
        Reason.UNSUPPORTED_CHANGE, FOLDERS, BOTH,
        f"{COMPILE} x.o a/x.c; ar rc x.a x.o; gcc -O2 -fPIE -pie -o prog main.c b/x.c x.a; rm x.a",
    ),
    "new header before another of its name": Pair(
        {"f", "g"},
        {"Makefile": MAKE.replace("-c", "-Ifirst -Isecond -c"), "main.c": MAIN, "first/other.h": "",
         "x.c": F.replace('"q.h"', "<q.h>"), "y.c": "int g(int a) { return a * 5; }\n", "second/q.h": "#define Q 3\n"},
        {"first/q.h": "#define Q 7\n", "y.c": "int g(int a) { return a * 6 + 1; }\n"},
    ),
    "new header that is asked for": Pair(
        {"f", "g"},
        {**FORGETFUL, "Makefile": MAKE,
         "x.c": '#if __has_include("k.h")\n#define K 7\n#else\n#define K 3\n#endif\nint f(int a) { return a * K; }\n'},
        {"k.h": "/* here */\n", "y.c": G.replace("a *", "2 * a *")},
    ),
    "generator whose header the makefile forgets": Pair(
        {"f", "g"},
        {**FORGETFUL, "x.c": F.replace("Q", "K").replace("q.h", "k.h"), "gen.c": GENERATOR,
         "Makefile": MAKE + "x.o: k.h\nk.h: gen\n\t./gen > k.h\ngen: gen.c\n\tgcc -o gen gen.c\n"},
        Q,
    ),
    "compiler called by a path, header forgotten": Pair(
        Reason.UNSUPPORTED_CHANGE,
        {**FORGETFUL, "Makefile": MAKE + "x.o: x.c\n\t/usr/bin/gcc -O2 -fPIE -c x.c\n"},
        Q,
    ),
    "assembler text between, header forgotten": Pair(
        Reason.HAND_WRITTEN_ASM,
        {**FORGETFUL, "Makefile": MAKE + "x.o: x.s\n\tgcc -c x.s\nx.s: x.c\n\tgcc -O2 -fPIE -S -o $@ $<\n"},
        Q,
    ),
    "dependencies that are thrown away, header forgotten": Pair(
        {"f", "g"},
        {**FORGETFUL, "Makefile": MAKE.replace("$(FLAGS)", "-MD -MF /dev/null")},
        {**Q, "y.c": G.replace("a *", "2 * a *")},
    ),
    "objects that have one name at first, header forgotten": Pair(
        {"f", "g"},
        {**FORGETFUL, "Makefile": MAKE.replace("-c -o $@ $<", "-c -o tmp.o $< && mv tmp.o $@")},
        {**Q, "y.c": G.replace("a *", "2 * a *")},
    ),
    "sources from standard input": Pair(
        {"f", "g"},
        {**FORGETFUL, "Makefile": MAKE.replace("-c -o $@ $<", "-x c -c -g -ffunction-sections -o $@ - < $<")},
        Q,
    ),
    "precompiled header": Pair(
        {"f", "g"},
        {**FORGETFUL, "x.c": F.replace("q.h", "p.h"), "p.h": '#include "q.h"\n',
         "Makefile": MAKE + "x.o: p.h.gch\np.h.gch: p.h\n\tgcc -O2 -fPIE -x c-header p.h -o $@\n"},
        Q,
    ),
    "file that goes with its rule": Pair(
        {"g"},
        {**FORGETFUL, "Makefile": MAKE + "prog: | more\nmore:\n\tgcc -c -o more.o more.c\n", "more.c": "int more;\n"},
        {"Makefile": MAKE, "more.c": "", "y.c": G.replace("a *", "2 * a *")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_all_of_it(project: Any, name: str) -> None:
    """A bundle with half of a fix would be worse than none."""
    pair = PAIRS[name]
    project.command = pair.command
    if isinstance(pair.found, set):
        assert {f.entry.symbol for f in project.build(pair.old, pair.new).bundle.manifest.functions} == pair.found
        return
    with pytest.raises(Refusal) as caught:
        project.build(pair.old, pair.new)
    assert caught.value.reason == pair.found


def test_header_that_is_renamed(project: Any) -> None:
    """What git renames has no line that begins with `---`, and may take another's place all the same."""
    pair = PAIRS["new header before another of its name"]
    old = {**pair.old, "first/other.h": "#define Q 17\n"}
    project._write(old, {"y.c": pair.new["y.c"]})
    patch = (project.folder / "fix.patch").read_text().split("\n", 1)[1]
    moves = "diff --git a/first/other.h b/first/q.h\nrename from first/other.h\nrename to first/q.h\n"
    (project.folder / "fix.patch").write_text(f"{moves}diff --git a/y.c b/y.c\n{patch}")
    project._write = lambda *_: None
    project.command = "make"
    assert {f.entry.symbol for f in project.build({}, {}).bundle.manifest.functions} == pair.found


def test_cache_folder_behind_a_link(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is a link to another disk: compilers name files by where they really are."""
    (project.folder / "real").mkdir()
    (project.folder / "link").symlink_to(project.folder / "real")
    monkeypatch.setenv("PODGRAFT_CACHE", str(project.folder / "link"))
    project.command = "make"
    assert {f.entry.symbol for f in project.build(FOLDERS, BOTH).bundle.manifest.functions} == {"f", "g"}


def test_cache_folder_in_the_tree(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the tree into itself has no end."""
    monkeypatch.setenv("PODGRAFT_CACHE", str(project.folder / "a" / "cache"))
    with pytest.raises(Refusal) as caught:
        project.build(FOLDERS, BOTH)
    assert "PODGRAFT_CACHE" in caught.value.hint


def test_what_the_linker_alone_sees_is_named(project: Any) -> None:
    """Version scripts and link flags are in no object: the bundle cannot hold them, and says so."""
    project.command = "gcc -O2 -fPIE -pie -Wl,-z,now -Wl,--version-script=one.map -o prog *.c $(cat flags)"
    old = {**FORGETFUL, "one.map": "{ local: *; };\n", "flags": "-Wl,-O1\n"}
    project.build(old, {**Q, "one.map": "{ global: f; local: *; };\n", "flags": "-Wl,--defsym=other=f\n"})
    said = "\n".join(project.log)
    assert "one.map is patched, which the linker reads" in said
    assert "the command that links prog changes" in said


def test_compiler_that_the_environment_names_by_a_path(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC=/opt/bin/gcc is that compiler and no other of its name."""
    (project.folder / "gcc").write_text('#!/bin/sh\nexec /usr/bin/gcc "$@" -DOTHER\n')
    (project.folder / "gcc").chmod(0o755)
    monkeypatch.setenv("CC", str(project.folder / "gcc"))
    project.command = "$CC -O2 -fPIE -pie -Wl,-z,now -o prog *.c"
    old = {**FORGETFUL, "x.c": "#ifdef OTHER\nint f(int a) { return a * 3; }\n#else\nint f(int);\n#endif\n"}
    outcome = project.build(old, {"x.c": old["x.c"].replace("3", "7")})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["f"]


def test_line_numbers_are_kept_for_compilers_alone(project: Any) -> None:
    """A generator that reads a C-like file gets it as the patch makes it, without #line."""
    old = {
        "Makefile": MAKE.replace(" x.o y.o", "") + "main.o: k.h\nk.h: list.def\n\twc -l < list.def > k.h\n",
        "main.c": LINES,
        "list.def": "one\ntwo\n",
    }
    project.command = "! grep -q '#line' list.def && make"
    outcome = project.build(old, {"list.def": "zero\n\none\ntwo\n"})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["lines"]


def test_sockets_and_pipes_in_the_tree(project: Any) -> None:
    """What git and other daemons leave in a tree is no reason to fail."""
    new = {"x.c": F.replace("a *", "2 * a *")}
    project._write(FORGETFUL, new)
    patch = (project.folder / "fix.patch").read_text()
    os.mkfifo(project.folder / "a" / "pipe")
    project._write = lambda *_: (project.folder / "fix.patch").write_text(patch)
    project.command = "gcc -O2 -fPIE -pie -Wl,-z,now -o prog *.c"
    assert project.build(FORGETFUL, new)


def test_archive_that_was_there_before(project: Any) -> None:
    """What the build command finds made holds the old code, whatever the patch does to its sources."""
    project._write(FORGETFUL, {"x.c": F.replace("a *", "2 * a *")})
    patch = (project.folder / "fix.patch").read_text()
    made = "gcc -O2 -fPIE -c x.c && ar rc x.a x.o && rm x.o"
    subprocess.run(["sh", "-c", made], cwd=project.folder / "a", check=True)
    project._write = lambda *_: (project.folder / "fix.patch").write_text(patch)
    project.command = "gcc -O2 -fPIE -pie -Wl,-z,now -o prog main.c y.c x.a"
    with pytest.raises(Refusal) as caught:
        project.build({}, {})
    assert caught.value.reason == Reason.UNSUPPORTED_CHANGE
    assert "x.c is patched but was not compiled" in caught.value.detail


def test_what_needs_no_whole_build(project: Any) -> None:
    """What is not preprocessed includes nothing, though no rule says so; what configure tries is part of nothing."""
    trial = "{ echo 'int a;' > conftest.c && gcc -MD -MF /dev/null -c conftest.c && gcc -E conftest.c; rm conftest.*; }"
    project.command = f"{trial} && make"
    assembler = ".globl z\n.type z, @function\nz: ret\n.size z, 1\n.section .note.GNU-stack\n"
    rules = MAKE.replace("y.o", "y.o z.o") + "z.o: z.s\n\tgcc -c z.s\n"
    project.build({**FORGETFUL, "Makefile": rules, "z.s": assembler}, {"x.c": F.replace("a *", "2 * a *")})
    assert "new build, what the patch touches" in project.log
    assert not [text for text in project.log if "all of it" in text]
