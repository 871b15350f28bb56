# SPDX-License-Identifier: GPL-2.0-only
"""Page clone and atomic page switch (design 3.1), with an intent in the state before each step.

All targets of a move lie in a workspace that was reserved for it, so nothing of the program can be hit. The pristine
twin of a page is never executed; clones are made from it, and moved home it ends the patch.
"""

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import PROT_NONE, clone_page, move_page, try_map_fixed, unmap
from podgraft_engine.patched.state import Intent, PageRecord, PatchRecord, State
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Mapping, Process


class Pages:
    """The patched pages of one process."""

    def __init__(self, process: Process, memory: Memory, helper: Helper, state: State) -> None:
        self._process = process
        self._memory = memory
        self._helper = helper
        self._state = state

    def switch(self, live: int, content: dict[int, bytes]) -> bool:
        """Replace a page by its pristine content with some bytes changed; False when it is so already.

        Args:
            live: address of the page.
            content: address -> bytes, all within the page.
        """
        page = self._page(live)
        pristine = self._memory.read(page.pristine, PAGE) if page else self._memory.read(live, PAGE)
        wanted = bytearray(pristine)
        for address, data in content.items():
            wanted[address - live : address - live + len(data)] = data
        if self._memory.read(live, PAGE) == wanted:
            return False
        if page is None:
            page = self._make_pristine(live)
        clone = self._free_slot()
        self._intend("clone", page.pristine, clone)
        clone_page(self._helper, page.pristine, clone)
        self._memory.write(clone, bytes(wanted))
        if self._memory.read(page.pristine, PAGE) != pristine:
            raise PodgraftError(Reason.INTERNAL, f"the pristine twin of page {live:#x} changed")
        self._intend("install", clone, live)
        move_page(self._helper, clone, live)
        self._settle(clone)
        return True

    def restore(self, live: int) -> None:
        """Bring the file's own page home; its record goes."""
        page = self._page(live)
        if page is None:
            return
        self._intend("restore", page.pristine, live)
        move_page(self._helper, page.pristine, live)
        self._state.document.pages.remove(page)
        self._settle(page.pristine)

    def recover(self) -> None:
        """Finish or undo the step that an engine before us was killed in."""
        intent = self._state.document.intent
        if intent is None:
            return
        moved = self._file_page_at(intent.target)
        waiting = self._file_page_at(intent.source)
        if intent.op == "pristine":
            if moved:
                self._state.document.pages.append(PageRecord(live=intent.source, pristine=intent.target))
            self._settle(None)
        elif intent.op == "clone":
            self._drop_clone(intent.target)
            self._settle(None)
        elif intent.op == "install":
            if waiting:
                self._drop_clone(intent.source)
            self._settle(intent.source)
        elif intent.op == "restore":
            if waiting:
                move_page(self._helper, intent.source, intent.target)
            page = self._page(intent.target)
            if page is not None:
                self._state.document.pages.remove(page)
            self._settle(intent.source)

    def _page(self, live: int) -> PageRecord | None:
        return next((p for p in self._state.document.pages if p.live == live), None)

    def _make_pristine(self, live: int) -> PageRecord:
        if self._memory.anonymous(live):
            raise PodgraftError(Reason.PAGE_CHANGED_BY_OTHERS, f"page {live:#x} is no longer the file's")
        slot = self._free_slot()
        self._intend("pristine", live, slot)
        clone_page(self._helper, live, slot)
        page = PageRecord(live=live, pristine=slot)
        self._state.document.pages.append(page)
        self._settle(None)
        return page

    def _free_slot(self) -> int:
        """Return a reserved page of a workspace in which nothing lies."""
        maps = self._process.maps()
        for patch in self._state.document.patches:
            for slot in range(patch.workspace, patch.workspace + patch.workspace_size, PAGE):
                mapping = _at(maps, slot)
                if mapping is None and self._reserve(slot):
                    return slot
                if mapping is None:
                    continue
                if mapping.perms.startswith("---") and not mapping.inode:
                    return slot
        raise PodgraftError(Reason.NO_ROOM_NEARBY, "the workspace for page clones is used up")

    def _intend(self, op: str, source: int, target: int) -> None:
        self._state.document.intent = Intent.model_validate({"op": op, "source": source, "target": target})
        self._state.commit()

    def _settle(self, hole: int | None) -> None:
        """The step is done: reserve the hole it left in the workspace, forget the intent."""
        if hole is not None and _at(self._process.maps(), hole) is None:
            self._reserve(hole)
        self._state.document.intent = None
        self._state.commit()

    def _reserve(self, slot: int) -> bool:
        """Reserve a page; False when the program has mapped something there in the meantime."""
        return try_map_fixed(self._helper, slot, PAGE, PROT_NONE)

    def _drop_clone(self, slot: int) -> None:
        if self._file_page_at(slot):
            unmap(self._helper, slot, PAGE)
            self._reserve(slot)

    def _file_page_at(self, address: int) -> bool:
        mapping = _at(self._process.maps(), address)
        return mapping is not None and bool(mapping.inode)


def compose(patches: list[PatchRecord], live: int, *, holes_only_of: PatchRecord | None = None) -> dict[int, bytes]:
    """Return the bytes that all patches want on a page, by the phase that each is in.

    Args:
        patches: the patches of the process.
        live: address of the page.
        holes_only_of: of this patch only the holes, not the sites (a jump must find its hole filled).
    """
    content: dict[int, bytes] = {}
    for patch in patches:
        if patch.phase in ("preparing", "prepared", "retired"):
            continue
        final = patch.phase in ("finalizing", "finalized")
        holes_only = patch is holes_only_of or patch.phase == "restoring"
        for record in patch.sites:
            pieces = [record.hole] if holes_only else [record.hole, record.site]
            for piece in pieces:
                if piece is not None and live <= piece.address < live + PAGE:
                    content[piece.address] = bytes.fromhex(piece.final if final else piece.transition)
    return content


def pages_of(patch: PatchRecord) -> list[int]:
    """Return the pages that a patch touches."""
    pieces = [p for s in patch.sites for p in (s.site, s.hole) if p is not None]
    return sorted({p.address // PAGE * PAGE for p in pieces})


def _at(maps: list[Mapping], address: int) -> Mapping | None:
    return next((m for m in maps if m.start <= address < m.end), None)
