"""Damaged bundles against a real process: every answer is an event with a reason, and the process stays as it was.

    python -m tests.torture.fuzz [--cases 10000] [--seed N]

Half of the cases are bytes of the file changed at random: nearly all are stopped by the digest. The other half are
bundles that were encoded anew with a right digest around a changed manifest or a changed patch.o, as a hostile or a
broken builder would write them. Each is given to `check`; what `check` does not refuse and leaves the manifest's old
code alone is given to `apply`, up to the step before anything that runs could see it.
"""

import argparse
import copy
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hack.tools import unwind_on_signals
from podgraft_bundle.errors import Reason
from tests.engine import forge
from tests.engine.conftest import PAIR_FUNCTIONS, TARGETS, Target
from tests.torture.engines import Outcome, run

SEED = 20261124
# Nothing that runs has seen anything yet: the process must be as it was, but for our own mappings.
BEFORE_THE_SWITCH = "GATE_OPENED"
NUMBERS = (0, 1, -1, 2, 4095, 4096, 2**31, 2**32 - 1, 2**47 - 1, 2**47, 2**63 - 1, 2**63, 2**64, 10**30)
WORDS = ("", "x", "left", "right", "no_such_symbol", "../../etc/passwd", "\0", "é" * 300, "0" * 64, "a" * 5000)
KINDS = ("offset", "got", "export", "tpoff")
ENDINGS = {0, 3}


@dataclass
class Tally:
    """What came of the cases: answers by reason, and everything that must not happen."""

    cases: int = 0
    applied: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    uncaught: int = 0
    changed: int = 0
    stories: list[str] = field(default_factory=list)

    def line(self) -> str:
        return f"cases={self.cases} applied={self.applied} uncaught={self.uncaught} changed={self.changed}"


class Fuzzer:
    """Makes cases from one good bundle and gives them to engines."""

    def __init__(self, target: Target, good: Path, folder: Path, seed: int) -> None:
        self._target, self._folder = target, folder
        self._chance = random.Random(seed)
        self._data = good.read_bytes()
        self._manifest, self._object = parts_of(self._data)
        self._text, self._tids = target.text(), target.tids()
        self.tally = Tally()

    def run(self, cases: int) -> Tally:
        """Run some cases; stops at the first that harms."""
        for _ in range(cases):
            what, data = self._case()
            self._try(what, data)
            if self.tally.stories:
                break
        return self.tally

    def _case(self) -> tuple[str, bytes]:
        makers: tuple[Callable[[], bytes], ...] = (self._flip, self._cut, self._other_manifest, self._other_object)
        maker = self._chance.choices(makers, (3, 2, 3, 2))[0]
        return maker.__name__, maker()

    def _flip(self) -> bytes:
        data = bytearray(self._data)
        for _ in range(self._chance.choice((1, 1, 1, 5, 50))):
            data[self._chance.randrange(len(data))] = self._chance.randrange(256)
        return bytes(data)

    def _cut(self) -> bytes:
        at, size = self._chance.randrange(len(self._data)), self._chance.choice((1, 7, 512, 10240, 1 << 30))
        middle = self._chance.randbytes(self._chance.choice((0, 0, 3, 512)))
        return self._data[:at] + middle + self._data[at + size :]

    def _other_manifest(self) -> bytes:
        document = copy.deepcopy(self._manifest)
        for _ in range(self._chance.choice((1, 1, 2, 4))):
            self._mutate(document)
        return encode_anew(document, self._object)

    def _other_object(self) -> bytes:
        content = bytearray(self._object)
        for _ in range(self._chance.choice((1, 1, 2, 8, 64))):
            # The headers and the tables are at the ends; what lies between is code that is just copied.
            at = self._chance.choice((self._chance.randrange(64), -1 - self._chance.randrange(len(content) * 2 // 3)))
            content[at] = self._chance.choice((0, 1, 255, self._chance.randrange(256)))
        if self._chance.random() < 0.1:
            del content[self._chance.randrange(len(content)) :]
        document = copy.deepcopy(self._manifest)
        document["object"] = {**document["object"], "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return encode_anew(document, bytes(content))

    def _mutate(self, document: dict[str, Any]) -> None:
        """Change one value somewhere in the tree."""
        holder: Any = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                return
            key = self._chance.choice(keys)
            if isinstance(holder[key], dict | list) and self._chance.random() < 0.9:
                holder = holder[key]
                continue
            holder[key] = self._other_value(holder[key])
            return

    def _other_value(self, value: Any) -> Any:
        if self._chance.random() < 0.1:
            return self._chance.choice((None, True, [], {}, 1.5, "x", 7))
        if isinstance(value, bool) or value is None:
            return self._chance.choice((*NUMBERS, *WORDS))
        if isinstance(value, int):
            return self._chance.choice((*NUMBERS, value + 1, value - 1, value ^ 16, value + 4096))
        if isinstance(value, str):
            return self._chance.choice((*WORDS, *KINDS, value[:-1], value + "x", value.upper()))
        if isinstance(value, list):
            return self._chance.choice(([], value * 2, value[:-1], value[::-1], value * 500))
        return self._chance.choice(({}, []))

    def _try(self, what: str, data: bytes) -> None:
        file = self._folder / "case.graft"
        file.write_bytes(data)
        self.tally.cases += 1
        checked = run(self._folder, op="check", pid=self._target.pid, bundle=str(file))
        self._judge(f"check of {what}", checked)
        if checked.code == 0:
            self.tally.applied += 1
            applied = run(
                self._folder,
                stop_at=BEFORE_THE_SWITCH,
                op="apply",
                pid=self._target.pid,
                bundle=str(file),
                deadline=5.0,
            )
            self._judge(f"apply of {what}", applied)

    def _judge(self, what: str, outcome: Outcome) -> None:
        reason = outcome.reason or (outcome.events[-1]["event"] if outcome.events else "stopped")
        self.tally.answers[f"{what.split(maxsplit=1)[0]} {reason}"] += 1
        uncaught = not outcome.killed and (outcome.code not in ENDINGS or reason == Reason.INTERNAL)
        changed = self._target.child.poll() is not None or self._target.text() != self._text
        self.tally.uncaught += uncaught
        self.tally.changed += changed
        if uncaught or changed:
            kept = Path(tempfile.gettempdir()) / "podgraft-fuzz-case.graft"
            kept.write_bytes((self._folder / "case.graft").read_bytes())
            self.tally.stories.append(f"{what}: {outcome.events[-1:]} {outcome.said[-1500:]} (case kept as {kept})")


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return manifest and patch.o of a bundle."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    return json.loads(members["manifest.json"]), members["patch.o"]


def encode_anew(document: dict[str, Any], object_: bytes) -> bytes:
    """Encode as the bundle module does, but without asking whether the manifest is right."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    members = {"digest": hashlib.sha256(text).hexdigest().encode(), "manifest.json": text, "patch.o": object_}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    return out.getvalue()


def fuzz(folder: Path, cases: int, seed: int) -> Tally:
    """Fuzz a fresh target."""
    program = forge.compile_program(TARGETS / "pairs.c", folder / "pairs")
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o")
    forge.forge(program, folder / "patch.o", PAIR_FUNCTIONS, folder / "good.graft")
    with subprocess.Popen([program, "0", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            tally = Fuzzer(Target(child, program), folder / "good.graft", folder, seed).run(cases)
            report = Target(child, program).report() if child.poll() is None else {"wrong": 1}
            if report["wrong"] or report.get("new"):
                tally.changed += 1
                tally.stories.append(f"the target reports {report}")
        finally:
            child.kill()
    return tally


def main() -> int:
    """Fuzz, and print the answers by reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(Path(folder), arguments.cases, arguments.seed)
    print(*(f"  {answer:<32}{count:>7}" for answer, count in tally.answers.most_common()), sep="\n")
    print(*tally.stories, sep="\n", file=sys.stderr)
    print(tally.line())
    return 1 if tally.stories else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
