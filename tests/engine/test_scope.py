"""What a target may be made of: libraries that come and go or are there twice, static programs, another C library."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import PAIR_FUNCTIONS, TARGETS, Target, engine, run_target

from podgraft_engine.helper import block

PROGRAMS = Path(__file__).parents[1] / "torture" / "programs"
NAME = "pairs-2"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with its bundle beside it."""
    folder = tmp_path_factory.mktemp("library")
    path = forge.compile_program(PROGRAMS / "library.c", folder / "libpairs.so", "-fPIC", "-shared")
    forge.compile_object(PROGRAMS / "patch.c", folder / "patch.o", "-fPIC")
    forge.forge(path, folder / "patch.o", ["left", "right"], folder / "bundle.graft", name=NAME)
    return path


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forge.compile_program(TARGETS / "loader.c", tmp_path_factory.mktemp("loader") / "loader")


@pytest.fixture
def host(loader: Path) -> Iterator[Target]:
    """A program that opens and calls libraries when it is told so."""
    yield from run_target(loader)


def bundle_of(library: Path) -> str:
    return str(library.parent / "bundle.graft")


def code_of(target: Target, path: Path) -> bytes:
    return Target(target.child, path).text()


def test_a_library_is_opened_closed_and_opened_again(host: Target, library: Path) -> None:
    """The patch goes with the library, which is said, and the next copy gets it anew."""
    bundle = bundle_of(library)
    maps = host.maps()
    early = engine(host.pid, op="apply", bundle=bundle)
    assert (early.code, early.last["reason"]) == (3, "ModuleNotMapped")
    assert host.maps() == maps
    for round_of in range(2):
        assert host.ask(f"open 0 {library}") == "open"
        assert host.ask("call 0") == "1"
        before = code_of(host, library)
        applied = engine(host.pid, op="apply", bundle=bundle)
        assert applied.code == 0, applied
        assert sorted(e["tid"] for e in applied.of("migrated")) == host.tids()
        assert host.ask("call 0") == "2"
        if round_of == 0:
            assert host.ask("close 0") == "closed"
            assert [p["phase"] for p in engine(host.pid, op="status").last["patches"]] == ["lost"]
    assert engine(host.pid, op="revert", name=NAME).code == 0
    assert host.ask("call 0") == "1"
    assert code_of(host, library) == before


@pytest.mark.parametrize("second", ["open 1 {other}", "own 1 {other}", "own 1 {same}"])
def test_a_library_that_is_there_twice_is_refused(host: Target, library: Path, tmp_path: Path, second: str) -> None:
    """Two paths with one build id, or one file in two name spaces: no copy is patched, and none left out in silence."""
    other = Path(shutil.copy(library, tmp_path / "libpairs.so"))
    assert host.ask(f"open 0 {library}") == "open"
    assert host.ask(second.format(other=other, same=library)) == "open"
    maps = host.maps()
    answer = engine(host.pid, op="apply", bundle=bundle_of(library))
    assert (answer.code, answer.last["reason"]) == (3, "UnsupportedTarget"), answer
    assert "2 times" in answer.last["detail"]
    assert host.maps() == maps
    assert (host.ask("call 0"), host.ask("call 1")) == ("1", "1")


def test_a_second_copy_that_comes_later_is_not_taken_for_patched(host: Target, library: Path) -> None:
    """Applying again says so; the patch in the first copy can still be reverted."""
    bundle = bundle_of(library)
    assert host.ask(f"open 0 {library}") == "open"
    assert engine(host.pid, op="apply", bundle=bundle).code == 0
    assert host.ask(f"own 1 {library}") == "open"
    again = engine(host.pid, op="apply", bundle=bundle)
    assert (again.code, again.last["reason"]) == (3, "UnsupportedTarget"), again
    assert (host.ask("call 0"), host.ask("call 1")) == ("2", "1")
    assert engine(host.pid, op="revert", name=NAME).code == 0
    assert (host.ask("call 0"), host.ask("call 1")) == ("1", "1")


# Patchable entries: where code is not position independent, nothing else in right can be a site.
FIXED = ("-fno-pie", "-fpatchable-function-entry=5")
KINDS = {
    "static": ("gcc", ("-static", "-no-pie", *FIXED), ("-fno-pie",)),
    "static-pie": ("gcc", ("-static-pie",), ()),
    "musl": ("musl-gcc", ("-pie", "-Wl,--build-id"), ()),
    "musl-static": ("musl-gcc", ("-static", "-no-pie", "-Wl,--build-id", *FIXED), ("-fno-pie",)),
}


def pairs_of(kind: str, folder: Path) -> Path:
    """Build the program of pairs for a C library, and pairs.graft beside it."""
    compiler, flags, object_flags = KINDS[kind]
    program = forge.compile_program(TARGETS / "pairs.c", folder / "pairs", *flags, compiler=compiler)
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o", "-DSTATIC", *object_flags, compiler=compiler)
    forge.forge(program, folder / "patch.o", PAIR_FUNCTIONS, folder / "pairs.graft", name=NAME)
    return program


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_with_its_own_or_another_c_library(kind: str, tmp_path: Path) -> None:
    """Static glibc has wake-up points; musl has no unwind data and so none, and its threads are held."""
    program = pairs_of(kind, tmp_path)
    for target in run_target(program, "1", "2", "1"):
        text, tids = target.text(), target.tids()
        applied = engine(target.pid, op="apply", bundle=str(tmp_path / "pairs.graft"), deadline=20)
        assert applied.code == 0, applied
        assert sorted(e["tid"] for e in applied.of("migrated")) == tids
        ways = {e["how"] for e in applied.of("migrated")}
        assert ("wakeup" in ways) == (not kind.startswith("musl")), ways
        target.report()
        while (seen := target.report())["new"] == 0:
            pass
        assert (seen["old"], seen["wrong"]) == (0, 0)
        assert engine(target.pid, op="revert", name=NAME, deadline=20).code == 0
        # The block lies behind the code where there is no C library to hold it.
        code = target.text().split(block.MAGIC)[0]
        assert text.startswith(code)
        assert not any(text[len(code) :])
        report = target.quit()
        assert (report["wrong"], report["eintr"], report["changes"]) == (0, 0, 2)


def test_who_migrates_in_the_last_pass_is_not_left(tmp_path: Path) -> None:
    """The deadline passes while the last thread is moved: the transition is complete, not late with nobody to name."""
    # All sleep outside of the pair for long, and none comes by itself: the first pass moves all of them.
    program, bundle = pairs_of("musl", tmp_path), tmp_path / "pair.graft"
    forge.forge(program, tmp_path / "patch.o", PAIR_FUNCTIONS[:2], bundle, name=NAME)
    for target in run_target(program, "0", "0", "8"):
        target.ask("linger")
        calls = [Path(f"/proc/{target.pid}/task/{tid}/syscall") for tid in target.tids()]
        while any(call.read_text().startswith("running") for call in calls):
            pass
        applied = engine(target.pid, op="apply", bundle=str(bundle), deadline=0.0001)
        assert (applied.code, applied.last["event"]) == (0, "finalized"), applied
