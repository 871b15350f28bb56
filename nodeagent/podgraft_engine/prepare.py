# SPDX-License-Identifier: GPL-2.0-only
"""Prepare aside: map an area near the module, put new code, data and stubs there; nothing that runs sees it."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.code.linker import Image, Linked
from podgraft_engine.code.puns import punned_jump
from podgraft_engine.code.sites import Site
from podgraft_engine.code.stubs import (
    SITE_ROOM,
    STUB_SIZE,
    TRAMPOLINE_SIZE,
    TRAMPOLINES,
    near_jump,
    short_jump,
    stub,
    trampoline,
    undo,
)
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import (
    PLACES_TO_TRY,
    PROT_NONE,
    PROT_READ,
    PROT_RW,
    PROT_RX,
    PlaceTakenError,
    map_fixed,
    protect,
    replace_ours,
    try_map_fixed,
    unmap,
)
from podgraft_engine.hooks.hooks import hook_records
from podgraft_engine.inspection import Findings, Target
from podgraft_engine.patched.pages import pages_of
from podgraft_engine.patched.state import CodeRange, Patchlet, PatchRecord, SiteRecord, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import PAGE, gap_near, trampoline_room
from podgraft_engine.target.module import Module
from podgraft_engine.target.proc import Mapping

CLOSED: Final = struct.pack("<2Q", 2**64 - 1, 2**64 - 1)
# A pristine twin for each page, one clone under way, and one in reserve.
_SPARE_SLOTS: Final = 2


def prepare(target: Target, state: State, helper: Helper, findings: Findings, bundle: Bundle) -> PatchRecord:
    """Bring the new code into the target and return its record, committed as `prepared`.

    Raises:
        Refusal: UNRESOLVED_REFERENCE, UNSUPPORTED_RELOCATION, NO_ROOM_NEARBY; nothing is left in the target.
    """
    for _ in range(PLACES_TO_TRY):
        with suppress(PlaceTakenError):
            return _prepare_somewhere(target, state, helper, findings, bundle)
    raise Refusal(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place near the module is found")


def _prepare_somewhere(target: Target, state: State, helper: Helper, findings: Findings, bundle: Bundle) -> PatchRecord:
    """Choose places, link for them and fill them; what was done is undone when one of them is taken meanwhile."""
    module, sites = findings.module, [*findings.sites, *findings.dropped]
    if module is None:
        raise PodgraftError(Reason.INTERNAL, "a process with problems must not be prepared")
    image = Image(bundle.object, bundle.manifest.references, SITE_ROOM * len(sites))
    maps = target.process.maps()
    area = gap_near(maps, module.middle, image.size)
    linked = image.link(area, findings.values)
    far = _Trampolines([*maps, Mapping(area, area + image.size, "r-xp", 0, "", 0, "")])
    record = _record(bundle, findings, module, linked, far)
    state.document.patches.append(record)
    if not state.has_room():
        state.document.patches.remove(record)
        raise Refusal(Reason.NO_ROOM_NEARBY, "the state of earlier patches fills its mapping; restart the process")
    state.commit()
    try:
        _map(helper, state, record, (area, image.size), PROT_READ)
        for at, content in far.contents.items():
            _map(helper, state, record, (at // PAGE * PAGE, PAGE), PROT_RX)
            target.memory.write(at, content)
        _write(target, linked, sites, [f.new_symbol for f in bundle.manifest.functions])
        reached(Step.CODE_WRITTEN)
        protect(helper, area, image.code_size, PROT_RX)
        protect(helper, linked.starts[2], area + image.size - linked.starts[2], PROT_RW)
        reached(Step.AREA_PROTECTED)
        reserve_workspace(target, state, helper, record)
    except PodgraftError:
        if target.process.alive():
            discard(state, helper, record)
        raise
    record.phase = "prepared"
    state.commit()
    return record


def reserve_workspace(target: Target, state: State, helper: Helper, record: PatchRecord) -> None:
    """Map pages for pristine twins and clones.

    Raises:
        Refusal: NO_ROOM_NEARBY.
    """
    size = (len(pages_of(record)) + _SPARE_SLOTS) * PAGE
    for _ in range(PLACES_TO_TRY):
        address = gap_near(target.process.maps(), record.area, size)
        if try_map_fixed(helper, address, size, PROT_NONE):
            reached(Step.WORKSPACE_MAPPED)
            record.workspace, record.workspace_size = address, size
            state.commit()
            return
    raise Refusal(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place for page clones is found")


def release_workspace(state: State, helper: Helper, record: PatchRecord) -> None:
    """Unmap the workspace, unless another patch on the same page still has its pristine twin there."""
    address, size = record.workspace, record.workspace_size
    if not size or any(address <= p.pristine < address + size for p in state.document.pages):
        return
    # Forgotten before it is unmapped: a crash in between leaks it, the other order could unmap the program's memory.
    record.workspace = record.workspace_size = 0
    state.commit()
    reached(Step.WORKSPACE_FORGOTTEN)
    unmap(helper, address, size)


def release_workspaces(state: State, helper: Helper) -> None:
    """Let nothing of a file stay mapped twice: what patches that are gone held goes, what stays is emptied.

    A twin or clone lies in any workspace, so this can be told when the pages of all patches, wake-up points and
    finders have what they want.
    """
    for patch in state.document.patches:
        if patch.phase == "retired":
            release_workspace(state, helper, patch)
    for address, size in state.document.rooms():
        if not any(address <= p.pristine < address + size for p in state.document.pages):
            replace_ours(helper, address, size, PROT_NONE)


def discard(state: State, helper: Helper, record: PatchRecord) -> None:
    """Take an area away that no thread has ever seen; one that has served before is retired again."""
    release_workspace(state, helper, record)
    if record.served:
        record.phase = "retired"
        state.commit()
        return
    state.document.patches.remove(record)
    state.commit()
    reached(Step.AREA_FORGOTTEN)
    for address, size in record.mapped:
        unmap(helper, address, size)


def _map(helper: Helper, state: State, record: PatchRecord, where: tuple[int, int], protection: int) -> None:
    """Map memory and write down that it is ours, in this order: only what is written down is ever unmapped."""
    map_fixed(helper, *where, protection)
    reached(Step.AREA_MAPPED)
    record.mapped.append(where)
    state.commit()


def links_of(findings: Findings) -> str:
    """Return a digest of module base and references: where it is the same, a linked area can serve again."""
    bias = findings.module.bias if findings.module else 0
    below = [(s.address, s.doors, s.dropped) for s in (*findings.sites, *findings.dropped)]
    return hashlib.sha256(repr((bias, sorted(findings.values.items()), below)).encode()).hexdigest()


@dataclass(frozen=True)
class _Doors:
    """Where a site leads: to its stub, past it when all threads have migrated, to the stub for leaving."""

    stub: int
    past: int
    back: int

    def reached_from(self, site: Site, far: "_Trampolines") -> "_Doors":
        """Return the doors that the site itself can reach."""
        return self if site.pun is None else _Doors(*far.lead(site, (self.stub, self.past, self.back)))

    def pieces(self, at: int, encode: Callable[[int], bytes]) -> Patchlet:
        """Return the jumps that are put at one address."""
        transition, final, back = (encode(door).hex() for door in (self.stub, self.past, self.back))
        return Patchlet(address=at, transition=transition, final=final, back=back if back != transition else None)


def _site_record(site: Site, doors: _Doors, far: "_Trampolines") -> SiteRecord:
    """Compute the bytes of a site and its holes: to the stub while threads migrate, past it when all have."""
    near = doors.reached_from(site, far)
    if site.pun is not None:
        pun = site.pun
        jumps = [near.pieces(site.address, lambda door: punned_jump(site.address, site.length, pun, door))]
    else:
        *hops, last = site.address, *site.holes
        jumps = [near.pieces(last, lambda door: near_jump(last, door))]
        for at, onward in zip(reversed(hops), reversed(site.holes), strict=True):
            short = short_jump(at, onward).hex()
            jumps.insert(0, Patchlet(address=at, transition=short, final=short))
    return SiteRecord(
        function=site.function,
        rung=site.rung,
        site=jumps[0],
        holes=jumps[1:],
        reentrant=site.reentrant,
        door=doors.past,
        dropped=site.dropped,
    )


def _doors(site: Site, linked: Linked, new_symbol: str | None, index: int) -> _Doors:
    """Choose the doors of a site. A dropped one has the stub alone."""
    cell = linked.stubs + SITE_ROOM * index
    if new_symbol is None:
        return _Doors(cell, cell, cell)
    past = cell + STUB_SIZE if site.undo.needed else _new_address(linked, new_symbol)
    return _Doors(cell, past, cell if site.doors[0] == site.doors[1] else cell + 2 * STUB_SIZE)


class _Trampolines:
    """Pages far away, each with the trampolines of one punned site."""

    def __init__(self, maps: list[Mapping]) -> None:
        self._maps = maps
        self.contents: dict[int, bytes] = {}

    def lead(self, site: Site, doors: tuple[int, int, int]) -> list[int]:
        """Return the addresses of trampolines to these doors that a punned site can reach."""
        at = trampoline_room(self._maps, site.pun.low, site.pun.high, TRAMPOLINES) if site.pun else None
        if at is None:
            raise Refusal(Reason.NO_ROOM_NEARBY, f"no free page where the punned jump of {site.function} leads")
        page = at // PAGE * PAGE
        self._maps = [*self._maps, Mapping(page, page + PAGE, "r-xp", 0, "", 0, "")]
        self.contents[at] = b"".join(trampoline(door).ljust(TRAMPOLINE_SIZE, b"\xcc") for door in doors)
        return [at + index * TRAMPOLINE_SIZE for index in range(len(doors))]


def _record(bundle: Bundle, findings: Findings, module: Module, linked: Linked, far: _Trampolines) -> PatchRecord:
    manifest, sites, links = bundle.manifest, findings.sites, links_of(findings)
    symbols = [*(f.new_symbol for f in manifest.functions), *(None for _ in findings.dropped)]
    every = [_site_record(s, _doors(s, linked, symbols[i], i), far) for i, s in enumerate([*sites, *findings.dropped])]
    # A signal frame with the very start of a function means a new call, but where branches lead back to the start.
    early = {f.entry.offset: s.reentrant for f, s in zip(manifest.functions, sites, strict=True)}
    old = [
        CodeRange(function=f.entry.symbol, start=at - early.get(r.offset, False), end=at + r.size)
        for f in manifest.functions
        for r in (f.entry, *f.parts)
        for at in [module.bias + r.offset]
    ]
    # Whoever is in a function that the new source lacks may have been led there by a jump from one that is replaced.
    for r in manifest.gone:
        at = module.bias + r.offset
        old.append(CodeRange(function=r.symbol, start=at, end=at + r.size))
    new = [CodeRange(function=n, start=a, end=a + size) for n, (a, size) in linked.functions.items() if size]
    return PatchRecord(
        name=manifest.name,
        version=manifest.version,
        digest=bundle.digest,
        cves=list(manifest.cves),
        phase="preparing",
        generation=0,
        area=linked.base,
        links=links,
        mapped=[],
        workspace=0,
        workspace_size=0,
        code=CodeRange(function="stubs", start=linked.base, end=linked.base + linked.image.code_size),
        gate=linked.gate,
        eh_frame=linked.eh_frame,
        old=old,
        new=new,
        trampolines=[at // PAGE * PAGE for at in far.contents],
        replaced=findings.replaced,
        sites=every,
        hooks=hook_records(bundle, linked),
    )


def _new_address(linked: Linked, symbol: str) -> int:
    if symbol not in linked.functions:
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"patch.o does not define {symbol}")
    return linked.functions[symbol][0]


def _cells(site: Site, linked: Linked, new_symbol: str | None, index: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is written for one site, and where: bytes from the beginning of its cells."""
    doors = _doors(site, linked, new_symbol, index)
    now, later = site.doors
    if new_symbol is None:
        yield 0, stub(doors.stub, site, (later, now), linked.gate)
        return
    yield 0, stub(doors.stub, site, (doors.past, now), linked.gate)
    if doors.back != doors.stub:
        yield doors.back - doors.stub, stub(doors.back, site, (doors.past, later), linked.gate)
    if site.undo.needed:
        back = undo(site.undo)
        yield STUB_SIZE, back + near_jump(doors.past + len(back), _new_address(linked, new_symbol))


def _write(target: Target, linked: Linked, sites: list[Site], new_symbols: list[str]) -> None:
    """Write code, constants, data and stubs; the gate is closed: every stub leads to old code."""
    code = linked.contents[0]
    symbols = [*new_symbols, *(None for _ in sites[len(new_symbols) :])]
    for index, (site, symbol) in enumerate(zip(sites, symbols, strict=True)):
        at = linked.image.stubs_at + SITE_ROOM * index
        for offset, body in _cells(site, linked, symbol, index):
            code[at + offset : at + offset + len(body)] = body
    gate = linked.image.gate_at
    linked.contents[2][gate : gate + len(CLOSED)] = CLOSED
    for start, content in zip(linked.starts, linked.contents, strict=True):
        if content:
            target.memory.write(start, bytes(content))
        if content and target.memory.read(start, len(content)) != content:
            raise PodgraftError(Reason.INTERNAL, f"what was written at {start:#x} did not arrive")
