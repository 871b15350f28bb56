"""Each hazard with a minimal source pair: what is refused, and its neighbour that is not."""

import subprocess
from typing import Any, NamedTuple

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = """
#include <stdio.h>
int work(int);
int main(int argc, char **argv) { printf("%d\\n", work(argc)); return 0; }
"""
CPP_MAIN = "int work(int);\nint main(int argc, char **) { return work(argc); }\n"
CPP = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog *.cc"
Files = dict[str, str]


class Pair(NamedTuple):
    """Two versions of some files; reason is None where they become a bundle."""

    reason: Reason | None
    old: Files
    new: Files
    command: str = ""


def one(reason: Reason | None, text: str, old: str, new: str, command: str = "") -> Pair:
    """Make a pair of one file in which @ stands for what changes."""
    name = "lib.cc" if command == CPP else "lib.c"
    return Pair(reason, {name: text.replace("@", old)}, {name: text.replace("@", new)}, command)


NOINLINE = "__attribute__((noinline)) "
GOTO = """
int work(int a) {
    static void *jump[] = { &&one, &&two };
    int n = a;
    TURN
    goto *jump[a & 1];
one: n += a / 3;
two: return n * @;
}
"""
KEPT = """
static void *next;
int work(int a) {
    int n = a;
    if (next) goto *next;
    next = a > 5 ? &&two : &&one;
one: n += a / 3;
two: return n * @;
}
"""
SET = """
struct entry { int (*f)(int); };
extern struct entry __start_entries[], __stop_entries[];
static int one(int a) { return a + 1; }
static struct entry first __attribute__((section("entries"), used)) = { one };
@
int work(int a) { for (struct entry *e = __start_entries; e < __stop_entries; e++) a = e->f(a); return a NUMBER; }
"""
SECOND = (
    "static int two(int a) { return a * 2; }\n"
    'static struct entry second __attribute__((section("entries"), used)) = { two };'
)
ALIAS = NOINLINE + 'int work(int a) { return a @ 3; }\nint twin(int) __attribute__((alias("work")));\n'
BASE = """
struct Base { virtual int f(int a); virtual ~Base(); @ int n = 1; };
int Base::f(int a) { return a + n; }
Base::~Base() {}
int work(int a) { Base b; return b.f(a) NUMBER; }
"""
CATCH = """
int risky(int a);
int work(int a) { try { return risky(a); } catch (@) { return 3; } }
"""
RISKY = "int risky(int a) { if (a > 3) throw a; return a; }\n"
LOOP = """
#include <unistd.h>
int n, stop;
__attribute__((noinline)) void step(int);
__attribute__((noinline)) void loop(void) { for (;COND;) { step(n BY); sleep(1); } }
int work(int a) { if (a > 100) loop(); return a; }
void step(int a) { n = a @ 2; }
"""
THREAD = """
#include <pthread.h>
int n, stop;
__attribute__((noinline)) void step(int);
static void *start(void *a) { @ return a; }
int work(int a) { pthread_t t; pthread_create(&t, 0, start, &n); return a; }
void step(int a) { n = a + 2; }
"""
JUMP = """
#include <setjmp.h>
jmp_buf place;
int n;
void leave(void) { longjmp(place, 1); }
__attribute__((noinline)) int helper(int a) { return a @ 3; }
int work(int a) { if (setjmp(place)) return n; return helper(a) NUMBER; }
"""
WEAK = "__attribute__((weak, noinline)) int hook(int a) { return a @ 3; }\nint work(int a) { return hook(a) + 1; }\n"
LEAF = NOINLINE + "static int leaf(int a) { return a @; }\n" + NOINLINE + "static int near(int a) { return leaf(a); }\n"
SIGNED_OLD = "int rand(void);\n" + NOINLINE + "static int leaf(int a) { return a * rand(); }\n"
SIGNED_NEW = "int rand(void);\n" + NOINLINE + "static int leaf(int a, long b) { return a * rand() + b; }\n"
MIDDLE = NOINLINE + "static int middle(int a) { return leaf(a) * 3; }\nint gone(int a) { return middle(a) + 2; }\n"
CHOICE = """
int (*volatile back)(int);
int n;
__attribute__((noinline)) static int leaf(int a) {
    switch (a) {
    case 0: n = 5; break; case 1: n = a * 3; break; case 2: n ^= 77; break; case 3: n += 11; break;
    case 4: n = n / 2; break; case 5: n = 8; break;
    }
    return @;
}
"""
MADE = "int f(int);\nint work(int a) { static int n@; n += a; return n NUMBER; }\nint f(int a) { return a * 2 + 1; }\n"
COROUTINE = """
#include <coroutine>
struct Task {
    struct promise_type {
        int value = 0;
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        std::suspend_always yield_value(int x) { value = x; return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};
Task count(int a) { @ co_yield a; co_yield a BY; }
static std::coroutine_handle<Task::promise_type> kept;
int work(int a) { if (!kept) kept = count(a).handle; kept.resume(); return kept.promise().value NUMBER; }
"""
PARALLEL = """
int work(int a) {
    int n = a, m = a * 3, sum = 0; @
#pragma omp parallel num_threads(4)
    __atomic_fetch_add(&sum, n + m BY, __ATOMIC_SEQ_CST);
    LAST
    return sum;
}
"""
REGION = "\n#pragma omp parallel num_threads(2)\n__atomic_fetch_add(&sum, n * m, __ATOMIC_SEQ_CST);\n"
INNER = """
int call(int (*f)(int), int a);
int work(int a) {
    int n = a, m = a * 3; @
    int inner(int x) { n += x; return n * m BY; }
    return call(inner, a) + n;
}
int call(int (*f)(int), int a) { return f(a) + f(a + 1); }
"""
CPP20 = "g++ -O2 -std=c++20 -fPIE -pie -Wl,-z,now -o prog *.cc"
OPENMP = "gcc -O2 -fopenmp -fPIE -pie -Wl,-z,now -o prog *.c"
INLINE = "inline int counter = 5;\n"


def coroutine(first: str = "", by: str = "", number: str = "") -> str:
    """Return the source with a coroutine: what its body begins with, what it yields more, what its caller does."""
    return COROUTINE.replace("@", first).replace("BY", by).replace("NUMBER", number)


def parallel(first: str = "", by: str = "", last: str = "") -> str:
    """Return the source with a parallel region: what stands before it, what it adds more, what stands behind it."""
    return PARALLEL.replace("@", first).replace("BY", by).replace("LAST", last)


PAIRS: dict[str, Pair] = {
    "static that changes its type": one(
        Reason.CHANGED_LAYOUT, "static @ n = 0;\nint work(int a) { n += a; return n / 3; }\n", "int", "unsigned"
    ),
    "static in a function that changes its type": one(
        Reason.CHANGED_LAYOUT, "int work(int a) { static @ n; n += a; return n / 3; }\n", "int", "float"
    ),
    "static that keeps its type": one(None, "int work(int a) { static int n; n += a; return n @ 3; }\n", "/", "%"),
    "computed goto by a table of labels": one(None, GOTO.replace("TURN", ""), "3", "5"),
    "computed goto by a table that lives on": one(
        Reason.COMPUTED_GOTO, GOTO.replace("TURN", "jump[1] = jump[a & 1];"), "3", "5"
    ),
    "label that is kept in a variable": one(Reason.COMPUTED_GOTO, KEPT, "3", "5"),
    "set that grows": one(Reason.LINKER_SET, SET.replace("NUMBER", ""), "", SECOND),
    "set that stays": one(None, SET.replace("@", "").replace("NUMBER", "@"), "", "+ 2"),
    "constructor that changes": one(
        Reason.CHANGED_CONSTRUCTOR,
        "int n;\n__attribute__((constructor)) static void start(void) { n = @; }\nint work(int a) { return n + a; }\n",
        "7",
        "8",
    ),
    "destructor that changes": one(
        None,
        "int n;\n__attribute__((destructor)) static void end(void) { n = @; }\nint work(int a) { return n + a; }\n",
        "7",
        "8",
    ),
    "order of static initialisers": one(
        Reason.CHANGED_CONSTRUCTOR,
        "int f(int);\n@\nint work(int a) { return x + y + a; }\n" + "int f(int a) { return a * 2; }\n",
        "int x = f(1); int y = f(2);",
        "int y = f(2); int x = f(1);",
        CPP,
    ),
    "alias that comes": one(
        Reason.CHANGED_ALIAS,
        NOINLINE + "int work(int a) { return a; }\n@\n",
        "",
        'int again(int) __attribute__((alias("work")));',
    ),
    "alias that goes": Pair(
        Reason.CHANGED_ALIAS,
        {"lib.c": ALIAS.replace("@", "+")},
        {"lib.c": ALIAS.replace("@", "-").partition("int twin")[0]},
    ),
    "alias that stays": one(None, ALIAS, "+", "-"),
    "folded functions that part": Pair(
        Reason.FOLDED_FUNCTIONS,
        {"lib.c": ALIAS.replace("@", "+")},
        {"lib.c": ALIAS.replace("@", "-").partition("int twin")[0] + "int twin(int a) { return a + 3; }\n"},
    ),
    "weak function that changes": one(None, WEAK, "+", "-"),
    "weak function that another overrides": Pair(
        Reason.WEAK_SYMBOL,
        {"lib.c": WEAK.replace("@", "+"), "strong.c": "int hook(int a) { return a + 3; }\n"},
        {"lib.c": WEAK.replace("@", "-")},
    ),
    "definition that overrides a weak one": Pair(
        Reason.WEAK_SYMBOL,
        {"lib.c": WEAK.replace("@", "+"), "more.c": "int more(int a) { return a; }\n"},
        {"more.c": "int more(int a) { return a + 1; }\nint hook(int a) { return a; }\n"},
    ),
    "weak name that nobody defines": one(
        Reason.WEAK_SYMBOL,
        "__attribute__((weak)) int plugin(int);\nint work(int a) { @ return a; }\n",
        "",
        "if (plugin) return plugin(a);",
    ),
    "static variable that moves": Pair(
        Reason.MOVED_BETWEEN_FILES,
        {"lib.c": "static int n = 1;\nint work(int a) { return n++ + a; }\n",
         "more.c": "int more(void) { return 1; }\n"},
        {"lib.c": "int more(void);\nint work(int a) { return more() + a; }\n",
         "more.c": "static int n = 1;\nint more(void) { return n++; }\n"},
    ),
    "callback that moves": Pair(
        Reason.MOVED_BETWEEN_FILES,
        {"lib.c": "static int call(int a) { return a / 3; }\nint (*back)(int);\n"
                  "int work(int a) { back = call; return a; }\n",
         "more.c": "int more(void) { return 1; }\n"},
        {"lib.c": "int more(void);\nint (*back)(int);\nint work(int a) { return more() + a; }\n",
         "more.c": "extern int (*back)(int);\nstatic int call(int a) { return a / 3; }\n"
                   "int more(void) { back = call; return 1; }\n"},
    ),
    "helper that moves": Pair(
        None,
        {"lib.c": NOINLINE + "static int help(int a) { return a / 3; }\nint work(int a) { return help(a); }\n",
         "more.c": "int more(int a) { return a; }\n"},
        {"lib.c": "int more(int);\nint work(int a) { return more(a); }\n",
         "more.c": NOINLINE + "static int help(int a) { return a / 3; }\nint more(int a) { return help(a) + 1; }\n"},
    ),
    "gone caller of an unchanged function": Pair(
        Reason.IPA_RA_HAZARD,
        {"lib.c": LEAF.replace("@", "+ 1") + "int gone(int a, int b, int c) { return near(a) + b + c; }\n"
                  "int work(int a) { return near(a) + 2; }\n"},
        {"lib.c": LEAF.replace("@", "/ 7 * a") + "int work(int a) { return near(a) + 2; }\n"},
    ),
    "gone caller of a function whose signature changes": Pair(
        Reason.CHANGED_SIGNATURE,
        {"lib.c": SIGNED_OLD + "int gone(int a) { return leaf(a) + 2; }\n"
                  "int work(int a) { return gone(a); }\n"},
        {"lib.c": SIGNED_NEW + "int work(int a) { return leaf(a, a / 3) + 7; }\n"},
    ),
    "gone caller of a gone function that calls one whose signature changes": Pair(
        Reason.CHANGED_SIGNATURE,
        {"lib.c": SIGNED_OLD + MIDDLE + "int work(int a) { return gone(a); }\n"},
        {"lib.c": SIGNED_NEW + "int work(int a) { return leaf(a, a / 3) + 7; }\n"},
    ),
    "gone caller of a gone function whose callee changes": Pair(
        Reason.IPA_RA_HAZARD,
        {"lib.c": LEAF.replace("@", "+ 1") + MIDDLE + "int work(int a) { return near(a) + 2; }\n"},
        {"lib.c": LEAF.replace("@", "/ 7 * a") + "int work(int a) { return near(a) + 2; }\n"},
    ),
    "gone caller of a switch that begins to jump elsewhere": Pair(
        Reason.IPA_RA_HAZARD,
        {"lib.c": CHOICE.replace("@", "3") + "int gone(int a, int b, int c) { return leaf(a) + b + c; }\n"
                  "int work(int a) { return leaf(a) + 2; }\n"},
        {"lib.c": CHOICE.replace("@", "back(a)") + "int work(int a) { return leaf(a) + 2; }\n"},
    ),
    "gone caller of a switch that stays one": Pair(
        None,
        {"lib.c": CHOICE.replace("@", "3") + "int gone(int a, int b, int c) { return leaf(a) + b + c; }\n"
                  "int work(int a) { return leaf(a) + 2; }\n"},
        {"lib.c": CHOICE.replace("@", "4") + "int work(int a) { return leaf(a) + 2; }\n"},
    ),
    "gone functions that nobody calls any more": Pair(
        None,
        {"lib.c": SIGNED_OLD + MIDDLE.replace("int gone", "static int gone") + "int work(int a) { return gone(a); }\n"},
        {"lib.c": SIGNED_NEW + "int work(int a) { return leaf(a, a / 3) + 7; }\n"},
    ),
    "static that is made once more": one(Reason.CHANGED_DATA, MADE.replace("NUMBER", ""), "", " = f(a)", CPP),
    "static that is made as before": one(
        None, MADE.replace("@", " = f(a)").replace("NUMBER", "@"), "", "+ 1", CPP
    ),
    "coroutine": Pair(
        Reason.SETJMP_CALLER,
        {"lib.cc": coroutine()},
        {"lib.cc": coroutine("", "* 3", "")},
        CPP20,
    ),
    "coroutine that clang makes": Pair(
        Reason.SETJMP_CALLER,
        {"lib.cc": coroutine()},
        {"lib.cc": coroutine("", "* 3", "")},
        CPP20.replace("g++", "clang++") + " -Wl,--build-id",
    ),
    "frame of a coroutine": Pair(
        Reason.CHANGED_LAYOUT,
        {"lib.cc": coroutine()},
        {"lib.cc": coroutine("long n = a * 3;", "+ n", "")},
        CPP20,
    ),
    "caller of a coroutine": Pair(
        None,
        {"lib.cc": coroutine()},
        {"lib.cc": coroutine("", "", "+ 1")},
        CPP20,
    ),
    "what a parallel region takes from its function": Pair(
        Reason.CHANGED_SIGNATURE,
        {"lib.c": parallel()},
        {"lib.c": parallel("long k = a / 5;", "+ k", "")},
        OPENMP,
    ),
    "parallel region before another": Pair(
        Reason.CHANGED_ALIAS,
        {"lib.c": parallel()},
        {"lib.c": parallel(REGION, "", "")},
        OPENMP,
    ),
    "parallel region behind another": Pair(
        None,
        {"lib.c": parallel()},
        {"lib.c": parallel("", "", REGION)},
        OPENMP,
    ),
    "what a parallel region does": Pair(
        None,
        {"lib.c": parallel()},
        {"lib.c": parallel("m++;", "* 2", "")},
        OPENMP,
    ),
    "nested function and the frame that it uses": Pair(
        Reason.CHANGED_SIGNATURE,
        {"lib.c": INNER.replace("@", "").replace("BY", "")},
        {"lib.c": INNER.replace("@", "long k = call(0, a);").replace("BY", "+ k++")},
    ),
    "nested function alone": Pair(
        None,
        {"lib.c": INNER.replace("@", "").replace("BY", "")},
        {"lib.c": INNER.replace("@", "").replace("BY", "* 5")},
    ),
    "function that begins to return": Pair(
        Reason.CHANGED_NORETURN,
        {"lib.c": "#include <stdlib.h>\n__attribute__((noreturn)) void end(int a) { exit(a); }\n"
                  "void *table[] = { end };\nint work(int a) { return a; }\n"},
        {"lib.c": "#include <stdlib.h>\nvoid end(int a) { if (a > 5) exit(a); }\n"
                  "void *table[] = { end };\nint work(int a) { return a; }\n"},
    ),
    "function that begins to return, with a caller that is gone": Pair(
        Reason.CHANGED_NORETURN,
        {"lib.c": "#include <stdlib.h>\n__attribute__((noreturn, noinline)) static void end(int a) { exit(a); }\n"
                  "int gone(int a) { if (a > 9) end(a); return a; }\n"
                  "int work(int a) { if (a > 7) end(a); return gone(a); }\n"},
        {"lib.c": "#include <stdlib.h>\n__attribute__((noinline)) static void end(int a) { if (a > 15) exit(a); }\n"
                  "int work(int a) { if (a > 7) end(a); return a; }\n"},
    ),
    "function that begins to return, with its callers": Pair(
        None,
        {"lib.c": "#include <stdlib.h>\n__attribute__((noreturn, noinline)) static void end(int a) { exit(a); }\n"
                  "int work(int a) { if (a > 9) end(a); return a; }\n"},
        {"lib.c": "#include <stdlib.h>\n__attribute__((noinline)) static void end(int a) { if (a > 15) exit(a); }\n"
                  "int work(int a) { if (a > 9) end(a); return a; }\n"},
    ),
    "virtual function that comes": one(
        Reason.CHANGED_VTABLE, BASE.replace("NUMBER", ""), "", "virtual int g() { return 3; }", CPP
    ),
    "virtual function whose body changes": one(None, BASE.replace("@", "").replace("NUMBER", "@"), "", "+ 1", CPP),
    "base class of a local class": one(
        Reason.CHANGED_VTABLE,
        "namespace { struct A { virtual int f() { return 1; } @ }; }\nA *volatile p = new A;\n"
        "int work(int a) { return p->f() + a; }\n",
        "",
        "virtual int g() { return 2; }",
        CPP,
    ),
    "what is caught": Pair(
        None,
        {"lib.cc": CATCH.replace("@", "int"), "risky.cc": RISKY},
        {"lib.cc": CATCH.replace("@", "long")},
        CPP,
    ),
    "event loop": one(
        Reason.NEVER_QUIESCENT, LOOP.replace("COND", "").replace("@", "+").replace("BY", "@"), "", "+ 1"
    ),
    "loop that ends": one(None, LOOP.replace("COND", "!stop").replace("@", "+").replace("BY", "@"), "", "+ 1"),
    "loop before the end of the program": one(
        None,
        "#include <stdio.h>\n#include <stdlib.h>\n"
        '__attribute__((noinline)) void panic(int a) { for (int i = 0; i < a; i++) puts("@"); abort(); }\n'
        "int work(int a) { if (a > 9) panic(a); return a; }\n",
        "old",
        "new",
    ),
    "step of an event loop": one(None, LOOP.replace("COND", "").replace("BY", ""), "+", "-"),
    "start of a thread that loops": one(
        Reason.NEVER_QUIESCENT, THREAD, "while (!stop) step(n);", "while (!stop) step(n + 1);"
    ),
    "start of a thread that ends": one(None, THREAD, "step(n);", "step(n + 1);"),
    "caller of setjmp": one(Reason.SETJMP_CALLER, JUMP.replace("@", "+").replace("NUMBER", "@"), "", "* 3"),
    "what a caller of setjmp calls": one(None, JUMP.replace("NUMBER", ""), "+", "-"),
    "other protection": Pair(
        Reason.HARDENING_DIFFERS,
        {"flags": "-fstack-protector-strong", "lib.c": "int work(int a) { return a; }\n"},
        {"flags": "-fno-stack-protector", "lib.c": "int work(int a) { return a + 1; }\n"},
        "gcc -O2 $(cat flags) -fPIE -pie -Wl,-z,now -o prog *.c",
    ),
    "CET that goes": Pair(
        Reason.HARDENING_DIFFERS,
        {"flags": "-fcf-protection", "lib.c": "int work(int a) { return a; }\n"},
        {"flags": "-fcf-protection=none", "lib.c": "int work(int a) { return a + 1; }\n"},
        "gcc -O2 $(cat flags) -fPIE -pie -Wl,-z,now -o prog *.c",
    ),
    "library that changes as well": Pair(
        Reason.OTHER_MODULE_CHANGED,
        {"lib.c": "int shared(int);\nint work(int a) { return shared(a); }\n",
         "so/x.c": "int shared(int a) { return a; }\n"},
        {"lib.c": "int shared(int);\nint work(int a) { return shared(a) + 1; }\n",
         "so/x.c": "int shared(int a) { return a - 1; }\n"},
        "gcc -O2 -fPIC -shared -o libx.so so/x.c && gcc -O2 -fPIE -pie -Wl,-z,now -o prog *.c -L. -lx",
    ),
    "library that stays": Pair(
        None,
        {"lib.c": "int shared(int);\nint work(int a) { return shared(a); }\n",
         "so/x.c": "int shared(int a) { return a; }\n"},
        {"lib.c": "int shared(int);\nint work(int a) { return shared(a) + 1; }\n"},
        "gcc -O2 -fPIC -shared -o libx.so so/x.c && gcc -O2 -fPIE -pie -Wl,-z,now -o prog *.c -L. -lx",
    ),
    "other program that changes as well": Pair(
        None,
        {"lib.c": "int work(int a) { return a; }\n", "tool/t.c": "int main(void) { return 1; }\n"},
        {"lib.c": "int work(int a) { return a + 1; }\n", "tool/t.c": "int main(void) { return 2; }\n"},
        "gcc -O2 -o tool/t tool/t.c && gcc -O2 -fPIE -pie -Wl,-z,now -o prog *.c",
    ),
}  # fmt: skip


def build(project: Any, pair: Pair) -> Any:
    if pair.command:
        project.command = pair.command
    main = {"main.cc": CPP_MAIN} if "*.cc" in pair.command else {"main.c": MAIN}
    return project.build({**main, **pair.old}, pair.new)


@pytest.mark.parametrize("name", PAIRS)
def test_pair(project: Any, name: str) -> None:
    """Each hazard is refused with its own reason, and its neighbour becomes a bundle."""
    pair = PAIRS[name]
    if pair.reason is None:
        assert build(project, pair).bundle.manifest.overruled == []
        return
    with pytest.raises(Refusal) as caught:
        build(project, pair)
    assert (caught.value.reason, bool(caught.value.hint)) == (pair.reason, True), caught.value


def built_elsewhere(project: Any, old: Files, new: Files, command: str) -> None:
    """Make the running binary by another command in the old tree."""
    project._write({"main.c": MAIN, **old}, new)
    project.running = project.folder / "running"
    subprocess.run(["sh", "-c", command], cwd=project.folder / "a", check=True)


def refused(project: Any, old: Files, new: Files) -> Refusal:
    with pytest.raises(Refusal) as caught:
        project.build({"main.c": MAIN, **old}, new)
    return caught.value


@pytest.mark.parametrize("extra", [False, True])
def test_caller_that_only_the_running_binary_has(project: Any, *, extra: bool) -> None:
    """A static function has another caller in the running binary: that was built from another source."""
    text = NOINLINE + "static int leaf(int a) { return a @ 3; }\nint work(int a) { return leaf(a) + 1; }\n"
    more = "int more(int a) { return leaf(a) * 2; }\n" if extra else ""
    old, new = {"lib.c": text.replace("@", "+")}, {"lib.c": text.replace("@", "/")}
    command = f"(cat lib.c; echo '{more}') > ../lib.c && gcc -O2 -fPIE -pie -Wl,-z,now -o ../running main.c ../lib.c"
    built_elsewhere(project, old, new, command)
    if not extra:
        assert project.build({"main.c": MAIN, **old}, new).bundle.manifest.functions
        return
    error = refused(project, old, new)
    assert error.reason is Reason.UNKNOWN_CALLER
    assert "more calls leaf" in error.detail


@pytest.mark.parametrize("extra", [False, True])
def test_stranger_beside_a_static_of_the_name(project: Any, *, extra: bool) -> None:
    """The same for a global function with another signature, also where another file has a static one of its name."""
    text = NOINLINE + "int leaf(int a@) { return a * 3 BY; }\nint work(int a) { return leaf(aARG) + 1; }\n"
    static = NOINLINE + "static int leaf(int a) { return a - 9; }\nint third(int a) { return leaf(a) + 1; }\n"
    old = {"lib.c": text.replace("@", "").replace("BY", "").replace("ARG", ""), "third.c": static}
    new = {**old, "lib.c": text.replace("@", ", int b").replace("BY", "+ b").replace("ARG", ", a")}
    more = "int leaf(int); int more(int a) { return leaf(a) * 2; }" if extra else ""
    command = f"echo '{more}' > ../more.c && gcc -O2 -fPIE -pie -Wl,-z,now -o ../running *.c ../more.c"
    built_elsewhere(project, old, new, command)
    if not extra:
        assert project.build({"main.c": MAIN, **old}, new).bundle.manifest.functions
        return
    error = refused(project, old, new)
    assert error.reason is Reason.UNKNOWN_CALLER
    assert "more calls leaf" in error.detail


OTHER_DATA = {
    "size of an array": ("int seen[@];\nint work(int a) { return seen[a & 3]++ * 3; }\n", "8", "16"),
    "thread-local variable": (
        "__thread int x, y;\nint more(void) { return x - y; }\nint work(int a) { return @ += a; }\n", "x", "y"
    ),
    "thread-local variable of another object": (
        "extern __thread int x, y;\nint work(int a) { return @ += a; }\n", "x", "y"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_in_the_running_binary(project: Any, name: str) -> None:
    """Equal instructions do not make the running binary that of the source: what they refer to must be equal."""
    text, ours, theirs = OTHER_DATA[name]
    more = {"more.c": "__thread int x, y;\nint tick(int a) { return a @ 1; }\n".replace("@", "+")}
    if "extern" not in text:
        more = {"more.c": more["more.c"].partition("\n")[2]}
    old = {"lib.c": text.replace("@", ours), **more}
    new = {"lib.c": old["lib.c"] + "int added(int a) { return a; }\n", "more.c": more["more.c"].replace("+", "-")}
    change = f"sed 's/{ours}/{theirs}/' lib.c > ../lib.c && gcc -O2 -fPIE -pie -o ../running main.c more.c ../lib.c"
    if "thread" in name:
        change = change.replace(f"s/{ours}/{theirs}/", f"s/return {ours} +=/return {theirs} +=/")
    built_elsewhere(project, old, new, change)
    assert refused(project, old, new).reason is Reason.RUNNING_BINARY_DIFFERS


@pytest.mark.parametrize("link", ["-pie", "-pie -Wl,--no-relax", "-shared -Wl,-Bsymbolic"])
def test_slot_of_another_function_in_the_running_binary(project: Any, link: str) -> None:
    """What the linker has put into a slot of the GOT must be what the object names."""
    text = "extern int (*now)(int);\nint f(int), g(int);\nint other(void) { return now == WHICH; }\n"
    more = "int f(int a) { return a; }\nint g(int a) { return a * 2; }\nint (*now)(int) = f;\n"
    text += "int work(int a) { return a / 3 @; }\n"
    old = {"lib.c": text.replace("WHICH", "f").replace("@", ""), "more.c": more}
    new = {"lib.c": text.replace("WHICH", "f").replace("@", "+ 1")}
    project.command = f"gcc -O2 -fPIC {link} -Wl,-z,now -Wl,--build-id -o prog *.c"
    other = project.command.replace("prog *.c", "../running main.c more.c ../lib.c")
    built_elsewhere(project, old, new, f"sed 's/== f/== g/' lib.c > ../lib.c && {other}")
    assert refused(project, old, new).reason is Reason.RUNNING_BINARY_DIFFERS
    subprocess.run(["sh", "-c", project.command.replace("prog", "../running")], cwd=project.folder / "a", check=True)
    assert project.build({"main.c": MAIN, **old}, new).bundle.manifest.functions


def test_functions_that_the_linker_has_folded(project: Any) -> None:
    """A linker that folds equal functions makes two of them one: to replace one would replace both."""
    text = "int twin(int a) { return a * a + a / 3 + 5; }\nint work(int a) { return a * a + a / 3 + @; }\n"
    old, new = {"lib.c": text.replace("@", "5")}, {"lib.c": text.replace("@", "6")}
    fold = "-fuse-ld=gold -Wl,--icf=all -ffunction-sections -Wl,--build-id"
    built_elsewhere(project, old, new, f"gcc -O2 -fno-ipa-icf -fPIE -pie -Wl,-z,now {fold} -o ../running *.c")
    project.command = "gcc -O2 -fno-ipa-icf -fPIE -pie -Wl,-z,now -o prog *.c"
    assert refused(project, old, new).reason is Reason.FOLDED_FUNCTIONS


def test_compiler_of_the_running_binary(project: Any) -> None:
    """Another compiler has its own error that names both; whoever knows that it does not matter may say so."""
    old, new = {"lib.c": "int work(int a) { return a; }\n"}, {"lib.c": "int work(int a) { return a + 1; }\n"}
    built_elsewhere(project, old, new, f"{project.command} && mv prog ../running")
    (project.folder / "comment").write_bytes(b"GCC: (Other) 9.9.9\0")
    subprocess.run(
        ["objcopy", "--remove-section=.comment", "--add-section=.comment=comment", "running"],
        cwd=project.folder,
        check=True,
    )
    error = refused(project, old, new)
    assert error.reason is Reason.COMPILER_DIFFERS
    assert "GCC: (Other) 9.9.9" in error.detail
    assert "Debian" in error.detail
    project.allow = frozenset({Reason.COMPILER_DIFFERS})
    [overruled] = project.build({"main.c": MAIN, **old}, new).bundle.manifest.overruled
    assert overruled.startswith("CompilerDiffers: lib.o")


def test_layout_cannot_be_overruled(project: Any) -> None:
    """What makes new code read old memory wrongly is refused whatever a human says."""
    project.allow = frozenset(Reason)
    text = "struct s { int a; @ int b; };\nstruct s *p;\nint work(int a) { return p ? p->b : a; }\n"
    assert refused(project, *halves(text, "", "long more;")).reason is Reason.CHANGED_LAYOUT


@pytest.mark.parametrize(("text", "old", "new", "ok"), [
    ("int limit = @;\nint work(int a) { return limit++ + a + @; }\n", "5", "6", True),
    ("int limit[@];\nint work(int a) { return limit[a & 3]++ + a + @; }\n", "5", "6", False),
    ("const int limit[2] = {@, 2};\nint work(int a) { return limit[a & 1] + a + @; }\n", "5", "6", False),
])  # fmt: skip
def test_initial_value_may_be_overruled(project: Any, text: str, old: str, new: str, *, ok: bool) -> None:
    """A human may let a variable keep the value that it has; sizes and constants stay refused."""
    project.allow = frozenset({Reason.CHANGED_DATA})
    if ok:
        bundle = project.build({"main.c": MAIN, **halves(text, old, new)[0]}, halves(text, old, new)[1]).bundle
        assert [line.partition(":")[0] for line in bundle.manifest.overruled] == ["ChangedData"]
    else:
        assert refused(project, *halves(text, old, new)).reason is Reason.CHANGED_DATA


def halves(text: str, old: str, new: str) -> tuple[Files, Files]:
    return {"lib.c": text.replace("@", old)}, {"lib.c": text.replace("@", new)}


@pytest.mark.parametrize(("new", "warned"), [("pthread_mutex_lock(&m); n++;", True), ("n += 2;", False)])
def test_other_locks_are_a_warning(project: Any, new: str, *, warned: bool) -> None:
    """New code that takes other locks than the old is named, and not refused."""
    text = "#include <pthread.h>\npthread_mutex_t m;\nint n;\nint work(int a) { @ return a; }\n"
    old, after = halves(text, "n++;", new)
    hazards = project.build({"main.c": MAIN, **old}, after).explanation.hazards
    assert [(h.reason, h.state) for h in hazards] == ([(Reason.LOCK_IMBALANCE, "warning")] if warned else [])
    assert all("pthread_mutex_lock 0 -> 1" in h.detail for h in hazards)


def test_gone_function_counts_as_old_code(project: Any) -> None:
    """A thread may be in a function that the new source lacks, led there by a jump: it must not get new callees."""
    gone = NOINLINE + "static int gone(int a) { return leaf(a) + 2; }\n"
    old = {"lib.c": SIGNED_OLD + gone + "int work(int a) { return gone(a); }\n"}
    new = {"lib.c": SIGNED_NEW + "int work(int a) { return leaf(a, a / 3) + 7; }\n"}
    outcome = project.build({"main.c": MAIN, **old}, new)
    assert [one.symbol for one in outcome.bundle.manifest.gone] == ["gone"]


def test_why_a_new_signature_is_safe(project: Any) -> None:
    """The explanation says who calls a function whose signature changes, and what became of each caller."""
    callers = "int other(int a) { return leaf(@); }\nint work(int a) { return leaf(@) + 1; }\n"
    old, new = SIGNED_OLD + callers.replace("@", "a"), SIGNED_NEW + callers.replace("@", "a, a / 3")
    grounds = project.build({"main.c": MAIN, "lib.c": old}, {"lib.c": new}).explanation.grounds
    reason = "static, and nothing but calls leads to it; callers other, work are replaced"
    assert f"lib.o: leaf: int (int) -> int (int, long int): {reason}" in grounds
