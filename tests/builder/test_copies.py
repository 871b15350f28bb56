"""Inline functions of C++, of which each object has a copy and the linker takes one."""

from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

HEADER = "inline __attribute__((noinline)) int part(int a) { int s = 0; while (a > %s) s += a--; return s; }\n"
ONE = '#include "part.h"\nint two(int);\nextern "C" int work(int a) { return part(a) + two(a); }\n'
TWO = '#include "part.h"\nint two(int a) { return part(a * 3) - %s; }\n'
MAIN = "int work(int);\nint main(int c, char **v) { (void)v; return work(c); }\n"
# The optimizer makes other code of the second copy, as it does where other things are inlined around it.
BUILD = "gcc -O2 -c main.c && g++ -O2 -fPIE -c one.cc && g++ -O1 -fPIE -c two.cc && g++ -pie -Wl,-z,now -o prog"


def files(header: str, two: str) -> dict[str, str]:
    return {"main.c": MAIN, "part.h": HEADER % header, "one.cc": ONE, "two.cc": TWO % two}


def names(outcome: Any) -> list[str]:
    return [f.entry.symbol for f in outcome.bundle.manifest.functions]


@pytest.mark.parametrize("order", ["one.o two.o", "two.o one.o"])
def test_the_copy_that_runs_is_replaced(project: Any, link: Any, order: str) -> None:
    """Copies that the linker dropped are other code, and are not looked for; who calls them calls the one that runs."""
    project.command = f"{BUILD} main.o {order}"
    outcome = project.build(files("2", "1"), {"part.h": HEADER % "5", "two.cc": TWO % "3"})
    assert sorted(names(outcome)) == ["_Z3twoi", "_Z4parti"]
    assert [call.partition(":")[2] for call in link.link(outcome).calls("_Z3twoi")] == ["_Z4parti"]


def test_calls_of_a_copy_that_does_not_run(project: Any, link: Any) -> None:
    """New code calls an inline function that did not change by its name, whichever object's copy it is."""
    project.command = f"{BUILD} main.o one.o two.o"
    outcome = project.build(files("2", "1"), {"two.cc": TWO % "3"})
    assert names(outcome) == ["_Z3twoi"]
    assert link.link(outcome).calls("_Z3twoi") == ["old:_Z4parti"]


def test_no_copy_runs(project: Any) -> None:
    """A running binary that has none of the copies was built otherwise."""
    project.command = f"{BUILD} main.o one.o two.o"
    project.build(files("2", "1"), {"two.cc": TWO % "3"})
    project.running = project.folder / "out.prog"
    with pytest.raises(Refusal) as caught:
        project.build(files("4", "1"), {"part.h": HEADER % "5", "two.cc": TWO % "3"})
    assert caught.value.reason == Reason.RUNNING_BINARY_DIFFERS
    assert "_Z4parti" in caught.value.detail


def test_copies_that_call_their_own_files_functions(project: Any) -> None:
    """A copy that the linker dropped is no witness for where the local functions of its file are."""
    local = "static __attribute__((noinline)) int most(int a) { return a > 7 ? 7 : a; }\n"
    header = local + HEADER.replace("return s", "return most(s)")
    one = ONE.replace("two(a)", "two(a) + most(a)")
    two = TWO.replace("- %s", "- most(a) - %s")
    project.command = f"{BUILD.replace('-O1', '-O2')} main.o one.o two.o"
    outcome = project.build(
        {"main.c": MAIN, "part.h": header % "2", "one.cc": one, "two.cc": two % "1"},
        {"part.h": header % "5", "two.cc": two % "3"},
    )
    assert sorted(names(outcome)) == ["_Z3twoi", "_Z4parti"]
    mosts = {r.offset for r in outcome.bundle.manifest.references if r.symbol.startswith("_ZL4mosti")}
    assert len(mosts) == 2


@pytest.mark.parametrize(("visibility", "states"), [("", ["warning"]), ("-fvisibility-inlines-hidden", [])])
def test_copies_in_libraries_may_not_run(project: Any, visibility: str, states: list[str]) -> None:
    """The loader takes the first module's copy of an exported inline function: who patches a library is told so."""
    project.command = f"g++ -O2 -fPIC {visibility} -shared -o prog one.cc two.cc"
    outcome = project.build(files("2", "1"), {"part.h": HEADER % "5"})
    assert names(outcome) == ["_Z4parti"]
    assert [h.state for h in outcome.explanation.hazards if h.reason == Reason.WEAK_SYMBOL] == states


def test_new_copies_are_not_told_as_new_names(project: Any) -> None:
    """An inline function that is new to an object may be known elsewhere: nothing is said of it."""
    project.command = f"{BUILD} main.o one.o two.o"
    more = HEADER % "2" + "inline __attribute__((noinline)) int more(int a) { while (a % 7) a /= 3; return a; }\n"
    old = {**files("2", "1"), "part.h": more}
    outcome = project.build(old, {"two.cc": TWO % "more(a) - 1"})
    assert sorted(names(outcome)) == ["_Z3twoi"]
    assert not [text for text in outcome.explanation.grounds if "new:" in text]
