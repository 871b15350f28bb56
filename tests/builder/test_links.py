"""What the whole build and the linker decide, beyond one object: all of it must be as a fresh build would have it."""

from typing import Any, NamedTuple

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n"
PLAIN = "gcc -O2 -fno-builtin -fPIE -pie -Wl,-z,now -o prog *.c"
Files = dict[str, str]


class Pair(NamedTuple):
    """Two versions of some files; found is the reason of the refusal, or what is replaced."""

    found: Reason | set[str]
    old: Files
    new: Files
    command: str = PLAIN


MAKE = """
prog: main.o lib.o more.o
\tgcc -pie -o prog main.o lib.o more.o
%.o: %.c
\tgcc -O2 -fPIE LIMIT -c -o $@ $<
gen.h: gen.in
\tsed s/X/LIMIT/ gen.in > gen.h
main.o: gen.h
"""
LIB = "int more(int);\nint work(int a) { return more(a) @ 1; }\n"
MORE = "int more(int a) { return a > LIMIT ? LIMIT : a; }\n"
TICK = "int tick(int a) { return a @ 5; }\n"
USERS = "int hook(int), tick(int);\nint work(int a) { return hook(a) + tick(a); }\n"
HOOK = "int hook(int a) { return a + 1000; }\n"
ABS = HOOK.replace("hook", "abs")
TWICE = """
__attribute__((noinline)) int tick(int a) { return a @ 1; }
int work(int a) {
#ifdef FIRST
    ADDED
#endif
    return tick(a) * 3;
}
"""
TWO_PROGRAMS = (
    "set -e; gcc -O2 -fPIE -c main.c; gcc -O2 -fPIE -DFIRST -c lib.c; gcc -pie -o prog main.o lib.o;"
    " gcc -O2 -fPIE -c lib.c; gcc -pie -o other main.o lib.o"
)
WRAPPED = "#include <stdlib.h>\nvoid *kept;\nint work(int a) { @ return a; }\n"
WRAPPER = """
#include <stdlib.h>
int n;
void *__real_malloc(size_t);
void *__wrap_malloc(size_t a) { n++; return __real_malloc(a); }
"""
STATIC = "__attribute__((noinline)) @ int rand(void) { return 7; }\nint first(void) { return rand(); }\n"
ALIAS = """
__attribute__((noinline)) int other(@ a) { return a / 3; }
int also(@) __attribute__((alias("other")));
void *table[] = { other };
int work(int a) { return ((int (*)(int))table[0])(a); }
"""
STORED = """
void *kept;
__attribute__((noinline)) static int handle(@) { return b ? a / 3 : a; }
ADDED
void start(void) { kept = FIRST; }
int other(int a) { return handle(SECOND); }
"""
CALLS = "extern void *kept; void start(void);\nint work(int a) { start(); return ((int (*)(int))kept)(a); }\n"


RAW = "int raw(int), tick(int);\nint one(int a) { return a + 1; }\nint two(int a) { return a + 2; }\n"
RAW += "int work(int a) { return raw(a) + tick(a); }\n"
LIMIT = "extern int limit; int tick(int);\nint work(int a) { return limit + tick(a); }\n"
NUMBER = LIMIT.replace("int limit", "char limit[]").replace("limit +", "(long)limit +")
NARROW = """
__attribute__((noipa)) int narrow(int a) {
    asm volatile("movb $limit, %%cl; addl $@, %0" : "+a"(a) : : "cx");
    return a;
}
int work(int a) { return narrow(a); }
"""


def plus(text: str, sign: str) -> str:
    return text.replace("@", sign)


PAIRS: dict[str, Pair] = {
    "flags in a makefile": Pair(
        {"work", "more"},
        {"Makefile": MAKE.replace("LIMIT -c", "-DLIMIT=4 -c"), "lib.c": plus(LIB, "+"), "more.c": MORE, "gen.in": ""},
        {"Makefile": MAKE.replace("LIMIT -c", "-DLIMIT=8 -c"), "lib.c": plus(LIB, "-")},
        "make prog",
    ),
    "header that is made from another file": Pair(
        {"work", "more"},
        {"Makefile": MAKE.replace("LIMIT -c", "-c"), "lib.c": plus(LIB, "+"),
         "more.c": '#include "gen.h"\n' + MORE, "gen.in": "#define X 4\n"},
        {"gen.in": "#define X 8\n", "lib.c": plus(LIB, "-")},
        "make prog",
    ),
    "definition that goes, and a library has it": Pair(
        Reason.MOVED_BETWEEN_FILES,
        {"lib.c": ABS + plus(TICK, "+"), "more.c": USERS.replace("hook", "abs")},
        {"lib.c": plus(TICK, "-")},
    ),
    "definition that goes, and a weak one stays": Pair(
        Reason.MOVED_BETWEEN_FILES,
        {"lib.c": HOOK + plus(TICK, "+"), "more.c": USERS, "weak.c": "__attribute__((weak)) " + HOOK},
        {"lib.c": plus(TICK, "-")},
    ),
    "object that goes, and a library has its function": Pair(
        Reason.MOVED_BETWEEN_FILES,
        {"lib.c": plus(TICK, "+"), "more.c": USERS.replace("hook", "abs"), "compat/abs.c": ABS,
         "build": PLAIN + " compat/*.c"},
        {"lib.c": plus(TICK, "-"), "build": PLAIN},
        "sh build",
    ),
    "definition that goes with its users": Pair(
        {"work"},
        {"lib.c": HOOK + "int work(int a) { return hook(a) + 1; }\n"},
        {"lib.c": "int work(int a) { return a + 1; }\n"},
    ),
    "sources named in a file": Pair(
        Reason.UNSUPPORTED_CHANGE,
        {"args": "main.c more.c", "lib.c": plus(LIB, "+"), "more.c": "int more(int a) { return a; }\n"},
        {"lib.c": plus(LIB, "-"), "more.c": "int more(int a) { return a * 3; }\n"},
        "gcc -O2 -fPIE -c lib.c && gcc -O2 -fPIE -pie -o prog @args lib.o",
    ),
    "object of two programs, made twice": Pair(
        {"tick", "work"},
        {"lib.c": plus(TWICE, "+").replace("ADDED", "")},
        {"lib.c": plus(TWICE, "-").replace("ADDED", "if (a > 100) return 0;")},
        TWO_PROGRAMS,
    ),
    "new call of a wrapped function": Pair(
        Reason.UNRESOLVED_REFERENCE,
        {"wrap.c": WRAPPER, "lib.c": plus(WRAPPED, "")},
        {"lib.c": plus(WRAPPED, "kept = malloc(a);")},
        PLAIN + " -Wl,--wrap=malloc",
    ),
    "old call of a wrapped function": Pair(
        {"work"},
        {"wrap.c": WRAPPER, "lib.c": plus(WRAPPED, "kept = malloc(a);")},
        {"lib.c": plus(WRAPPED, "kept = malloc(a + 1);")},
        PLAIN + " -Wl,--wrap=malloc",
    ),
    "dependencies asked of the preprocessor": Pair(
        {"work", "more"},
        {"Makefile": MAKE.replace("LIMIT -c", "-Wp,-MMD,.$*.d -c"), "gen.in": "", "limit.h": "#define LIMIT 4\n",
         "lib.c": plus(LIB, "+"), "more.c": '#include "limit.h"\n' + MORE},
        {"limit.h": "#define LIMIT 8\n", "lib.c": plus(LIB, "-")},
        "make prog",
    ),
    "joined objects that are not made again": Pair(
        {"work", "more"},
        {"lib.c": plus(LIB, "+"), "more.c": "int more(int a) { return a / 3; }\n"},
        {"lib.c": plus(LIB, "-"), "more.c": "int more(int a) { return a / 7; }\n"},
        "set -e; for f in main lib; do gcc -O2 -fPIE -c $f.c; done;"
        " test -f both.o || { gcc -O2 -fPIE -c more.c; ld -r -o both.o more.o; }; gcc -pie -o prog main.o lib.o both.o",
    ),
    "common variable that becomes static": Pair(
        Reason.UNSUPPORTED_CHANGE,
        {"lib.c": "int n;\nint work(int a) { n += a; return n; }\n"},
        {"lib.c": "static int n;\nint work(int a) { n += 2 * a; return n; }\n"},
        PLAIN.replace("-O2", "-O2 -fcommon"),
    ),
    "number that is a symbol": Pair(
        Reason.CHANGED_DATA,
        {"lib.c": plus(TICK, "+"), "use.c": NUMBER,
         "raw.c": 'asm(".globl limit; limit = 5");\n'},
        {"lib.c": plus(TICK, "-"), "raw.c": 'asm(".globl limit; limit = 6");\n'},
        "gcc -O2 -fno-pie -no-pie -o prog *.c",
    ),
    "change beside a narrow relocation": Pair(
        Reason.UNRESOLVED_REFERENCE,
        {"lib.c": plus(NARROW, "1"), "raw.c": 'asm(".globl limit; limit = 5");\n'},
        {"lib.c": plus(NARROW, "2")},
        "gcc -O2 -fno-pie -no-pie -o prog *.c",
    ),
    "function with another name whose signature changes": Pair(
        Reason.CHANGED_SIGNATURE, {"lib.c": plus(ALIAS, "int")}, {"lib.c": plus(ALIAS, "long")}
    ),
    "function that old code has stored and new code does not": Pair(
        Reason.CHANGED_SIGNATURE,
        {"lib.c": plus(STORED, "int a").replace("b ?", "a > 5 ?").replace("ADDED", "").replace("FIRST", "handle")
                  .replace("SECOND", "a"), "more.c": CALLS},
        {"lib.c": plus(STORED, "int a, int b").replace("ADDED", "static int plain(int a) { return handle(a, 1); }")
                  .replace("FIRST", "plain").replace("SECOND", "a, 0"), "more.c": CALLS},
    ),
}  # fmt: skip

# Assembler in a file of its own, beside a function that changes: name -> reason, text, what changes in it, its user
ASSEMBLER: dict[str, tuple[Reason | set[str], str, tuple[str, str], str]] = {
    "function without a size": (
        Reason.HAND_WRITTEN_ASM, ".text; .globl raw; .type raw, STT_FUNC; raw: movl $@, %eax; ret", ("1", "2"), RAW
    ),
    "jump of a label": (Reason.HAND_WRITTEN_ASM, ".text; .globl raw; raw: jmp @", ("one", "two"), RAW),
    "label behind a function": (
        Reason.HAND_WRITTEN_ASM,
        ".text; .type f, STT_FUNC; f: ret; .size f,.-f; .p2align 4; .globl raw; raw: movl $@, %eax; ret",
        ("1", "2"),
        RAW,
    ),
    "data with a label": (Reason.CHANGED_DATA, ".data; .globl limit; limit: .long @; .text", ("5", "6"), LIMIT),
    "data without a size": (
        Reason.CHANGED_DATA, ".data; .globl limit; .type limit, STT_OBJECT; limit: .long @; .text", ("5", "6"), LIMIT
    ),
    "code that stays": ({"tick"}, ".text; .globl raw; raw: movl $1, %eax; ret #@", ("1", "2"), RAW),
}  # fmt: skip


@pytest.mark.parametrize("name", ASSEMBLER)
def test_assembler_beside_a_change(project: Any, name: str) -> None:
    """What assembler defines without type or size is compared as well, though no function of its object changes."""
    found, text, (old, new), user = ASSEMBLER[name]
    raw = f'asm("{text}\\n");\n'
    pair = Pair(
        found,
        {"lib.c": plus(TICK, "+"), "use.c": user, "raw.c": plus(raw, old)},
        {"lib.c": plus(TICK, "-"), "raw.c": plus(raw, new)},
    )
    if isinstance(found, set):
        assert {f.entry.symbol for f in build(project, pair).bundle.manifest.functions} == found
        return
    with pytest.raises(Refusal) as caught:
        build(project, pair)
    assert caught.value.reason is found, caught.value


def build(project: Any, pair: Pair) -> Any:
    project.command = pair.command
    return project.build({"main.c": MAIN, **pair.old}, pair.new)


@pytest.mark.parametrize("name", PAIRS)
def test_beyond_one_object(project: Any, name: str) -> None:
    """All that a fresh build would change is replaced, or the patch is refused."""
    pair = PAIRS[name]
    if isinstance(pair.found, set):
        assert {f.entry.symbol for f in build(project, pair).bundle.manifest.functions} == pair.found
        return
    with pytest.raises(Refusal) as caught:
        build(project, pair)
    assert caught.value.reason is pair.found, caught.value


def test_function_that_becomes_global(project: Any) -> None:
    """Other objects call the function that runs, not one of a library that has its name."""
    users = "int first(void), rand(void);\nint work(int a) { return first() + a @; }\n"
    pair = Pair(
        set(), {"lib.c": plus(STATIC, "static"), "more.c": plus(users, "")},
        {"lib.c": plus(STATIC, ""), "more.c": plus(users, "* rand()")},
    )  # fmt: skip
    assert {r.kind for r in build(project, pair).bundle.manifest.references} == {"offset"}


def test_variable_of_a_library_that_the_program_has_copied(project: Any) -> None:
    """New code finds an exported variable where the loader has put it, as old code does (gABI, copy relocations)."""
    text = "int count;\nint work(int a) { count += a @ 1; return count; }\n"
    pair = Pair(set(), {"lib.c": plus(text, "+")}, {"lib.c": plus(text, "-")}, "gcc -O2 -fPIC -shared -o prog lib.c")
    assert {r.kind for r in build(project, pair).bundle.manifest.references} == {"got"}
