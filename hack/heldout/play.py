"""One fix of one program: build a bundle as a user would, then check, apply, observe and revert it."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hack.heldout.programs import Child, Fix, Program
from hack.sources.fetch import ensure
from hack.tools import REPOSITORY, ToolFailedError, cache, digest_of, run, step

SUMS = Path(__file__).parent / "SHA256SUMS"
PODGRAFT = REPOSITORY / ".venv" / "bin" / "podgraft"
START_SECONDS = 20.0


@dataclass
class Result:
    """verdict: "bundle" or the reason of a refusal. answers: before, patched, reverted. problems: what went wrong."""

    fix: Fix
    verdict: str = ""
    detail: str = ""
    functions: int = 0
    seconds: float = 0.0
    answers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Say whether all is as expected: the refusal, or a bundle that is seen when applied and gone when reverted."""
        if self.verdict != self.fix.expected or self.problems:
            return False
        if self.verdict != "bundle":
            return True
        before, patched, reverted = self.answers
        return before == reverted != patched


def prepare(program: Program) -> tuple[Path, Path | None]:
    """Unpack a program, and build it in place as a user has it, or unpack what Debian ships; both are done once.

    Returns its tree, and the program that Debian ships where that is what runs.

    Raises:
        ToolFailedError: source or package is not to be had, or it cannot be built.
    """
    home = cache() / "heldout" / program.name / digest_of(SUMS, program.build)
    tree, shipped = home / "tree", home / "shipped"
    if not (home / "done").is_file():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        run(REPOSITORY / "hack" / "install-packages", *program.packages)
        folder = ensure(program.name, program.version, SUMS)
        file = f"{program.name}_{program.version.split(':')[-1]}.dsc"
        run("dpkg-source", "--no-check", "-x", folder / file, tree)
        if program.shipped:
            _unpack(f"{program.shipped.package}={program.version}", shipped)
        else:
            with step(f"{program.name}: build in place"):
                run("sh", "-c", program.build, cwd=tree, log=home / "build.log")
        (home / "done").touch()
    return tree, shipped / program.shipped.path if program.shipped else None


def _unpack(package: str, folder: Path) -> None:
    folder.mkdir()
    run("apt-get", "download", package, cwd=folder, log=folder / "download.log")
    for file in folder.glob("*.deb"):
        run("dpkg", "-x", file, folder)


def play(program: Program, fix: Fix) -> Result:
    """Return what became of one fix."""
    (tree, shipped), result = prepare(program), Result(fix)
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        folder = Path(name)
        _write_patch(tree, fix, folder)
        _build(program, tree, shipped, folder, result)
        if result.verdict == "bundle":
            (folder / "work").mkdir()
            with _running(program, shipped or tree, folder / "work") as child:
                _transitions(program, child, folder / "fix.graft", result)
    return result


def _write_patch(tree: Path, fix: Fix, folder: Path) -> None:
    text = (tree / fix.file).read_text()
    if text.count(fix.old) != 1:
        raise ToolFailedError(f"{fix.file} has {text.count(fix.old)} times {fix.old!r}")
    for side, content in (("a", text), ("b", text.replace(fix.old, fix.new))):
        (folder / side / fix.file).parent.mkdir(parents=True)
        (folder / side / fix.file).write_text(content)
    done = subprocess.run(
        ["diff", "-u", f"a/{fix.file}", f"b/{fix.file}"], cwd=folder, capture_output=True, check=False
    )
    (folder / "fix.patch").write_bytes(done.stdout)


def _build(program: Program, tree: Path, shipped: Path | None, folder: Path, result: Result) -> None:
    words: list[str | Path] = [
        PODGRAFT,
        "build",
        f"--source={tree}",
        f"--patch={folder}/fix.patch",
        f"--build={program.build}",
    ]
    words += [f"--binary={result.fix.binary}", "--name=fix", f"--output={folder}/fix.graft", "--json"]
    words += [f"--running={shipped}"] if shipped else []
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    result.seconds = time.monotonic() - began
    try:
        told = json.loads(done.stdout)
    except ValueError:  # a traceback
        result.verdict, result.detail = "failed", done.stderr[-600:]
        return
    if done.returncode == 0:
        result.verdict, result.functions = "bundle", len(told["functions"])
    else:
        result.verdict, result.detail = told["reason"], told["detail"]


@contextmanager
def _running(program: Program, place: Path, folder: Path) -> Iterator[Child]:
    with subprocess.Popen(
        program.start(folder, place, program.port),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if program.name == "leveldb" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as child:
        try:
            _wait(program, child)
            yield child
        finally:
            child.kill()


def _wait(program: Program, child: Child) -> None:
    """Wait until the program answers."""
    until = time.monotonic() + START_SECONDS
    while program.name != "leveldb":
        if child.poll() is not None or time.monotonic() > until:
            raise ToolFailedError(f"{program.name} does not listen (exit code {child.returncode})")
        try:
            socket.create_connection(("127.0.0.1", program.port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return


def _transitions(program: Program, child: Child, bundle: Path, result: Result) -> None:
    result.answers.append(program.ask(child, program.port))
    _podgraft(result, "check", child, bundle)
    _podgraft(result, "apply", child, bundle)
    result.answers.append(program.ask(child, program.port))
    _podgraft(result, "revert", child, "fix")
    result.answers.append(program.ask(child, program.port))


def _podgraft(result: Result, verb: str, child: Child, what: str | Path) -> None:
    words: list[str | Path] = [PODGRAFT, verb, f"--pid={child.pid}", what]
    for _ in range(3):  # "try again" is the advice where the engine gets no processor
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "HelperUnreachable" not in done.stderr + done.stdout:
            break
    if done.returncode != 0:
        result.problems.append(f"{verb}: {(done.stderr or done.stdout).strip()[-400:]}")
