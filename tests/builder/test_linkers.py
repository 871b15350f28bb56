"""Other linkers, and programs without a loader: their maps, symbols, and functions that a resolver chooses."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder import reloc
from podgraft_builder.objects import ObjectFile
from podgraft_builder.records import Record, loaded
from podgraft_builder.running import RunningBinary
from podgraft_bundle.errors import Reason, Refusal

MAIN = "int work(int), more(int);\nint main(int argc, char **argv) { return work(argc) + more(argc); }\n"
LIB = """
int seen = 7;
extern const char *const names[];
int more(int), also(int);
__attribute__((noipa)) static int one(int a) { return a + seen; }
int work(int a) { return one(a) + names[a & 1][0] + @; }
"""
MORE = """
extern int seen;
int least = 3;
const char *const names[] = { "one", "two" };
int more(int a) { return a / 7 + seen; }
int also(int a) { return a / 9 + least++; }
"""
OTHER = "__attribute__((noipa)) static int also(int a) { return a * 77; }\nint last(int a) { return also(a) + 5; }\n"
FILES = {"main.c": MAIN, "lib.c": LIB.replace("@", "1"), "sub/more.c": MORE, "sub/other.c": OTHER}
COMMAND = (
    "set -e; for f in more other; do gcc -O2 -fPIE -c -o sub/$f.o sub/$f.c; done; ar rcs sub/libmore.a sub/more.o;"
    " gcc -O2 -fPIE -pie -fuse-ld={} -Wl,--build-id -o prog main.c lib.c sub/other.o sub/libmore.a"
)
LINKERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(f"ld.{name}") is None, reason="not installed"))
    for name in ("bfd", "gold", "lld", "mold")
]
MAPS = {
    "GNU ld": "Linker script and memory map\n\nLOAD sub/a file.o\nLOAD lib.a\n .text 0x0000000000001020 0x30 no.o\n",
    "gold": " .text          0x00000000000019f0        0x0 sub/a file.o\n .text.work\n"
    "                0x0000000000001a00        0xa lib.a\n                0x0000000000001a00                work\n"
    ".bss            0x0000000000003a00        0x8\n",
    "lld": "             VMA              LMA     Size Align Out     In      Symbol\n"
    "             2e0              2e0       1c     1 .interp\n"
    "             2fc              2fc       20     4         sub/a file.o:(.text.work)\n"
    "             2fc              2fc       20     1                 work\n"
    "             31c              31c       18     4         lib.a:(.eh_frame+0x18)\n",
    "mold": "               VMA       Size Align Out     In      Symbol\n"
    "             0x344         32     4         sub/a file.o:(.text.work)\n"
    "             0x344          0     0                 work\n"
    "             0x3d0          4    16         lib.a:(.rodata)\n",
}


def build(project: Any, command: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return what is replaced."""
    project.command = command
    return [f.entry.symbol for f in project.build(old, new).bundle.manifest.functions]


@pytest.mark.parametrize("name", MAPS)
def test_maps(tmp_path: Path, name: str) -> None:
    """Each linker has a form of its own for its map; all of them name the files."""
    (tmp_path / "map").write_text(MAPS[name])
    link = Record(kind="link", cwd=tmp_path, output=tmp_path / "prog", map=tmp_path / "map")
    assert loaded(link) == [tmp_path / "sub/a file.o", tmp_path / "lib.a"]


def test_map_without_objects(project: Any) -> None:
    """A link that names no object of the tree is no build without a change."""
    away = project.folder / "away.o"
    script = f"/usr/bin/gcc -O2 -c -o {away} main.c && gcc -o prog {away}"
    text = "int main(int argc, char **argv) { return argc @ 3; }\n"
    with pytest.raises(Refusal) as caught:
        build(project, script, {"main.c": text.replace("@", "+")}, {"main.c": text.replace("@", "-")})
    assert caught.value.reason is Reason.BUILD_FAILED
    assert "names no object" in caught.value.detail


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("more", ["9", "also(a)", "least"])
def test_linkers(project: Any, link: Any, linker: str, more: str) -> None:
    """New code means the global name of another object, also where the linker made it local beside a static one."""
    old = {**FILES, "lib.c": "extern int least;\n" + FILES["lib.c"]}
    project.command = COMMAND.format(linker)
    outcome = project.build(old, {"lib.c": old["lib.c"].replace("+ 1;", f"+ {more};")})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["work"]
    found = {r.symbol: r.offset for r in outcome.bundle.manifest.references}
    table = subprocess.run(["nm", "-S", outcome.running], capture_output=True, text=True, check=True).stdout
    meant = {line.split()[-1]: line.split() for line in table.splitlines() if line.split()[-1] in {"least", "more"}}
    if more == "least":
        assert found["least"] == int(meant["least"][0], 16)
    if more == "also(a)":  # behind more() in its object, and the static one has 77
        code = link.link(outcome).running.read(found["also"], 0x20)
        assert code is not None
        assert bytes([0x4D]) not in code[:4]
        assert found["also"] > int(meant["more"][0], 16)


@pytest.mark.parametrize("linker", LINKERS)
def test_linkers_that_have_another_source(project: Any, linker: str) -> None:
    """The tables of a program are proven whoever linked it."""
    theirs = project.folder / "theirs"
    for name, text in FILES.items():
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text(text.replace("seen = 7", "seen = 8"))
    command = COMMAND.format(linker)
    subprocess.run(["sh", "-c", command], cwd=theirs, check=True)
    project.running = theirs / "prog"
    with pytest.raises(Refusal) as caught:
        build(project, command, FILES, {"lib.c": FILES["lib.c"].replace("+ 1;", "- 1;")})
    assert caught.value.reason is Reason.RUNNING_BINARY_DIFFERS, caught.value


CHOSEN = """
#include <string.h>
static int first(int a) { return a + 11; }
static int second(int a) { return a + 12; }
static int (*resolve(void))(int) { return first; }
static int (*another(void))(int) { return second; }
int chosen(int) __attribute__((ifunc("resolve")));
int picked(int) __attribute__((ifunc("another")));
int work(int a) { return (@("some text", a, 9) != 0) + $(a) + 1; }
"""
WAYS = {
    "static": "gcc -O2 -static -Wl,--build-id -o prog *.c",
    "static PIE": "gcc -O2 -static-pie -Wl,--build-id -o prog *.c",
    "dynamic": "gcc -O2 -fPIE -pie -Wl,--build-id -o prog *.c",
    "library": "gcc -O2 -fPIC -shared -Wl,--build-id -o prog *.c",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("theirs", [("memchr", "chosen"), ("memrchr", "chosen"), ("memchr", "picked")])
def test_functions_that_a_resolver_chooses(project: Any, way: str, theirs: tuple[str, str]) -> None:
    """Calls of them go through an entry that names its resolver; another resolver is another function."""
    text = "#define _GNU_SOURCE\n" + CHOSEN
    old = text.replace("@", "memchr").replace("$", "chosen")
    folder = project.folder / "theirs"
    folder.mkdir()
    (folder / "lib.c").write_text(text.replace("@", theirs[0]).replace("$", theirs[1]))
    (folder / "main.c").write_text(MAIN.replace("more(argc)", "picked(argc)").replace("more", "picked"))
    subprocess.run(["sh", "-c", WAYS[way]], cwd=folder, check=True)
    project.running = folder / "prog"
    files = {"main.c": (folder / "main.c").read_text(), "lib.c": old}
    new = {"lib.c": old.replace("+ 1;", "+ picked(a);")}
    if theirs == ("memchr", "chosen"):
        assert build(project, WAYS[way], files, new) == ["work"]
        return
    with pytest.raises(Refusal) as caught:
        build(project, WAYS[way], files, new)
    assert caught.value.reason is Reason.RUNNING_BINARY_DIFFERS, caught.value


def test_static_pie_is_a_program(project: Any) -> None:
    """It has no interpreter, and a thread-local variable of it has a fixed place."""
    text = "__thread int n;\nint work(int a) { return n++ + a @ 3; }\n"
    old = {"main.c": MAIN.replace(" + more(argc)", ""), "lib.c": text.replace("@", "+")}
    assert build(project, WAYS["static PIE"], old, {"lib.c": text.replace("@", "-")}) == ["work"]


def test_calls_through_the_got(project: Any) -> None:
    """-fno-plt calls through slots; the engine knows of their relocations the one that cannot be relaxed."""
    project.command = "gcc -O2 -fno-plt -fPIE -pie -Wl,-z,now -o prog *.c"
    text = "#include <stdio.h>\n#include <stdlib.h>\n" + MAIN.replace(" + more(argc)", "")
    text += 'int work(int a) { return puts(getenv("A")) @ a; }\n'
    outcome = project.build({"main.c": text.replace("@", "+")}, {"main.c": text.replace("@", "-")})
    found = ObjectFile("patch.o", outcome.bundle.object)
    types = {item.type for section in found.sections.values() for item in section.relocations}
    assert reloc.R_GOTPCREL in types
    assert not types & {reloc.R_GOTPCRELX, reloc.R_REX_GOTPCRELX}


@pytest.mark.parametrize("linker", LINKERS)
@pytest.mark.parametrize("model", ["small", "large"])
def test_address_of_an_imported_function(project: Any, linker: str, model: str) -> None:
    """Without PIE an imported function has one address for all, that of its PLT entry, where old code has taken it."""
    project.command = f"gcc -O2 -fno-pie -no-pie -mcmodel={model} -fuse-ld={linker} -Wl,--build-id -o prog *.c"
    text = "#include <stdlib.h>\nvoid *volatile kept;\n"
    text += "int work(int a) { kept = (void *)atoi; return a @ 3; }\n"
    old = {"main.c": MAIN.replace(" + more(argc)", ""), "lib.c": text.replace("@", "+")}
    outcome = project.build(old, {"lib.c": text.replace("@", "-")})
    found = {r.symbol: r.offset for r in outcome.bundle.manifest.references}
    assert RunningBinary(outcome.running).plt[found["atoi.plt"]] == "atoi"


@pytest.mark.skipif(shutil.which("clang++") is None, reason="not installed")
def test_types_of_handlers_by_clang(project: Any) -> None:
    """With PIE clang has a pointer without a name, in writable data, for each type that a function catches."""
    project.command = "clang++ -O2 -fPIE -pie -Wl,--build-id -o prog *.cc"
    text = "#include <string>\n" + MAIN.replace(" + more(argc)", "")
    text += "int work(int a) { try { return std::stoi(std::string(a, '1')); }"
    text += " catch (std::exception &e) { return a @ 7; } }\n"
    outcome = project.build({"main.cc": text.replace("@", "+")}, {"main.cc": text.replace("@", "-")})
    assert [f.entry.symbol for f in outcome.bundle.manifest.functions] == ["_Z4worki"]
    assert any("_ZTISt9exception" in r.symbol for r in outcome.bundle.manifest.references)
