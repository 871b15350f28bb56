"""Data migration hooks in a patch: taken in where they keep to the rule, refused where they do not."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder.hooks import HEADER
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import ARENA

MAIN = """
#include <stdio.h>
int work(int);
int main(int argc, char **argv) { printf("%d\\n", work(argc)); return 0; }
"""
OLD = """
#include <stdio.h>
int limit = 3;
static __thread int mine;
__attribute__((noinline)) int helper(int a) { mine = a; return a * limit; }
int work(int a) { return helper(a) + mine; }
"""
# The new function, with what a test puts before it.
NEW = OLD.replace("int work", "#include <podgraft.h>\n%s\nint work").replace("+ mine", "+ mine + 1")


def patch(text: str) -> dict[str, str]:
    return {"lib.c": NEW % text}


def test_hooks_and_what_they_need_are_in_the_bundle(project: Any) -> None:
    """Hooks are named in the manifest in their order, with new functions that they call and the shadow memory."""
    text = """
static int fill(const void *o, void *shadow, void *a) { (void)o; (void)a; *(int *)shadow = limit; return 0; }
static int all(int n) { return podgraft_shadow_alloc(&limit, 1, sizeof n, fill, 0) ? 0 : n; }
PODGRAFT_POST_REVERT(leave) { podgraft_shadow_free_all(1, 0); return 0; }
PODGRAFT_PRE_APPLY(arrive) { return all(4); }
"""
    outcome = project.build({"main.c": MAIN, "lib.c": OLD}, patch(text))
    manifest = outcome.bundle.manifest
    assert [(h.kind, h.symbol) for h in manifest.hooks] == [("pre_apply", "arrive"), ("post_revert", "leave")]
    assert manifest.format_version == 2
    assert [f.entry.symbol for f in manifest.functions] == ["work"]
    assert {r.symbol: r.kind for r in manifest.references}[ARENA] == "arena"
    (project.folder / "patch.o").write_bytes(outcome.bundle.object)
    names = subprocess.run(["nm", project.folder / "patch.o"], capture_output=True, text=True, check=True).stdout
    assert {"arrive", "leave"} <= {line.split()[-1] for line in names.splitlines() if " T " in line or " t " in line}


def test_bundles_without_hooks_are_as_before(project: Any) -> None:
    """The format's version and its bytes change only for those who need the new things."""
    outcome = project.build({"main.c": MAIN, "lib.c": OLD}, {"lib.c": OLD.replace("+ mine", "+ mine + 1")})
    assert outcome.bundle.manifest.format_version == 1
    assert "hooks" not in outcome.bundle.manifest.model_dump(mode="json")


MISUSES = {
    "calls the program": ("PODGRAFT_PRE_APPLY(h) { return helper(1); }", "calls helper, which is not new"),
    "calls a library": ('PODGRAFT_POST_APPLY(h) { return puts("x"); }', "calls puts, which is not new"),
    "calls it by way of a new function": (
        """
static __attribute__((noinline)) int inner(void) { return puts("x"); }
PODGRAFT_PRE_APPLY(h) { return inner() + 1; }""",
        "inner calls puts",
    ),
    "calls it in a constructor": (
        """
static int fill(const void *o, void *s, void *a) { (void)o; (void)s; return a != 0; }
static int other(const void *o, void *s, void *a) { (void)o; (void)s; return a ? puts("x") : 0; }
PODGRAFT_PRE_APPLY(h) { return !podgraft_shadow_alloc(&limit, 1, 4, limit ? fill : other, &limit); }""",
        "other calls puts",
    ),
    "calls by a pointer": (
        "int (*volatile there)(int);\nPODGRAFT_PRE_APPLY(h) { return there(1) + 1; }",
        "calls by a pointer",
    ),
    "jumps by a pointer": (
        "int (*volatile there)(int);\nPODGRAFT_PRE_APPLY(h) { return there(1); }",
        "jumps by a pointer",
    ),
    "has a thread-local variable": ("PODGRAFT_PRE_APPLY(h) { return mine; }", "thread-local variable"),
    "makes a system call": (
        'PODGRAFT_PRE_APPLY(h) { long n = 39; __asm__ volatile("syscall" : "+a"(n) : : "rcx", "r11"); return n < 0; }',
        "makes a system call",
    ),
    "copies by memcpy": (
        """
struct big { char c[4096]; } one, two;
PODGRAFT_PRE_APPLY(h) { __builtin_memcpy(&one, &two, limit); return 0; }""",
        "podgraft_copy",
    ),
    "is there twice": (
        "PODGRAFT_PRE_APPLY(h) { return 0; }\nPODGRAFT_PRE_APPLY(g) { return 0; }",
        "there can be one pre_apply hook",
    ),
}


@pytest.mark.parametrize(("text", "detail"), MISUSES.values(), ids=MISUSES)
def test_a_hook_that_could_wait_or_spoil_something_is_refused(project: Any, text: str, detail: str) -> None:
    """What a hook executes is followed to the end."""
    with pytest.raises(Refusal, match=re.escape(detail)) as refusal:
        project.build({"main.c": MAIN, "lib.c": OLD}, patch(text))
    assert refusal.value.reason is Reason.HOOK_MISUSED


def test_what_looks_like_misuse_and_is_none_is_taken(project: Any) -> None:
    """Switches, stack protectors and addresses of the program's functions are fine."""
    text = """
int (*chosen)(int) = 0;
static __attribute__((noinline)) int pick(int a)
{
	volatile char text[64];
	podgraft_fill((void *)text, 1, sizeof text);
	switch (a) {
	case 0: return limit + text[1]; case 1: limit = 7; return 2; case 2: return limit * 5; case 3: return 9;
	case 4: limit++; return 1; case 5: return limit - 3; case 6: chosen = helper; return 6;
	}
	return 0;
}
PODGRAFT_PRE_APPLY(h) { return pick(limit) && pick(limit + 1); }
"""
    project.command = project.command.replace("-O2", "-O2 -fstack-protector-all")
    outcome = project.build({"main.c": MAIN, "lib.c": OLD}, patch(text))
    assert [h.symbol for h in outcome.bundle.manifest.hooks] == ["h"]


def test_hooks_belong_into_the_patch(project: Any) -> None:
    """A tree that has them already is not what the running binary was built from."""
    old = OLD.replace("int work", "#include <podgraft.h>\nPODGRAFT_PRE_APPLY(h) { return 0; }\nint work")
    with pytest.raises(Refusal, match="before the patch"):
        project.build({"main.c": MAIN, "lib.c": old}, {"lib.c": old.replace("+ mine", "+ mine + 1")})


@pytest.mark.parametrize(
    "command",
    [
        "gcc -std=c89 -pedantic -O2 -Wall -Wextra -Wconversion -Wcast-qual",
        "gcc -O0 -fno-pie -no-pie",
        "gcc -O3 -fPIC -fstack-protector-all -fcf-protection",
        "g++ -x c++ -O2 -Wall -Wextra",
    ],
)
def test_the_header_compiles_everywhere(tmp_path: Path, command: str) -> None:
    """A program's own flags, warnings as errors among them, do not trip over podgraft.h."""
    (tmp_path / "t.c").write_text(
        "#include <podgraft.h>\nstatic int here;\n"
        "PODGRAFT_PRE_APPLY(one) { return podgraft_shadow_alloc(&here, 2, 8, 0, 0) == 0; }\n"
        "PODGRAFT_POST_APPLY(two) { return podgraft_shadow_get_or_alloc(&here, 2, 8, 0, 0) == 0; }\n"
        "PODGRAFT_PRE_REVERT(three) { return podgraft_shadow_get(&here, 2) == 0; }\n"
        "PODGRAFT_POST_REVERT(four) { podgraft_shadow_free(&here, 2, 0); podgraft_shadow_free_all(2, 0); return 0; }\n"
        "int main(void) { podgraft_copy(&here, &here, 0); return one() != 1; }\n"
    )
    words = [*command.split(), "-Werror", "-idirafter", HEADER.parent, "-o", tmp_path / "t", tmp_path / "t.c"]
    subprocess.run(words, check=True)
    # Built in and not patched in, there is no shadow memory.
    subprocess.run([tmp_path / "t"], check=True)
