"""Old objects are read while the new build runs: it has one file to compile, and leaves a processor free."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

from podgraft_builder.debuginfo import KEPT
from podgraft_builder.dwarf import read_debug, read_statics
from podgraft_builder.objects import ObjectFile
from podgraft_builder.records import Input, Record

_MANY = KEPT // 2  # the other half is for the new objects


@lru_cache(maxsize=KEPT)
def old_object(label: str, data: bytes) -> ObjectFile:
    """Return an object of the old build, parsed once. Raises Refusal."""
    return ObjectFile(label, data)


@contextmanager
def reading_ahead(objects: list[tuple[str, bytes]]) -> Iterator[None]:
    """Read in a thread of its own what the comparison will ask of old objects; all of it is there at the end.

    What is refused here is refused once more to the one who asks: that one says why.
    """
    with ThreadPoolExecutor(1) as pool:
        for label, data in objects[:_MANY]:
            pool.submit(_read, label, data)
        yield


def _read(label: str, data: bytes) -> None:
    which = old_object(label, data)
    read_debug(which)
    read_statics(which)


def touched(old: list[Input], records: list[Record], patched: set[str]) -> list[Input]:
    """Return the objects of the old binary that a compiler made of patched files."""
    copies = {record.copy.read_bytes() for record in records if record.depends & patched}
    return [item for item in old if item.data in copies]
