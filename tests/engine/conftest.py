"""Real target programs with a ready handshake, and the real engine as the agent starts it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

sys.path.insert(0, str(Path(__file__).parent))
import forge

TARGETS = Path(__file__).parent.parent / "targets"
ENGINE = Path(sys.executable).parent / "podgraft-engine"
PAIR_FUNCTIONS = ["left", "right", "linger"]
ODD = "pairs-2"  # the name of the patch for odd.c


@dataclass
class EngineAnswer:
    """What one engine process said."""

    code: int
    events: list[dict[str, Any]]
    stderr: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def start_engine(pid: int, **request: Any) -> "subprocess.Popen[str]":
    child = subprocess.Popen([ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdin.write(json.dumps({"pid": pid, **request}))
    child.stdin.close()
    child.stdin = None
    return child


def engine(pid: int, *, prefix: tuple[str, ...] = (), **request: Any) -> EngineAnswer:
    """Run the engine once."""
    done = subprocess.run(
        [*prefix, ENGINE],
        input=json.dumps({"pid": pid, **request}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return EngineAnswer(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


@dataclass
class Target:
    """A running target program; it answers questions on its pipe."""

    child: "subprocess.Popen[str]"
    program: Path
    ended: bool = field(default=False)

    @property
    def pid(self) -> int:
        return self.child.pid

    def ask(self, question: str) -> str:
        self.child.stdin.write(question + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline().strip()
        assert answer, f"the target has ended with {self.child.poll()}"
        return answer

    def report(self) -> dict[str, int]:
        return json.loads(self.ask("report"))

    def maps(self) -> list[str]:
        return Path(f"/proc/{self.pid}/maps").read_text().splitlines()

    def tids(self) -> list[int]:
        return sorted(int(entry.name) for entry in Path(f"/proc/{self.pid}/task").iterdir())

    def text(self) -> bytes:
        """Return the program's executable bytes as they are in memory (page clones lie below the program)."""
        mine = [line.split() for line in self.maps() if line.endswith(str(self.program))]
        base = next(int(words[0].split("-")[0], 16) for words in mine if words[2] == "00000000")
        result = b""
        with Path(f"/proc/{self.pid}/mem").open("rb") as memory:
            for words in mine:
                start, end = (int(x, 16) for x in words[0].split("-"))
                if words[1] == "r-xp" and start > base:
                    memory.seek(start)
                    result += memory.read(end - start)
        return result

    def address_of(self, function: str) -> int:
        """Return where a function of the program is."""
        with self.program.open("rb") as stream:
            (symbol,) = ELFFile(stream).get_section_by_name(".symtab").get_symbol_by_name(function)
            mine = [line.split() for line in self.maps() if line.endswith(str(self.program))]
            base = next(int(words[0].split("-")[0], 16) for words in mine if words[2] == "00000000")
            return base + int(symbol["st_value"])

    def quit(self) -> dict[str, int]:
        """End the program and return its last report."""
        self.child.stdin.write("quit\n")
        self.child.stdin.flush()
        out, _ = self.child.communicate(timeout=20)
        self.ended = True
        assert self.child.returncode == 0
        return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled target, its patch object and its bundle."""
    folder = tmp_path_factory.mktemp("pairs")
    forge.compile_program(TARGETS / "pairs.c", folder / "pairs")
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o")
    forge.forge(folder / "pairs", folder / "patch.o", PAIR_FUNCTIONS, folder / "pairs.graft")
    return folder


@pytest.fixture
def bundle(built: Path) -> str:
    return str(built / "pairs.graft")


@pytest.fixture
def target(built: Path) -> Iterator[Target]:
    """The target program with one hot and three sleeping threads, and one that can linger."""
    yield from run_target(built / "pairs", "1", "3")


def build_odd(folder: Path, *flags: str) -> Path:
    """Compile a target that makes its surroundings itself, and put its bundle beside it."""
    program = forge.compile_program(TARGETS / "odd.c", folder / "odd", *flags)
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o")
    forge.forge(program, folder / "patch.o", PAIR_FUNCTIONS, folder / "bundle.graft", name=ODD)
    return program


@pytest.fixture(scope="session")
def odd_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that makes its surroundings itself, with its bundle beside it."""
    return build_odd(tmp_path_factory.mktemp("odd"))


@pytest.fixture
def odd(odd_program: Path) -> Iterator[Target]:
    yield from run_target(odd_program, "0", "2")


def run_target(command: Path, *args: str, program: Path | None = None) -> Iterator[Target]:
    """Start a target; `program` is what runs in the end where the command is a launcher."""
    child = subprocess.Popen([command, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    running = Target(child, program or command)
    try:
        yield running
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
