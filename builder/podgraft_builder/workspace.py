"""A copy of the source tree, built before and after the patch at one and the same path."""

import hashlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from podgraft_builder import kept, wrapper
from podgraft_builder.hooks import INCLUDE
from podgraft_builder.lines import C_LIKE, keep_line_numbers
from podgraft_builder.records import Record, read_log
from podgraft_builder.stale import remove_configured, stands_for_object
from podgraft_bundle.errors import Reason, Refusal

COMPILERS = ["cc", "c++", "gcc", "g++", "clang", "clang++", "c89", "c99"]
SECTIONS = "-g -gno-split-dwarf -fno-debug-types-section -ffunction-sections -fdata-sections"
_HEADER = ("-idirafter", str(INCLUDE))  # podgraft.h, behind all that the program has
_TAIL = 15
_MOVES = ("rename from ", "rename to ", "copy from ", "copy to ")


def cache_folder() -> Path:
    """Return the one folder for cached and temporary builds."""
    return Path(os.environ.get("PODGRAFT_CACHE") or Path.home() / ".cache" / "podgraft")


@dataclass
class Workspace:
    """One tree that is built several times; `shown` is the path that __FILE__ and debug information show."""

    root: Path
    source: Path
    command: str
    lock: IO[str] | None = None  # children have it, too: those that outlive us still use the place
    lasts: bool = False
    tree: Path = field(init=False)
    unconfigured: list[Path] = field(default_factory=list)  # build folders that were left out of the copy

    def __post_init__(self) -> None:
        self.root = self.root.resolve()  # compilers and linkers name files by where they really are
        self.tree = self.root / "tree"
        self._make_wrappers()

    @classmethod
    def create(cls, source: Path, command: str) -> "Workspace":
        """Make a workspace in the cache folder; its place depends on source and command, so that it may be used again.

        Where another build of the same is under way, it is a place that nobody uses again. remove() ends the use.
        """
        source = source.resolve()
        if cache_folder().resolve().is_relative_to(source):
            raise Refusal(
                Reason.BUILD_FAILED,
                f"the cache folder {cache_folder()} lies in the source tree, and the tree is copied to it",
                "set PODGRAFT_CACHE to a folder outside of the tree",
            )
        cache_folder().mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(f"{source}\0{command}".encode()).hexdigest()[:16]
        lock = kept.try_lock(cache_folder() / f"build-{key}")
        lasts = lock is not None
        if lock is None:
            key = secrets.token_hex(8)
            lock = kept.try_lock(cache_folder() / f"build-{key}")
        root = cache_folder() / f"build-{key}"
        for name in ("bin", "new", "plain", "tree", "trial"):
            shutil.rmtree(root / name, ignore_errors=True)
        return cls(root, source, command, lock, lasts)

    def remove(self) -> None:
        """Delete the workspace, but for an old build that is kept."""
        if (self.root / "kept.json").is_file():
            shutil.rmtree(self.tree, ignore_errors=True)
        else:
            shutil.rmtree(self.root, ignore_errors=True)
        if self.lock is not None:
            if not self.lasts:
                Path(self.lock.name).unlink()  # no other will ever have this name
            self.lock.close()
            kept.prune(cache_folder())

    def restore(self) -> list[Record] | None:
        """Put the old build of this very tree in place if there is one, and return its records."""
        return kept.restore(self.root, self.tree, self.state, self.root / "old")

    def keep(self, state: str, since: int) -> None:
        """Keep the tree as the old build left it, unless what it was made from has changed since it began."""
        if self.lasts and state == self.state():
            kept.keep(self.root, self.tree, state, self.root / "old", since)

    def sparing(self) -> AbstractContextManager[None]:
        """Make ready meanwhile what the next patch to this tree needs."""
        return kept.sparing(self.root) if self.lasts else nullcontext()

    def state(self) -> str:
        """Return a digest of what the old build is made from."""
        return kept.state_of(self.source, self._environment(self.root / "old", SECTIONS), self.command)

    def copy_tree(self) -> None:
        """Put a fresh copy of the source tree in place, file times kept, without what was configured for its place."""
        if self.tree.exists():
            shutil.rmtree(self.tree)
        kept.copy(self.source, self.tree)
        self.unconfigured = [folder.relative_to(self.tree) for folder in remove_configured(self.tree)]

    def clean(self, *, archives: bool) -> None:
        """Delete what an earlier build left: programs and objects, and archives if asked.

        libtool's scripts stand for objects and libraries in hidden folders: make looks at nothing else.
        """
        for path in self.tree.rglob("*"):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                start = file.read(8)
            archive = archives and start in {b"!<arch>\n", b"!<thin>\n"}
            if start.startswith(b"\x7fELF") or archive or stands_for_object(path, archives=archives):
                path.unlink()

    def build(self, store_name: str, flags: str = SECTIONS) -> list[Record]:
        """Run the build command with the wrappers in front; return what they recorded, oldest first."""
        store = self.root / store_name
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        code, text = self._run(["/bin/sh", "-c", self.command], self.tree, self._environment(store, flags))
        if code != 0:
            raise Refusal(Reason.BUILD_FAILED, f"{self.command!r} ended with {code}:\n{text}", self._hint())
        return read_log(store)

    def _run(self, command: list[str], cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Run a command; return its exit code and its last words. It and all that it started end where we are ended."""
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=[] if self.lock is None else [self.lock.fileno()],
        ) as child:
            said = None
            try:
                said, _ = child.communicate()
            finally:
                if said is None:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
        return child.returncode, "\n".join(said.decode(errors="replace").strip().splitlines()[-_TAIL:])

    def _hint(self) -> str | None:
        if not self.unconfigured:
            return None
        names = ", ".join(str(folder) for folder in self.unconfigured)
        return f"let the build command configure {names} anew: it was configured for its old place and is left out"

    def try_patch(self, patch: Path) -> None:
        """Refuse a patch that does not apply before anything is built. Raises Refusal.

        Copies of the files that it seems to name nearly always tell. Where they do not suffice, as for a file that git
        renames, a copy of the whole tree does: what is refused is refused by that.
        """
        trial = self.root / "trial"
        trial.mkdir()
        try:
            for name in patched_names(patch):
                inside = not Path(name).is_absolute() and ".." not in Path(name).parts
                if inside and (self.source / name).is_file():
                    (trial / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(self.source / name, trial / name, follow_symlinks=False)
            _patch(trial, patch)
        except (Refusal, OSError):
            self.copy_tree()
            _patch(self.tree, patch)
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    def apply_patch(self, patch: Path, read: AbstractSet[str]) -> None:
        """Apply a patch, keep the line numbers of what it leaves alone in files that compilers read. Raises Refusal."""
        for name in _patch(self.tree, patch):
            before, after = self.source / name, self.tree / name
            seen = str(after.resolve()) in read  # other programs that read a file may not know what #line is
            if seen and after.suffix in C_LIKE and before.is_file() and after.is_file():
                keep_line_numbers(before, after)

    def _environment(self, store: Path, flags: str) -> dict[str, str]:
        bin_ = self.root / "bin"
        environment = dict(os.environ)
        environment.update(
            PATH=f"{bin_}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            PODGRAFT_BIN=str(bin_),
            PODGRAFT_STORE=str(store),
            PODGRAFT_FLAGS="\n".join([*flags.split(), f"-ffile-prefix-map={self.tree}={self.source}", *_HEADER]),
            LC_ALL="C",
        )
        if "CCACHE_NODISABLE" not in environment:  # a cache is used where the user asks for it
            environment["CCACHE_DISABLE"] = "1"
        environment.setdefault("SOURCE_DATE_EPOCH", "0")
        for variable in ("CC", "CXX"):
            words = os.environ.get(variable, "").split()
            if words:
                environment[variable] = " ".join([str(self._wrapper(words[0])), *words[1:]])
        return environment

    def _make_wrappers(self) -> None:
        (self.root / "bin").mkdir(parents=True, exist_ok=True)
        found = [
            path.name
            for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
            for path in Path(folder or ".").glob("*")
            if re.fullmatch(r"([\w.]+-)*(gcc|g\+\+|cc|c\+\+|clang|clang\+\+)(-[\d.]+)?", path.name)
        ]
        for name in sorted({*COMPILERS, *found}):
            self._wrapper(name)

    def _wrapper(self, compiler: str) -> Path:
        folder = self.root / "bin"
        if "/" in compiler:  # it need not be the one of that name on PATH
            folder /= hashlib.sha256(str(Path(compiler).parent).encode()).hexdigest()[:8]
            folder.mkdir(exist_ok=True)
        path = folder / Path(compiler).name
        if not path.exists():
            call = shlex.join([sys.executable, "-I", "-S", wrapper.__file__, compiler])
            path.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
            path.chmod(0o755)
        return path


def _patch(folder: Path, patch: Path) -> list[str]:
    """Apply a patch as dpkg-source does; return the names of the files. Raises Refusal."""
    names = patched_names(patch)
    result = subprocess.run(
        ["patch", "-p1", "-F0", "-N", "-t", "-E", "--no-backup-if-mismatch", "-r", "-", "-i", patch.resolve()],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    if result.returncode != 0 or not names:
        said = (result.stdout + result.stderr).decode(errors="replace").strip().splitlines()[-_TAIL:]
        applied = any("previously applied" in line for line in said)  # what GNU patch says
        hint = "the tree has the fix already; give the tree that the running binary was built from"
        detail = "\n".join(said) or f"{patch} changes no file"
        raise Refusal(Reason.PATCH_DOES_NOT_APPLY, detail, hint if applied else None)
    return names


def patched_names(patch: Path) -> list[str]:
    """Return the files that a patch names, first path component stripped; git names what it renames without one."""
    names = set()
    for line in patch.read_bytes().decode(errors="replace").splitlines():
        if line.startswith(("--- ", "+++ ")):
            name = line[4:].split("\t")[0].strip()
            if name != "/dev/null" and "/" in name:
                names.add(name.split("/", 1)[1])
        elif line.startswith(_MOVES):
            names.add(line.split(" ", 2)[2])
    return sorted(names)
