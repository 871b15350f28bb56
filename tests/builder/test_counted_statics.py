"""Static variables of C++ that share a name in one function: the compiler counts them (Itanium C++ ABI, 5.1.6)."""

from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int c, char **v) { (void)v; return work(c); }\n"
TEXT = """
namespace some {
int sum(int a) {
    %s
    if (a > 2) { static int n; n += a; return n; }
    return a;
}
}
extern "C" int work(int a) { return some::sum(a) + %s; }
"""
FIRST = "if (a < 0) { static int n; n -= a; return n; }"


def build(project: Any, old: tuple[str, str], new: tuple[str, str]) -> Any:
    project.command = "gcc -O2 -c main.c && g++ -O2 -fPIE -c lib.cc && g++ -pie -Wl,-z,now -o prog main.o lib.o"
    return project.build({"main.c": MAIN, "lib.cc": TEXT % old}, {"lib.cc": TEXT % new})


@pytest.mark.parametrize(("old", "new"), [("", FIRST), (FIRST, "")])
def test_another_static_of_the_name(project: Any, old: str, new: str) -> None:
    """One that comes or goes renames those behind it: new code would use another variable than old code did."""
    with pytest.raises(Refusal) as caught:
        build(project, (old, "1"), (new, "1"))
    assert caught.value.reason == Reason.UNRESOLVED_REFERENCE
    assert "_ZZN4some3sumEiE1n before" in caught.value.detail


@pytest.mark.parametrize("between", [" ", "\n    "])
def test_statics_of_lambdas(project: Any, between: str) -> None:
    """A lambda before another takes its number, also where no function of either is left, or both are in one line."""
    one = "auto f = [](int b) { static int n; n += b; return n; }; a = f(a);"
    more = "auto g = [](int b) { static int n; n -= b; return n; }; a = g(a);"
    with pytest.raises(Refusal) as caught:
        build(project, (f"a++;{between}{one}", "1"), (f"{more}{between}{one}", "1"))
    assert caught.value.reason == Reason.CHANGED_ALIAS


def test_the_same_statics(project: Any) -> None:
    """As long as all of them are there, each is the one that it was."""
    outcome = build(project, (FIRST, "1"), (FIRST.replace("-= a", "-= a * 2"), "1"))
    assert {r.symbol for r in outcome.bundle.manifest.references} == {
        "_ZZN4some3sumEiE1n",
        "_ZZN4some3sumEiE1n_0",
    }
