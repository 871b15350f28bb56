# SPDX-License-Identifier: GPL-2.0-only
"""The sites of one bundle in one process: the site ladder asks, the process answers (design 3.2)."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import Range, ReplacedFunction
from podgraft_engine.code.holes import Holes
from podgraft_engine.code.prologue import Undo
from podgraft_engine.code.puns import LONGEST_PUN, Pun
from podgraft_engine.code.sites import Site, choose_site, pages_of_claims, same_site
from podgraft_engine.code.stubs import TRAMPOLINES
from podgraft_engine.patched.layers import Layer, Layers
from podgraft_engine.patched.pages import OriginalText
from podgraft_engine.patched.state import PatchRecord, SiteRecord, State
from podgraft_engine.target.layout import PAGE, trampoline_room
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module
from podgraft_engine.target.proc import Mapping, Process

LONGEST_INSTRUCTION: Final = 16


class SiteFinder:
    """Finds a site for each function of a bundle and gives nothing to two of them. The process is read once for all.

    declared: the bytes that declared points will change.
    """

    def __init__(
        self,
        process: Process,
        memory: Memory,
        module: Module,
        state: State | None,
        *,
        bundle: Bundle,
        declared: set[int],
    ) -> None:
        patches = state.document.patches if state else []
        functions = functions_of(bundle, module)
        # A retired patch keeps its holes: its stubs are there for the next time.
        others = [p for p in patches if p.digest != bundle.digest]
        # So do its trampolines, and they are all the room that a punned jump may have.
        kept = {page for p in patches if p.digest == bundle.digest for page in p.trampolines}
        self._layers = Layers(state.document if state else None, bundle)
        self._functions = functions
        self._memory = OriginalText(memory, state.document if state else None)
        self._pages = memory
        self._module = module
        self._maps = process.maps()
        self._taken = [m for m in self._maps if m.start not in kept]
        self._starts = [m.start for m in self._maps]
        self._ours = {p.live for p in state.document.pages} if state else set()
        self._holes = Holes(module, self._memory, _claimed(others, functions) | declared)
        self.shadow_stack = _has_shadow_stack(process)
        self.padding, self.is_free = self._holes.behind, self._holes.is_free

    def find(self, function: ReplacedFunction) -> Site:
        """Return the site of a function, which no other function gets.

        Raises:
            Refusal: PREIMAGE_MISMATCH, NO_PATCH_SITE, PAGE_CHANGED_BY_OTHERS.
        """
        name, start = function.entry.symbol, self._module.bias + function.entry.offset
        code = self.read_checked(function.entry)
        parts = [(self._module.bias + p.offset, self.read_checked(p)) for p in function.parts]
        below = self._layers.at(start, start + len(code))
        if below.top is not None:
            return self._over(below, below.top, start, code)
        site = choose_site(name, start, code, parts, self)
        for page in pages_of_claims([site]):
            if self.is_foreign(page):
                detail = f"page {page:#x} of {site.function} is no longer the file's"
                raise Refusal(Reason.PAGE_CHANGED_BY_OTHERS, detail)
        take_site(site, self._holes, self._taken)
        return site

    def dropped(self) -> list[Site]:
        """Return a site for each function that goes back to what it was because its patch is replaced.

        Raises:
            Refusal: NO_PATCH_SITE.
        """
        sites = []
        for layer in self._layers.dropped(self._functions):
            if layer.top is not None:
                at = layer.top.site.address
                site = self._over(layer, layer.top, at, self._memory.read(at, LONGEST_INSTRUCTION))
                # What stands before it is not looked at: the original code goes on as it is, whatever the flags hold.
                sites.append(replace(site, undo=Undo(flags=True), dropped=True))
        return sites

    def _over(self, layer: Layer, record: SiteRecord, start: int, code: bytes) -> Site:
        """Return the site of the patch below: a function has one site, whoever is in force."""
        place = (record.site.address, len(record.site.final) // 2)
        displaced, undo, pun = same_site(record.function, start, code, place, self.has_room)
        if record.rung != "jmp-punned":
            pun = None
        elif pun is None:
            raise Refusal(Reason.NO_PATCH_SITE, f"{record.function}: no free page for one more punned jump")
        holes = tuple(hole.address for hole in record.holes)
        site = Site(record.function, *place, record.rung, displaced, undo, holes, pun, record.reentrant, layer.doors)
        take_site(site, self._holes, self._taken)
        return site

    def holes(self, origin: int, size: int) -> Iterator[int]:
        """Leave out what lies on pages that others have changed: the site itself may not."""
        return (hole for hole in self._holes.near(origin, size) if not self.is_foreign(hole // PAGE * PAGE))

    def has_room(self, pun: Pun) -> bool:
        """Tell whether a page is free where a punned jump leads."""
        return trampoline_room(self._taken, pun.low, pun.high, TRAMPOLINES) is not None

    def read(self, address: int, size: int) -> bytes | None:
        """Return bytes of the target, None where it is not mapped."""
        mapping = self._maps[bisect_right(self._starts, address) - 1]
        mapped = mapping.start <= address and address + size <= mapping.end and "r" in mapping.perms
        return self._memory.read(address, size) if mapped else None

    def is_foreign(self, page: int) -> bool:
        """Tell whether somebody else has changed a page."""
        return page not in self._ours and self._pages.anonymous(page)

    def read_checked(self, old: Range) -> bytes:
        """Return a piece of old code. Raises Refusal(PREIMAGE_MISMATCH)."""
        address = self._module.bias + old.offset
        if not self._module.contains(address) or not self._module.contains(address + old.size - 1):
            raise Refusal(Reason.PREIMAGE_MISMATCH, f"{old.symbol} does not lie in the module's mapped code")
        code = self._memory.read(address, old.size)
        if hashlib.sha256(code).hexdigest() != old.sha256:
            raise Refusal(Reason.PREIMAGE_MISMATCH, f"{old.symbol} at {address:#x} differs from the code in the bundle")
        return code


def take_site(site: Site, holes: Holes, taken: list[Mapping]) -> None:
    """Give a site to a function: no other one gets its bytes, nor its room for trampolines."""
    for claim in site.claims():
        holes.take(*claim)
    room = site.pun and trampoline_room(taken, site.pun.low, site.pun.high, TRAMPOLINES)
    if room:
        page = room // PAGE * PAGE
        taken.append(Mapping(page, page + PAGE, "r-xp", 0, "", 0, ""))


def functions_of(bundle: Bundle, module: Module) -> list[tuple[int, int]]:
    """Return start and end of the functions that a bundle replaces."""
    entries = [f.entry for f in bundle.manifest.functions]
    return [(module.bias + e.offset, module.bias + e.offset + e.size) for e in entries]


def _claimed(patches: list[PatchRecord], functions: list[tuple[int, int]]) -> set[int]:
    """Return the bytes that patches have changed or rely on: a punned jump ends in bytes of the program.

    What they have for the functions of this bundle does not count: it is not used at the same time.
    """
    sites = [s for p in patches for s in p.sites if not any(a <= s.site.address < b for a, b in functions)]
    pieces = [(p, len(p.final) // 2) for s in sites for p in (s.site, *s.holes)]
    punned = [(s.site, LONGEST_PUN) for s in sites if s.rung == "jmp-punned"]
    return {byte for piece, size in (*pieces, *punned) for byte in range(piece.address, piece.address + size)}


def _has_shadow_stack(process: Process) -> bool:
    """Tell whether a thread has one (Documentation/arch/x86/shstk.rst)."""
    features = (process.status(tid).get("x86_Thread_features", "") for tid in process.threads())
    return any("shstk" in line.split() for line in features)
