"""Each rung of the site ladder on hand-picked machine code, and what must not be taken."""

from collections.abc import Callable, Iterator

import pytest
from iced_x86 import Code, Decoder, Register

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.code.prologue import Undo
from podgraft_engine.code.puns import Pun, punned_jump
from podgraft_engine.code.sites import Site, choose_site
from podgraft_engine.target.layout import trampoline_room
from podgraft_engine.target.proc import Mapping

START = 0x401000
TABLE = 0x402000


class Around:
    """A neighbourhood: holes (address, size), padding behind the function, room for punned jumps, a jump table."""

    def __init__(
        self,
        *holes: tuple[int, int],
        behind: int = 0,
        room: Callable[[Pun], bool] = lambda _: False,
        table: bytes = b"",
        shadow_stack: bool = False,
    ) -> None:
        self._holes, self._behind, self._room, self._table = holes, behind, room, table
        self.shadow_stack = shadow_stack

    def holes(self, origin: int, size: int) -> Iterator[int]:
        yield from (hole for hole, length in self._holes if -128 <= hole - origin <= 127 and length >= size)

    def padding(self, end: int) -> int:
        assert end > START
        return self._behind

    def is_free(self, start: int, size: int) -> bool:
        assert start >= START
        assert size > 0
        return True

    def has_room(self, pun: Pun) -> bool:
        assert pun.low <= pun.high
        return self._room(pun)

    def read(self, address: int, size: int) -> bytes | None:
        at = address - TABLE
        return self._table[at : at + size] if at >= 0 and at + size <= len(self._table) else None


def choose(code: str, around: Around | None = None, start: int = START) -> Site:
    return choose_site("f", start, bytes.fromhex(code), [], around or Around())


def refused(code: str, around: Around | None = None, start: int = START) -> None:
    with pytest.raises(Refusal) as refusal:
        choose(code, around, start)
    assert refusal.value.reason == Reason.NO_PATCH_SITE


def test_an_instruction_of_five_bytes_takes_a_near_jump() -> None:
    """`mov eax,1` is 5 bytes."""
    site = choose("b801000000 c3")
    assert (site.rung, site.address, site.length, site.reentrant) == ("jmp-rel32", START, 5, False)


def test_a_site_behind_pushes_knows_what_to_undo() -> None:
    """`push rbp; mov rbp,rsp; push rbx; sub rsp,0x28; mov eax,1`: 0x38 bytes of stack, rbp 8 below their start."""
    site = choose("55 4889e5 53 4883ec28 b801000000 c3")
    assert (site.address, site.undo) == (START + 9, Undo(stack=0x38, restore=((Register.RBP, 8),), flags=True))


def test_a_saved_register_may_be_changed_before_the_site() -> None:
    """`push rbx; mov ebx,edi; xor eax,eax; mov ecx,1`: rbx comes from the stack, rax is told to be 8."""
    site = choose("53 89fb 31c0 b901000000 c3")
    undo = Undo(stack=8, restore=((Register.RBX, 8),), rax=True, flags=True)
    assert (site.address, site.undo) == (START + 5, undo)


@pytest.mark.parametrize(
    "first",
    [
        "89fb",  # mov ebx,edi: rbx was not saved
        "89f7",  # mov edi,esi: an argument
        "50 8b07",  # push rax; mov eax,[rdi]: a fix may be that this is not read
        "50 8907",  # push rax; mov [rdi],eax
        "4883e4f0",  # and rsp,-16: by how much is not known
        "4883c408",  # add rsp,8: somebody else's stack
        "0f05",  # syscall
        "660fefc0",  # pxor xmm0,xmm0: an argument
    ],
)
def test_what_cannot_be_undone_ends_the_search(first: str) -> None:
    """The near jump behind it must not be taken."""
    refused(first + "b801000000 c3")


def test_a_register_that_was_changed_first_is_not_saved_by_a_push() -> None:
    """`xor eax,eax; push rax`: what lies on the stack is not the caller's value, so 8 is put there."""
    assert choose("31c0 50 b901000000 c3").undo == Undo(stack=8, rax=True, flags=True)


def test_endbr64_stays_first() -> None:
    """The landing pad is never displaced."""
    assert choose("f30f1efa b801000000 c3").address == START + 4


def test_nops_at_an_entry_are_stepped_over() -> None:
    """A thread may have been preempted between any two of them; a long NOP is one instruction."""
    assert choose("9090909090 b801000000 c3").address == START + 5
    assert choose("909090909090 c3", Around(behind=4)).address == START + 6
    assert choose("0f1f440000 c3").address == START


def test_a_short_instruction_takes_a_short_jump_to_a_hole_in_reach() -> None:
    """`mov rbp,rdi` is 3 bytes; one hole is too far away, one too small, the other is not."""
    site = choose("4889fd 31c0 c3", Around((START + 0x200, 5), (START + 0x50, 4), (START + 0x60, 5)))
    assert (site.rung, site.length, site.holes) == ("jmp-rel8-hole", 2, (START + 0x60,))


def test_a_hole_on_the_same_page_is_preferred() -> None:
    """One page less to switch."""
    site = choose("4889fd 31c0 c3", Around((0x400FF0, 5), (START + 0x60, 5)))
    assert site.holes == (START + 0x60,)


def test_small_holes_form_a_chain_to_a_larger_one() -> None:
    """Two hops to the right; the hole on the left leads nowhere."""
    holes = (START - 0x40, 2), (START + 0x60, 2), (START + 0xC0, 3), (START + 0x120, 5)
    site = choose("4889fd 31c0 c3", Around(*holes))
    assert (site.rung, site.holes) == ("jmp-rel8-chain", (START + 0x60, START + 0xC0, START + 0x120))


def test_a_jump_never_takes_the_bytes_of_its_own_hop() -> None:
    """What looks free to the surroundings is taken by the chain itself."""
    refused("4889fd 31c0 c3", Around((START - 1, 5), (START + 1, 2)))
    site = choose("4889fd 31c0 c3", Around((START + 0x7E, 2), (START + 0xFD, 2), (START + 0xFE, 5), (START + 0x100, 5)))
    assert site.holes == (START + 0x7E, START + 0xFE)


def test_padding_behind_the_last_instruction_belongs_to_the_site() -> None:
    """`ret` alone; with four bytes of padding there is room for a near jump, with one for a short one."""
    assert (choose("c3", Around(behind=4)).rung, choose("c3", Around(behind=4)).length) == ("jmp-rel32", 5)
    assert choose("c3", Around((START + 0x20, 5), behind=1)).rung == "jmp-rel8-hole"
    refused("c3", Around((START + 0x20, 5)))
    refused("90", Around((START + 0x20, 5), behind=4))


def test_a_punned_jump_keeps_the_bytes_that_follow() -> None:
    """Wherever the trampoline lies in the range, the encoded jump ends in the program's own bytes."""
    code = "488b4608 80780400 c3"
    for prefixes in range(3):
        site = choose(code, Around(room=lambda pun, n=prefixes: pun.prefixes == n))
        assert site.rung == "jmp-punned"
        assert site.pun is not None
        for target in (site.pun.low, site.pun.high, (site.pun.low + site.pun.high) // 2):
            written = punned_jump(START, site.length, site.pun, target)
            whole = written + bytes.fromhex(code)[4 : 5 + prefixes]
            (jump,) = Decoder(64, whole, ip=START)
            assert (len(written), jump.code, jump.len) == (4, Code.JMP_REL32_64, 5 + prefixes)
            assert jump.near_branch_target == target & (2**64 - 1)


def test_a_punned_jump_needs_room_where_it_leads() -> None:
    """No free page: refused."""
    refused("488b4608 80780400 c3")


def test_a_punned_jump_ends_in_its_own_function() -> None:
    """Where the next function begins, breakpoints are put."""
    refused("488b4608", Around(room=lambda _: True))


def test_a_branch_back_makes_a_site_reentrant() -> None:
    """A loop to the entry, and one to before the site: `mov eax,1; jmp entry`, `push rbx; mov eax,1; jmp entry`."""
    assert choose("b801000000 ebf9").reentrant
    assert choose("53 b801000000 ebf8").reentrant


def test_a_site_that_no_branch_leads_back_to_is_preferred() -> None:
    """`mov eax,edi; again: mov ecx,1; jmp again`: the two bytes, though the loop has five."""
    site = choose("89f8 b901000000 ebf9", Around((START + 0x60, 5)))
    assert (site.address, site.rung, site.reentrant) == (START, "jmp-rel8-hole", False)
    assert choose("89f8 b901000000 ebf9").reentrant


def test_a_branch_into_an_instruction_rules_it_out() -> None:
    """As past a lock prefix: `mov eax,1; jmp entry+1`."""
    refused("b801000000 ebfa")


def test_a_jump_table_that_leads_to_the_entry_makes_it_reentrant() -> None:
    """`mov eax,1; lea rdx,[table]; jmp rdx` with a table that holds the entry, and one that does not."""
    lea = "488d15" + (TABLE - (START + 5 + 7)).to_bytes(4, "little").hex()
    to_entry = (START - TABLE).to_bytes(4, "little", signed=True)
    to_end = (START + 12 - TABLE).to_bytes(4, "little", signed=True)
    assert choose("b801000000" + lea + "ffe2", Around(table=to_end + to_entry)).reentrant
    assert not choose("b801000000" + lea + "ffe2", Around(table=to_end + to_end)).reentrant


def test_an_indirect_branch_without_a_table_may_lead_anywhere_but_into_a_prologue() -> None:
    """Where it leads cannot be seen; `sub rsp,imm32` runs once, `mov eax,1` might be a loop head."""
    assert choose("b801000000 ffe2").reentrant
    assert not choose("4881ec00010000 ffe2").reentrant


def test_a_call_is_displaced_only_without_a_shadow_stack() -> None:
    """Its return address stays (invariant 5), but the processor would miss the push."""
    assert choose("e800000000 c3").rung == "jmp-rel32"
    refused("e800000000 c3", Around(shadow_stack=True))
    refused("ff542408 c3", Around((START + 0x20, 5)))  # call [rsp+8] means another slot after a push


def test_a_site_never_crosses_a_page() -> None:
    """Three of five bytes lie on this page: two hold a short jump, three a punned one, and what is beyond stays."""
    start = 0x401FFD
    refused("b901000000 c3", start=start)
    assert choose("b901000000 c3", Around((start + 0x20, 5)), start).length == 2
    punned = choose("b901000000 c3", Around(room=lambda pun: pun.prefixes == 0), start)
    assert (punned.length, punned.pun.low if punned.pun else None) == (3, start + 5)
    refused("b901000000 c3", Around((0x401FE0, 5), room=lambda _: True), 0x401FFF)


def test_room_for_a_trampoline_is_a_free_page_within_reach() -> None:
    """What is mapped is stepped over; a trampoline begins 16 bytes into its page, and ends within window and page."""
    taken = [Mapping(start, end, "r--p", 0, "", 0, "") for start, end in ((0x20000, 0x25000), (0x27000, 0x28000))]
    assert trampoline_room(taken, 0x20000, 0x2FFFF, 32) == 0x25010
    assert trampoline_room(taken, 0x26100, 0x2FFFF, 32) == 0x26100
    assert trampoline_room(taken, 0x26FF0, 0x28FFF, 32) == 0x28010
    assert trampoline_room(taken, 0x20000, 0x24FFF, 32) is None
    assert trampoline_room(taken, 0x26000, 0x2602E, 32) is None
    assert trampoline_room([], -0x1000, 0x800, 32) is None
