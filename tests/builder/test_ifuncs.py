"""Functions that a resolver chooses at start (ifunc, target_clones): called through what the loader has filled."""

import subprocess
from typing import Any

import pytest

from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int);\nint main(int argc, char **argv) { return work(argc); }\n"
CLONES = """
__attribute__((target_clones("default", "avx2"))) int fast(int *a, int n) {
    int s = 0;
    for (int i = 0; i < n; i++) s += a[i] BY;
    return s;
}
"""
DECLARED = "int fast(int *a, int n);\n"
WORK = "int work(int a) { int x[64] = {a}; return fast(x, 64) + 1 @; }\n"
STATIC = """
#include <string.h>
char buffer[100];
const char *text = "hello";
int work(int a) { strcpy(buffer, text); memset(buffer, a, a); @ return strlen(text) + a; }
"""
IMPLEMENTATIONS = """
int first(int a) { return a / 3 + a / 5 * (a / 7) + a / 11 * (a / 13); }
int second(int a) { return a / 5 * 2 + 7 + a / 17 + a / 19 * (a / 23); }
"""
RESOLVER = """
int first(int), second(int);
static void *choose(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return first;
    if (__builtin_cpu_supports("sse4.2")) return second;
    return __builtin_cpu_supports("avx512f") ? (void *)first : (void *)second;
}
int fast(int a) __attribute__((ifunc("choose")));
"""
LONG = "int fast(int);\nint work(int a) { return a * 7 + (a >> 3) / 5 + a / 11 * 4 + a / 13 @; }\n"
OTHER = "int fast(int);\nint other(int a) { return (fast(a) + 3 * a / 7) ^ ((a << 2) + a / 9) * (a / 31); }\n"
PIE = "gcc -O2 -fPIE -pie -Wl,-z,now -Wl,--build-id"
NO_PIE = "gcc -O2 -fno-pie -no-pie -Wl,--build-id"


def build(project: Any, old: dict[str, str], new: dict[str, str], command: str = PIE) -> Any:
    project.command = f"{command} -o prog *.c"
    return project.build({"main.c": MAIN, **old}, new)


@pytest.mark.parametrize("command", [PIE, NO_PIE])
@pytest.mark.parametrize("where", ["lib.c", "fast.c"])
def test_call(project: Any, link: Any, command: str, where: str) -> None:
    """New code calls through the entry that the resolver has filled, as the old code does, never the resolver."""
    own = where == "lib.c"
    text = CLONES.replace("BY", "") + WORK if own else DECLARED + WORK
    more = {} if own else {"fast.c": CLONES.replace("BY", "")}
    outcome = build(project, {"lib.c": text.replace("@", ""), **more}, {"lib.c": text.replace("@", "+ a")}, command)
    linked = link.link(outcome)
    [call] = [i for i in linked.instructions("work") if i.is_call_near]
    assert call.near_branch_target in linked.running.chosen
    assert linked.running.chosen[call.near_branch_target] in {n.address for n in linked.running.by_name["fast"]}


def test_clones_are_replaced(project: Any) -> None:
    """Each of the clones is a function of its own, and is replaced where it is."""
    text = CLONES + WORK.replace("@", "")
    outcome = build(project, {"lib.c": text.replace("BY", "")}, {"lib.c": text.replace("BY", "* 3")})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["fast.avx2", "fast.default"]


@pytest.mark.parametrize("command", ["gcc -O2 -static -Wl,--build-id", "gcc -O2 -static-pie -fPIE -Wl,--build-id"])
def test_static_program(project: Any, link: Any, command: str) -> None:
    """In a static program the string functions of the C library are chosen, also those that only new code calls."""
    new = {"lib.c": STATIC.replace("@", "a += strchr(buffer, 'l') != 0;")}
    linked = link.link(build(project, {"lib.c": STATIC.replace("@", "")}, new, command))
    calls = [i.near_branch_target for i in linked.instructions("work") if i.is_call_near]
    chosen = [{n.name for n in linked.running.names_at[linked.running.chosen[at]]} for at in calls]
    assert len(calls) == 4
    assert all(any(name in names for names in chosen) for name in ("strcpy", "memset", "strlen"))


def test_new_ifunc(project: Any) -> None:
    """Nobody would run the resolver of a new one; its code would be called in its place."""
    new = {"more.c": CLONES.replace("BY", ""), "lib.c": DECLARED + WORK.replace("@", "")}
    with pytest.raises(Refusal) as caught:
        build(project, {"lib.c": "int work(int a) { return a; }\n", "more.c": "int more;\n"}, new)
    assert caught.value.reason is Reason.IFUNC_RESOLVER


@pytest.mark.parametrize("called", [True, False])
def test_stripped(project: Any, *, called: bool) -> None:
    """A resolver that is found by its code is no function to call; what it chose is, where there is an entry for it."""
    old = {"lib.c": LONG.replace("@", ""), "r.c": RESOLVER, "i.c": IMPLEMENTATIONS}
    old |= {"other.c": OTHER} if called else {}
    new = {"lib.c": LONG.replace("@", "+ fast(a * 2)")}
    project._write({"main.c": MAIN, **old}, new)
    project.running = project.folder / "running"
    subprocess.run(["sh", "-c", f"{PIE} -s -o ../running *.c"], cwd=project.folder / "a", check=True)
    if called:
        outcome = build(project, old, new)
        assert [r.symbol for r in outcome.bundle.manifest.references] == ["fast.plt"]
        return
    with pytest.raises(Refusal) as caught:
        build(project, old, new)
    assert caught.value.reason is Reason.IFUNC_RESOLVER


LOOP = """
#include <stdio.h>
int work(int);
int main(void) { for (int a; scanf("%d", &a) == 1;) { printf("%d\\n", work(a)); fflush(stdout); } }
"""


@pytest.mark.engine
@pytest.mark.parametrize("command", [PIE, "gcc -O2 -static -Wl,--build-id"])
def test_new_code_calls_what_was_chosen(project: Any, running: Any, command: str) -> None:
    """In a process that runs, both new clones and what they are called by do what the source says."""
    text = CLONES + WORK
    old = {"main.c": LOOP, "lib.c": text.replace("BY", "").replace("@", "")}
    project.command = f"{command} -o prog *.c"
    outcome = project.build(old, {"lib.c": text.replace("BY", "* 3").replace("@", "+ a")})
    with running(outcome.running) as program:
        assert program.ask(7) == "8"
        program.apply()
        assert program.ask(7) == "29"
