"""Running binaries without symbols: what is found by its code, and what is not guessed."""

import lzma
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = """
#include <stdio.h>
#include <stdlib.h>
int work(int), twin_user(int);
extern int total;
int main(int argc, char **argv) { (void)argv; printf("%d\\n", work(argc) + twin_user(argc) + total); return 0; }
"""
LIB = """
#include <stdio.h>
#include <string.h>
#define NOINLINE __attribute__((noinline))
int total = 3;
static int calls;
NOINLINE static int first_twin(int a) { char b[64]; memset(b, a, sizeof b); puts(b); return b[a & 63] + total++; }
NOINLINE static int second_twin(int a) { char b[64]; memset(b, a, sizeof b); puts(b); return b[a & 63] + total++; }
NOINLINE int helper(int a) { printf("helper %d\\n", a); calls += a; return a * 7 - total; }
int work(int a) { if (a > 100) return helper(a); printf("work %d\\n", a); return helper(a + 1) @; }
int twin_user(int a) { printf("twins %d\\n", first_twin(a)); return second_twin(a + 1) - calls; }
"""
FLAGS = "-O2 -fno-ipa-icf -fPIE"
COMMAND = f"gcc {FLAGS} -c main.c && gcc {FLAGS} -c lib.c && gcc -pie -Wl,-z,now -o prog main.o lib.o"


def stripped(project: Any, files: dict[str, str], command: str) -> Path:
    """Build a program as its user has it, in a place of its own and without symbols; return it with symbols."""
    folder = project.folder / "theirs"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    whole = folder / "whole"
    (folder / "prog").rename(whole)
    subprocess.run(["strip", "--strip-all", "-o", folder / "prog", whole], check=True)
    project.running, project.command = folder / "prog", command
    return whole


def running(project: Any, *, old: str, strip: bool = True) -> Path:
    """Build the program of main.c and lib.c; with mini debug information if it is not stripped."""
    whole = stripped(project, {"main.c": MAIN, "lib.c": old}, COMMAND)
    if not strip:
        folder = whole.parent
        keep = ["--keep-symbol=work", "--keep-symbol=first_twin", "--keep-symbol=second_twin"]
        subprocess.run(["objcopy", "-S", "--strip-all", *keep, whole, folder / "mini"], check=True)
        (folder / "mini.xz").write_bytes(lzma.compress((folder / "mini").read_bytes()))
        add = f"--add-section=.gnu_debugdata={folder / 'mini.xz'}"
        subprocess.run(["objcopy", add, folder / "prog"], check=True)
    return whole


def place(whole: Path, name: str) -> int:
    """Return the address of a symbol; the name may have its kind before it (nm), to tell a static from a global one."""
    listing = subprocess.run(["nm", whole], capture_output=True, text=True, check=True).stdout
    return int(next(line for line in listing.splitlines() if line.endswith(f" {name}")).split()[0], 16)


def build(project: Any, old: str, new: str) -> dict[str, int]:
    manifest = project.build({"main.c": MAIN, "lib.c": old}, {"lib.c": new}).bundle.manifest
    found = {f.entry.symbol: f.entry.offset for f in manifest.functions}
    return {**found, **{r.symbol: r.offset for r in manifest.references}}


@pytest.mark.parametrize("strip", [True, False])
def test_stripped_binary(project: Any, *, strip: bool) -> None:
    """Functions and variables of a stripped binary are found where they are; twins by the order of their calls."""
    old = LIB.replace("@", "")
    whole = running(project, old=old, strip=strip)
    places = build(project, old, LIB.replace("@", "+ total++ + first_twin(a)"))
    assert {name: places[name] for name in ("work", "helper", "total", "first_twin")} == {
        name: place(whole, name) for name in ("work", "helper", "total", "first_twin")
    }


def test_binary_of_another_source(project: Any) -> None:
    """A function that runs with other code is not taken for one that is built, however much is like it."""
    running(project, old=LIB.replace("@", "").replace("a * 7", "a * 9"))
    with pytest.raises(Refusal) as caught:
        build(project, LIB.replace("@", ""), LIB.replace("@", "+ 1"))
    assert caught.value.reason in {Reason.RUNNING_BINARY_DIFFERS, Reason.UNRESOLVED_REFERENCE}
    assert "helper" in caught.value.detail
    assert "--running" in caught.value.hint


def test_compiler_that_only_the_debug_information_names(project: Any) -> None:
    """Without .comment the producer in the debug information must be the compiler that builds the patch."""
    old = {"main.c": MAIN, "lib.c": LIB.replace("@", "")}
    project.command = COMMAND.replace("-fPIE", "-g -fPIE")
    project._write(old, {})
    folder = project.folder / "a"
    subprocess.run(["sh", "-c", project.command], cwd=folder, check=True)
    version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    other = version[:-1] + str((int(version[-1]) + 1) % 10)
    data = (folder / "prog").read_bytes()
    project.running = project.folder / "theirs"
    project.running.write_bytes(data.replace(f" {version} -".encode(), f" {other} -".encode()))
    project.running.chmod(0o755)
    subprocess.run(["objcopy", "--remove-section=.comment", project.running], check=True)
    with pytest.raises(Refusal) as caught:
        project.build(old, {"lib.c": LIB.replace("@", "+ 1")})
    assert caught.value.reason == Reason.COMPILER_DIFFERS
    assert other in caught.value.detail


LONE = """
@int one(int a) { volatile int n = a; for (int i = 0; i < a; i++) n += i * n; return n * 3 - a; }
@int two(int a) { volatile int n = a; for (int i = 0; i < a; i++) n += i * n; return n * 3 - a; }
typedef int (*fn)(int);
int total, calls;
"""


def test_ambiguous_twins_are_not_guessed(project: Any) -> None:
    """Where two functions of one code are told apart by nothing, their object is not patched."""
    lone = LONE.replace("@", "__attribute__((constructor)) ")
    lone += "int work(int a) { return a * 3; }\nint twin_user(int a) { return work(a) + a; }\n"
    running(project, old=lone)
    with pytest.raises(Refusal) as caught:
        build(project, lone, lone.replace("a * 3;", "a * 5;"))
    assert caught.value.reason == Reason.RUNNING_BINARY_DIFFERS
    assert "one (lib.o)" in caught.value.detail


def test_a_table_tells_its_functions(project: Any) -> None:
    """Functions that are small, or equal, are found by the table that proven code picks them from."""
    lone = LONE.replace("@", "static ") + "static int small(int a) { return a + total; }\n"
    lone += "static const struct { int (*a)(int); fn b, c; } table = { small, one, two };\n"
    lone += 'static const void *const tables[] = { &table, "x" };\n'
    lone += "static const void *pick(int a) { return tables[a & 1]; }\n"
    lone += "int work(int a) { calls++; return ((const fn *)pick(a))[a]((int)(long)pick(2)); }\n"
    lone += "int twin_user(int a) { return work(a) + a * 5; }\n"
    whole = running(project, old=lone)
    new = lone.replace("n * 3 - a", "n * 3 - 5 * a", 2).replace("a + total", "a - total")
    places = build(project, lone, new)
    assert {n: places[n] for n in ("one", "two", "small")} == {n: place(whole, n) for n in ("one", "two", "small")}


@pytest.mark.parametrize(("old", "runs"), [("small, one", "one, small"), ('"x"', '"y"')])
def test_a_table_that_differs_tells_nothing(project: Any, old: str, runs: str) -> None:
    """Where the running table is not the one that was built, no function is found by it."""
    lone = LONE.replace("@", "static ") + "static int small(int a) { return a + total; }\n"
    lone += 'static const struct { fn a, b; const char *c; } table = { small, one, "x" };\n'
    lone += "int work(int a) { return (a > 5 ? table.a : table.b)(a) + table.c[0] + two(a) + calls; }\n"
    lone += "int twin_user(int a) { return work(a) + a * 5; }\n"
    running(project, old=lone.replace(old, runs))
    with pytest.raises(Refusal) as caught:
        build(project, lone, lone.replace("a + total", "a - total"))
    assert caught.value.reason == Reason.RUNNING_BINARY_DIFFERS


def test_a_static_function_is_not_the_exported_one_of_its_name(project: Any) -> None:
    """A static function that equals an exported one of the same name is found where it is (Redis: uintCompare)."""
    compare = "int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }\n"
    sort = "#include <stdlib.h>\n@int NAME(int *a, int n) { qsort(a, n, sizeof *a, compare); return a[0]; }\n"
    old = {
        "main.c": "int one(int *, int), two(int *, int);\n"
        "int main(int argc, char **argv) { int a[2] = { argc, 2 }; (void)argv; return one(a, 2) + two(a, 2); }\n",
        "a.c": sort.replace("@", compare).replace("NAME", "one"),
        "b.c": sort.replace("@", f"static {compare}").replace("NAME", "two"),
    }
    whole = stripped(project, old, "gcc -O2 -fPIE -pie -rdynamic -Wl,-z,now -o prog main.c a.c b.c")
    manifest = project.build(old, {"b.c": old["b.c"].replace("a[0]", "a[0] * 3")}).bundle.manifest
    assert [r.offset for r in manifest.references if r.symbol == "compare"] == [place(whole, "t compare")]


# Whatever stands for @ is called by nobody.
SMALL = """
int total;
static int calls, kept[9];
@
int work(int a) { calls++; kept[a & 7] += a; return a * 3 + kept[a & 3] - calls; }
int twin_user(int a) { return work(a) + a; }
"""


def test_a_small_function_is_known_by_what_only_its_object_knows(project: Any) -> None:
    """A small function that nobody calls is found if it uses a static variable."""
    tied = SMALL.replace("@", "int *slot(int a) { return &kept[a]; }")
    whole = running(project, old=tied)
    assert build(project, tied, tied.replace("a * 3", "a * 5"))["work"] == place(whole, "work")


def test_a_small_function_that_nothing_ties_is_not_guessed(project: Any) -> None:
    """A small function that nobody calls and that uses nothing of its file may be any."""
    loose = SMALL.replace("@", "int next(int a) { return a + 1; }")
    running(project, old=loose)
    with pytest.raises(Refusal) as caught:
        build(project, loose, loose.replace("a * 3", "a * 5"))
    assert caught.value.reason == Reason.RUNNING_BINARY_DIFFERS
    assert "next (lib.o)" in caught.value.detail
