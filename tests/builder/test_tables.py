"""What tables hold: equal code that picks from another table is that of another source."""

import re
import subprocess
from typing import Any, NamedTuple

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "#include <stdio.h>\nint work(int);\nint main(int argc, char **argv) { return work(argc); }\n"
MORE = "int more(int a) { return a + 7; }\nint less(int a) { return a - 7; }\nint seen = 7, lost = 8;\n"
MORE += "__thread int here, there;\n"
UNRELAXED = "lazy pie without relaxing"
LINKS = {
    "pie": "gcc -O2 -fPIE -pie -Wl,-z,now -Wl,--build-id",
    "no-pie": "gcc -O2 -fno-pie -no-pie -Wl,--build-id",
    "library": "gcc -O2 -fPIC -shared -Wl,--build-id",
    "packed": "gcc -O2 -fPIE -pie -Wl,-z,pack-relative-relocs -Wl,--build-id",
    "packed library": "gcc -O2 -fPIC -shared -Wl,-z,pack-relative-relocs -Wl,--build-id",
    UNRELAXED: "gcc -O2 -fPIC -pie -Wl,--no-relax -Wl,--build-id",
    "unoptimised": "gcc -O0 -fPIE -pie -Wl,--build-id",
}


class Case(NamedTuple):
    """A source in which @ stands for what the running binary has otherwise, and # for what the patch changes."""

    text: str
    ours: str
    theirs: str


NOIPA = "__attribute__((noipa)) "
TWO = NOIPA + "static int f(int a) { return a + 1; }\n" + NOIPA + "static int g(int a) { return a * 2; }\n"
USED = "\nint work(int a) { return t[a & 1](a) + f(1) + g(2) # 3; }\n"
OUTSIDE = "int more(int), less(int), puts(const char *), putchar(int);\nextern int seen, lost;\n"
CASES = {
    "string": Case(
        'static const char *const t[] = { "one", "@" };\nconst char *volatile v;\n'
        "int work(int a) { v = t[a & 1]; return v[0] # 3; }\n", "two", "six"
    ),
    "exported string": Case(
        'const char *const t[] = { "one", "@" };\nint work(int a) { return t[a & 1][0] # 3; }\n', "two", "six"
    ),
    "string in a local table": Case(
        "void keep(const char **);\n" + NOIPA + "void keep(const char **p) { *p = 0; }\n"
        'int work(int a) { const char *t[2] = { "one", "@" }; keep(t); return t[a & 1] != 0 # 3; }\n', "two", "six"
    ),
    "function": Case(TWO + "static int (*const t[])(int) = { f, @ };" + USED, "g", "f"),
    "function in writable data": Case(
        TWO + "static int (*t[])(int) = { f, @ };\nvoid set(void) { t[0] = g; }" + USED, "g", "f"
    ),
    "function of another object": Case(
        OUTSIDE + "static int (*const t[])(int) = { more, @ };\nint work(int a) { return t[a & 1](a) # 3; }\n",
        "less", "more"
    ),
    "imported function": Case(
        OUTSIDE + "static int (*const t[])(int) = { (int (*)(int))puts, @ };\n"
        "int work(int a) { putchar(a); return t[a & 1](a) # 3; }\n", "putchar", "more"
    ),
    "variable of another object": Case(
        OUTSIDE + "static int *const t[] = { &seen, @ };\nint work(int a) { return *t[a & 1] # 3; }\n", "&lost", "&seen"
    ),
    "variable in a slot": Case(
        OUTSIDE + "int work(int a) { return @ # a; }\n", "seen * 3 + lost", "lost * 3 + seen"
    ),
    "function in a slot": Case(
        "__attribute__((noplt)) int more(int), less(int);\nint work(int a) { return @ # 3; }\n",
        "more(a) * 3 + less(a)", "less(a) * 3 + more(a)"
    ),
    "thread-local variables": Case(
        "extern __thread int here, there;\nstatic __thread int own, next;\n"
        "int get(int a) { own += a; next -= a; return own * next + @; }\nint work(int a) { return a # 3; }\n",
        "here * 3 + there", "there * 3 + here"
    ),
    "thread-local variables of this file": Case(
        "static __thread int own, next;\nint get(int a) { return a ^ @; }\n"
        "int set(int a) { own -= a; return next = a; }\nint work(int a) { return a # 3; }\n",
        "own", "next"
    ),
    "table of tables": Case(
        'static const char *const one[] = { "one", "@" }, *const two[] = { "two", "ten" };\n'
        "static const char *const *const t[] = { one, two };\nint work(int a) { return t[a & 1][a & 1][0] # 3; }\n",
        "two", "six"
    ),
    "order of tables": Case(
        "static int one[] = { 1, 2 }, two[] = { 3, 4 };\nstatic int *const t[] = { @ };\n"
        "int work(int a) { return t[a & 1][a & 1]++ + one[0] + two[0] # 3; }\n", "one, two", "two, one"
    ),
    "place in a table": Case(
        "static int one[] = { 1, 2 };\nstatic int *const t[] = { one, one + @ };\n"
        "int work(int a) { return t[a & 1][0]++ + one[a & 1] # 3; }\n", "1", "0"
    ),
    "first value": Case(
        "static int limit = @;\nint set(int a) { limit = a; return 0; }\nint work(int a) { return limit # a; }\n",
        "5", "7"
    ),
    "first value that is zero": Case(
        "static int limit = @;\nint set(int a) { limit = a; return 0; }\nint work(int a) { return limit # a; }\n",
        "0", "7"
    ),
    "labels": Case(
        "int work(int a) { static void *const t[] = { @ }; int n = a; goto *t[a & 1];\n"
        "one: n += a / 3;\ntwo: return n # 5; }\n", "&&one, &&two", "&&two, &&one"
    ),
    "jump table": Case(
        "int work(int a) { switch (a) { case 0: return puts0(a); case 1: return puts1(a); case 2: return puts@(a);\n"
        "case 3: return puts0(7); case 4: return puts1(9); case 5: return puts1(a * 3); } return a # 3; }\n", "0", "1"
    ),
    "time of the build": Case(
        'static char stamp[] = __DATE__ " " __TIME__ " @";\n'
        'static const char *const t[] = { "one", __DATE__ "." };\nconst char *volatile v;\n'
        "int work(int a) { stamp[a & 1] = 1; v = t[a & 1]; return v[0] # stamp[a & 3]; }\n", "x", "y"
    ),
}  # fmt: skip
PUTS = NOIPA + "static int puts0(int a) { return a * 3 + 1; }\n" + NOIPA + "static int puts1(int a) { return a * 5; }\n"

# All ways to link for the first ones; the rest where the entries are plain bytes, and where the loader knows names.
EVERYWHERE = ("string", "exported string", "function", "imported function")
SLOTS = ("variable in a slot", "function in a slot")
PAIRS = [(link, name) for name in CASES for link in LINKS if name in EVERYWHERE or link in {"no-pie", "library"}]
PAIRS += [(UNRELAXED, name) for name in SLOTS]
STRIPPED = ("string", "exported string", "function", "table of tables", "first value")


def check(project: Any, link: str, name: str, text: str, *, strip: bool = False) -> list[str]:
    """Build a bundle for a program that was built elsewhere, from a text of its own."""
    case = CASES[name]
    source = (PUTS if name == "jump table" else "") + case.text
    theirs = project.folder / "theirs"
    theirs.mkdir()
    files = {"main.c": MAIN, "more.c": MORE, "lib.c": source.replace("#", "+").replace("@", case.ours)}
    other = {**files, "lib.c": source.replace("#", "+").replace("@", text)}
    for file, content in other.items():
        (theirs / file).write_text(content)
    project.command = f"{LINKS[link]} -o prog *.c"
    subprocess.run(["sh", "-c", project.command], cwd=theirs, check=True)
    if strip:
        subprocess.run(["strip", theirs / "prog"], check=True)
    project.running = theirs / "prog"
    new = {"lib.c": source.replace("#", "-").replace("@", case.ours)}
    return [f.entry.symbol for f in project.build(files, new).bundle.manifest.functions]


@pytest.mark.parametrize(("link", "name"), PAIRS)
def test_table_of_the_same_source(project: Any, link: str, name: str) -> None:
    """A program that was built elsewhere from the same source has the same tables, wherever the linker put them."""
    assert check(project, link, name, CASES[name].ours) == ["work"]


@pytest.mark.parametrize(("link", "name"), PAIRS)
def test_table_of_another_source(project: Any, link: str, name: str) -> None:
    """One other entry in a table, or another first value, is another source."""
    with pytest.raises(Refusal) as caught:
        check(project, link, name, CASES[name].theirs)
    assert caught.value.reason is Reason.RUNNING_BINARY_DIFFERS, caught.value
    assert re.search(r"was built|differs|is at|other target|elsewhere|is not at", caught.value.detail)


@pytest.mark.parametrize("name", STRIPPED)
def test_tables_of_a_stripped_library(project: Any, name: str) -> None:
    """Without symbols, too, a table is proven by what its entries lead to."""
    assert check(project, "library", name, CASES[name].ours, strip=True) == ["work"]


@pytest.mark.parametrize("name", STRIPPED)
def test_other_tables_of_a_stripped_library(project: Any, name: str) -> None:
    """Without symbols, too, another table is another source."""
    with pytest.raises(Refusal) as caught:
        check(project, "library", name, CASES[name].theirs, strip=True)
    assert caught.value.reason is Reason.RUNNING_BINARY_DIFFERS, caught.value


@pytest.mark.parametrize("link", ["pie", "no-pie"])
def test_change_of_a_local_table(project: Any, link: str) -> None:
    """A patch that changes nothing but a string in a table without a name is a change of the function that has it."""
    project.command = f"{LINKS[link]} -o prog *.c"
    text = CASES["string in a local table"].text.replace("#", "+")
    old = {"main.c": MAIN, "more.c": MORE, "lib.c": text.replace("@", "two")}
    manifest = project.build(old, {"lib.c": text.replace("@", "six")}).bundle.manifest
    assert [f.entry.symbol for f in manifest.functions] == ["work"]
