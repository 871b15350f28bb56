# SPDX-License-Identifier: GPL-2.0-only
"""What the site ladder would do with each function of a file: `python -m podgraft_engine.survey FILE…`.

It asks the same `choose_site` as a patch does; only the surroundings are a file's instead of a process's. Functions are
the ranges of .eh_frame, without PLT and cold parts: those begin with a stack pointer that is not a function's, or a
conditional jump leads to them. Each function is looked at as if it alone were patched.
"""

import argparse
import hashlib
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from iced_x86 import FlowControl

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.manifest import Range
from podgraft_bundle.protocol import Problem, Surveyed
from podgraft_bundle.protocol import Site as SiteReport
from podgraft_engine.code.holes import Holes
from podgraft_engine.code.puns import NEAR_JUMP, Pun
from podgraft_engine.code.sites import RUNGS, Site, choose_site
from podgraft_engine.code.stubs import TRAMPOLINES
from podgraft_engine.sitefinder import take_site
from podgraft_engine.target.ehframe import RSP
from podgraft_engine.target.layout import PAGE, pages, trampoline_room
from podgraft_engine.target.module import Module
from podgraft_engine.target.proc import Mapping

SEED: Final = 1
# Where a file is taken to be mapped, and what around it: other libraries on both sides, a heap above a program.
LIBRARY_AT: Final = 0x7F00_0000_0000
PROGRAM_AT: Final = 0x5500_0000_0000
LIBRARIES: Final = 64 * 2**20
HEAP: Final = 32 * 2**20
_DF_1_PIE: Final = 0x0800_0000
_NO_FUNCTIONS: Final = (".plt", ".plt.got", ".plt.sec", ".init", ".fini")
_CONDITIONAL_JUMP: Final = re.compile(rb"(?=\x0f[\x80-\x8f](.{4}))", re.DOTALL)
_CALLS: Final = (FlowControl.CALL, FlowControl.INDIRECT_CALL)


@dataclass
class Result:
    """What was found in one file. counts: functions by rung, and by what is special about their sites.

    refused: why, and the function's size in bytes.
    """

    name: str
    functions: int = 0
    looked_at: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, int]] = field(default_factory=list)

    def share(self, what: str) -> float:
        """Return the share of the functions that were looked at, in per cent."""
        return 100 * self.counts[what] / max(self.looked_at, 1)


class Surroundings:
    """A file laid out as the loader does it; answers what a process is asked for otherwise."""

    shadow_stack = False

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.module = Module(stream, list(_mappings(stream, path)))
        loads = self.module.elf.iter_segments("PT_LOAD")
        self.memory = _Segments([(self.module.bias + load["p_vaddr"], load.data()) for load in loads])
        self._free = Holes(self.module, self.memory, set())
        self.holes, self.padding, self.is_free = self._free.near, self._free.behind, self._free.is_free

    def has_room(self, pun: Pun) -> bool:
        """Look for room in the picture of the address space that is described above."""
        return trampoline_room(self._taken, pun.low, pun.high, TRAMPOLINES) is not None

    def read(self, address: int, size: int) -> bytes | None:
        """Return what the file holds for an address."""
        try:
            return self.memory.read(address, size)
        except PodgraftError:
            return None

    def take(self, site: Site) -> None:
        """Give a site to a function."""
        take_site(site, self._free, self._taken)

    def old_code(self, old: Range) -> bytes:
        """Return a piece of old code. Raises Refusal(PREIMAGE_MISMATCH)."""
        code = self.read(self.module.bias + old.offset, old.size)
        if code is None or hashlib.sha256(code).hexdigest() != old.sha256:
            raise Refusal(Reason.PREIMAGE_MISMATCH, f"{old.symbol} of the file differs from the code in the bundle")
        return code

    def functions(self) -> list[tuple[int, int]]:
        """Return start and end of each function, at run-time addresses."""
        frames, bias = self.module.eh_frame, self.module.bias
        if frames is None:
            return []
        sections = [self.module.elf.get_section_by_name(name) for name in _NO_FUNCTIONS]
        others = [range(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in sections if s]
        ranges = [r for r in frames.ranges_between(0, 2**47) if self.module.contains(bias + r[0])]
        cold = self._jumped_to({start for start, _ in ranges})
        return [
            (bias + start, bias + end)
            for start, end in ranges
            if start not in cold and not any(start in other for other in others)
        ]

    def begins_a_call(self, start: int) -> bool:
        """Tell whether the stack pointer is a function's at its entry: 8 below the frame (psABI 3.2.2)."""
        row = self.module.eh_frame.row(start - self.module.bias) if self.module.eh_frame else None
        return row is None or not row.known or row.outermost or (row.cfa_register, row.cfa_offset) == (RSP, 8)

    @cached_property
    def _taken(self) -> list[Mapping]:
        mine = self.module.mappings
        start, end = mine[0].start, mine[-1].end
        libraries = [(start - LIBRARIES, start), (end, end + LIBRARIES)]
        around = libraries if start >= LIBRARY_AT else [(end, end + HEAP)]
        return [*mine, *(Mapping(low, high, "rw-p", 0, "", 0, "") for low, high in around)]

    def _jumped_to(self, starts: set[int]) -> set[int]:
        """Return the starts that a `jcc rel32` anywhere in the code leads to: compilers make no such tail calls."""
        found = set()
        for load in self.module.elf.iter_segments("PT_LOAD"):
            if load["p_flags"] & 1:
                for match in _CONDITIONAL_JUMP.finditer(load.data()):
                    target = load["p_vaddr"] + match.start() + 6 + struct.unpack("<i", match[1])[0]
                    if target in starts:
                        found.add(target)
        return found


class _Segments:
    """Memory as the file fills it."""

    def __init__(self, segments: list[tuple[int, bytes]]) -> None:
        self._segments = segments

    def read(self, address: int, size: int) -> bytes:
        for start, data in self._segments:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise PodgraftError(Reason.INTERNAL, f"the file has no bytes for {address:#x}")


def survey(path: Path, most: int) -> Result:
    """Choose a site for each function of a file, or for `most` of them that a fixed seed picks."""
    result = Result(path.name)
    with path.open("rb") as stream:
        around = Surroundings(stream, str(path))
        functions = around.functions()
        result.functions = len(functions)
        if len(functions) > most:
            functions = sorted(random.Random(SEED).sample(functions, most))  # noqa: S311 (repeatable, not secret)
        for start, end in functions:
            if around.begins_a_call(start):
                result.looked_at += 1
                _look(result, around, start, end)
    return result


def sites_of(bundle: Bundle, path: Path) -> Surveyed:
    """Choose a site for each function of a bundle in the file of its module, in the order of the bundle.

    Raises:
        Refusal: MODULE_NOT_MAPPED for a file with another build id.
    """
    found = Surveyed()
    with path.open("rb") as stream:
        around = Surroundings(stream, str(path))
        wanted, bias = bundle.manifest.module.build_id, around.module.bias
        if around.module.build_id != wanted:
            raise Refusal(Reason.MODULE_NOT_MAPPED, f"build id {wanted} is wanted, {path} has {around.module.build_id}")
        for function in bundle.manifest.functions:
            entry = function.entry
            try:
                code = around.old_code(entry)
                parts = [(bias + part.offset, around.old_code(part)) for part in function.parts]
                site = choose_site(entry.symbol, bias + entry.offset, code, parts, around)
            except Refusal as refusal:
                found.problems.append(Problem(reason=refusal.reason, detail=refusal.detail, hint=refusal.hint))
                continue
            around.take(site)
            found.sites.append(
                SiteReport(function=entry.symbol, address=site.address - bias, rung=site.rung, length=site.length)
            )
    return found


def _look(result: Result, around: Surroundings, start: int, end: int) -> None:
    name = f"{result.name}+{start - around.module.bias:#x}"
    try:
        site = choose_site(name, start, around.memory.read(start, end - start), [], around)
    except Refusal as refusal:
        result.counts["refused"] += 1
        result.refused.append((refusal.detail, end - start))
        return
    result.counts[site.rung] += 1
    result.counts.update(_special(site))


def _special(site: Site) -> Iterator[str]:
    if site.undo.needed:
        yield "undo"
    if site.reentrant:
        yield "loop"
    if site.displaced.flow_control in _CALLS:
        yield "call"


def _mappings(stream: BinaryIO, path: str) -> Iterator[Mapping]:
    """Yield what /proc/PID/maps would show."""
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    elf = ELFFile(stream)
    bias = _bias(elf)
    for load in elf.iter_segments("PT_LOAD"):
        perms = "".join(letter if load["p_flags"] & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        start = bias + load["p_vaddr"] // PAGE * PAGE
        end = bias + pages(load["p_vaddr"] + load["p_memsz"])
        yield Mapping(start, end, f"{perms}p", load["p_offset"] // PAGE * PAGE, "00:00", 1, path)


def _bias(elf: Any) -> int:
    if elf["e_type"] == "ET_EXEC":
        return 0
    dynamic = elf.get_section_by_name(".dynamic")
    flags = [tag.entry.d_val for tag in dynamic.iter_tags("DT_FLAGS_1")] if dynamic else []
    return PROGRAM_AT if any(value & _DF_1_PIE for value in flags) else LIBRARY_AT


def table(results: list[Result]) -> Iterator[str]:
    """Yield the lines of a Markdown table, all files together at the end."""
    everything = Result("**all**")
    for result in results:
        everything.functions += result.functions
        everything.looked_at += result.looked_at
        everything.counts += result.counts
    columns = (*RUNGS, "refused", "undo", "loop", "call")
    yield "| file | functions | looked at | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * (2 + len(columns))
    for result in (*results, everything):
        shares = " | ".join(f"{result.share(what):.2f}" for what in columns)
        yield f"| {result.name} | {result.functions} | {result.looked_at} | {shares} |"


def page(results: list[Result], most: int) -> str:
    """Return the text of docs/sites.md."""
    sizes = [size for result in results for _, size in result.refused]
    rows = "\n".join(table(results))
    return f"""# Where functions can be entered

Written by `make sites`; do not edit. For each file: its functions (ranges of `.eh_frame` without PLT and cold parts),
how many of them were looked at (of at most {most}, picked with a fixed seed), and in per cent of those the rung of the
site ladder that the engine would take (`nodeagent/podgraft_engine/code/sites.py` says what the rungs are), and what is
refused with `NoPatchSite`. Of the sites, in per cent again: *undo* stand behind instructions that the stub takes back,
*loop* may be branched back to, *call* displace a call.

Room for the trampolines of punned jumps is looked for in a picture of an address space: {LIBRARIES >> 20} MiB of other
libraries on both sides of a library, {HEAP >> 20} MiB of heap above a program. `redis-check-rdb` is Debian's name of
the Redis server, `cc1` the C compiler of GCC.

{rows}

What is refused begins with instructions that change arguments or use memory, none of them five bytes long, has no
padding in reach, and its punned jumps lead to addresses that are taken or, below a program that is not position
independent, do not exist. {sum(size < NEAR_JUMP for size in sizes)} of these {len(sizes)} functions are shorter than
{NEAR_JUMP} bytes.
"""


def main() -> None:
    """Survey the files that are named and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=2000, help="functions to look at in each file (default 2000)")
    parser.add_argument("--refused", action="store_true", help="list the functions that are refused")
    parser.add_argument("--write", type=Path, help="write the page with the table to this file, too")
    options = parser.parse_args()
    results = []
    for path in options.files:
        results.append(survey(path, options.most))
        if options.refused:
            sys.stderr.writelines(f"{detail}, {size} bytes\n" for detail, size in results[-1].refused)
    if options.write:
        options.write.write_text(page(results, options.most))
    sys.stdout.writelines(f"{line}\n" for line in table(results))


if __name__ == "__main__":
    main()
