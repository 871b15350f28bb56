"""New code must read memory as old code has written it: types, places and alignment of what lives on."""

from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n"
COMMAND = "gcc -O2 %s -fPIE -pie -Wl,-z,now -o prog *.c"
VERSIONS = "struct one { int used, free; } *first;\nstruct two { int free, used; } *second;\ntypedef struct @ item;\n"
HEAP = """
#include <stdlib.h>
void *state;
int work(int a) { if (!state) state = calloc(1, 64); ((item *)state)->used += a; return ((item *)state)->used ADDED; }
"""
STATES = """
static int state;
int work(int a) { %s if (state == RUN) state = STOP; else state = RUN; return state + a ADDED; }
"""
BITS = "struct item { unsigned @; } item;\nint work(int a) { item.used += a; return item.used; }\n"
LOCAL = "int work(int a) { static struct item { int @; } i; i.used += a; return i.used + 2 * i.free ADDED; }\n"
RETURNS = """
typedef struct { long a, b, c; } item;
item kept;
long n;
__attribute__((noinline)) static @
void *table[] = { f };
int work(int a) { ((void (*)(long))table[0])(a); return n; }
"""
SHARED = """
static int n;
__attribute__((noinline)) int count(void) { @ return ++n; }
__attribute__((noinline)) int read(int a) { return n++ + a ADDED; }
int work(int a) { return count() + read(a); }
"""
TWICE = ("", "{ static int n = 1; a *= n++; }")
METHOD = "struct item { int f(int); };\nint item::f(int a) { %s }\nint work(int a) { item i; return i.f(a); }\n"
JOINED = "struct item { int @; } *first;\nint work(int a) { if (first) first->used += a; return a; }\n"
OTHER = "struct item { int x, y; } *second;\nint other(int a) { if (second) second->x += a; return a; }\n"
JOIN = "for f in *.c; do gcc -O2 -fPIE -c $f; done; ld -r -o both.o lib.o other.o; gcc -pie -o prog main.o both.o"
FLAGS = {"bit fields that change places, DWARF 4": "-gdwarf-4"}
# name -> reason (None: becomes a bundle), text in which @ stands for what changes, old, new
PAIRS: dict[str, tuple[Reason | None, str, str, str]] = {
    "static that becomes thread-local": (
        Reason.NEW_TLS, "static @ int n;\nint work(int a) { return n++ + a; }\n", "", "__thread"
    ),
    "thread-local that becomes static": (
        Reason.UNSUPPORTED_CHANGE, "static @ int n;\nint work(int a) { return n++ + a; }\n", "__thread", ""
    ),
    "name of a type that leads elsewhere": (Reason.CHANGED_LAYOUT, VERSIONS + HEAP, "one", "two"),
    "name of a type that stays": (None, VERSIONS + HEAP, "one", "one /**/"),
    "nameless type known by its pointer": (
        Reason.CHANGED_LAYOUT,
        "typedef struct { int @; } *pointer;\n#define item __typeof__(*(pointer)0)\n" + HEAP,
        "used, free",
        "free, used",
    ),
    "nameless enumeration": (Reason.CHANGED_LAYOUT, "enum { INIT, @ RUN, STOP };\n" + STATES % "", "", "AUTH,"),
    "limit in a nameless enumeration": (
        None, "enum { LIMIT = @ };\nstatic int n;\nint work(int a) { if (n < LIMIT) n++; return n + a; }\n", "4", "8"
    ),
    "further nameless enumerator": (None, "enum { INIT, RUN, STOP @ };\n" + STATES % "", "", ", AUTH"),
    "enumeration in a function": (Reason.CHANGED_LAYOUT, STATES % "enum { INIT, @ RUN, STOP };", "", "AUTH,"),
    "type in a function": (Reason.CHANGED_LAYOUT, LOCAL, "used, free", "free, used"),
    "bit fields that change places, DWARF 4": (Reason.CHANGED_LAYOUT, BITS, "used:4, free:4", "free:4, used:4"),
    "return value that needs a place": (
        Reason.CHANGED_SIGNATURE, RETURNS, "void f(long a) { n += a; }", "item f(long a) { n += a; return kept; }"
    ),
    "return value on the stack of the x87": (
        Reason.CHANGED_SIGNATURE, RETURNS, "void f(long a) { n += a; }", "long double f(long a) { n += a; return n; }"
    ),
    "greater alignment": (
        Reason.CHANGED_LAYOUT,
        "static char bytes[24] @;\nint work(int a) { return bytes[a & 7]++ ADDED; }\n",
        "",
        "__attribute__((aligned(64)))",
    ),
    "static of a method that changes its type": (
        Reason.CHANGED_LAYOUT, METHOD % "static @ n; n += a; return n / 3;", "int", "float"
    ),
    "second static of one name in a method": (
        Reason.UNRESOLVED_REFERENCE, METHOD % "@ { static int n = 1; a += n++; } return a;", *TWICE
    ),
    "struct of one of two joined files": (Reason.CHANGED_LAYOUT, JOINED, "used, free", "free, used"),
    "static that hides another": (None, SHARED, "", "static int n;"),
}  # fmt: skip


def build(project: Any, name: str) -> Any:
    _, text, old, new = PAIRS[name]
    project.command = COMMAND % FLAGS.get(name, "")
    files = {"main.c": MAIN}
    if text is JOINED:
        project.command, files["other.c"] = JOIN, OTHER
    if "item::" in text:
        project.command, files = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog *.cc", {"main.cc": MAIN}
    file = "lib.cc" if "item::" in text else "lib.c"
    after = {file: text.replace("@", new).replace("ADDED", "+ 1")}
    return project.build({**files, file: text.replace("@", old).replace("ADDED", "")}, after)


@pytest.mark.parametrize("name", PAIRS)
def test_what_lives_on(project: Any, name: str) -> None:
    """What new code would read otherwise than old code wrote it is refused, and its neighbour is not."""
    reason = PAIRS[name][0]
    if reason is None:
        names = {f.entry.symbol for f in build(project, name).bundle.manifest.functions}
        assert names == ({"count", "read"} if "hides" in name else {"work"})
        return
    with pytest.raises(Refusal) as caught:
        build(project, name)
    assert caught.value.reason is reason, caught.value
