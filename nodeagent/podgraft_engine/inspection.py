# SPDX-License-Identifier: GPL-2.0-only
"""Inspect a process without touching it: can this bundle be applied, and where (design 3, step 1)?"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.manifest import Range, Reference, ReplacedFunction
from podgraft_bundle.protocol import Inspected, Problem
from podgraft_bundle.protocol import Site as SiteReport
from podgraft_engine.code.holes import Holes
from podgraft_engine.code.linker import check_object
from podgraft_engine.code.sites import Pun, Site, choose_site
from podgraft_engine.code.stubs import TRAMPOLINE_SIZE
from podgraft_engine.helper import block
from podgraft_engine.patched.state import PatchRecord, State, read_state
from podgraft_engine.target.layout import PAGE, trampoline_room
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module, find_module, modules_of
from podgraft_engine.target.proc import AT_HWCAP2, HWCAP2_FSGSBASE, Process

_OLDEST_KERNEL: Final = (5, 13)


@dataclass
class Target:
    """A process with all that was read of it."""

    process: Process
    memory: Memory
    modules: list[Module]
    block: block.Block | None
    state: State | None


@dataclass
class Findings:
    """The outcome of an inspection: module, a site per function, a value per reference, and what speaks against it."""

    module: Module | None
    sites: list[Site]
    values: dict[str, int]
    problems: list[PodgraftError]


def open_target(process: Process) -> Target:
    """Read maps, modules, and our own state if there is any.

    Raises:
        Refusal: PERMISSION_DENIED; PodgraftError: FOREIGN_STATE, PROCESS_EXITED.
    """
    memory = Memory(process)
    modules = modules_of(process)
    blk = block.find(process, memory)
    return Target(process, memory, modules, blk, read_state(process, memory, blk))


def inspect(target: Target, bundle: Bundle) -> Findings:
    """Check everything that can be known beforehand; problems are collected, not raised."""
    findings = Findings(None, [], {}, [])
    checks: list[Callable[[], None]] = [
        lambda: _check_manifest(bundle),
        lambda: _check_kernel(target.process),
        lambda: _check_threads(target.process),
        lambda: _check_conflicts(target, bundle),
        lambda: _check_home(target),
    ]
    for check in checks:
        try:
            check()
        except Refusal as refusal:
            findings.problems.append(refusal)
    try:
        findings.module = find_module(target.modules, bundle.manifest.module.build_id, bundle.manifest.module.name)
    except Refusal as refusal:
        findings.problems.append(refusal)
        return findings
    # A retired patch keeps its holes: its stubs are there for the next time.
    others = [p for p in _patches(target) if p.digest != bundle.digest]
    used = {r.hole.address for p in others for r in p.sites if r.hole}
    holes = Holes(findings.module, target.memory, used)
    # So do its trampolines, and they are all the room that a punned jump may have.
    kept = {page for p in _patches(target) if p.digest == bundle.digest for page in p.trampolines}
    around = _Surroundings(target, holes, kept)
    for function in bundle.manifest.functions:
        try:
            findings.sites.append(_site_of(target, findings.module, function, around))
        except Refusal as refusal:
            findings.problems.append(refusal)
    for reference in bundle.manifest.references:
        try:
            findings.values[reference.symbol] = resolve(reference, target, findings.module)
        except Refusal as refusal:
            findings.problems.append(refusal)
    if not findings.problems:
        symbols = [f.new_symbol for f in bundle.manifest.functions]
        try:
            at = findings.module.mappings[0].start
            check_object(bundle.object, bundle.manifest.references, findings.values, symbols, at)
        except Refusal as refusal:
            findings.problems.append(refusal)
    return findings


def resolve(reference: Reference, target: Target, module: Module) -> int:
    """Return the value of a reference in the target.

    Raises:
        Refusal: UNRESOLVED_REFERENCE.
    """
    if reference.kind == "offset" and reference.offset is not None:
        return int(module.bias + reference.offset)
    if reference.kind == "got" and reference.offset is not None:
        try:
            value = int.from_bytes(target.memory.read(module.bias + reference.offset, 8), "little")
        except PodgraftError as error:
            if error.reason == Reason.PROCESS_EXITED:
                raise
            detail = f"nothing is mapped where the GOT slot of {reference.symbol} should be"
            raise Refusal(Reason.UNRESOLVED_REFERENCE, detail) from None
        if value:
            return value
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"the GOT slot of {reference.symbol} is empty in the target")
    if reference.kind == "tpoff" and reference.value is not None:
        return int(reference.value)
    if reference.kind == "export" and reference.export is not None:
        found = [m.export(reference.export, reference.version) for m in target.modules]
        values = [f[0] for f in found if f and not f[1]]
        if len(values) == 1 and not any(f[1] for f in found if f):
            return values[0]
        # The loader's order of search is not known here, and an ifunc's choice neither: only one answer is safe.
        detail = f"{len([f for f in found if f])} loaded libraries export {reference.export}, or as an ifunc"
        raise Refusal(Reason.UNRESOLVED_REFERENCE, detail)
    raise Refusal(Reason.UNRESOLVED_REFERENCE, f"the reference to {reference.symbol} is incomplete")


def report(target: Target, findings: Findings, bundle: Bundle) -> Inspected:
    """Turn findings into the patchability report."""
    module = findings.module
    return Inspected(
        pid=target.process.pid,
        comm=target.process.comm(target.process.pid),
        module=module.path if module else bundle.manifest.module.name,
        build_id=bundle.manifest.module.build_id,
        base=module.bias if module else 0,
        threads=len(target.process.threads()),
        sites=[
            SiteReport(function=s.function, address=s.address, rung=s.rung, length=s.length) for s in findings.sites
        ],
        problems=[Problem(reason=p.reason, detail=p.detail, hint=p.hint) for p in findings.problems],
    )


def _patches(target: Target) -> list[PatchRecord]:
    return target.state.document.patches if target.state else []


def _check_manifest(bundle: Bundle) -> None:
    """Refuse what a bundle asks for and this engine does not do."""
    manifest = bundle.manifest
    if any(f.save_registers for f in manifest.functions):
        raise Refusal(Reason.IPA_RA_HAZARD, "the bundle wants registers to be saved around a new function")
    if manifest.points:
        raise Refusal(Reason.UNSUPPORTED_CHANGE, "the bundle names points of quiescence, which are not built yet")
    ranges = sorted((f.entry.offset, f.entry.offset + f.entry.size) for f in manifest.functions)
    if any(first[1] > second[0] for first, second in pairwise(ranges)):
        raise Refusal(Reason.BUNDLE_MALFORMED, "functions of the manifest overlap")
    wanted = tuple(int(n) for n in re.findall(r"\d+", manifest.requires.kernel)[:2])
    if wanted > kernel_version():
        raise Refusal(Reason.KERNEL_TOO_OLD, f"the bundle wants kernel {manifest.requires.kernel}")


def kernel_version() -> tuple[int, ...]:
    """Return the first two numbers of the running kernel."""
    return tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])


def _check_kernel(process: Process) -> None:
    if kernel_version() < _OLDEST_KERNEL:
        raise Refusal(Reason.KERNEL_TOO_OLD, f"the node runs kernel {os.uname().release}")
    if not process.auxv().get(AT_HWCAP2, 0) & HWCAP2_FSGSBASE:
        raise Refusal(Reason.NO_FSGSBASE, "AT_HWCAP2 of the process lacks the FSGSBASE bit")


def _check_threads(process: Process) -> None:
    for tid in process.threads():
        status = process.status(tid)
        tracer = status.get("TracerPid", "0")
        if tracer != "0":
            raise Refusal(Reason.ALREADY_TRACED, f"thread {tid} is traced by process {tracer}")
        if status.get("Seccomp") == "1":
            raise Refusal(Reason.SECCOMP_FORBIDS, f"thread {tid} is in strict seccomp mode")


def _check_conflicts(target: Target, bundle: Bundle) -> None:
    mine = {f.entry.symbol for f in bundle.manifest.functions}
    for patch in _patches(target):
        if patch.phase == "retired" or patch.name == bundle.manifest.name:
            continue
        both = mine & {r.function for r in patch.old}
        if both:
            raise Refusal(Reason.CONFLICTING_PATCH, f"{patch.name} replaces {', '.join(sorted(both))} as well")


def _check_home(target: Target) -> None:
    if target.block is None:
        block.choose_home(target.process, target.memory)


class _Surroundings:
    """What the site ladder asks of the process. kept: trampoline pages that wait for this bundle to come back."""

    def __init__(self, target: Target, holes: Holes, kept: set[int]) -> None:
        self._memory = target.memory
        self._maps = target.process.maps()
        self._others = [m for m in self._maps if m.start not in kept]
        self.holes = holes.near
        self.take = holes.take

    def has_room(self, pun: Pun) -> bool:
        return trampoline_room(self._others, pun.low, pun.high, 2 * TRAMPOLINE_SIZE) is not None

    def read(self, address: int, size: int) -> bytes | None:
        mapped = any(m.start <= address and address + size <= m.end and "r" in m.perms for m in self._maps)
        return self._memory.read(address, size) if mapped else None


def _site_of(target: Target, module: Module, function: ReplacedFunction, around: _Surroundings) -> Site:
    code = _read_checked(target, module, function.entry)
    parts = [(module.bias + p.offset, _read_checked(target, module, p)) for p in function.parts]
    start = module.bias + function.entry.offset
    site = choose_site(function.entry.symbol, start, code, parts, around)
    for address in (site.address, site.hole):
        if address is not None:
            _check_page(target, address // PAGE * PAGE, site.function)
    if site.hole is not None:
        around.take(site.hole)
    return site


def _read_checked(target: Target, module: Module, old: Range) -> bytes:
    address = module.bias + old.offset
    if not module.contains(address) or not module.contains(address + old.size - 1):
        raise Refusal(Reason.PREIMAGE_MISMATCH, f"{old.symbol} does not lie in the module's mapped code")
    code = target.memory.read(address, old.size)
    if hashlib.sha256(code).hexdigest() != old.sha256:
        raise Refusal(Reason.PREIMAGE_MISMATCH, f"{old.symbol} at {address:#x} differs from the code in the bundle")
    return code


def _check_page(target: Target, page: int, function: str) -> None:
    ours = {p.live for p in target.state.document.pages} if target.state else set()
    if page not in ours and target.memory.anonymous(page):
        raise Refusal(Reason.PAGE_CHANGED_BY_OTHERS, f"page {page:#x} of {function} is no longer the file's")
