"""Labels as values: a table of them is no hazard, labels that are kept beyond one call are."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder.escapes import lets_labels_out
from podgraft_builder.labels import keeps_label
from podgraft_builder.objects import ObjectFile
from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **argv) { return work(argc); }\n"
# Direct threading: the compiled program holds the labels themselves.
THREADED = """
#include <stdlib.h>
struct op { void *go; long argument; };
static struct op *code;
__attribute__((noinline)) static long run(const struct op *pc, struct op *out, int n, const char *src) {
    static const void *const labels[] = { &&add, &&sub, &&end };
    long sum = 0;
    if (out) {
        for (int i = 0; i < n; i++) { out[i].go = (void *)labels[src[i] - 'a']; out[i].argument = i; }
        return 0;
    }
    goto *pc->go;
add: sum += pc->argument @; pc++; goto *pc->go;
sub: sum -= pc->argument; pc++; goto *pc->go;
end: return sum;
}
int work(int a) {
    if (!code) { code = malloc(64); run(0, code, 3, "abc"); }
    return run(code, 0, 0, 0) + a;
}
"""
KEPT = """
static void *next;
int work(int a) {
    static void *const jump[] = { &&one, &&two };
    int n = a;
    void *now = next;
    next = jump[a & 1];
    if (!now) return n;
    goto *now;
one: n += a / 3;
two: return n * 3 @;
}
"""
TABLE = """
static void *const *next;
int work(int a) {
    static void *const jump[] = { &&one, &&two };
    int n = a;
    if (!next) { next = &jump[a & 1]; return n; }
    goto **next;
one: n += a / 3;
two: return n * 3 @;
}
"""
GIVEN = """
void emit(void *);
int work(int a) {
    static void *const jump[] = { &&one, &&two };
    int n = a;
    if (a > 7) { emit(jump[a & 1]); return n; }
    goto *jump[a & 1];
one: n += a / 3;
two: return n * 3 @;
}
"""
RETURNED = """
void *const *work(int a, void **go) {
    static void *const jump[] = { &&one, &&two };
    if (!go) return jump;
    goto **go;
one: a += a / 3;
two: return (void *)(long)(a * 3 @);
}
"""
# An interpreter that keeps nothing: more variables than registers, calls, branches, a switch.
CASES = """
    c0: a += b * c; goto *labels[*pc++];
    c1: d = g(e); goto *labels[*pc++];
    c2: f = h(a, b, c); if (f > d) goto c4; goto *labels[*pc++];
    c3: st[k & 7] = e; if (e > k) { f = g(f); goto c1; } goto *labels[*pc++];
    c4: k = (long)q(st, a, b, c); goto *labels[*pc++];
    c5: for (int i = 0; i < a; i++) b += st[i]; goto *labels[*pc++];
    c6: switch (c) {
        case 0: a++; break; case 1: b--; break; case 2: g(1); break; case 3: d ^= 3; break; case 4: return e;
        case 5: h(1, 2, 3); break;
    }
    goto *labels[*pc++];
    c7: return a + b + c + d + e + f + k;
"""
ORDINARY = (
    "extern int g(int), h(int, int, int);\nextern void *q(void *, long, long, long);\n"
    "long work(const unsigned char *pc, long *st) {\n"
    "static const void *const labels[] = {&&c0, &&c1, &&c2, &&c3, &&c4, &&c5, &&c6, &&c7};\n"
    "long a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, k = 6;\ngoto *labels[*pc++];\n" + CASES + "}\n"
)
DOUBLES = """
double room[4], other[4];
long work(const unsigned char *pc, long no, long y, long z) {
    static const void *const labels[] = {&&c0, &&c1, &&c2};
    long a = 0;
    goto *labels[*pc++];
c0: room[a & 3] = other[a & 1]; a++; goto *labels[*pc++];
c1: a += y ^ z; other[a & 3] = room[a & 1]; goto *labels[*pc++];
c2: return a;
}
"""
SWITCH = """
int g(int);
int work(int a) {
    switch (a) {
    case 0: return g(1); case 1: return g(a * 3); case 2: a += g(7); break; case 3: return g(11) @; case 4: return a;
    case 5: return g(a ^ 5);
    }
    return g(a) + 1;
}
"""
OUT = {"threaded": THREADED, "kept": KEPT, "table": TABLE, "given": GIVEN, "returned": RETURNED}
FLAGS = ("-O0", "-O1", "-O2", "-O3", "-Os", "-O2 -fno-omit-frame-pointer", "-O2 -fcf-protection")
ALL = [f"{compiler} {level} {pic}" for compiler in ("gcc", "clang") for level in FLAGS for pic in ("-fno-pie", "-fPIE")]


def keeps(folder: Path, text: str, command: str) -> set[str]:
    """Compile, and return the functions that let labels out."""
    (folder / "x.c").write_text(text.replace("@", ""))
    flags = [*command.split(), "-w", "-ffunction-sections", "-fdata-sections", "-c", "x.c", "-o", "x.o"]
    subprocess.run(flags, cwd=folder, check=True)
    which = ObjectFile("x.o", (folder / "x.o").read_bytes())
    found = set()
    for function in dict.fromkeys(which.functions.values()):
        parts = [f for name, f in which.functions.items() if name.startswith(f"{function.name}.cold")]
        if lets_labels_out(which, (function, *parts)) or keeps_label(which, function):
            found.add(function.name)
    return found


@pytest.mark.parametrize("name", OUT)
def test_labels_that_are_let_out(tmp_path: Path, name: str) -> None:
    """Stored, passed on, returned; themselves or their table: whatever the compiler makes of it."""
    for command in ALL:
        assert keeps(tmp_path, OUT[name], command), command


@pytest.mark.parametrize("text", [ORDINARY, DOUBLES, SWITCH])
def test_labels_that_stay(tmp_path: Path, text: str) -> None:
    """A jump by a table, and a switch, let nothing out, whatever else the function stores, passes and returns."""
    for command in ALL:
        assert not keeps(tmp_path, text, command), command


def test_interpreter_that_keeps_labels(project: Any) -> None:
    """New code would jump into the old where the program was compiled to labels before."""
    with pytest.raises(Refusal) as caught:
        project.build({"main.c": MAIN, "lib.c": THREADED.replace("@", "")}, {"lib.c": THREADED.replace("@", "* 3")})
    assert caught.value.reason is Reason.COMPUTED_GOTO
    assert "run keeps" in caught.value.detail
