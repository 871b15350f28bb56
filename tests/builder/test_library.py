"""A shared library as the running binary: what it exports, others may define before it."""

import subprocess
from typing import Any

import pytest

from podgraft_builder.build import Outcome
from podgraft_bundle.errors import Reason, Refusal

MAIN = "int total = 7;\nint deputy(int a) { return a * total; }\n"
LIB = """
extern int total;
int deputy(int);
int shared = 3;
static int own = 4;
__attribute__((noipa)) int helper(int a) { return a > 9 ? helper(a - 1) + helper(a - 2) : own; }
int work(int a) { own++; return %s; }
int other(void) { return work(total) + shared + deputy(own); }
"""
COMMAND = "gcc -O2 -fPIC -shared %s -o prog main.c lib.c"


def patched(project: Any, old: str, new: str, flags: str = "") -> Outcome:
    project.command = COMMAND % flags
    outcome: Outcome = project.build({"main.c": MAIN, "lib.c": LIB % old}, {"lib.c": LIB % new})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["work"]
    return outcome


def kinds(outcome: Outcome) -> dict[str, str]:
    return {r.symbol: r.kind for r in outcome.bundle.manifest.references}


def test_call_of_an_exported_function_of_the_same_file(project: Any, link: Any) -> None:
    """Such a call goes through the PLT, as whoever is before the library may define the function, too."""
    outcome = patched(project, "helper(a) + helper(a + 1)", "helper(a) - helper(a + 1) + deputy(a)")
    assert link.link(outcome).calls("work") == ["plt:helper", "plt:helper", "plt:deputy"]


@pytest.mark.parametrize("name", ["shared", "total"])
def test_exported_variable(project: Any, name: str) -> None:
    """A program may have a copy of the variable that all use in its place: the GOT slot tells."""
    assert kinds(patched(project, "a", f"a + {name}"))[f"{name}.got"] == "got"


def test_exported_variable_without_a_slot(project: Any) -> None:
    """Where the library has no slot, the loaded modules are asked by name."""
    project.command = COMMAND % ""
    outcome = project.build(
        {"main.c": "int total = 7;\n", "lib.c": "int work(void) { return 1; }\n"},
        {"lib.c": "extern int total;\nint work(void) { return total; }\n"},
    )
    assert kinds(outcome)["total"] == "export"


def test_library_that_is_bound_to_itself(project: Any, link: Any) -> None:
    """With -Bsymbolic nobody comes before the library: its own variables and functions are meant."""
    outcome = patched(project, "helper(a)", "helper(a + shared)", "-Wl,-Bsymbolic")
    assert kinds(outcome)["shared"] == "offset"
    assert link.link(outcome).calls("work") == ["old:helper"]


def test_own_address_of_an_exported_function(project: Any) -> None:
    """The address of an exported function is what the loader took for it, so that pointers compare."""
    old = (
        "int helper(int a) { return a; }\nvoid *where(void) { return helper; }\nint work(void *p) { return p == 0; }\n"
    )
    project.command = COMMAND % ""
    outcome = project.build({"main.c": MAIN, "lib.c": old}, {"lib.c": old.replace("p == 0", "p == helper")})
    assert kinds(outcome)["helper.got"] == "got"


def test_stripped_library(project: Any) -> None:
    """Where other files call a function through the PLT, that is not where the function is."""
    project._write({"main.c": MAIN, "lib.c": LIB % "helper(a)"}, {})
    project.running = project.folder / "stripped.so"
    words = f"{COMMAND % ''} && strip -o {project.running} prog && rm prog"
    subprocess.run(["sh", "-c", words], cwd=project.folder / "a", check=True)
    outcome = patched(project, "helper(a)", "helper(a) + deputy(a)")
    assert kinds(outcome) == {"helper.plt": "offset", "deputy.plt": "offset", "own": "offset"}


def test_changed_functions_are_called_through_the_plt(project: Any, link: Any) -> None:
    """What is called and whose address is taken may be another module's, also where this one's is replaced."""
    project.command = COMMAND % ""
    text = """
__attribute__((noinline)) int helper(int a) { return a * %(n)s; }
int (*give(void))(int) { return helper; }
int (*both(int a))(int) { return helper(a) > %(n)s ? helper : 0; }
"""
    outcome = project.build({"main.c": MAIN, "lib.c": text % {"n": "3"}}, {"lib.c": text % {"n": "5"}})
    assert link.link(outcome).calls("both") == ["plt:helper"]
    assert kinds(outcome) == {"helper.plt": "offset", "helper.got": "got"}


VERSIONS = {"versions.map": "V1 { global: work; };\nV2 { global: work; local: *; } V1;\n"}
TWO = """
__attribute__((noinline)) int work_old(int a) { return a / 3; }
__attribute__((noinline)) int work_new(int aTAKES) { return a / 5 GIVES; }
__asm__(".symver work_old,work@V1");
__asm__(".symver work_new,work@@V2");
"""


def versioned(project: Any, *, takes: str, gives: str) -> Outcome:
    project.command = "gcc -O2 -fPIC -shared -Wl,--version-script=versions.map -Wl,--build-id -o prog lib.c"
    old, new = TWO.replace("TAKES", "").replace("GIVES", ""), TWO.replace("TAKES", takes).replace("GIVES", gives)
    outcome: Outcome = project.build({"lib.c": old, **VERSIONS}, {"lib.c": new})
    return outcome


def test_function_with_a_version(project: Any) -> None:
    """Two functions are exported by one name with two versions (.symver): each is known by a name of its own."""
    outcome = versioned(project, takes="", gives="+ 1")
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["work_new"]


def test_signature_of_a_function_with_a_version(project: Any) -> None:
    """Its version is part of no name in the library's table of symbols: it is exported all the same."""
    with pytest.raises(Refusal) as caught:
        versioned(project, takes=", long b", gives="+ b")
    assert caught.value.reason is Reason.CHANGED_SIGNATURE
