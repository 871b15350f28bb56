"""Addresses that old code has given away: of functions, of tables of functions, and what is compared with them."""

from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n"
CPP = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog *.cc"
CLONE = """
int n, kept[64];
__attribute__((noinline)) static int loop(int a, int k) {
    for (int i = 0; i < k; i++) { n += a / (i + 1); kept[i & 63] = n; }
    return n + k;
}
int work(int a) { return loop(a, LAST) + 1; }
"""
KEEPS = """
int n;
void *kept;
static int @(int a) { n += a; return LAST; }
void start(void) { kept = @; }
int work(int a) { start(); return ((int (*)(int))kept)(a); }
"""
TABLE = """
struct actions { int (*get)(int); int (*put)(int); };
int n;
static int one(int a) { n++; return a + 1; }
static int two(int a) { n--; return a > 0 ? one(a) : 0; }
static const struct actions actions = { @, two };
"""
GIVEN = (
    TABLE
    + """
void give(const struct actions *);
void start(void) { give(&actions); }
const struct actions *given;
void __attribute__((noinline)) give(const struct actions *a) { given = a; }
int work(int a) { if (!given) start(); return given->get(a); }
"""
)
STORED = TABLE + "const void *given;\nint work(int a) { given = &actions; return a; }\n"
INDEXED = TABLE + "int work(int a) { return ((int (*const *)(int))&actions)[a & 1](a); }\n"
NUMBERED = GIVEN.replace("static const struct actions actions = { @, two };", "").replace(
    "start(void) { give", "start(void) { static const struct actions actions = { @, two }; give"
)
# name -> reason (None: becomes a bundle), text in which @ and LAST stand for what changes, two words for each
PAIRS: dict[str, tuple[Reason | None, str, tuple[str, str], tuple[str, str]]] = {
    "gone caller of a clone": (
        Reason.CHANGED_SIGNATURE, CLONE + "@", ("int gone(int a) { return loop(a, 10); }\n", "10"), ("", "20")
    ),
    "clone without such a caller": (None, CLONE + "@", ("", "10"), ("", "20")),
    "callback with another name": (Reason.CHANGED_DATA, KEEPS, ("old", "a / 3"), ("fixed", "a > 0 ? a / 3 : 0")),
    "callback with its name": (None, KEEPS, ("old", "a / 3"), ("old", "a > 0 ? a / 3 : 0")),
    "table that is given to a function": (Reason.CHANGED_DATA, GIVEN, ("one", ""), ("two", "")),
    "table of a function that is given to another": (Reason.CHANGED_DATA, NUMBERED, ("one", ""), ("two", "")),
    "table whose address is stored": (Reason.CHANGED_DATA, STORED, ("one", ""), ("two", "")),
    "table that is only read": (None, INDEXED, ("one", ""), ("two", "")),
}  # fmt: skip


def build(project: Any, text: str, old: tuple[str, str], new: tuple[str, str]) -> Any:
    before, after = (text.replace("@", words[0]).replace("LAST", words[1]) for words in (old, new))
    return project.build({"main.c": MAIN, "lib.c": before}, {"lib.c": after})


@pytest.mark.parametrize("name", PAIRS)
def test_address_that_was_given_away(project: Any, name: str) -> None:
    """Who holds an old address would go on with old code, or call new code wrongly: that is refused."""
    reason, *pair = PAIRS[name]
    if reason is None:
        assert build(project, *pair).bundle.manifest.overruled == []
        return
    with pytest.raises(Refusal) as caught:
        build(project, *pair)
    assert caught.value.reason is reason, caught.value


def test_address_of_an_inline_function(project: Any, link: Any) -> None:
    """An inline function has one address in the whole program, also for the object that begins to use it."""
    project.command = CPP
    text = "template <class T> void tag(T *) {}\n"
    main = (
        text + "int work(int);\nvoid (*known)(int *) = tag<int>;\nint main(int argc, char **) { return work(argc); }\n"
    )
    lib = text + "extern void (*known)(int *);\nint work(int a) { return a @; }\n"
    use = "+ (known == static_cast<void (*)(int *)>(tag<int>))"
    outcome = project.build({"main.cc": main, "lib.cc": lib.replace("@", "")}, {"lib.cc": lib.replace("@", use)})
    assert "old:_Z3tagIiEvPT_" in link.link(outcome).addresses("_Z4worki")
