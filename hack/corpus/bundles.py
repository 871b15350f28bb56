"""One case as a bundle: tree, the binary that runs, and what `podgraft build` says."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hack.corpus.cases import Case, Corpus, work
from hack.corpus.programs import Program
from hack.tools import REPOSITORY, cache, digest_of, run, step

PODGRAFT = REPOSITORY / ".venv" / "bin" / "podgraft"
REFUSED = 3  # the exit code
SOURCES = frozenset({".c", ".h", ".y", ".lex"})


@dataclass
class Built:
    """verdict: "bundle", "refused", "failed" or "not run"; reason and detail for what is no bundle.

    seconds: of the whole build. grounds: why the builder holds a bundle for safe.
    """

    verdict: str
    reason: str
    detail: str
    functions: list[str]
    overruled: list[str]
    digest: str
    seconds: float
    grounds: list[str] = field(default_factory=list)


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
    case = ground.case
    known = known_build(ground)
    if known is not None:
        return known
    plain, key = _keys(ground)
    ground.home.mkdir(parents=True, exist_ok=True)
    tree, fix = prepare(corpus, ground)
    if not (ground.built / plain).is_file():
        with step(f"{case.name}: the program that runs"):
            _plain_build(ground, tree)
        (ground.built / plain).touch()
    with step(f"{case.name}: podgraft build"):
        result = _podgraft_build(ground, tree, fix)
    if result.verdict != "failed":  # what went wrong is tried again by the next run
        (ground.home / "build.json").write_text(json.dumps({"key": key, **asdict(result)}, indent=1))
    return result


def known_build(ground: Ground) -> Built | None:
    """Return the verdict of a case that the cache holds, if neither builder nor program have changed."""
    kept = ground.home / "build.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {"key": None}
    return Built(**known) if known.pop("key") == _keys(ground)[1] else None


def _keys(ground: Ground) -> tuple[str, str]:
    """Return what the program as it runs depends on, and what a verdict does."""
    program = ground.program
    plain = digest_of(str(asdict(ground.case)), program.configure, program.build)
    format_ = [REPOSITORY / "bundle" / "podgraft_bundle" / name for name in ("bundle.py", "manifest.py")]
    return plain, digest_of(plain, REPOSITORY / "builder" / "podgraft_builder", *format_)


def prepare(corpus: Corpus, ground: Ground) -> tuple[Path, Path]:
    """Return the tree before the fix, configured, and the fix."""
    shutil.rmtree(ground.place / "pair", ignore_errors=True)
    ground.place.mkdir(parents=True, exist_ok=True)
    tree, fix = corpus.unpack(ground.case, ground.place / "pair")
    if ground.program.configure:
        _configure(ground, tree)
    return tree, fix


def _configure(ground: Ground, tree: Path) -> None:
    """Configure a tree, or take what an earlier case got from the very same scripts."""
    program = ground.program
    scripts = [p for p in sorted(tree.rglob("*")) if p.is_file() and p.suffix not in SOURCES]
    state = digest_of(program.configure, *(str(p.relative_to(tree)) for p in scripts), *scripts)
    kept = ground.place / "configured" / state
    if not kept.is_dir():
        before = _times(tree)
        with step(f"{ground.case.name}: configure"):
            run("sh", "-c", program.configure, cwd=tree, env=environment(), log=ground.home / "configure.log")
        shutil.rmtree(kept.parent, ignore_errors=True)
        made = kept.with_name("new")
        made.mkdir(parents=True)
        for path in sorted(_times(tree).keys()):
            if path.is_dir():
                (made / path.relative_to(tree)).mkdir()
            elif before.get(path) != path.lstat().st_mtime_ns:
                shutil.copy2(path, made / path.relative_to(tree), follow_symlinks=False)
        made.rename(kept)
    shutil.copytree(kept, tree, symlinks=True, dirs_exist_ok=True)
    now = time.time()  # all of one time, and newer than the sources: make has nothing to do again
    for path in kept.rglob("*"):
        os.utime(tree / path.relative_to(kept), (now, now), follow_symlinks=False)
    run("sh", "-c", program.touch, cwd=tree)


def _times(tree: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in tree.rglob("*")}


def _plain_build(ground: Ground, tree: Path) -> None:
    """Build in the place of the tree and keep what came out; the tree stays as it was."""
    shutil.rmtree(ground.built, ignore_errors=True)
    aside = tree.with_name("aside")
    shutil.copytree(tree, aside, symlinks=True)
    run("sh", "-c", ground.program.build, cwd=tree, env=environment(), log=ground.home / "plain.log")
    binary = ground.built / ground.case.binary
    binary.parent.mkdir(parents=True)
    shutil.copy2(tree / ground.case.binary, binary)
    shutil.rmtree(tree)
    aside.rename(tree)


def command(ground: Ground, tree: Path, fix: Path) -> list[str]:
    """Return the call of `podgraft build` for a case."""
    case = ground.case
    make = ground.program.build
    if any(re.search(rf"^\+\+\+ [^/]+/{name}", fix.read_text(), re.MULTILINE) for name in ground.program.scripts):
        make = f"{ground.program.configure} && {make}"  # what is to be built may be another thing after the fix
    words = [str(PODGRAFT), "build", f"--source={tree}", f"--patch={fix}", f"--build={make}"]
    words += [f"--binary={case.binary}", f"--running={ground.built / case.binary}", f"--name={case.name.lower()}"]
    words += [f"--allow={reason}" for reason in ground.allow]
    return words + [f"--cve={cve}" for cve in case.cves] + [f"--output={ground.bundle}", "--json"]


def _podgraft_build(ground: Ground, tree: Path, fix: Path) -> Built:
    ground.bundle.unlink(missing_ok=True)
    began = time.monotonic()
    code, out, err = _run_whole(command(ground, tree, fix))
    seconds = round(time.monotonic() - began, 1)
    (ground.home / "build.log").write_text(out + err)
    if code == 0:
        told = json.loads(out)
        functions = [str(row["function"]) for row in told["functions"]]
        overruled, digest, grounds = told["overruled"], told["digest"], told["grounds"]
        return Built("bundle", "", "", functions, overruled, digest, seconds, grounds)
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
        env=environment(),
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


def environment() -> dict[str, str]:
    """Let ccache stand before the compilers: most objects of a tree are those of the case before it."""
    return {
        **os.environ,
        "PATH": f"/usr/lib/ccache:{os.environ['PATH']}",
        "CCACHE_DIR": str(cache() / "ccache"),
        "CCACHE_PATH": "/usr/bin:/bin",
        "CCACHE_NODISABLE": "1",
    }
