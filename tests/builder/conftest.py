"""Small programs, built and patched for real."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from iced_x86 import Decoder, Instruction

from podgraft_builder.build import Outcome, build
from podgraft_builder.code import is_branch
from podgraft_builder.objects import ObjectFile
from podgraft_builder.options import Options
from podgraft_builder.running import RunningBinary
from podgraft_bundle.errors import Reason
from tests.torture.engines import run

COMMAND = "gcc -O2 -fPIE -pie -Wl,-z,relro,-z,now -o prog *.c"


@dataclass
class Project:
    """One source tree with a patch; `files` maps names to text, old and new."""

    folder: Path
    command: str = COMMAND
    running: Path | None = None
    allow: frozenset[Reason] = frozenset()
    log: list[str] = field(default_factory=list)

    def build(self, old: dict[str, str], new: dict[str, str]) -> Outcome:
        """Build a bundle from the difference of two sets of files."""
        self._write(old, new)
        options = Options(
            source=self.folder / "a",
            patch=self.folder / "fix.patch",
            command=self.command,
            binary=Path("prog"),
            output=self.folder / "out.graft",
            running=self.running,
            allow=self.allow,
        )
        return build(options, self.log.append)

    def _write(self, old: dict[str, str], new: dict[str, str]) -> None:
        for side, files in (("a", old), ("b", {**old, **new})):
            for name, text in files.items():
                path = self.folder / side / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        result = subprocess.run(
            ["diff", "-ruN", "a", "b"], cwd=self.folder, capture_output=True, text=True, check=False
        )
        (self.folder / "fix.patch").write_text(result.stdout)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A place for one source tree; temporary builds go beside it."""
    monkeypatch.setenv("PODGRAFT_CACHE", str(tmp_path / "cache"))
    return Project(tmp_path)


@dataclass
class Linked:
    """patch.o, linked by GNU ld against the addresses that the manifest names."""

    outcome: Outcome
    running: RunningBinary
    program: ObjectFile
    symbols: dict[str, int]

    def instructions(self, function: str) -> list[Instruction]:
        """Return the instructions of a function of the linked patch."""
        item = self.program.functions[function]
        section = self.program.sections[item.section]
        start = item.start - self.base(item.section)
        return list(Decoder(64, section.data[start : start + item.size], ip=item.start))

    def base(self, section: int) -> int:
        """Return the address of a section."""
        header = self.program.header(section)
        return int(header["sh_addr"])

    def calls(self, function: str) -> list[str]:
        """Return what a function calls or jumps to outside itself, by the names of the running binary."""
        item = self.program.functions[function]
        found = []
        for instruction in self.instructions(function):
            if is_branch(instruction):
                target = instruction.near_branch_target
                if not item.start <= target < item.start + item.size:
                    found.append(self.name(target))
        return found

    def addresses(self, function: str) -> list[str]:
        """Return what a function refers to relative to the instruction pointer, by name."""
        return [
            self.name(instruction.memory_displacement)
            for instruction in self.instructions(function)
            if instruction.is_ip_rel_memory_operand
        ]

    def name(self, address: int) -> str:
        """Return `new:NAME` for the patch's own code, else the running binary's name of an address."""
        own = [f.name for f in self.program.functions.values() if f.start == address]
        if own:
            return f"new:{own[0]}"
        if address in self.running.plt:
            return f"plt:{self.running.plt[address]}"
        named = [n for n in self.running.names_at.get(address, []) if n.kind in {"STT_FUNC", "STT_OBJECT"}]
        return f"old:{named[0].name}" if named else f"patch:{address:#x}"


@pytest.fixture
def running(tmp_path: Path) -> "Callable[[Path], AbstractContextManager[Running]]":
    """Return how to start a program that answers each number on its input by a line."""

    @contextmanager
    def start(program: Path) -> Iterator[Running]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([program], **pipes) as process:
            yield Running(process, tmp_path)
            process.stdin.close()
            assert process.wait(10) == 0

    return start


@dataclass
class Running:
    """A program that runs, and the folder with the bundle for it."""

    process: "subprocess.Popen[str]"
    folder: Path

    def ask(self, number: int) -> str:
        """Return its answer to a number."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def apply(self) -> None:
        """Patch it with out.graft."""
        request = {"op": "apply", "bundle": str(self.folder / "out.graft"), "pid": self.process.pid, "deadline": 30}
        assert run(self.folder, **request).code == 0


@pytest.fixture
def link(tmp_path: Path) -> "type[Linker]":
    """The class that links; kept as a fixture so that tests need no import from here."""
    Linker.folder = tmp_path
    return Linker


class Linker:
    """Links a bundle's object with GNU ld: a second opinion on every relocation."""

    folder: Path

    @classmethod
    def link(cls, outcome: Outcome) -> Linked:
        """Link and read the result."""
        (cls.folder / "patch.o").write_bytes(outcome.bundle.object)
        symbols = {
            r.symbol: r.offset if r.offset is not None else 0x7FFF000 for r in outcome.bundle.manifest.references
        }
        script = "".join(f'"{name}" = {value:#x};\n' for name, value in symbols.items())
        (cls.folder / "symbols.ld").write_text(script)
        result = subprocess.run(
            ["ld", "-o", "linked", "-e", "0", "-Ttext-segment=0x10000000", "patch.o", "symbols.ld"],
            cwd=cls.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        data = (cls.folder / "linked").read_bytes()
        return Linked(outcome, RunningBinary(outcome.running), ObjectFile("linked", data), symbols)
