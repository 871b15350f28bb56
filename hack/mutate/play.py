"""One edit: a bundle, a process that is patched with it, and a process that was started with the edited source."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from hack.mutate.editor import Edit, edit
from hack.mutate.target import Target
from hack.tools import REPOSITORY, ToolFailedError

PODGRAFT = REPOSITORY / ".venv" / "bin" / "podgraft"
# What a program without a meaning does to memory; a stack or heap that is too large for the sanitizer proves nothing.
MEMORY = r"(?:heap|stack|global|dynamic-stack)-buffer-(?:over|under)flow|heap-use-after-free|stack-use-after-\w+"
FAULT = re.compile(rf"ERROR: AddressSanitizer: ((?:{MEMORY}|attempting double-free)\b.*)")
SANITIZER = "detect_leaks=0:allocator_may_return_null=1"
HEAPS = (0x00, 0xBE)  # what new memory holds, in the one build and the other
UNWRITTEN = "answers depend on memory that nobody has written"
STARTS = 8
NO_SITE = "NoPatchSite"
AGAIN, TRIES = "HelperUnreachable", 4  # the helper leaves where the engine gets no processor; "try again" is the advice


@dataclass
class Result:
    """What became of one edit.

    verdict: "accepted", "identical" (no machine code differs), or the reason of a refusal; also of one that the build
    foretells and `podgraft apply` gives.
    problems: what must not be, such as a transition that fails. differences: other answers than those expected.
    undefined: the fault of a program that is started with the edit, where there are other answers: C gives it no
    meaning.
    """

    number: int
    kind: str
    where: str
    verdict: str = ""
    functions: int = 0
    seen: bool = False
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    undefined: str = ""

    @property
    def wrong(self) -> list[str]:
        """Return everything that speaks against us."""
        return self.problems + ([] if self.undefined else self.differences)


class Ground:
    """One target with its fresh tree: what is built there is what a new process would be started from."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.tree = self._tree("fresh", target.built)
        self.before = self._answers(target.running)
        again = self._answers(target.running)
        self.stable = [a == b for a, b in zip(self.before, again, strict=True)]

    def fresh_build(self) -> bool:
        """Build the fresh tree as it is; False where its source does not compile."""
        return self._build_in(self.tree, self.target.build)

    def _build_in(self, tree: Path, command: str) -> bool:
        log = self.folder / "fresh.log"
        with log.open("w") as out:
            words = ["nice", "sh", "-c", command]
            return subprocess.run(words, cwd=tree, stdout=out, stderr=out, check=False).returncode == 0

    def _answers(self, binary: Path, **env: str) -> list[str]:
        with contextlib.suppress(TimeoutError), self.target.start(binary, self.folder, env) as (_, ask):
            return ask()
        return ["does not start"]

    def play(self, number: int, seed: int) -> Result:
        """Make the edit that belongs to a number and see what becomes of it."""
        dice = random.Random(f"{seed} {number}")  # noqa: S311 (repeatable, not secret)
        file = dice.choice(sorted(self.target.files))
        text = (self.target.source / file).read_text()
        change = edit(text, self.target.files[file], self.target.extra, dice)
        result = Result(number, change.kind, f"{file}: {change.where}")
        foretold = self._build(change, file, text, result)
        if result.verdict not in {"accepted", "identical"}:
            return result
        (self.tree / file).write_text(change.text)
        try:
            built = self.fresh_build()
            if not built:
                raise ToolFailedError(f"{result.where}: only podgraft could build it; see {self.folder}/fresh.log")
            after = self._answers(self.tree / self.target.binary)
        finally:
            (self.tree / file).write_text(text)
        result.seen = bool(self._differ(self.before, after))
        if result.verdict == "identical":
            self._compare("the program of the same machine code", self.before, after, result)
        else:
            self._patch(after, result, foretold)
        if result.differences:
            # Where the original has faults of its own, what is said of the edit proves nothing.
            result.undefined = "" if self._fault(file, None) else self._fault(file, change.text)
        return result

    def _fault(self, file: str, text: str | None) -> str:
        """Return the fault of a program with (or without) an edit: what AddressSanitizer says; empty for none."""
        trees = [self._tree(f"sanitized-{at}", self.target.source) for at in range(len(self.target.sanitized))]
        for tree, command in zip(trees, self.target.sanitized, strict=True):
            if text is not None:
                (tree / file).write_text(text)
            if not self._build_in(tree, command):
                raise ToolFailedError(f"{file} cannot be built with AddressSanitizer; see {self.folder}/fresh.log")
        for old in self.folder.glob("report.*"):
            old.unlink()
        answers: list[list[list[str]]] = []
        # A program that throws dice (the levels of a skiplist) does not come to its fault each time.
        for _ in range(STARTS // len(trees)):
            options = [f"log_path='{self.folder}/report':{SANITIZER}:malloc_fill_byte={heap}" for heap in HEAPS]
            pairs = zip(trees, options, strict=True)
            answers.append([self._answers(tree / self.target.binary, ASAN_OPTIONS=words) for tree, words in pairs])
            said = "".join(report.read_text(errors="replace") for report in self.folder.glob("report.*"))
            if found := FAULT.search(said):
                return found.group(1)
        return UNWRITTEN if self._depends(answers) else ""

    def _depends(self, answers: list[list[list[str]]]) -> bool:
        """Tell whether what variables and new memory begin with decides an answer, the same at each start."""
        one, other = zip(*answers, strict=True)
        same = not any(self._differ(starts[0], again) for starts in (one, other) for again in starts[1:])
        return same and bool(self._differ(one[0], other[0]))

    def _tree(self, name: str, original: Path) -> Path:
        """Return a copy of a tree as the target has it, whatever an earlier run has left of its edits."""
        tree, partial = self.folder / name, self.folder / f"{name}.partial"
        if not tree.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(original, partial, symlinks=True)
            partial.rename(tree)
        for file in self.target.files:
            text = (self.target.source / file).read_text()
            if (tree / file).read_text() != text:
                (tree / file).write_text(text)
        return tree

    def _build(self, change: Edit, file: str, text: str, result: Result) -> bool:
        """Build the bundle; say whether the builder has warned that no site will be found."""
        for side, content in (("a", text), ("b", change.text)):
            place = self.folder / side / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        words = ["diff", "-u", f"a/{file}", f"b/{file}"]
        patch = self.folder / "edit.patch"
        patch.write_bytes(subprocess.run(words, cwd=self.folder, capture_output=True, check=False).stdout)
        done = subprocess.run(
            [
                *("nice", PODGRAFT, "build", f"--source={self.target.source}", f"--patch={patch}"),
                *(f"--build={self.target.build}", f"--binary={self.target.binary}"),
                *(f"--running={self.target.running}", "--name=edit", f"--output={self.folder}/edit.graft", "--json"),
            ],
            env={**os.environ, "PODGRAFT_CACHE": str(self.folder)},  # a place of its own for the old build
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            told = json.loads(done.stdout)
        except ValueError:  # a traceback
            result.verdict = "failed"
            result.problems.append(done.stderr[-600:])
            return False
        result.verdict = "accepted" if done.returncode == 0 else told["reason"]
        result.functions = len(told.get("functions", ()))
        if result.verdict == "NoChange":
            result.verdict = "identical"
        return bool(told.get("no_site"))

    def _patch(self, after: list[str], result: Result, foretold: bool) -> None:
        with self.target.start(self.target.running, self.folder, {}) as (child, ask):
            if not self._podgraft("apply", child.pid, self.folder / "edit.graft", result):
                if foretold and any(f"refused: {NO_SITE}" in problem for problem in result.problems):
                    result.verdict = NO_SITE
                    result.problems.clear()
                    self._compare("refused", self.before, ask(), result)
                return
            self._compare("patched", after, ask(), result)
            if child.poll() is not None or after[-1:] in (["gone"], ["no answer"]):
                return  # the edit ends or stops the program, as it does when it is started anew
            if self._podgraft("revert", child.pid, "edit", result):
                self._compare("reverted", self.before, ask(), result)

    def _podgraft(self, verb: str, pid: int, what: str | Path, result: Result) -> bool:
        words: list[str | Path] = [PODGRAFT, verb, f"--pid={pid}", "--deadline=60s", what]
        for _ in range(TRIES):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if AGAIN not in done.stdout + done.stderr:
                break
        if done.returncode != 0:
            said = f"{verb}: {(done.stdout + done.stderr).strip()[-600:]}"
            # A process that ends by itself is one more answer of the edit.
            (result.differences if "ProcessExited" in said else result.problems).append(said)
        return done.returncode == 0

    def _differ(self, one: list[str], other: list[str]) -> list[int]:
        longest = max(len(one), len(other))
        pairs = ((i, one[i : i + 1], other[i : i + 1]) for i in range(longest))
        return [i for i, a, b in pairs if a != b and (i >= len(self.stable) or self.stable[i])]

    def _compare(self, what: str, expected: list[str], got: list[str], result: Result) -> None:
        differ = self._differ(expected, got)
        if differ:
            first = differ[0]
            texts = " and ".join(repr(which[first : first + 1])[:200] for which in (expected, got))
            result.differences.append(f"{what}: {len(differ)} answers differ, the first is number {first}: {texts}")
