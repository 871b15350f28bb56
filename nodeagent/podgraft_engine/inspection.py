# SPDX-License-Identifier: GPL-2.0-only
"""Inspect a process without touching it: can this bundle be applied, and where (design 3, step 1)?"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.manifest import ARENA, Reference
from podgraft_bundle.protocol import Inspected, Problem
from podgraft_bundle.protocol import Site as SiteReport
from podgraft_engine.code.linker import Image, check_object
from podgraft_engine.code.sites import Site, pages_of_claims
from podgraft_engine.code.stubs import SITE_ROOM
from podgraft_engine.code.switching import Switching, find_switching
from podgraft_engine.code.wakepoints import declared_point
from podgraft_engine.helper import block
from podgraft_engine.patched.layers import Layers
from podgraft_engine.patched.state import State, read_state
from podgraft_engine.runtime import RUNTIME, check_exceptions, find_lookup
from podgraft_engine.sitefinder import SiteFinder, functions_of
from podgraft_engine.target.awake import check_awake
from podgraft_engine.target.layout import ARENA_SIZE, gap_near
from podgraft_engine.target.limits import check_limits, needs_of
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.module import Module, find_module, modules_of
from podgraft_engine.target.proc import AT_HWCAP2, HWCAP2_FSGSBASE, Process
from podgraft_engine.target.seals import check_seals

_OLDEST_KERNEL: Final = (5, 13)


@dataclass
class Target:
    """A process with all that was read of it."""

    process: Process
    memory: Memory
    modules: list[Module]
    block: block.Block | None
    state: State | None

    @cached_property
    def switching(self) -> Switching | None:
        """How the program may switch stacks, None where nothing says that it does; takes some time."""
        return find_switching(self.modules)


@dataclass
class Findings:
    """The outcome of an inspection: module, a site per function, a value per reference, and what speaks against it.

    replaced: areas of the patches that this one replaces. dropped: sites of their further functions.
    """

    module: Module | None
    sites: list[Site]
    values: dict[str, int]
    problems: list[PodgraftError]
    replaced: list[int] = field(default_factory=list)
    dropped: list[Site] = field(default_factory=list)

    @property
    def pages(self) -> set[int]:
        """The pages of text that will be switched."""
        return pages_of_claims([*self.sites, *self.dropped])


def open_target(process: Process) -> Target:
    """Read maps, modules, and our own state if there is any.

    Raises:
        Refusal: PERMISSION_DENIED; PodgraftError: FOREIGN_STATE, PROCESS_EXITED.
    """
    memory = Memory(process)
    modules = modules_of(process)
    blk = block.find(process, memory)
    return Target(process, memory, modules, blk, read_state(process, memory, blk))


def inspect(target: Target, bundle: Bundle, points: list[str]) -> Findings:
    """Check everything that can be known beforehand; problems are collected, not raised."""
    findings = Findings(None, [], {}, [])
    checks: list[Callable[[], None]] = [
        lambda: _check_manifest(bundle),
        lambda: _check_kernel(target.process),
        lambda: _check_threads(target.process),
        lambda: check_awake(target.process),
        lambda: _check_home(target),
        lambda: _check_points(target, bundle, points),
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
    layers = Layers(target.state.document if target.state else None, bundle)
    try:
        layers.check(functions_of(bundle, findings.module))
        findings.replaced = [p.area for p in layers.replaced]
        _find_sites(findings, target, bundle, [*bundle.manifest.points, *points])
    except Refusal as refusal:
        findings.problems.append(refusal)
    _find_references(findings, target, bundle)
    if not findings.problems:
        symbols = [*(f.new_symbol for f in bundle.manifest.functions), *(h.symbol for h in bundle.manifest.hooks)]
        try:
            at = findings.module.mappings[0].start
            check_object(bundle.object, bundle.manifest.references, findings.values, symbols, at)
        except Refusal as refusal:
            findings.problems.append(refusal)
    if not findings.problems:
        try:
            _check_room(target, bundle, findings)
        except Refusal as refusal:
            findings.problems.append(refusal)
    return findings


def _check_room(target: Target, bundle: Bundle, findings: Findings) -> None:
    """Refuse where the process has no room for us, or keeps us from its text."""
    pages = findings.pages
    arena = ARENA_SIZE if bundle.manifest.uses_shadow else 0
    check_limits(target.process, needs_of(len(pages), len(bundle.object), arena))
    check_seals(target.process, pages)
    # A patch that was here before has its place.
    known = target.state is not None and any(p.digest == bundle.digest for p in target.state.document.patches)
    if findings.module is not None and not known:
        stubs = SITE_ROOM * (len(findings.sites) + len(findings.dropped))
        gap_near(
            target.process.maps(),
            findings.module.middle,
            Image(bundle.object, bundle.manifest.references, stubs).size,
        )


def _find_sites(findings: Findings, target: Target, bundle: Bundle, points: list[str]) -> None:
    """Find a site for each function, and for those of replaced patches; compare what is old code without one.

    Raises:
        Refusal: NO_PATCH_SITE for the latter.
    """
    module = findings.module
    if module is None:
        return
    declared = _of_points(target, points)
    finder = SiteFinder(target.process, target.memory, module, target.state, bundle=bundle, declared=declared)
    for function in bundle.manifest.functions:
        try:
            findings.sites.append(finder.find(function))
        except Refusal as refusal:
            findings.problems.append(refusal)
    for gone in bundle.manifest.gone:
        try:
            finder.read_checked(gone)
        except Refusal as refusal:
            findings.problems.append(refusal)
    findings.problems += _beside_points(points, findings.sites)
    findings.problems += _beside_other_stacks(target, findings.sites)
    findings.dropped = finder.dropped()


def _find_references(findings: Findings, target: Target, bundle: Bundle) -> None:
    """Find the value of each reference; those to the C++ runtime mean that it must be told of the new code."""
    module = findings.module
    if module is None:
        return
    for reference in bundle.manifest.references:
        try:
            findings.values[reference.symbol] = resolve(reference, target, module)
        except Refusal as refusal:
            findings.problems.append(refusal)
    needed = [value for symbol, value in findings.values.items() if symbol in RUNTIME]
    try:
        check_exceptions(target.modules, find_lookup(target.modules, target.memory, target.state), needed)
    except Refusal as refusal:
        findings.problems.append(refusal)


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
    if reference.kind == "arena":
        return _arena(reference, target, module)
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


def _arena(reference: Reference, target: Target, module: Module) -> int:
    """Return where shadow variables lie; before they are mapped any address does: it is reached through the GOT."""
    if reference.symbol != ARENA:
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"this engine knows {ARENA}, not {reference.symbol}")
    return (target.state.document.arena if target.state else 0) or module.mappings[0].start


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


def _beside_points(points: list[str], sites: list[Site]) -> list[Refusal]:
    """At a declared point a thread migrates in the middle of a call; a branch back would lead it into new code."""
    return [
        Refusal(Reason.NO_PATCH_SITE, f"{site.function} branches back to its site: no point may be declared")
        for site in sites
        if points and site.reentrant
    ]


def _beside_other_stacks(target: Target, sites: list[Site]) -> list[Refusal]:
    """A call that is suspended while all threads migrate would be led into new code by a branch back."""
    reentrant = [site for site in sites if site.reentrant]
    switching = target.switching if reentrant else None
    detail = "branches back to its site, and a call of it may be suspended on a stack that no thread is on"
    return [
        Refusal(Reason.NO_PATCH_SITE, f"{site.function} {detail}: {switching.why}") for site in reentrant if switching
    ]


def _check_manifest(bundle: Bundle) -> None:
    """Refuse what a bundle asks for and this engine does not do."""
    manifest = bundle.manifest
    if any(f.save_registers for f in manifest.functions):
        raise Refusal(Reason.IPA_RA_HAZARD, "the bundle wants registers to be saved around a new function")
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


def _check_home(target: Target) -> None:
    if target.block is None:
        block.choose_home(target.process, target.memory)


def _check_points(target: Target, bundle: Bundle, points: list[str]) -> None:
    """A declared point must be found, and must not lie in a function that is replaced: nobody is quiescent there."""
    replaced = {f.entry.symbol for f in bundle.manifest.functions}
    for name in {*bundle.manifest.points, *points}:
        if name in replaced:
            raise Refusal(Reason.NO_PATCH_SITE, f"{name} is declared a point of quiescence and is itself replaced")
        declared_point(target.modules, name)


def _of_points(target: Target, names: list[str]) -> set[int]:
    """Return the bytes that declared points will change; that one cannot be placed is a problem of its own."""
    used: set[int] = set()
    for name in names:
        with suppress(Refusal):
            point = declared_point(target.modules, name)
            used.update(range(point.address, point.address + point.length))
    return used
