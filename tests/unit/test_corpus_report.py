"""The page of `make corpus`: what it counts as good, and what it must not."""

from pathlib import Path

from hack.corpus.apply import Applied
from hack.corpus.bundles import Built
from hack.corpus.cases import Case
from hack.corpus.report import Row, write
from hack.corpus.speed import Speed

ANSWERS = ["old", "new", "old"]


def case(name: str, grade: str = "A", expected: str = "bundle") -> Case:
    return Case(name, "nginx", "1", grade, (), "objs/nginx", expected, observable=False)


def bundle(grounds: tuple[str, ...] = ()) -> Built:
    return Built("bundle", "", "", ["f"], [], "sha256:0", 2.0, list(grounds))


def test_totals_count_only_what_was_seen(tmp_path: Path) -> None:
    """Refused, unknown and half-applied cases are told apart; held threads do not count as moved by themselves."""
    good = Applied(2, 2, 2, moves={"wakeup": 9, "inherited": 1, "sleeping": 2}, answers=ANSWERS)
    half = Applied(2, 1, 1, moves={"running": 4}, problems=["apply: DeadlinePassed: x"])
    rows = [
        Row(case("one"), bundle(), good),
        Row(case("two"), bundle(), half),
        Row(case("three", expected="no-change"), Built("refused", "NoChange", "", [], [], "", 1.0), None),
        Row(case("four"), Built("refused", "ChangedLayout", "size", [], [], "", 1.0), None),
        Row(case("five"), Built("not run", "", "", [], [], "", 0.0), None),
    ]
    totals = write(rows, [], tmp_path / "page.md")
    assert "| grade A | 5 | 2 | 1 | 1 of 1 | 10/16 (62 %) | 1 | 1 | 1 |" in totals
    assert "**no**: 1/2" in (tmp_path / "page.md").read_text()


def test_grounds_and_build_time_are_told(tmp_path: Path) -> None:
    """A bundle of grade C comes with the builder's reasons, and the ratio of build times is that of the clock first."""
    rows = [Row(case("c", "C", "refuse-or-careful"), bundle(("f is static",)), None)]
    write(rows, [Speed("c", 6.0, 5.0, 3.0, 2.0)], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "    * f is static" in page
    assert "| c | 6.0 (5.0) | 3.0 (2.0) | 2.0 (2.5) |" in page
    assert "| not run | - | - | 2 |" in page
