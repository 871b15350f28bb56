"""Fixes that become bundles: what is replaced, and where every reference leads."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

MAIN = """
#include <stdio.h>
int work(int);
int main(int argc, char **argv) { printf("%d\\n", work(argc)); return 0; }
"""


def names(outcome: Any) -> list[str]:
    return [f.entry.symbol for f in outcome.bundle.manifest.functions]


def references(outcome: Any) -> dict[str, str]:
    return {r.symbol: r.kind for r in outcome.bundle.manifest.references}


def address(binary: Path, name: str) -> int:
    text = subprocess.run(["nm", binary], capture_output=True, text=True, check=True).stdout
    return int(next(line.split()[0] for line in text.splitlines() if line.split()[-1] == name), 16)


def test_one_function_changes(project: Any, link: Any) -> None:
    """A changed body becomes one replaced function whose calls lead where the running binary's do."""
    text = '#include <stdio.h>\n__attribute__((noinline)) int helper(int a) { puts("x"); return a * 3; }\n'
    outcome = project.build(
        {"main.c": MAIN, "lib.c": text + "int work(int a) { return helper(a) + 1; }\n"},
        {"lib.c": text + 'int work(int a) { puts("new"); return helper(a) + 2; }\n'},
    )
    assert names(outcome) == ["work"]
    entry = outcome.bundle.manifest.functions[0].entry
    assert entry.offset == address(outcome.running, "work")
    assert references(outcome) == {"helper": "offset", "puts.plt": "offset"}
    assert link.link(outcome).calls("work") == ["plt:puts", "old:helper"]


def test_inlined_copies_are_replaced(project: Any) -> None:
    """The unit of change comes from the objects: a caller that inlined the changed function is replaced, too."""
    text = "static int inner(int a) { return a * %s; }\nint work(int a) { return inner(a) + inner(a + 7); }\n"
    outcome = project.build({"main.c": MAIN, "lib.c": text % "3"}, {"lib.c": text % "a"})
    assert names(outcome) == ["work"]


def test_line_numbers_are_no_change(project: Any) -> None:
    """Lines that move do not change functions that use __LINE__, and the running binary's numbers are proven."""
    text = """
#include <stdio.h>
#define CHECK(x) do { if (!(x)) printf("%%s:%%d\\n", __FILE__, __LINE__); } while (0)
int work(int a) {
    %s
    return a + 1;
}
int other(int a) { CHECK(a > 5); return a; }
int third(int a) {
    CHECK(a > 6);
    return a * 2;
}
"""
    outcome = project.build({"main.c": MAIN, "lib.c": text % "a++;"}, {"lib.c": text % "a++;\n\n  a *= 2;\n"})
    assert names(outcome) == ["work"]


def test_changed_functions_call_each_other(project: Any, link: Any) -> None:
    """New code calls other new code at once, and takes the address of the original where it takes one."""
    text = """
typedef int (*fn)(int);
fn saved;
__attribute__((noinline)) static int leaf(int a) { return a * a + %(n)s; }
__attribute__((noinline)) int work(int a) { saved = leaf; return leaf(a) + %(n)s; }
"""
    outcome = project.build({"main.c": MAIN, "lib.c": text % {"n": "1"}}, {"lib.c": text % {"n": "2"}})
    assert names(outcome) == ["leaf", "work"]
    linked = link.link(outcome)
    assert linked.calls("work") == ["new:leaf"]
    assert "old:leaf" in linked.addresses("work")


def test_own_address_is_the_original(project: Any, link: Any) -> None:
    """A function that takes its own address gets the original entry, though the object has no relocation for it."""
    text = """
typedef int (*fn)(int);
fn saved;
static int leaf(int a) { saved = leaf; return a * a + %s; }
int work(int a) { return saved ? saved(a) : leaf(a); }
fn give(void) { return leaf; }
"""
    outcome = project.build({"main.c": MAIN, "lib.c": text % "1"}, {"lib.c": text % "2"})
    assert "leaf" in names(outcome)
    assert "old:leaf" in link.link(outcome).addresses("leaf")


def test_statics_are_the_running_ones(project: Any, link: Any) -> None:
    """Static variables keep their identity: of one name in two files, in two functions, and renumbered by the patch."""
    one = """
static int count = 5;
int first(void) { static int calls = 1; return calls++ + count; }
%(new)s
int second(void) { static int calls = 2; return calls++ * %(n)s + count++; }
"""
    two = "static int count = 9;\nint other(void) { return count++; }\nint first(void), second(void);\n"
    two += "int work(int a) { return first() + second() + other() + a; }\n"
    fresh = "int added(void) { static int calls = 7; return calls++; }"
    outcome = project.build(
        {"main.c": MAIN, "one.c": one % {"n": "2", "new": ""}, "two.c": two},
        {"one.c": one % {"n": "3 + added()", "new": fresh}},
    )
    assert names(outcome) == ["second"]
    where = {r.symbol: r.offset for r in outcome.bundle.manifest.references}
    listing = subprocess.run(["nm", outcome.running], capture_output=True, text=True, check=True).stdout
    counts = [int(line.split()[0], 16) for line in listing.splitlines() if line.endswith(" count")]
    assert len(counts) == 2
    assert where["count"] in counts
    linked = link.link(outcome)
    disassembly = subprocess.run(
        ["objdump", "-d", "--disassemble=second", outcome.running], capture_output=True, text=True, check=True
    ).stdout
    running = set(re.findall(r"<((?:calls|count)[.\d]*)>", disassembly))
    assert {f"old:{name}" for name in running} <= set(linked.addresses("second"))
    # The new static is data of the patch, with its initial value.
    sections = [s for s in linked.program.sections.values() if s.name == ".data"]
    assert any((7).to_bytes(4, "little") in s.data for s in sections)


def test_new_function_and_variable(project: Any, link: Any) -> None:
    """What only the new source has comes along, also from another file."""
    outcome = project.build(
        {"main.c": MAIN, "lib.c": "int work(int a) { return a; }\n", "more.c": "int unused(void) { return 1; }\n"},
        {
            "lib.c": "int extra(int);\nextern int added;\nint work(int a) { added++; return extra(a); }\n",
            "more.c": "int unused(void) { return 1; }\nint added = 42;\nint extra(int a) { return a * added; }\n",
        },
    )
    assert names(outcome) == ["work"]
    assert link.link(outcome).calls("work") == ["new:extra"]
    assert references(outcome) == {}


def test_switch_strings_and_cold_parts(project: Any, link: Any) -> None:
    """Jump tables, strings and cold parts move with their function and link without a warning."""
    cases = "".join(f'case {n}: puts("text {n}"); return a * {n * n + 3};\n' for n in range(12))
    text = """
#include <stdio.h>
void warn(const char *) __attribute__((cold));
int work(int a) {
    for (int i = 0; i < a; i++) { if (getchar() < 0) { warn("colder"); puts("cold"); } }
    switch (a) { %s }
    return %s;
}
"""
    other = "void warn(const char *s) { (void)s; }\n"
    outcome = project.build(
        {"main.c": MAIN, "other.c": other, "lib.c": text % (cases, "0")}, {"lib.c": text % (cases, "a - 77")}
    )
    function = outcome.bundle.manifest.functions[0]
    assert [p.symbol for p in function.parts] == ["work.cold"]
    linked = link.link(outcome)
    assert "new:work.cold" in linked.calls("work")
    assert "old:warn" in linked.calls("work.cold")
    data = b"".join(s.data for s in linked.program.sections.values())
    assert all(f"text {n}".encode() in data for n in range(12))


def test_imported_function_by_address(project: Any) -> None:
    """The address of a library function comes from the slot that the loader has filled, or by its name."""
    text = "#include <string.h>\n#include <stdlib.h>\n%s\nint work(int a) { return f(a); }\n"
    old = "static int (*volatile pick)(int) = abs;\nstatic int f(int a) { return pick(a); }"
    new = "static int (*volatile pick)(int) = abs;\nstatic int f(int a) { pick = abs; return pick(a); }"
    outcome = project.build({"main.c": MAIN, "lib.c": text % old}, {"lib.c": text % new})
    assert names(outcome) == ["work"]
    kinds = {r.symbol: r for r in outcome.bundle.manifest.references}
    assert kinds["pick"].kind == "offset"
    reference = next(r for name, r in kinds.items() if name.startswith("abs"))
    assert (reference.kind, reference.export) in {("export", "abs"), ("got", None)}


def test_new_import_is_looked_up_by_name(project: Any) -> None:
    """A library function that the running binary does not import is an exported symbol."""
    text = "#include <stdlib.h>\nint work(int a) { return %s; }\n"
    outcome = project.build({"main.c": MAIN, "lib.c": text % "a"}, {"lib.c": text % "a + rand()"})
    assert [(r.kind, r.export) for r in outcome.bundle.manifest.references] == [("export", "rand")]


def test_existing_thread_local(project: Any) -> None:
    """A thread-local variable is named by its distance from the thread pointer."""
    text = "static __thread int first = 3;\n__thread int value = 4;\n"
    text += "int work(int a) { value += a; return first++ + value %s; }\n"
    outcome = project.build({"main.c": MAIN, "lib.c": text % ""}, {"lib.c": text % "* 2"})
    found = {r.symbol: (r.kind, r.value) for r in outcome.bundle.manifest.references}
    assert {found["first"], found["value"]} == {("tpoff", -4), ("tpoff", -8)}


def test_local_constant_that_changes_is_copied(project: Any) -> None:
    """A constant table that only new code sees may change: the new code brings its own."""
    text = "static const int table[] = { 1, 2, %s, 4 };\nint work(int a) { return table[a & 3]; }\n"
    outcome = project.build({"main.c": MAIN, "lib.c": text % "3"}, {"lib.c": text % "33"})
    assert names(outcome) == ["work"]
    assert (33).to_bytes(4, "little") in outcome.bundle.object


def test_unwind_information_comes_along(project: Any, tmp_path: Path) -> None:
    """Every function of the patch has its entry in .eh_frame, and readelf reads all without a warning."""
    text = "int f(int);\nint work(int a) { char b[100]; b[a] = 1; return f(a) + b[a / 2] + %s; }\n"
    text += "__attribute__((noinline)) int f(int a) { return a ^ 77; }\n"
    outcome = project.build({"main.c": MAIN, "lib.c": text % "1"}, {"lib.c": text % "f(3)"})
    (tmp_path / "p.o").write_bytes(outcome.bundle.object)
    for tool in (["readelf", "-aW"], ["readelf", "--debug-dump=frames"], ["objdump", "-dr"]):
        result = subprocess.run([*tool, tmp_path / "p.o"], capture_output=True, text=True, check=True)
        assert result.stderr == ""
        if "frames" in tool[-1]:
            assert result.stdout.count("FDE") == len(outcome.bundle.manifest.functions)


def test_cpp_exceptions(project: Any, link: Any) -> None:
    """C++ code that throws and catches brings its exception tables."""
    project.command = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog main.cc lib.cc"
    main = MAIN.replace("int work(int);", 'extern "C" int work(int);')
    text = """
#include <stdexcept>
#include <string>
extern "C" __attribute__((noinline)) int risky(int a) {
    if (a > 3) throw std::runtime_error("big");
    return a;
}
extern "C" int work(int a) {
    try { std::string s("value"); return risky(a) + s.size(); }
    catch (const std::runtime_error &e) { return %s; }
}
"""
    outcome = project.build({"main.cc": main, "lib.cc": text % "-1"}, {"lib.cc": text % "-2 - a"})
    assert "work" in names(outcome)
    assert b".gcc_except_table" in outcome.bundle.object
    assert "old:risky" in link.link(outcome).calls("work")


def test_inline_function_of_several_objects(project: Any) -> None:
    """A function that several objects hold is replaced once."""
    project.command = "g++ -O2 -fPIE -pie -Wl,-z,now -o prog main.cc lib.cc"
    header = "struct S { int n; __attribute__((noipa)) int get(int a) { return n * a + %s; } };\n"
    main = '#include "s.h"\nint work(int);\nint main(int argc, char **) { S s{argc}; return s.get(3) + work(argc); }\n'
    lib = '#include "s.h"\nint work(int a) { S s{a + 1}; return s.get(5); }\n'
    outcome = project.build({"main.cc": main, "lib.cc": lib, "s.h": header % "1"}, {"s.h": header % "2"})
    assert names(outcome) == ["_ZN1S3getEi"]


def test_same_input_same_bytes(project: Any) -> None:
    """The same inputs give the same bundle."""
    files = {"main.c": MAIN, "lib.c": "int work(int a) { return a; }\n"}
    new = {"lib.c": "#include <stdio.h>\nint work(int a) { puts(__FILE__); return a + 1; }\n"}
    first = project.build(files, new).bundle
    second = project.build(files, new).bundle
    assert first == second
    assert b"cache" not in first.object


def test_same_input_in_another_folder_same_bytes(project: Any, tmp_path: Path) -> None:
    """Where the tree lies does not show in the bundle."""
    files = {"main.c": MAIN, "lib.c": "#include <assert.h>\nint work(int a) { assert(a); return a; }\n"}
    new = {"lib.c": "#include <assert.h>\nint work(int a) { assert(a > 0); return a + 1; }\n"}
    project.build(files, new)
    first = (project.folder / "out.graft").read_bytes()
    project.folder = tmp_path / "another, longer place"
    project.folder.mkdir()
    project.build(files, new)
    assert (project.folder / "out.graft").read_bytes() == first


def test_patched_file_that_make_forgets(project: Any) -> None:
    """An object that the build command does not look at again is compiled again all the same."""
    project.command = "test -f lib.a || { gcc -O2 -fPIE -c lib.c && ar rc lib.a lib.o; }; gcc -pie -o prog main.o lib.a"
    project.command = "test -f main.o || gcc -O2 -fPIE -c main.c; " + project.command
    outcome = project.build(
        {"main.c": MAIN, "lib.c": "int work(int a) { return a; }\n"}, {"lib.c": "int work(int a) { return a + 1; }\n"}
    )
    assert names(outcome) == ["work"]


def test_binary_that_was_built_in_place(project: Any) -> None:
    """A tree that holds its own binary is the tree of the running binary."""
    files = {"main.c": MAIN, "lib.c": "int work(int a) { return a; }\n"}
    project.build(files, {"lib.c": "int work(int a) { return a + 1; }\n"})
    subprocess.run(["sh", "-c", project.command], cwd=project.folder / "a", check=True)
    outcome = project.build(files, {"lib.c": "int work(int a) { return a + 1; }\n"})
    assert outcome.running == project.folder / "a" / "prog"
    assert outcome.chosen == "built in place"


def test_inline_variable_that_a_second_object_begins_to_use(project: Any, link: Any) -> None:
    """An inline variable of C++ is one in the whole program: new code uses the one that runs."""
    project.command = "g++ -O2 -std=c++17 -fPIE -pie -Wl,-z,now -o prog main.cc lib.cc"
    header = "inline int counter = 5;\n"
    main = '#include "s.h"\nint work(int);\nint main(int argc, char **) { return work(argc) + counter++; }\n'
    lib = '#include "s.h"\nint work(int a) { return a%s; }\n'
    outcome = project.build({"main.cc": main, "lib.cc": lib % "", "s.h": header}, {"lib.cc": lib % " + counter++"})
    assert names(outcome) == ["_Z4worki"]
    assert "old:counter" in link.link(outcome).addresses("_Z4worki")


def test_numbered_statics_are_told_by_their_owner(project: Any, link: Any) -> None:
    """Two statics of one name exchange their numbers and their order: each new use leads to its own variable."""
    text = """
static inline int up(void) { static int n = 1; return n++; }
static inline int down(void) { static int n = 2; return n++; }
int work(int a) { return @ + a; }
"""
    outcome = project.build(
        {"main.c": MAIN, "lib.c": text.replace("@", "up() * 2 + down() * 3")},
        {"lib.c": text.replace("@", "down() * 2 + up() * 3")},
    )
    running = link.link(outcome).running
    start = {running.read(n.address, 4): n.address for n in running.symbols if n.name.startswith("n.")}
    by_name = {r.symbol: r.offset for r in outcome.bundle.manifest.references}
    assert sorted(by_name.values()) == sorted(start.values())
    first = link.link(outcome).instructions("work")
    used = [i.memory_displacement for i in first if i.is_ip_rel_memory_operand]
    assert used[0] == start[(2).to_bytes(4, "little")]


def test_members_of_one_name_in_an_archive_with_spaces(project: Any) -> None:
    """Two members of one name are two objects, and the path of their archive may have spaces."""
    project.command = (
        "mkdir -p 'my libs' && for d in x y; do gcc -O2 -fPIE -c $d/m.c -o $d/m.o; done && "
        "ar qcs 'my libs/l.a' x/m.o y/m.o && gcc -O2 -fPIE -c main.c -o main.o && "
        "gcc -pie -Wl,-z,now,--as-needed -o prog main.o 'my libs/l.a' -lm"
    )
    files = {"main.c": MAIN, "x/m.c": "int work(int);\nint f(int a) { return a; }\n", "y/m.c": ""}
    files["main.c"] = MAIN.replace("work(argc)", "work(argc) + f(argc)").replace("int work", "int f(int);\nint work")
    files["y/m.c"] = "double sin(double);\nint work(int a) { return a + (int)sin(a); }\n"
    new = files["y/m.c"].replace("a +", "a * 3 +")
    assert names(project.build(files, {"y/m.c": new})) == ["work"]
    for folder in ("a", "b"):
        subprocess.run(["rm", "-rf", folder], cwd=project.folder, check=True)
    assert names(project.build(files, {"x/m.c": "int f(int a) { return a * 3; }\n"})) == ["f"]


@pytest.mark.parametrize("flags", ["", "-MMD -MF lib.d"])
def test_header_of_the_tree_that_counts_as_system_header(project: Any, flags: str) -> None:
    """A header behind -isystem is patched: its objects are compiled again, though the build command does not."""
    make = (
        "test -f lib.o || gcc -O2 -fPIE -isystem inc {} -c lib.c -o lib.o; test -f main.o || gcc -O2 -fPIE -c main.c;"
    )
    project.command = make.format(flags) + " gcc -pie -Wl,-z,now -o prog main.o lib.o"
    header = "static inline int in(int a) { return a * %s; }\n"
    files = {"main.c": MAIN, "inc/in.h": header % 3, "lib.c": "#include <in.h>\nint work(int a) { return in(a); }\n"}
    assert names(project.build(files, {"inc/in.h": header % 5})) == ["work"]


def test_what_the_bundle_leaves_out_is_told(project: Any) -> None:
    """A patch may hold more than one binary can take: other programs, and sources that the build does not compile."""
    project.command = "make"
    old = {
        "Makefile": "all: prog other\nprog: main.c work.c\n\tgcc -O2 -fPIE -pie -o $@ $^\n"
        "other: other.o\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O2 -c $<\n",
        "main.c": "int work(int);\nint main(int c, char **v) { (void)v; return work(c); }\n",
        "work.c": "int work(int a) { return a + 1; }\n",
        "other.c": "int main(void) { return 1; }\n",
        "unused.c": "int unused(void) { return 1; }\n",
    }
    new = {name: old[name].replace("1", "2") for name in ("work.c", "other.c", "unused.c")}
    project.build(old, new)
    told = [text for text in project.log if text.startswith("not in the bundle")]
    assert told == [
        "not in the bundle: unused.c is patched, but the build does not compile it",
        "not in the bundle: other.o changes, but is no part of this binary",
    ]


def test_cold_part_of_a_function_with_an_alias(project: Any, link: Any) -> None:
    """The cold part has the name of the definition, whichever alias is the first: it is compared and replaced."""
    text = (
        "#include <stdlib.h>\nvoid fail(int) __attribute__((cold));\n"
        "int work(int a) { if (a > 100) { fail(a @ 7); abort(); } return a + 1; }\n"
        'int also(int a) __attribute__((alias("work")));\n'
    )
    main = (
        '#include <stdio.h>\nint work(int);\nint also(int);\nvoid fail(int a) { printf("%d\\n", a); }\n'
        "int main(int c, char **v) { (void)v; return work(c) + also(c); }\n"
    )
    outcome = project.build({"main.c": main, "lib.c": text.replace("@", "*")}, {"lib.c": text.replace("@", "+")})
    [function] = outcome.bundle.manifest.functions
    assert [part.symbol for part in function.parts] == ["work.cold"]
    assert "new:work.cold" in link.link(outcome).calls(function.new_symbol)


def test_archive_with_two_members_of_one_name(project: Any) -> None:
    """Both members are compared, and the fix lands in the one that it is for; blanks in path and map do no harm."""
    project.command = (
        "cd 'a b' && rm -f lib.a && gcc -O2 -fPIE -c ../x/part.c -o part.o && ar qc lib.a part.o && "
        "gcc -O2 -fPIE -c ../y/part.c -o part.o && ar q lib.a part.o && cd .. && "
        "gcc -fPIE -pie -O2 -o prog main.c 'a b/lib.a' -Wl,--as-needed -lm"
    )
    old = {
        "a b/empty": "",
        "x/part.c": "int x(int a) { return a + 1; }\n",
        "y/part.c": "double cbrt(double);\nint y(int a) { return (int)cbrt(a) - 1; }\n",
        "main.c": "int x(int);\nint y(int);\nint main(int c, char **v) { (void)v; return x(c) * y(c); }\n",
    }
    for name, text in (
        ("x", "int x(int a) { return a * 2; }\n"),
        ("y", "double cbrt(double);\nint y(int a) { return (int)cbrt(a) * 2; }\n"),
    ):
        assert names(project.build(old, {f"{name}/part.c": text})) == [name]


def test_hidden_names_of_another_file(project: Any) -> None:
    """What -fvisibility=hidden made local in the program is found by files that did not use it before."""
    project.command = "gcc -O2 -fPIE -fvisibility=hidden -pie -rdynamic -Wl,-z,relro,-z,now -o prog main.c lib.c more.c"
    more = "int table = 5;\nint far(int a) { return a * 3 + table++; }\n"
    use = "extern int table;\nint far(int);\nint (*volatile kept)(int);\nint work(int a) { return a @; }\n"
    outcome = project.build(
        {"main.c": MAIN.replace("work(argc)", "work(argc) + far(argc)").replace("int work", "int far(int);int work")}
        | {"lib.c": use.replace("@", "+ 1"), "more.c": "static int own = 9;\n" + more},
        {"lib.c": use.replace("@", "+ far(a) + table++ + (kept = far)(a)")},
    )
    assert names(outcome) == ["work"]
    assert references(outcome) | {"kept": ""} == {"far": "offset", "table": "offset", "kept": ""}
    table = address(outcome.running, "table")
    assert {r.offset for r in outcome.bundle.manifest.references if r.symbol == "table"} == {table}


def test_hidden_inline_variable_stays_one(project: Any) -> None:
    """An inline variable of C++ that hidden visibility made local in the program is not copied into the patch."""
    project.command = "g++ -O2 -fPIE -fvisibility=hidden -pie -rdynamic -Wl,-z,now -o prog main.cc lib.cc more.cc"
    header = "inline int counter = 3;\nint work(int), other(int);\n"
    outcome = project.build(
        {
            "main.cc": '#include "s.h"\nint main(int c, char **) { return work(c) + other(c); }\n',
            "lib.cc": '#include "s.h"\nint work(int a) { return a; }\n',
            "more.cc": '#include "s.h"\nint other(int a) { return a + counter++; }\n',
            "s.h": header,
        },
        {"lib.cc": '#include "s.h"\nint work(int a) { return a + counter++; }\n'},
    )
    assert references(outcome) == {"counter": "offset"}


def test_statics_of_one_name_are_told_by_their_lines(project: Any, link: Any) -> None:
    """Two statics of one name in one function are those of the same lines."""
    text = """
int work(int a) {
    if (a > 5) {
        static int n = 1;
        n += 30;
    } else {
        static int n = 2;
        n += 50;
    }
    return a @;
}
"""
    outcome = project.build({"main.c": MAIN, "lib.c": text.replace(" @", "")}, {"lib.c": text.replace("@", "* 7")})
    linked = link.link(outcome)
    begin = {linked.running.read(n.address, 4): n.address for n in linked.running.symbols if n.name.startswith("n.")}
    added = {i.immediate(1): i.memory_displacement for i in linked.instructions("work") if i.is_ip_rel_memory_operand}
    assert added == {30: begin[(1).to_bytes(4, "little")], 50: begin[(2).to_bytes(4, "little")]}
