# SPDX-License-Identifier: GPL-2.0-only
"""Page clone and atomic page switch (design 3.1).

All twins and clones lie in a workspace of our own. Every move leaves the source mapped (DONTUNMAP: it refaults from the
file), so the workspace never has a hole that the program could fill, and each step can be repeated after a crash. Only
a new pristine twin needs an intent in the state, for it takes the page's own entry along. The twin is never executed;
clones are made from it, and moved home it ends the patch.
"""

from collections.abc import Iterator

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import move_page
from podgraft_engine.patched.state import Document, Intent, PageRecord, Patchlet, PatchRecord, State
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

    def bring(self, patch: PatchRecord) -> int:
        """Bring every page of a patch to what its phase demands; return how many were switched.

        Holes come before the sites that jump to them.
        """
        pages = pages_of(patch)
        switched = 0
        if patch.phase == "switching":
            for page in pages:
                content = compose(self._document, page, holes_only_of=patch)
                switched += bool(content) and self.switch(page, content)
        for page in pages:
            # On the way back a page that was never switched must not be touched: somebody else may have changed it.
            if patch.phase != "restoring" or self.has(page):
                switched += self.switch(page, compose(self._document, page))
        return switched

    def tidy(self, pages: list[int], without: PatchRecord | None = None) -> None:
        """Give pages what is still wanted there, and bring the file's own home where that is nothing."""
        for page in filter(self.has, pages):
            left = compose(self._document, page, without=without)
            if left:
                self.switch(page, left)
            else:
                self.restore(page)

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


class OriginalText:
    """The program's text as the file has it, where it is we who changed it; other changes are seen."""

    def __init__(self, memory: Memory, document: Document | None) -> None:
        self._memory = memory
        self._document = document or Document()

    def read(self, address: int, size: int) -> bytes:
        """Return the original bytes; where a page holds anything that no patch wants there, the bytes as they are."""
        content = bytearray(self._memory.read(address, size))
        for page in self._document.pages:
            low, high = max(address, page.live), min(address + size, page.live + PAGE)
            if low < high:
                ours = bytearray(self._memory.read(page.pristine, PAGE))
                original = bytes(ours)
                for at, data in compose(self._document, page.live).items():
                    ours[at - page.live : at - page.live + len(data)] = data
                if ours[low - page.live : high - page.live] == content[low - address : high - address]:
                    content[low - address : high - address] = original[low - page.live : high - page.live]
        return bytes(content)


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
    content |= {f.place: bytes.fromhex(f.jump) for f in document.finders if f.wanted and live <= f.place < live + PAGE}
    # Later ones lie over earlier ones and use the same places.
    for patch in _wanting(document):
        if patch is not without:
            pieces = _wanted(patch, holes_only=patch is holes_only_of or patch.phase == "restoring")
            content.update((a, bytes.fromhex(code)) for a, code in pieces if live <= a < live + PAGE)
    return content


def _wanting(document: Document) -> list[PatchRecord]:
    """Return the patches that want something in the text: a replaced one not from the moment all threads have left."""
    gone = {area for patch in document.visible() if patch.phase == "finalizing" for area in patch.replaced}
    return [patch for patch in document.visible() if patch.area not in gone]


def _wanted(patch: PatchRecord, *, holes_only: bool) -> Iterator[tuple[int, str]]:
    """Yield address and bytes (hex) of all that a patch wants in its phase."""
    final = patch.phase in ("finalizing", "finalized")
    for record in patch.sites:
        if record.dropped and patch.complete:
            continue
        bare = holes_only or (record.dropped and final)
        for piece in record.holes if bare else [*record.holes, record.site]:
            left = piece.back if patch.complete and piece.back else piece.transition
            yield piece.address, piece.final if final else left


def is_intact(record: PatchRecord, document: Document, memory: Memory) -> bool:
    """Tell whether the jumps of a finalized patch are still in the text, where no other patch lies over them."""
    later = document.patches[document.patches.index(record) + 1 :]
    over = {p.address for other in later if other in document.visible() for p in _pieces(other)}
    mine = [p for p in _pieces(record) if p.address not in over]
    try:
        return all(memory.read(p.address, len(p.final) // 2).hex() == p.final for p in mine)
    except PodgraftError as error:
        if error.reason == Reason.PROCESS_EXITED:
            raise
        return False  # nothing is mapped there any more


def pages_of(patch: PatchRecord) -> list[int]:
    """Return the pages that a patch touches."""
    return sorted({p.address // PAGE * PAGE for s in patch.sites for p in (s.site, *s.holes)})


def _pieces(patch: PatchRecord) -> list[Patchlet]:
    """Return what a patch puts into the text; what it drops only while it is under way."""
    kept = [s for s in patch.sites if not (s.dropped and patch.complete)]
    return [p for s in kept for p in (s.site, *s.holes)]
