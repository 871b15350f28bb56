"""Each rung of the site ladder on hand-picked machine code, and what must not be taken."""

from collections.abc import Iterator

import pytest

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.code.sites import Pun, Site, choose_site
from podgraft_engine.code.stubs import punned_jump

START = 0x401000
TABLE = 0x402000


class Around:
    """A neighbourhood with the given holes, free pages and jump table."""

    def __init__(self, holes: tuple[int, ...] = (), *, room: bool = False, table: bytes = b"") -> None:
        self._holes, self._room, self._table = holes, room, table

    def holes(self, origin: int, size: int) -> Iterator[int]:
        assert size == 5
        yield from (hole for hole in self._holes if -128 <= hole - origin <= 127)

    def has_room(self, pun: Pun) -> bool:
        assert pun.low <= pun.high
        return self._room

    def read(self, address: int, size: int) -> bytes | None:
        at = address - TABLE
        return self._table[at : at + size] if at >= 0 and at + size <= len(self._table) else None


def choose(code: str, around: Around | None = None) -> Site:
    return choose_site("f", START, bytes.fromhex(code), [], around or Around())


def refused(code: str, around: Around | None = None) -> None:
    with pytest.raises(Refusal) as refusal:
        choose(code, around)
    assert refusal.value.reason == Reason.NO_PATCH_SITE


def test_an_instruction_of_five_bytes_takes_a_near_jump() -> None:
    """`mov eax,1` is 5 bytes."""
    site = choose("b801000000 c3")
    assert (site.rung, site.address, site.length) == ("jmp-rel32", START, 5)


def test_a_site_behind_pushes_knows_what_to_undo() -> None:
    """`push rbp; mov rbp,rsp; push rbx; sub rsp,0x28; mov eax,1`: 0x38 bytes of stack, rbp 8 below their start."""
    site = choose("55 4889e5 53 4883ec28 b801000000 c3")
    assert (site.address, site.undo.stack, site.undo.rbp_at) == (START + 9, 0x38, 8)


def test_endbr64_stays_first() -> None:
    """The landing pad is never displaced."""
    assert choose("f30f1efa b801000000 c3").address == START + 4


def test_a_short_instruction_takes_a_short_jump_to_a_hole_in_reach() -> None:
    """`mov rbp,rdi` is 3 bytes; one hole is too far away, the other is not."""
    site = choose("4889fd 31c0 c3", Around((START + 0x200, START + 0x60)))
    assert (site.rung, site.length, site.hole) == ("jmp-rel8-hole", 2, START + 0x60)


def test_a_punned_jump_keeps_the_bytes_that_follow() -> None:
    """Wherever the trampoline lies in the range, the encoded jump ends in the program's own bytes."""
    code = "488b4608 80780400 c3"
    site = choose(code, Around(room=True))
    assert site.rung == "jmp-punned"
    assert site.pun is not None
    for target in (site.pun.low, site.pun.high, site.pun.low + 0x1234):
        whole = b"\xe9" + ((target - START - 5) & 0xFFFFFFFF).to_bytes(4, "little")
        assert whole[:4] == punned_jump(START, 4, target)
        assert whole[4] == bytes.fromhex(code)[4]


def test_a_punned_jump_needs_room_where_it_leads() -> None:
    """No free page: refused."""
    refused("488b4608 80780400 c3", Around(room=False))


def test_a_branch_back_to_the_entry_rules_the_site_out() -> None:
    """A loop to the entry would let a running call change generation: `mov eax,1; jmp entry`."""
    refused("b801000000 ebf9")


def test_a_branch_before_the_site_rules_it_out() -> None:
    """`push rbx; mov eax,1; jmp entry`: the loop runs through the site as well."""
    refused("53 b801000000 ebf8")


def test_a_jump_table_that_leads_to_the_entry_rules_the_site_out() -> None:
    """`mov eax,1; lea rdx,[table]; jmp rdx` with a table that holds the entry."""
    lea = "488d15" + (TABLE - (START + 5 + 7)).to_bytes(4, "little").hex()
    to_entry = (START - TABLE).to_bytes(4, "little", signed=True)
    to_end = (START + 12 - TABLE).to_bytes(4, "little", signed=True)
    refused("b801000000" + lea + "ffe2", Around(table=to_end + to_entry))
    assert choose("b801000000" + lea + "ffe2", Around(table=to_end + to_end)).address == START


def test_an_indirect_branch_without_a_table_leaves_only_prologues() -> None:
    """Where it leads cannot be seen; `sub rsp,imm32` runs once, `mov eax,1` might be a loop head."""
    refused("b801000000 ffe2")
    assert choose("4881ec00010000 ffe2").rung == "jmp-rel32"


def test_a_call_is_not_displaced() -> None:
    """Its return address would change (invariant 5)."""
    refused("e800000000 c3")


def test_a_site_never_crosses_a_page() -> None:
    """The five bytes would not be switched in one step."""
    with pytest.raises(Refusal):
        choose_site("f", 0x401FFD, bytes.fromhex("b801000000 c3"), [], Around())
