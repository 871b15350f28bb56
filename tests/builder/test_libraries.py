"""Fixes to shared libraries, whose own global functions may be interposed."""

from typing import Any

LIBRARY = "gcc -O2 -fPIC -shared -Wl,-soname,libx.so.1 -o prog *.c"
TEXT = """
#include <stdio.h>
__attribute__((noinline)) int helper(int a) { puts("x"); return a * 3; }
int work(int a) { return helper(a) + %s; }
"""


def test_calls_stay_interposable(project: Any, link: Any) -> None:
    """A library calls its own global functions through its PLT, where another module may have taken their place."""
    project.command = LIBRARY
    outcome = project.build({"lib.c": TEXT % "1"}, {"lib.c": TEXT % "2"})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["work"]
    assert link.link(outcome).calls("work") == ["plt:helper"]


def kinds(outcome: Any) -> dict[str, str]:
    return {r.symbol: r.kind for r in outcome.bundle.manifest.references}


def test_variables_are_where_the_loader_found_them(project: Any) -> None:
    """A program that uses a library's variable has a copy of it (R_X86_64_COPY), and the library uses that copy."""
    project.command = LIBRARY
    own = "int level = 3;\nextern int other;\nint work(int a) { return level * a + other + %s; }\n"
    outcome = project.build({"lib.c": own % "1", "other.c": "int other = 4;\n"}, {"lib.c": own % "2"})
    assert kinds(outcome) == {"level.got": "got", "other.got": "got"}


def test_stripped_libraries(project: Any, link: Any) -> None:
    """A function that is known by its export is also the one that is called through the PLT."""
    project.command = f"{LIBRARY} -s"
    outcome = project.build({"lib.c": TEXT % "1"}, {"lib.c": TEXT % "2"})
    assert link.link(outcome).calls("work") == ["plt:helper"]


def test_changed_functions_are_called_through_the_plt(project: Any, link: Any) -> None:
    """What is called and whose address is taken may be another module's, also where this one's is replaced."""
    project.command = LIBRARY
    text = """
__attribute__((noinline)) int helper(int a) { return a * %(n)s; }
int (*give(void))(int) { return helper; }
int (*both(int a))(int) { return helper(a) > %(n)s ? helper : 0; }
"""
    outcome = project.build({"lib.c": text % {"n": "3"}}, {"lib.c": text % {"n": "5"}})
    assert link.link(outcome).calls("both") == ["plt:helper"]
    assert kinds(outcome) == {"helper.plt": "offset", "helper.got": "got"}


def test_variables_that_no_running_code_uses(project: Any) -> None:
    """Where the library has no GOT slot for its own variable, the engine asks who exports it."""
    project.command = LIBRARY
    text = "int level = 3;\nint work(int a) { return a * 3 + %s; }\n"
    outcome = project.build({"lib.c": text % "1"}, {"lib.c": text % "level"})
    assert kinds(outcome) == {"level": "export"}


def test_symbolic_libraries(project: Any, link: Any) -> None:
    """A library that was linked with -Bsymbolic, and hidden names, are their own."""
    project.command = f"{LIBRARY} -Wl,-Bsymbolic"
    text = "int level = 3;\n__attribute__((noinline)) int helper(int a) { return a * level; }\n"
    text += "int work(int a) { return helper(a) + %s; }\n"
    outcome = project.build({"lib.c": text % "1"}, {"lib.c": text % "level"})
    assert link.link(outcome).calls("work") == ["old:helper"]
    assert kinds(outcome) == {"helper": "offset", "level": "offset"}
