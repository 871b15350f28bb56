# SPDX-License-Identifier: GPL-2.0-only
"""Patches that lie over each other: which of those in a process a new one replaces, and which it may lie over.

All patches of one function use the same site, and the latest of them decides what is found there. Threads of the
generations before it take the door of the one below. A patch that *replaces* others takes all their functions over:
what it does not bring itself goes back to what lies below, in the same migration, and then they are gone. A patch that
lies *over* another just hides it, so it must be reverted first.
"""

from dataclasses import dataclass

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.patched.state import CodeRange, Document, PatchRecord, SiteRecord


@dataclass(frozen=True)
class Layer:
    """What lies below a new patch at one function. top: in force now; stays: when the replaced ones are gone."""

    top: SiteRecord | None
    stays: SiteRecord | None

    @property
    def doors(self) -> tuple[int | None, int | None]:
        """Where threads go that do not take the new patch: now, and later; None for the original code."""
        return self.top.door if self.top else None, self.stays.door if self.stays else None


class Layers:
    """The patches that a bundle finds in a process."""

    def __init__(self, document: Document | None, bundle: Bundle) -> None:
        visible = document.visible() if document else []
        self._name = bundle.manifest.name
        self._over = bundle.manifest.over
        self._below = [p for p in visible if p.digest != bundle.digest]
        self.replaced = [p for p in self._below if p.name in bundle.manifest.replaces]

    def check(self, functions: list[tuple[int, int]]) -> None:
        """Refuse a bundle that would hide or free what it does not know.

        Args:
            functions: start and end of each function that the bundle replaces.

        Raises:
            Refusal: CONFLICTING_PATCH.
        """
        for patch in self._below:
            if patch in self.replaced:
                for other in lying_over(patch, self._below):
                    if other not in self.replaced:
                        detail = f"{other.name} lies over {patch.name} and is not replaced"
                        raise Refusal(Reason.CONFLICTING_PATCH, detail)
                continue
            if patch.name == self._name:
                detail = f"{patch.name} version {patch.version} is in the process; revert it"
                raise Refusal(Reason.CONFLICTING_PATCH, detail)
            both = [s.function for s in patch.sites if any(_within(s, *f) for f in functions)]
            if both and patch.name not in self._over:
                raise Refusal(Reason.CONFLICTING_PATCH, f"{patch.name} replaces {', '.join(sorted(both))} as well")

    def at(self, start: int, end: int) -> Layer:
        """Return what lies below at a function."""
        sites = [(p, s) for p in self._below for s in _acting(p) if _within(s, start, end)]
        kept = [s for p, s in sites if p not in self.replaced]
        return Layer(sites[-1][1] if sites else None, kept[-1] if kept else None)

    def dropped(self, functions: list[tuple[int, int]]) -> list[Layer]:
        """Return what the replaced patches have beyond the functions of the bundle."""
        tops: dict[int, SiteRecord] = {}
        for patch in self.replaced:
            tops.update((s.site.address, s) for s in _acting(patch))
        mine = [s for s in tops.values() if not any(_within(s, *f) for f in functions)]
        return [Layer(s, self.at(s.site.address, s.site.address + 1).stays) for s in mine]


def lying_over(patch: PatchRecord, patches: list[PatchRecord]) -> list[PatchRecord]:
    """Return the patches among later ones that use a site of this one."""
    places = {s.site.address for s in _acting(patch)}
    later = patches[patches.index(patch) + 1 :]
    return [p for p in later if any(s.site.address in places for s in _acting(p))]


def lying_below(record: PatchRecord, document: Document) -> list[PatchRecord]:
    """Return the visible patches that this one replaces or lies over."""
    places = {s.site.address for s in record.sites}
    earlier = [p for p in document.visible() if p is not record and p.generation < record.generation]
    return [p for p in earlier if p.area in record.replaced or any(s.site.address in places for s in _acting(p))]


def code_of_replaced(record: PatchRecord, document: Document) -> list[CodeRange]:
    """Return the original code of all functions of the patches that this one is about to replace."""
    return [r for p in document.visible() if p.area in record.replaced for r in p.old]


def _acting(patch: PatchRecord) -> list[SiteRecord]:
    """Return the sites that a patch holds for as long as it is in."""
    return [s for s in patch.sites if not s.dropped]


def _within(site: SiteRecord, start: int, end: int) -> bool:
    return start <= site.site.address < end
