"""What cannot be patched safely is refused, each with its own reason; what is close to it is not."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder.workspace import Workspace
from podgraft_bundle.errors import Reason, Refusal

MAIN = """
#include <stdio.h>
int work(int);
int main(int argc, char **argv) { printf("%d\\n", work(argc)); return 0; }
"""


def refused(project: Any, old: dict[str, str], new: dict[str, str]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        project.build({"main.c": MAIN, **old}, new)
    assert caught.value.detail
    assert caught.value.hint
    return caught.value


def pair(text: str, old: str, new: str) -> tuple[dict[str, str], dict[str, str]]:
    return {"lib.c": text.replace("@", old)}, {"lib.c": text.replace("@", new)}


HAZARDS = {
    "initial value of a variable": (
        Reason.CHANGED_DATA,
        "int limit = @;\nint work(int a) { return limit++ + a; }\n",
        ("5", "6"),
    ),
    "size of an array": (
        Reason.CHANGED_DATA,
        "static int seen[@];\nint work(int a) { return seen[a & 3]++; }\n",
        ("8", "16"),
    ),
    "exported constant": (
        Reason.CHANGED_DATA,
        "const int limits[] = {1, @};\nint work(int a) { return limits[a & 1]; }\n",
        ("5", "6"),
    ),
    "function in an existing table": (
        Reason.CHANGED_DATA,
        (
            "int f(int a) { return a; }\nint g(int a) { return a * 2; }\nint (*table[])(int) = {f, @};\n"
            "int work(int a) { return table[a & 1](a); }\n"
        ),
        ("f", "g"),
    ),
    "field of a struct": (
        Reason.CHANGED_LAYOUT,
        (
            "struct item { int a; @ int b; };\nint use(struct item *);\n"
            "int work(int a) { struct item i = {0}; i.b = a; return use(&i); }\n"
            "int use(struct item *i) { return i->b; }\n"
        ),
        ("", "long more;"),
    ),
    "value of an enumerator": (
        Reason.CHANGED_LAYOUT,
        "enum kind { NONE, @ SOME };\nint work(int a) { enum kind k = a ? SOME : NONE; return k * 3; }\n",
        ("", "FEW,"),
    ),
    "members that change places": (
        Reason.CHANGED_LAYOUT,
        (
            "struct item { int @; };\nint use(struct item *);\n"
            "int work(int a) { struct item i = {.used = a}; return use(&i); }\n"
            "int use(struct item *i) { return i->used; }\n"
        ),
        ("used, free", "free, used"),
    ),
    "union": (
        Reason.CHANGED_LAYOUT,
        "union u { int a; char b[@]; };\nint work(int a) { union u x = {.a = a}; return x.b[1] + sizeof x; }\n",
        ("4", "8"),
    ),
    "new thread-local": (
        Reason.NEW_TLS,
        "@ int work(int a) { return VALUE + a; }\n",
        ("#define VALUE 1\n", "static __thread int mine; \n#define VALUE mine++\n"),
    ),
    "ifunc resolver": (
        Reason.IFUNC_RESOLVER,
        (
            "static int fast(int a) { return a; }\nstatic int slow(int a) { return a * 1; }\n"
            'static void *pick(void) { return __builtin_cpu_supports("avx") ? fast : @; }\n'
            'int chosen(int) __attribute__((ifunc("pick")));\nint work(int a) { return chosen(a); }\n'
        ),
        ("slow", "fast"),
    ),
    "code outside functions": (
        Reason.HAND_WRITTEN_ASM,
        'asm(".text\\nraw: movl $@, %eax\\n ret\\n");\nint raw(void);\nint work(int a) { return a + raw(); }\n',
        ("1", "2"),
    ),
    "signature of a function in a table": (
        Reason.CHANGED_SIGNATURE,
        (
            "static int f(@ a) { return (int)(a / 3); }\nvoid *table[] = {f};\n"
            "int work(int a) { return ((int (*)(int))table[0])(a); }\n"
        ),
        ("int", "long"),
    ),
    "constructor": (
        Reason.CHANGED_CONSTRUCTOR,
        "int n;\nint work(int a) { return n + a; }\n@\n",
        ("", "__attribute__((constructor)) static void start(void) { n = 7; }"),
    ),
    "removed caller that relies on registers": (
        Reason.IPA_RA_HAZARD,
        (
            "int n;\n__attribute__((noinline)) static int leaf(int a) { return a @; }\n"
            "int work(int a) { return leaf(a) + n; }\n~"
        ),
        ("+ 1", "* n / 3"),
    ),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_hazard_has_its_reason(project: Any, name: str) -> None:
    """Each hazard is refused with its own reason."""
    reason, text, (old, new) = HAZARDS[name]
    gone = "int gone(int a, int b, int c, int d) { return leaf(a) + b + c + d; }\n"
    before, after = pair(text.replace("~", ""), old, new)
    if "~" in text:
        before["lib.c"] += gone
    assert refused(project, before, after).reason is reason


SAFE = {
    "new variable": (
        "@",
        ("int work(int a) { return a; }\n", "int fresh = 5;\nint work(int a) { return a + fresh++; }\n"),
    ),
    "new type": (
        "@",
        (
            "int work(int a) { return a; }\n",
            "struct fresh { int a, b; };\nint work(int a) { struct fresh f = {a, a}; return f.a + f.b * 2; }\n",
        ),
    ),
    "further enumerator": (
        "enum kind { NONE, SOME @ };\nint work(int a) { enum kind k = a ? SOME : NONE; return k * X; }\n",
        ("", ", MORE"),
    ),
    "renamed field": (
        "struct item { int a; int @; };\nint work(int a) { struct item i = {a, a}; return i.@ * X; }\n",
        ("b", "c"),
    ),
    "signature of a local function whose callers change with it": (
        "__attribute__((noinline)) static int f(@) { return P / 3; }\nint work(int a) { return f(A) + 1; }\n",
        ("int a", "int a, long b"),
    ),
    "return value that nobody used": (
        (
            "int n;\n__attribute__((noinline)) static @ f(int a) { n += a; R; }\nvoid *table[] = {f};\n"
            "int work(int a) { f(a); return n; }\n"
        ),
        ("void", "int"),
    ),
    "existing thread-local": (
        "static __thread int mine = 3;\nint work(int a) { return mine++ @ a; }\n",
        ("+", "-"),
    ),
}
WORDS = {
    "further enumerator": ({"X": "2"}, {"X": "MORE * 2"}),
    "renamed field": ({"X": "2"}, {"X": "3"}),
    "signature of a local function whose callers change with it": (
        {"P": "a", "A": "a"},
        {"P": "a * b", "A": "a, 7L * a"},
    ),
    "return value that nobody used": ({"R": "return"}, {"R": "return n"}),
}


@pytest.mark.parametrize("name", SAFE)
def test_safe_neighbour_is_accepted(project: Any, name: str) -> None:
    """What only looks like a hazard becomes a bundle."""
    text, (old, new) = SAFE[name]
    before, after = pair(text, old, new)
    for files, words in zip((before, after), WORDS.get(name, ({}, {})), strict=True):
        for word, value in words.items():
            files["lib.c"] = files["lib.c"].replace(word, value)
    assert project.build({"main.c": MAIN, **before}, after).bundle.manifest.functions


def test_lto_object(project: Any) -> None:
    """Objects of -flto hold no machine code to compare."""
    project.command = "gcc -O2 -flto -fPIE -pie -o prog main.c lib.c"
    files = pair("int work(int a) { return a @ 2; }\n", "+", "*")
    assert refused(project, *files).reason is Reason.LTO_OBJECT


def test_assembler_source(project: Any) -> None:
    """A changed assembler file is refused, with symbols or without."""
    project.command = "gcc -O2 -fPIE -pie -o prog main.c lib.S"
    text = ".globl work\n.type work,@function\nwork: leal %d(%%rdi), %%eax\n ret\n.size work,.-work\n"
    text += '.section .note.GNU-stack,"",@progbits\n'
    error = refused(project, {"lib.S": text % 1}, {"lib.S": text % 2})
    assert error.reason is Reason.HAND_WRITTEN_ASM


def test_no_change(project: Any) -> None:
    """A patch that changes comments alone is told so."""
    error = refused(project, *pair("/* @ */\nint work(int a) { return a; }\n", "x", "y\n\n\n"))
    assert error.reason is Reason.NO_CHANGE


def test_patch_does_not_apply(project: Any) -> None:
    """A patch against another tree is refused before anything is built, with what patch says."""
    old, new = pair("int work(int a) { return a @ 2; }\n", "+", "*")
    project.command = "touch built; false"
    project._write({"main.c": MAIN, **old}, new)
    broken = (project.folder / "fix.patch").read_text().replace("a + 2", "a + 3")
    project._write = lambda _old, _new: (project.folder / "fix.patch").write_text(broken)
    error = refused(project, old, new)
    assert error.reason is Reason.PATCH_DOES_NOT_APPLY
    assert "lib.c" in error.detail


def test_patch_that_names_a_file_outside_of_the_tree(tmp_path: Path) -> None:
    """It is refused as patch itself does, and no copy of the file appears anywhere."""
    source, root = tmp_path / "source", tmp_path / "root"
    source.mkdir()
    (tmp_path / "outside.c").write_text("int a = 1;\n")
    patch = tmp_path / "fix.patch"
    patch.write_text("--- a/../outside.c\n+++ b/../outside.c\n@@ -1 +1 @@\n-int a = 1;\n+int a = 2;\n")
    space = Workspace(root, source, "make")
    with pytest.raises(Refusal) as caught:
        space.try_patch(patch)
    assert caught.value.reason is Reason.PATCH_DOES_NOT_APPLY
    assert list(root.rglob("outside.c")) == []
    assert (tmp_path / "outside.c").read_text() == "int a = 1;\n"


PATCHES = {
    "plain": "",
    "mode": "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n",
    "rename": "diff --git a/run.sh b/go.sh\nsimilarity index 100%\nrename from run.sh\nrename to go.sh\n",
}


@pytest.mark.parametrize("more", sorted(PATCHES))
def test_a_trial_refuses_no_patch_that_applies(tmp_path: Path, more: str) -> None:
    """A patch that needs files that it does not name is tried on the whole tree; a link to the cache is followed."""
    source, real, root = tmp_path / "source", tmp_path / "real", tmp_path / "root"
    source.mkdir()
    real.mkdir()
    root.symlink_to(real)
    (source / "lib.c").write_text("int a = 1;\n")
    (source / "run.sh").write_text("echo\n")
    patch = tmp_path / "fix.patch"
    hunk = "diff --git a/lib.c b/lib.c\n--- a/lib.c\n+++ b/lib.c\n@@ -1 +1 @@\n-int a = 1;\n+int a = 2;\n"
    patch.write_text(hunk + PATCHES[more])
    space = Workspace(root, source, "make")
    space.try_patch(patch)
    assert space.tree.exists() is (more == "mode")
    assert not (root / "trial").exists()
    assert (source / "lib.c").read_text() == "int a = 1;\n"


def test_tree_that_has_the_fix_already(project: Any) -> None:
    """A dirty tree to which the patch was applied before is told so."""
    old, new = pair("int work(int a) { return a @ 2; }\n", "+", "*")
    project._write({"main.c": MAIN, **old}, new)
    patch = (project.folder / "fix.patch").read_text()
    project._write = lambda _old, _new: (project.folder / "fix.patch").write_text(patch)
    (project.folder / "a" / "lib.c").write_text(new["lib.c"])
    error = refused(project, old, new)
    assert error.reason is Reason.PATCH_DOES_NOT_APPLY
    assert "has the fix already" in error.hint


def test_build_that_fails_shows_the_compiler(project: Any) -> None:
    """The last lines of the compiler are part of the error."""
    error = refused(project, *pair("int work(int a) { return a @ ; }\n", "+ 1", "+ nosuchname"))
    assert error.reason is Reason.BUILD_FAILED
    assert "nosuchname" in error.detail


def test_binary_not_built(project: Any) -> None:
    """A build command that makes something else is told so."""
    project.command = "gcc -O2 -o other *.c"
    error = refused(project, *pair("int work(int a) { return a @ 1; }\n", "+", "-"))
    assert error.reason is Reason.BINARY_NOT_BUILT


@pytest.mark.parametrize("flags", ["-O1", "-O2 -DLIMIT=8", "-O2 -fno-inline"])
def test_running_binary_differs(project: Any, flags: str) -> None:
    """A running binary of other flags is refused, and the first difference is named."""
    text = (
        "#ifndef LIMIT\n#define LIMIT 7\n#endif\nstatic int in(int a) { return a * LIMIT; }\n"
        "int work(int a) { for (int i = 0; i < a; i++) a += in(i); return a @ 1; }\n"
    )
    old, new = pair(text, "+", "-")
    project._write({"main.c": MAIN, **old}, new)
    project.running = project.folder / "running"
    command = f"gcc {flags} -fPIE -pie -Wl,-z,now -o ../running *.c"
    subprocess.run(["sh", "-c", command], cwd=project.folder / "a", check=True)
    error = refused(project, old, new)
    assert error.reason is Reason.RUNNING_BINARY_DIFFERS
    assert "work" in error.detail


def test_one_other_constant_in_the_running_binary(project: Any) -> None:
    """A running binary whose string differs in one byte is refused, though the instructions are equal."""
    text = '#include <stdio.h>\nint work(int a) { puts("text %s"); return a @ 1; }\n'
    old, new = pair(text % "one", "+", "-")
    project._write({"main.c": MAIN, **old}, new)
    project.running = project.folder / "running"
    other = text.replace("@", "+") % "two"
    (project.folder / "other.c").write_text(other)
    subprocess.run(
        ["gcc", "-O2", "-fPIE", "-pie", "-Wl,-z,now", "-o", "running", "a/main.c", "other.c"],
        cwd=project.folder,
        check=True,
    )
    error = refused(project, old, new)
    assert error.reason is Reason.RUNNING_BINARY_DIFFERS
    assert "text two" in error.detail


def test_statics_that_cannot_be_told_apart(project: Any) -> None:
    """Two statics of one name in one function are refused, never guessed."""
    text = "int work(int a) { { static int n = 1; a += n++; } { static int n = 2; a += n++; } @ return a; }\n"
    error = refused(project, *pair(text, "", "{ static int n = 3; a *= n++; }"))
    assert error.reason is Reason.UNRESOLVED_REFERENCE


def test_variable_that_moves_to_another_file(project: Any) -> None:
    """A global that moves exists already: a second copy beside it would be wrong."""
    old = {
        "lib.c": "int state = 3;\nint work(int a) { return state++ + a; }\n",
        "more.c": "int f(void) { return 1; }\n",
    }
    new = {
        "lib.c": "extern int state;\nint work(int a) { return state++ * a; }\n",
        "more.c": "int f(void) { return 1; }\nint state = 3;\n",
    }
    assert refused(project, old, new).reason is Reason.MOVED_BETWEEN_FILES


def test_function_that_loses_an_alias(project: Any) -> None:
    """A name that was one function and becomes another would lead old code to the wrong one."""
    old = {
        "lib.c": 'int work(int a) { return a + 1; }\nint also(int a) __attribute__((alias("work")));\n',
        "main.c": "int work(int);\nint also(int);\nint main(int c, char **v) { (void)v; return work(c) + also(c); }\n",
    }
    new = {"lib.c": "int work(int a) { return a * 3; }\nint also(int a) { return a + 1; }\n"}
    error = refused(project, old, new)
    assert error.reason is Reason.FOLDED_FUNCTIONS
    assert "also and work" in error.detail


def test_variable_that_is_renamed(project: Any) -> None:
    """A renamed variable would lose its value."""
    error = refused(project, *pair("static int @ = 3;\nint work(int a) { return @++ + a; }\n", "old", "fresh"))
    assert error.reason is Reason.UNSUPPORTED_CHANGE
    assert "renamed" in error.detail


def test_nothing_is_left_behind(project: Any) -> None:
    """Temporary builds are deleted, also after a refusal; what stays is the one old build that may be used again."""
    refused(project, *pair("int work(int a) { return a @ ; }\n", "+ 1", "+ nosuchname"))
    [kept] = [path for path in (project.folder / "cache").iterdir() if path.is_dir()]
    assert {path.name for path in kept.iterdir()} == {"bin", "kept", "kept.json", "new", "old", "plain"}


def test_second_static_of_one_name(project: Any) -> None:
    """A further static of a name in the same function never shares the memory of the first."""
    text = "int work(int a) {\n    static int n = 1;\n    a += n++;\n@    return a;\n}\n"
    error = refused(project, *pair(text, "", "    {\n        static int n = 1;\n        a *= n++;\n    }\n"))
    assert error.reason is Reason.UNRESOLVED_REFERENCE
