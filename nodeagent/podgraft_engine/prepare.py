# SPDX-License-Identifier: GPL-2.0-only
"""Prepare aside: map an area near the module, put new code, data and stubs there; nothing that runs sees it."""

import hashlib
import struct
from contextlib import suppress
from typing import Final

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_engine.code.linker import Image, Linked
from podgraft_engine.code.puns import punned_jump
from podgraft_engine.code.sites import Site
from podgraft_engine.code.stubs import (
    STUB_SIZE,
    TRAMPOLINE_SIZE,
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
    try_map_fixed,
    unmap,
)
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
    module, sites = findings.module, findings.sites
    if module is None:
        raise PodgraftError(Reason.INTERNAL, "a process with problems must not be prepared")
    # Per site a stub, and room for a way back to the function's entry when threads no longer need the stub.
    image = Image(bundle.object, bundle.manifest.references, STUB_SIZE * 2 * len(sites))
    maps = target.process.maps()
    middle = (module.mappings[0].start + module.mappings[-1].end) // 2
    area = gap_near(maps, middle, image.size)
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
    return hashlib.sha256(repr((bias, sorted(findings.values.items()))).encode()).hexdigest()


def _site_record(site: Site, doors: tuple[int, int]) -> SiteRecord:
    """Compute the bytes of a site and its hole: to the stub while threads migrate, past it when all have."""
    if site.pun is not None:
        pieces = [punned_jump(site.address, site.length, site.pun, door).hex() for door in doors]
        jump = Patchlet(address=site.address, transition=pieces[0], final=pieces[1])
        return SiteRecord(function=site.function, rung=site.rung, site=jump, reentrant=site.reentrant)
    *hops, last = site.address, *site.holes
    pieces = [near_jump(last, door).hex() for door in doors]
    jumps = [Patchlet(address=last, transition=pieces[0], final=pieces[1])]
    for at, onward in zip(reversed(hops), reversed(site.holes), strict=True):
        short = short_jump(at, onward).hex()
        jumps.insert(0, Patchlet(address=at, transition=short, final=short))
    return SiteRecord(function=site.function, rung=site.rung, site=jumps[0], holes=jumps[1:], reentrant=site.reentrant)


def _doors(site: Site, linked: Linked, new_symbol: str, index: int) -> tuple[int, int]:
    """Return where a site leads: to its stub, and when all threads have migrated past it to the new function."""
    stub_at = linked.stubs + 2 * STUB_SIZE * index
    return stub_at, stub_at + STUB_SIZE if site.undo.needed else _new_address(linked, new_symbol)


class _Trampolines:
    """Pages far away, each with two trampolines of one punned site."""

    def __init__(self, maps: list[Mapping]) -> None:
        self._maps = maps
        self.contents: dict[int, bytes] = {}

    def lead(self, site: Site, doors: tuple[int, int]) -> tuple[int, int]:
        """Return the doors that the site itself can reach."""
        if site.pun is None:
            return doors
        at = trampoline_room(self._maps, site.pun.low, site.pun.high, 2 * TRAMPOLINE_SIZE)
        if at is None:
            raise Refusal(Reason.NO_ROOM_NEARBY, f"no free page where the punned jump of {site.function} leads")
        page = at // PAGE * PAGE
        self._maps = [*self._maps, Mapping(page, page + PAGE, "r-xp", 0, "", 0, "")]
        self.contents[at] = trampoline(doors[0]).ljust(TRAMPOLINE_SIZE, b"\xcc") + trampoline(doors[1])
        return at, at + TRAMPOLINE_SIZE


def _record(bundle: Bundle, findings: Findings, module: Module, linked: Linked, far: _Trampolines) -> PatchRecord:
    manifest, sites, links = bundle.manifest, findings.sites, links_of(findings)
    symbols = [f.new_symbol for f in manifest.functions]
    doors = [far.lead(s, _doors(s, linked, symbols[i], i)) for i, s in enumerate(sites)]
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
        sites=[_site_record(site, pair) for site, pair in zip(sites, doors, strict=True)],
    )


def _new_address(linked: Linked, symbol: str) -> int:
    if symbol not in linked.functions:
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"patch.o does not define {symbol}")
    return linked.functions[symbol][0]


def _write(target: Target, linked: Linked, sites: list[Site], new_symbols: list[str]) -> None:
    """Write code, constants, data and stubs; the gate is closed: every stub leads to old code."""
    code = linked.contents[0]
    for index, (site, symbol) in enumerate(zip(sites, new_symbols, strict=True)):
        at = linked.image.stubs_at + 2 * STUB_SIZE * index
        new = _new_address(linked, symbol)
        body = stub(linked.base + at, site, new, linked.gate)
        code[at : at + len(body)] = body
        if site.undo.needed:
            at, back = at + STUB_SIZE, undo(site.undo)
            body = back + near_jump(linked.base + at + len(back), new)
            code[at : at + len(body)] = body
    gate = linked.image.gate_at
    linked.contents[2][gate : gate + len(CLOSED)] = CLOSED
    for start, content in zip(linked.starts, linked.contents, strict=True):
        if content:
            target.memory.write(start, bytes(content))
        if content and target.memory.read(start, len(content)) != content:
            raise PodgraftError(Reason.INTERNAL, f"what was written at {start:#x} did not arrive")
