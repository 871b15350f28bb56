# SPDX-License-Identifier: GPL-2.0-only
"""Page clone and atomic page switch (design 3.1).

All twins and clones lie in a workspace of our own. Every move leaves the source mapped (DONTUNMAP: it refaults from the
file), so the workspace never has a hole that the program could fill, and each step can be repeated after a crash. Only
a new pristine twin needs an intent in the state, for it takes the page's own entry along. The twin is never executed;
clones are made from it, and moved home it ends the patch.
"""

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import move_page
from podgraft_engine.patched.state import BEFORE_SWITCH, Document, Intent, PageRecord, Patchlet, PatchRecord, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.maps import Maps
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process


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
        elif not self._is_mapped_as(page, live):
            raise PodgraftError(Reason.MODULE_NOT_MAPPED, f"page {live:#x} belongs to another file now")
        clone = self._free_slot()
        move_page(self._helper, page.pristine, clone)
        reached(Step.CLONE_MADE)
        self._memory.write(clone, bytes(wanted))
        reached(Step.CLONE_WRITTEN)
        if self._memory.read(page.pristine, PAGE) != pristine:
            raise PodgraftError(Reason.INTERNAL, f"the pristine twin of page {live:#x} changed")
        move_page(self._helper, clone, live)
        reached(Step.PAGE_SWITCHED)
        return True

    def restore(self, live: int) -> None:
        """Bring the file's own page home; its record goes. Nothing is done where the module has gone."""
        page = self._page(live)
        if page is None:
            return
        if self._is_mapped_as(page, live):
            move_page(self._helper, page.pristine, live)
            reached(Step.PAGE_HOME)
        self._document.pages.remove(page)
        self._state.commit()

    def recover(self) -> None:
        """Finish the twin that an engine before us was killed in making, or forget it."""
        intent = self._document.intent
        if intent is None:
            return
        page = intent.page
        made = self._is_mapped_as(page, page.pristine) and not self._memory.anonymous(page.pristine)
        if made and self._page(page.live) is None:
            self._document.pages.append(page)
        self._document.intent = None
        self._state.commit()

    def has(self, live: int) -> bool:
        """Tell whether a page was ever switched."""
        return self._page(live) is not None

    @property
    def _document(self) -> Document:
        return self._state.document

    def _page(self, live: int) -> PageRecord | None:
        return next((p for p in self._document.pages if p.live == live), None)

    def _make_pristine(self, live: int) -> PageRecord:
        mapping = Maps(self._process).at(live)
        if mapping is None or not mapping.inode or self._memory.anonymous(live):
            raise PodgraftError(Reason.PAGE_CHANGED_BY_OTHERS, f"page {live:#x} is no longer the file's")
        page = PageRecord(
            live=live,
            pristine=self._free_slot(),
            device=mapping.device,
            inode=mapping.inode,
            offset=mapping.offset + live - mapping.start,
        )
        self._document.intent = Intent(page=page)
        self._state.commit()
        reached(Step.TWIN_INTENDED)
        move_page(self._helper, live, page.pristine)
        reached(Step.TWIN_MADE)
        self._document.pages.append(page)
        self._document.intent = None
        self._state.commit()
        return page

    def _is_mapped_as(self, page: PageRecord, address: int) -> bool:
        """Tell whether the page of the file that the record names is mapped at an address."""
        mapping = Maps(self._process).at(address)
        return mapping is not None and (mapping.device, mapping.inode, mapping.offset + address - mapping.start) == (
            page.device,
            page.inode,
            page.offset,
        )

    def _free_slot(self) -> int:
        """Return a page of a workspace that holds no pristine twin; what else lies there may be overwritten."""
        taken = {p.pristine for p in self._document.pages}
        for start, size in self._document.workspaces():
            for slot in range(start, start + size, PAGE):
                if slot not in taken:
                    return slot
        raise PodgraftError(Reason.NO_ROOM_NEARBY, "the workspace for page clones is used up")


def compose(
    document: Document, live: int, *, holes_only_of: PatchRecord | None = None, without: PatchRecord | None = None
) -> dict[int, bytes]:
    """Return the bytes that all patches and armed wake-up points want on a page, by the phase that each patch is in.

    Args:
        document: the state of the process.
        live: address of the page.
        holes_only_of: of this patch only the holes, not the sites (a jump must find its hole filled).
        without: a patch that wants nothing any more.
    """
    content = {
        point.address: bytes.fromhex(point.jump)
        for area in document.wake
        for point in area.points
        if point.address in area.armed and live <= point.address < live + PAGE
    }
    for patch in document.patches:
        if patch is without or patch.phase in ("retired", *BEFORE_SWITCH):
            continue
        final = patch.phase in ("finalizing", "finalized")
        holes_only = patch is holes_only_of or patch.phase == "restoring"
        for record in patch.sites:
            for piece in record.holes if holes_only else [*record.holes, record.site]:
                if live <= piece.address < live + PAGE:
                    content[piece.address] = bytes.fromhex(piece.final if final else piece.transition)
    return content


def is_intact(record: PatchRecord, memory: Memory) -> bool:
    """Tell whether the jumps of a finalized patch are still in the program's text."""
    try:
        return all(memory.read(p.address, len(p.final) // 2).hex() == p.final for p in _pieces(record))
    except PodgraftError as error:
        if error.reason == Reason.PROCESS_EXITED:
            raise
        return False  # nothing is mapped there any more


def pages_of(patch: PatchRecord) -> list[int]:
    """Return the pages that a patch touches."""
    return sorted({p.address // PAGE * PAGE for p in _pieces(patch)})


def _pieces(patch: PatchRecord) -> list[Patchlet]:
    return [p for s in patch.sites for p in (s.site, *s.holes)]
