"""Lambdas that live on: stored before the patch, called after it."""

from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **) { return work(argc) + work(2); }\n"
WORK = """
struct Call { virtual int run(int) = 0; };
template <class L> struct Stored : Call {
    void *made;
    explicit Stored(L one) : made(new L(one)) {}
    __attribute__((noinline)) int run(int b) override { return (*static_cast<L *>(made))(b); }
};
template <class L> Call *store(L one) { return new Stored<L>(one); }
static Call *kept, *other;
int work(int a) {
    int more = a + 1;
    %s
    if (!kept) kept = store([%s](int b) { return b * a %s; });
    %s
    return kept->run(more) + (other ? other->run(1) : 0);
}
"""
SECOND = "if (a == 7) other = store([a](int b) { return b - a; });"


def build(project: Any, *new: str) -> list[str]:
    project.command = "g++ -O2 -fno-exceptions -fPIE -pie -Wl,-z,now -o prog main.cc work.cc"
    old = {"main.cc": MAIN, "work.cc": WORK % ("", "a", "", "")}
    outcome = project.build(old, {"work.cc": WORK % new})
    return [f.entry.symbol for f in outcome.bundle.manifest.functions]


def test_body_of_a_lambda(project: Any) -> None:
    """The body of a stored lambda may change: who stored it before the patch gets the new one."""
    assert "_ZN6StoredIZ4workiEUliE_E3runEi" in build(project, "", "a", "+ 5", "")


def test_lambda_that_comes_last(project: Any) -> None:
    """A new lambda behind the old ones changes nobody's number."""
    assert build(project, "", "a", "+ 5", SECOND)


def test_lambda_that_comes_first(project: Any) -> None:
    """With a new lambda before it, the old one has another number, and its name is that of the new one."""
    with pytest.raises(Refusal) as caught:
        build(project, SECOND, "a", "", "")
    assert caught.value.reason == Reason.CHANGED_ALIAS


def test_lambda_that_captures_more(project: Any) -> None:
    """A lambda that was stored before the patch has no room for what a new one captures."""
    with pytest.raises(Refusal) as caught:
        build(project, "", "a, more", "+ more", "")
    assert caught.value.reason == Reason.CHANGED_LAYOUT
    assert "captures" in str(caught.value)
