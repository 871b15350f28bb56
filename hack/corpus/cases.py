"""The cases: a table, a script that makes a pair of trees, and one that observes; they live outside this repository."""

import csv
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hack.sources.fetch import CODENAME, checksums, ensure
from hack.tools import ToolFailedError, cache, run

# Which Debian release has a source package, where that is not the one that everything else here is from.
CODENAMES = {"unbound": "trixie"}
NEEDED = ("cases.tsv", "make-pair.sh", "observe.py", "sources/SHA256SUMS")


@dataclass(frozen=True)
class Case:
    """One fix. expected: "bundle", "refuse-or-careful" or "no-change"; observable: whether observe.py knows it."""

    name: str
    program: str
    version: str
    grade: str
    cves: tuple[str, ...]
    binary: str
    expected: str
    observable: bool


class Corpus:
    """The folder with the cases.

    Raises:
        ToolFailedError: PODGRAFT_CORPUS names no folder that holds them.
    """

    def __init__(self) -> None:
        given = os.environ.get("PODGRAFT_CORPUS")
        if not given:
            raise ToolFailedError(
                "PODGRAFT_CORPUS is not set: name the folder with cases.tsv, make-pair.sh, observe.py"
            )
        self.folder = Path(given).absolute()
        missing = [name for name in NEEDED if not (self.folder / name).is_file()]
        if missing:
            raise ToolFailedError(
                f"{self.folder} has no {missing[0]}: PODGRAFT_CORPUS must name the folder of the cases"
            )

    @cached_property
    def cases(self) -> list[Case]:
        """Return all cases in their order."""
        with (self.folder / "cases.tsv").open() as file:
            return [
                Case(
                    name=row["case"],
                    program=row["source"],
                    version=row["version"],
                    grade=row["grade"],
                    cves=tuple(name for name in row["cves"].split(",") if name.startswith("CVE-")),
                    binary=row["binary"],
                    expected=row["expected"],
                    observable=row["observable"] != "-",
                )
                for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            ]

    def chosen(self, only: str) -> list[Case]:
        """Return the cases of one program, or those whose name ends with `only`; all for an empty one.

        Raises:
            ToolFailedError: there are none.
        """
        found = [case for case in self.cases if not only or case.program == only or case.name.endswith(only)]
        if not found:
            raise ToolFailedError(f"ONLY={only} is neither a program nor a case of {self.folder}")
        return found

    def fetch(self, case: Case) -> None:
        """Put the sources of a program beside a copy of the script that reads them, wherever they came from."""
        sums = self.folder / "sources" / "SHA256SUMS"
        sources = ensure(case.program, case.version, sums, CODENAMES.get(case.program, CODENAME))
        (self._kit / "sources").mkdir(parents=True, exist_ok=True)
        for name in ("cases.tsv", "make-pair.sh"):
            shutil.copyfile(self.folder / name, self._kit / name)
        if (self.folder / "patches").is_dir():
            shutil.copytree(self.folder / "patches", self._kit / "patches", dirs_exist_ok=True)
        shutil.copyfile(sums, self._kit / "sources" / "SHA256SUMS")
        for name in checksums(sums):
            if name.startswith(f"{case.program}_"):
                link = self._kit / "sources" / name
                link.unlink(missing_ok=True)
                link.symlink_to(sources / name)

    def unpack(self, case: Case, folder: Path) -> tuple[Path, Path]:
        """Put the tree before the fix into a folder that does not exist yet; return it and the fix."""
        run("sh", self._kit / "make-pair.sh", case.name, folder)
        return folder / "old", folder / "new.patch"

    @property
    def _kit(self) -> Path:
        return work() / "kit"


def work() -> Path:
    """Return the folder in the cache where all of this happens."""
    return cache() / "corpus"
