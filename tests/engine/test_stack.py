"""The quiescence check: the scan finds every return address, the unwind tells stale words from frames."""

import struct

from podgraft_engine.patched.state import CodeRange
from podgraft_engine.target.ehframe import RETURN_ADDRESS, Row
from podgraft_engine.threads.stack import Forbidden, Frame, judge, unwind

OLD = CodeRange(function="old", start=0x5555_5555_1000, end=0x5555_5555_1100)
COLD = CodeRange(function="old", start=0x5555_5550_0000, end=0x5555_5550_0008)
CALLER = 0x5555_5556_0000
SP = 0x7FFF_0000_0000
FORBIDDEN = Forbidden([OLD, COLD])


def stack(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def leaf_rows(pc: int) -> Row | None:
    """Every function has one word for the return address; CALLER is the outermost."""
    if pc == CALLER - 1:
        return Row(known=True, outermost=True)
    return Row(known=True, cfa_offset=8, saved=((RETURN_ADDRESS, -8),))


def test_scan_finds_a_return_address_at_any_aligned_place() -> None:
    """First, middle and last word of the stack."""
    for position in range(9):
        words = [1] * 9
        words[position] = OLD.start + 5
        data = stack(*words)
        assert FORBIDDEN.scan(data, len(data)) == (OLD.start + 5, OLD)


def test_scan_matches_from_behind_the_start_to_the_end() -> None:
    """A function pointer (the start) is no frame; a noreturn call at the end returns to `end`."""
    for value, found in ((OLD.start, False), (OLD.start + 1, True), (OLD.end, True), (OLD.end + 1, False)):
        data = stack(value)
        assert (FORBIDDEN.scan(data, len(data)) is not None) is found
    data = stack(COLD.end)
    assert FORBIDDEN.scan(data, len(data)) == (COLD.end, COLD)


def test_scan_ignores_what_lies_beyond_the_size() -> None:
    """The buffer is larger than the stack."""
    data = stack(1, OLD.start + 5)
    assert FORBIDDEN.scan(data, 8) is None


def test_a_true_frame_is_not_quiescent() -> None:
    """Old is on the stack, called from CALLER."""
    data = stack(OLD.start + 5, CALLER)
    verdict = judge(FORBIDDEN, Frame(CALLER + 0x100, {7: SP}), data, len(data), leaf_rows)
    assert (verdict.quiescent, verdict.function, verdict.call_site) == (False, "old", OLD.start + 5)


def test_a_stale_word_is_seen_through_by_the_unwind() -> None:
    """The word lies above the outermost frame."""
    data = stack(CALLER, OLD.start + 5)
    assert judge(FORBIDDEN, Frame(CALLER + 0x100, {7: SP}), data, len(data), leaf_rows).quiescent


def test_doubt_means_no() -> None:
    """Without unwind rows a word that points into old code keeps the thread where it is."""
    data = stack(CALLER, OLD.start + 5)
    verdict = judge(FORBIDDEN, Frame(CALLER + 0x100, {7: SP}), data, len(data), lambda _pc: None)
    assert (verdict.quiescent, verdict.doubtful) == (False, True)


def test_a_thread_inside_the_function_is_not_quiescent() -> None:
    """Its pc counts before its stack."""
    verdict = judge(FORBIDDEN, Frame(OLD.start, {7: SP}), stack(CALLER), 8, leaf_rows)
    assert not verdict.quiescent


def test_unwind_stops_at_a_stack_that_does_not_grow() -> None:
    """A damaged row must not loop."""
    rows = Row(known=True, cfa_offset=0, saved=((RETURN_ADDRESS, 0),))
    assert unwind(Frame(CALLER, {7: SP}), stack(CALLER), SP, 8, lambda _pc: rows) is None
