"""Fixes that change a layout, made safe by hand (examples/hooks, docs/hooks.md): built, applied under load, reverted.

    python -m hack.corpus.by_hand [CASE]

`make corpus` shows that the upstream patches of the same cases are refused. Ends with 1 if anything was not so.
"""

import sys
from pathlib import Path

from hack.corpus.apply import apply
from hack.corpus.bundles import Ground, build
from hack.corpus.cases import Case, Corpus, work
from hack.corpus.programs import PROGRAMS
from hack.tools import REPOSITORY

# make builds libunbound of the same sources; the server has them linked in and does not load it.
ALLOW = {"unbound": ("OtherModuleChanged",)}
EXAMPLES = REPOSITORY / "examples" / "hooks"


class HandMade(Corpus):
    """The corpus with our patch in the place of upstream's."""

    def unpack(self, case: Case, folder: Path) -> tuple[Path, Path]:
        """Put the tree before the fix into a folder that does not exist yet; return it and our patch."""
        tree, _ = super().unpack(case, folder)
        return tree, EXAMPLES / f"{case.name}.patch"


class HandMadeGround(Ground):
    """A place of its own, so that nothing of the corpus is taken for ours."""

    @property
    def home(self) -> Path:
        """The folder of the case."""
        return work() / "by-hand" / self.case.name

    @property
    def place(self) -> Path:
        """Where the trees of a program are built."""
        return work() / "by-hand" / "trees" / self.program.name


def main() -> int:
    """Print a line for each example."""
    corpus, wanted = HandMade(), sys.argv[1:]
    failures = 0
    for case in corpus.cases:
        if not (EXAMPLES / f"{case.name}.patch").is_file() or (wanted and case.name not in wanted):
            continue
        corpus.fetch(case)
        ground = HandMadeGround(case, PROGRAMS[case.program], ALLOW.get(case.program, ()))
        built = build(corpus, ground)
        print(f"{case.name}: {built.verdict} {built.reason} {built.detail}: {', '.join(built.functions)}")
        good = built.verdict == "bundle"
        if good:
            applied = apply(corpus, ground, built)
            good = applied.under_load
            words = "; ".join(applied.problems) or "applied and reverted under load"
            print(f"{case.name}: {applied.done} of {applied.total} processes, {applied.threads} threads: {words}")
        failures += not good
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
