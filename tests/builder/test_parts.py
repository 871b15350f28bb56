"""The parts of the builder, each by itself."""

import io
import subprocess
from pathlib import Path

import pytest
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from iced_x86 import Decoder

from podgraft_builder import wrapper
from podgraft_builder.ahead import old_object, reading_ahead, touched
from podgraft_builder.clobbers import CALLER_SAVED, clobbered
from podgraft_builder.code import decode
from podgraft_builder.dwarf import read_debug, read_statics
from podgraft_builder.instructions import same_instruction
from podgraft_builder.lines import keep_line_numbers
from podgraft_builder.objects import ObjectFile
from podgraft_builder.records import Input, Record, archive_members, read_log
from podgraft_builder.symtab import read_symbols
from podgraft_builder.writer import OutRelocation, OutSection, OutSymbol, write_object
from podgraft_bundle.errors import Refusal


def compiled(folder: Path, text: str, *flags: str) -> ObjectFile:
    (folder / "t.c").write_text(text)
    command = ["gcc", "-O2", "-g", "-fPIE", "-ffunction-sections", "-fdata-sections", *flags, "-c", "t.c", "-o", "t.o"]
    subprocess.run(command, cwd=folder, check=True)
    return ObjectFile("t.o", (folder / "t.o").read_bytes())


def numbered(text: str, folder: Path) -> list[str]:
    """Return `line:text` of what the preprocessor makes of MARK."""
    (folder / "n.c").write_text(text)
    out = subprocess.run(["gcc", "-E", "-P", "n.c"], cwd=folder, capture_output=True, text=True, check=True).stdout
    return out.split()


BEFORE = """#define MARK __LINE__
MARK
MARK
/* a comment
MARK */
MARK
#define TWO MARK, \\
    MARK
int f(int a,
      int b);
MARK
"""


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ("MARK\nMARK\n/*", "MARK\nNEW\nNEW\nMARK\n/*"),
        ("MARK\nMARK\n/*", "MARK\n/*"),
        ("a comment\n", "a comment\nwith more\nlines\n"),
        ("#define TWO MARK, \\\n", "#define TWO MARK, \\\n  MARK, \\\n"),
        ("int f(int a,\n", "int f(int a,\n      int more,\n      int still,\n"),
        (
            BEFORE[BEFORE.index("MARK\nMARK") :],
            "MARK\nMARK\nMARK\n" + BEFORE[BEFORE.index("/*") :].replace("\n    MARK\n", "\n", 1),
        ),
    ],
)
def test_unchanged_lines_keep_their_numbers(tmp_path: Path, find: str, put: str) -> None:
    """After a patch the last line has the number that it had before, wherever lines came or went."""
    before, after = tmp_path / "a.c", tmp_path / "b.c"
    before.write_text(BEFORE)
    assert find in BEFORE
    after.write_text(BEFORE.replace(find, put, 1))
    keep_line_numbers(before, after)
    assert numbered(after.read_text(), tmp_path)[-1] == numbered(BEFORE, tmp_path)[-1] == "11"


def test_written_object_reads_back(tmp_path: Path) -> None:
    """What the writer writes is read by readelf without a warning, and by our own reader as it was meant."""
    code = OutSection(".text.f", 6, 16, bytearray(b"\xe8\0\0\0\0\xc3"))
    code.relocations = [OutRelocation(1, 4, "outside", -4)]
    data = OutSection(".data.x", 3, 8, bytearray(8))
    data.relocations = [OutRelocation(0, 1, 0, 3)]
    empty = OutSection(".bss.y", 3, 32, bytearray(), nobits=100)
    symbols = [
        OutSymbol("f", 2, 0, 0, 6, local=False),
        OutSymbol("part", 2, 0, 5, 1, local=True),
        OutSymbol("outside", 0, None, 0, 0, local=False),
    ]
    (tmp_path / "o.o").write_bytes(write_object([code, data, empty], symbols))
    result = subprocess.run(["readelf", "-aW", "o.o"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    read = ObjectFile("o.o", (tmp_path / "o.o").read_bytes())
    assert set(read.functions) == {"f", "part"}
    by_name = {s.name: s for s in read.sections.values()}
    assert (by_name[".bss.y"].size, by_name[".bss.y"].kind) == (100, "SHT_NOBITS")
    [call] = by_name[".text.f"].relocations
    assert (call.offset, call.type, call.symbol.name, call.addend) == (1, 4, "outside", -4)
    [pointer] = by_name[".data.x"].relocations
    assert (pointer.symbol.kind, pointer.symbol.section, pointer.addend) == ("STT_SECTION", 1, 3)


def test_clobbers_follow_local_calls(tmp_path: Path) -> None:
    """A leaf clobbers what it writes, its caller that and more, and whoever calls outside clobbers all."""
    which = compiled(
        tmp_path,
        "int g(int);\n__attribute__((noinline)) static int leaf(int a) { return a + 1; }\n"
        "int near(int a) { return leaf(a) * 3; }\nint far(int a) { return g(a) * 3; }\n",
    )
    leaf, near, far = (clobbered(which, which.functions[name]) for name in ("leaf", "near", "far"))
    assert leaf <= near
    assert near < far
    assert far == CALLER_SAVED


def test_static_variables_know_their_function(tmp_path: Path) -> None:
    """An inlined static belongs to the function that declares it."""
    which = compiled(
        tmp_path,
        "static inline int in(void) { static int n = 1; return n++; }\n"
        "int out(void) { static int n = 2; static __thread int t = 3; return n++ + in() + t++; }\n",
    )
    first = {which.sections[place[0]].data[:1]: tuple(static) for place, static in read_statics(which).items()}
    assert first == {b"\1": ("in::n", 1), b"\2": ("out::n", 2), b"\3": ("out::t", 2)}


def test_old_objects_are_read_ahead(tmp_path: Path) -> None:
    """What a compiler made of patched files has been read when the new build ends: the comparison reads it no more."""
    data = compiled(tmp_path, "int f(void) { static int n; return n++; }\n").data
    (tmp_path / "other.o").write_bytes(b"other")
    read, other = (
        Record("compile", tmp_path, tmp_path / name, copy=tmp_path / name, depends=frozenset({source}))
        for name, source in (("t.o", "t.c"), ("other.o", "other.c"))
    )
    inputs = [Input(tmp_path / "lib.a", "t.o", data), Input(tmp_path / "other.o", None, b"other")]
    assert touched(inputs, [read, other], {"t.c"}) == inputs[:1]
    with reading_ahead([("t.o", data)]):
        pass
    before = [function.cache_info().misses for function in (old_object, read_debug, read_statics)]
    which = old_object("t.o", data)
    assert read_debug(which).signatures == {"f": "int ()"}
    assert [static.owner for static in read_statics(which).values()] == ["f::n"]
    assert [function.cache_info().misses for function in (old_object, read_debug, read_statics)] == before


def test_recorded_files_are_known_by_one_name(tmp_path: Path) -> None:
    """A header that a compiler names by a link, or in a linked folder, is the file that the patch names."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.h").write_text("")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link.h").symlink_to("folder/a.h")
    names = [f"{tmp_path}/{name}" for name in ("real/a.h", "folder/a.h", "real/../folder/a.h", "link.h", "gone.h")]
    line = {"kind": "compile", "cwd": str(tmp_path), "output": f"{tmp_path}/folder/t.o", "depends": "\0".join(names)}
    (tmp_path / "log").write_text(f"{line}\n")
    [record] = read_log(tmp_path)
    assert record.depends == {str(tmp_path / "real" / "a.h"), str(tmp_path / "gone.h")}
    assert record.output == tmp_path / "real" / "t.o"


def test_symbols_are_those_of_pyelftools(tmp_path: Path) -> None:
    """A whole table read at once says what pyelftools says of each entry."""
    which = compiled(
        tmp_path,
        '__attribute__((visibility("hidden"))) int hidden(void) { return 1; }\n__attribute__((weak)) int weak;\n'
        "static int local;\n__thread int t;\nextern int far(void);\nint *f(void) { return far() ? &local : &t; }\n"
        '__asm__(".globl fixed; fixed = 0x1234; .comm shared, 8, 8");\n',
    )
    table = ELFFile(io.BytesIO(which.data)).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    theirs = [
        (
            *(symbol.name, symbol["st_info"]["type"], symbol["st_info"]["bind"], symbol["st_other"]["visibility"]),
            *(symbol["st_shndx"], symbol["st_value"], symbol["st_size"]),
        )
        for symbol in table.iter_symbols()
    ]
    entries = read_symbols(table)
    ours = [(e.name, e.kind, e.bind, e.visibility, e.special or e.section, e.value, e.size) for e in entries]
    assert ours == theirs
    assert {"SHN_UNDEF", "SHN_ABS", "SHN_COMMON"} <= {entry.special for entry in entries}


def test_several_debug_sections_are_refused(tmp_path: Path) -> None:
    """Type units are sections of their own, and one of them alone would be read."""
    text = "struct s { int a; };\nint f(struct s *x) { return x->a; }\n"
    which = compiled(tmp_path, text, "-gdwarf-5", "-fdebug-types-section")
    with pytest.raises(Refusal, match="2 sections"):
        read_debug(which)


@pytest.mark.parametrize("flags", [("-gdwarf-5",), ("-gdwarf-4",), ("-gz",)], ids=["5", "4", "compressed"])
def test_debug_sections_are_relocated(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """What the relocations make of the debug sections is what pyelftools makes of them, one by one."""
    which = compiled(
        tmp_path,
        "struct s { const char *name; long b[4]; };\nstatic int f(struct s *x) { return x->b[1]; }\n"
        "int g(struct s *x) { static int n; if (!x->name) return n++; return f(x) + f(x + 1); }\nint h;\n",
        *flags,
    )
    ours = which.debug.units[0].dwarfinfo
    theirs = ELFFile(io.BytesIO(which.data)).get_dwarf_info()
    seen = 0
    for name, section in vars(theirs).items():
        if isinstance(section, DebugSectionDescriptor) and section.name != ".eh_frame":
            assert vars(ours)[name].stream.getvalue() == section.stream.getvalue(), name
            seen += 1
    assert seen > 5
    assert which.debug.places


def test_debug_information(tmp_path: Path) -> None:
    """Layouts and signatures are read, also beside thread-local variables."""
    which = compiled(
        tmp_path,
        "__thread int t;\nstruct s { int a : 3; long b[4]; };\n"
        "long f(const struct s *x, ...) { return x->b[1] + t; }\n",
    )
    debug = read_debug(which)
    layout = debug.layouts["struct s"]
    assert (layout.size, layout.members) == (40, (("a", 0, "int:3"), ("b", 64, "long int[4]")))
    assert debug.signatures["f"] == "long int (struct s*, ...)"


def test_nops_and_addresses(tmp_path: Path) -> None:
    """A jump to padding means the instruction behind it."""
    assert tmp_path
    code = bytes.fromhex("eb02 6690 0f1f00 c3".replace(" ", ""))
    body = decode(code, 0x100)
    assert [str(step.instruction) for step in body.steps] == ["jmp short 0000000000000104h", "ret"]
    assert body.index_of(0x104) == 1
    assert body.index_of(0x200) is None
    assert len(list(Decoder(64, code))) == 4


def test_archives(tmp_path: Path) -> None:
    """Members of archives are found, thin ones and long names, too."""
    long = "a_member_with_a_rather_long_name.o"
    for name in ("x.o", long):
        (tmp_path / name).write_bytes(name.encode() * 3)
    for kind, archive in (("rc", "a.a"), ("rcT", "t.a")):
        subprocess.run(["ar", kind, archive, "x.o", long], cwd=tmp_path, check=True)
        assert archive_members(tmp_path / archive) == {name: [name.encode() * 3] for name in ("x.o", long)}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-c -o a.o a.c", ["a.c"]),
        ("-Iinclude.c -I dir.c -MF x.c a.c b.cc -lm", ["a.c", "b.cc"]),
        ("-x c - -o out", []),
        ("-include pre.c lib.o main.S", ["main.S"]),
    ],
)
def test_wrapper_knows_sources(line: str, found: list[str]) -> None:
    """The wrapper tells sources from the values of options."""
    assert wrapper.sources(line.split()) == found


def test_masks_and_rounding_are_compared() -> None:
    """What AVX-512 says beside the operands belongs to an instruction."""
    # vaddps zmm0{k1}, zmm0, zmm0: with another mask, with zeroing, with rounding
    codes = ["62f17c4958c0", "62f17c4a58c0", "62f17cc958c0", "62f17c1958c0"]
    plain, *others = [next(iter(Decoder(64, bytes.fromhex(code)))) for code in codes]
    assert same_instruction(plain, plain, free=None)
    assert not any(same_instruction(plain, other, free=None) for other in others)
