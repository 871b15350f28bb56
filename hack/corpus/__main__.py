"""`python -m hack.corpus [ONLY]`: all cases, those of one program, or one case; then docs/corpus.md.

With --known instead nothing is run: the page tells what is known of each case, and which have not been run.
"""

import sys

from hack.corpus import network, report
from hack.corpus.apply import apply, known_apply
from hack.corpus.bundles import Built, Ground, build, known_build
from hack.corpus.cases import Case, Corpus, work
from hack.corpus.programs import PROGRAMS
from hack.corpus.speed import known_speed, measure
from hack.tools import REPOSITORY, ToolFailedError, lock, main, run, say


def play() -> None:
    """Run the chosen cases one after the other; what is known already comes from the cache."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    corpus = Corpus()
    if only == "--known":
        rows = [_known(case) for case in corpus.cases]
        speeds = [known for ground in _measured(rows) if (known := known_speed(ground))]
        print(report.write(rows, speeds))
        return
    chosen = corpus.chosen(only)
    unknown = {case.program for case in chosen} - set(PROGRAMS)
    if unknown:
        raise ToolFailedError(f"hack/corpus/programs.py does not know how to build {', '.join(sorted(unknown))}")
    packages = sorted({name for case in chosen for name in PROGRAMS[case.program].packages})
    run(REPOSITORY / "hack" / "install-packages", "ccache", *packages)
    work().mkdir(parents=True, exist_ok=True)
    for program in {case.program: case for case in chosen}.values():
        corpus.fetch(program)
    network.enter()
    with lock("corpus"):
        rows = [_row(corpus, case) for case in chosen]
        speeds = [measure(corpus, ground) for ground in _measured(rows)] if not only else []
    file = report.FILE if not only else work() / "corpus.md"
    print(report.write(rows, speeds, file))
    print(f"\n{file}")


def _measured(rows: list[report.Row]) -> list[Ground]:
    """Return the first case of each program that became a bundle: its build time is measured."""
    first = {row.case.program: row.case for row in reversed(rows) if row.built.verdict == "bundle"}
    return [Ground(case, PROGRAMS[program]) for program, case in sorted(first.items())]


def _known(case: Case) -> report.Row:
    ground = Ground(case, PROGRAMS[case.program])
    built = known_build(ground)
    if built is None:
        return report.Row(case, Built("not run", "", "", [], [], "", 0), None)
    return report.Row(case, built, known_apply(ground, built) if built.verdict == "bundle" else None)


def _row(corpus: Corpus, case: Case) -> report.Row:
    ground = Ground(case, PROGRAMS[case.program])
    built = build(corpus, ground)
    applied = apply(corpus, ground, built) if built.verdict == "bundle" else None
    row = report.Row(case, built, applied)
    seen = f", applied {applied.done}/{applied.total}, observed {applied.observed}" if applied else f" {built.reason}"
    say(f"{case.name} [{case.grade}, {case.expected}]: {built.verdict}{seen}")
    for problem in applied.problems if applied else [built.detail] if built.detail else []:
        say(f"    {problem[:300]}")
    return row


if __name__ == "__main__":
    main(play)
