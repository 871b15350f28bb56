"""One case as a bundle: tree, the binary that runs, and what `podgraft build` says."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hack.corpus.cases import Case, Corpus, work
from hack.corpus.programs import Program
from hack.tools import REPOSITORY, cache, digest_of, run, step

PODGRAFT = REPOSITORY / ".venv" / "bin" / "podgraft"
REFUSED = 3  # the exit code


@dataclass
class Built:
    """verdict: "bundle", "refused" or "failed"; reason and detail for what is no bundle; seconds of the whole build."""

    verdict: str
    reason: str
    detail: str
    functions: list[str]
    overruled: list[str]
    digest: str
    seconds: float


@dataclass
class Ground:
    """Where one case lives: binary (and what runs it) and the file of the bundle. allow: hazards that are overruled."""

    case: Case
    program: Program
    allow: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """The folder of the case: results, the built program, the bundle."""
        return work() / "cases" / self.case.name

    @property
    def built(self) -> Path:
        """The program as it runs, built without podgraft."""
        return self.home / "built"

    @property
    def bundle(self) -> Path:
        """The bundle."""
        return self.home / "fix.graft"

    @property
    def place(self) -> Path:
        """Where the trees of a program are built, one after the other: at one path, for __FILE__ and for ccache."""
        return work() / "trees" / self.program.name


def build(corpus: Corpus, ground: Ground) -> Built:
    """Return the verdict of a case, from the cache if neither builder nor program have changed.

    Raises:
        ToolFailedError: the program itself cannot be built.
    """
    case, program = ground.case, ground.program
    plain = digest_of(str(asdict(case)), program.configure, program.build)
    key = digest_of(plain, REPOSITORY / "builder", REPOSITORY / "bundle", REPOSITORY / "cli")
    kept = ground.home / "build.json"
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known.pop("key") == key:
            return Built(**known)
    ground.home.mkdir(parents=True, exist_ok=True)
    tree, fix = _tree(corpus, ground)
    if program.configure:
        with step(f"{case.name}: configure"):
            run("sh", "-c", program.configure, cwd=tree, env=_environment(), log=ground.home / "configure.log")
    if not (ground.built / plain).is_file():
        with step(f"{case.name}: the program that runs"):
            _plain_build(ground, tree)
        (ground.built / plain).touch()
    with step(f"{case.name}: podgraft build"):
        result = _podgraft_build(ground, tree, fix)
    if result.verdict != "failed":  # what went wrong is tried again by the next run
        kept.write_text(json.dumps({"key": key, **asdict(result)}, indent=1))
    return result


def _tree(corpus: Corpus, ground: Ground) -> tuple[Path, Path]:
    shutil.rmtree(ground.place / "pair", ignore_errors=True)
    ground.place.mkdir(parents=True, exist_ok=True)
    return corpus.unpack(ground.case, ground.place / "pair")


def _plain_build(ground: Ground, tree: Path) -> None:
    """Build in the place of the tree and keep what came out; the tree stays as it was."""
    shutil.rmtree(ground.built, ignore_errors=True)
    aside = tree.with_name("aside")
    shutil.copytree(tree, aside, symlinks=True)
    run("sh", "-c", ground.program.build, cwd=tree, env=_environment(), log=ground.home / "plain.log")
    binary = ground.built / ground.case.binary
    binary.parent.mkdir(parents=True)
    shutil.copy2(tree / ground.case.binary, binary)
    shutil.rmtree(tree)
    aside.rename(tree)


def _podgraft_build(ground: Ground, tree: Path, fix: Path) -> Built:
    case = ground.case
    words = [str(PODGRAFT), "build", f"--source={tree}", f"--patch={fix}", f"--build={ground.program.build}"]
    words += [f"--binary={case.binary}", f"--running={ground.built / case.binary}", f"--name={case.name.lower()}"]
    words += [f"--allow={reason}" for reason in ground.allow]
    words += [f"--cve={cve}" for cve in case.cves] + [f"--output={ground.bundle}", "--json"]
    ground.bundle.unlink(missing_ok=True)
    began = time.monotonic()
    code, out, err = _run_whole(words)
    seconds = round(time.monotonic() - began, 1)
    (ground.home / "build.log").write_text(out + err)
    if code == 0:
        told = json.loads(out)
        functions = [str(row["function"]) for row in told["functions"]]
        return Built("bundle", "", "", functions, _overruled(ground.bundle), told["digest"], seconds)
    verdict = "refused" if code == REFUSED else "failed"
    try:
        told = json.loads(out)
    except ValueError:  # no word of the builder's own: a traceback
        return Built("failed", "InternalError", err[-600:], [], [], "", seconds)
    return Built(verdict, told["reason"], told["detail"], [], [], "", seconds)


def _run_whole(words: list[str]) -> tuple[int, str, str]:
    """Run a command; when we are ended, the compilers that it started end, too."""
    with subprocess.Popen(
        words,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, out, err


def _overruled(bundle: Path) -> list[str]:
    told = json.loads(run(PODGRAFT, "inspect", bundle, "--json"))
    return [str(item) for item in told["overruled"]]


def _environment() -> dict[str, str]:
    """Let ccache stand before the compilers: most objects of a tree are those of the case before it."""
    return {
        **os.environ,
        "PATH": f"/usr/lib/ccache:{os.environ['PATH']}",
        "CCACHE_DIR": str(cache() / "ccache"),
        "CCACHE_PATH": "/usr/bin:/bin",
        "CCACHE_NODISABLE": "1",
    }
