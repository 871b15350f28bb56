# SPDX-License-Identifier: GPL-2.0-only
"""What an engine must know about a process lies in the process: this is the only truth (design 3.4).

The block points to a mapping with a header and two copies of one JSON document. A commit writes the copy that is not
in force and then one 8-byte word that names it, so an engine killed at any instant leaves the old or the new document.
"""

import struct
import zlib
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_bundle.manifest import HookKind
from podgraft_engine.helper.block import Block
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import PLACES_TO_TRY, PROT_NONE, PROT_RW, protect, try_map_fixed
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.layout import PAGE, gap_near
from podgraft_engine.target.maps import Maps
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process

MAGIC: Final = b"PODGSTAT"
# To be raised with every change of Document: an engine of another version must not read it.
VERSION: Final = 2
COPY_SIZE: Final = 256 * 1024
MAPPING_SIZE: Final = PAGE + 2 * COPY_SIZE
NEAR: Final = 2**46
# magic, version, own address; at 0x20 the commit word: sequence number, lowest bit = copy in force
_HEADER: Final = struct.Struct("<8sQQ")
_COMMIT_AT: Final = 0x20
_COPY_HEAD: Final = struct.Struct("<QII")

Phase = Literal[
    "preparing", "prepared", "switching", "migrating", "finalizing", "finalized", "reverting", "restoring", "retired"
]

# Nothing that threads could see: such a record is only cleaned up.
BEFORE_SWITCH: Final = ("preparing", "prepared")


class Record(BaseModel):
    """A part of the document."""

    model_config = ConfigDict(extra="forbid")


# The document lies in the target, which may be hostile: nothing in it may make us loop or allocate without end.
Address = Annotated[int, Field(ge=0, lt=2**47)]
Size = Annotated[int, Field(ge=0, le=64 * 2**20)]
Code = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,16}$")]
Generation = Annotated[int, Field(ge=0, lt=2**31)]
Run = Annotated[int, Field(ge=0, lt=2**31)]


class Patchlet(Record):
    """Bytes to be put at one address (hex): while threads migrate, and when all have. The page keeps the original.

    back: while they leave a finished patch, where that leads elsewhere than they came from (it has replaced another).
    """

    address: Address
    transition: Code
    final: Code
    back: Code | None = None


class SiteRecord(Record):
    """One replaced function: its site, and the holes by which its jump goes on, in order; the last one changes.

    door: where the site leads when all threads have migrated. dropped: a function of a patch that this one replaces,
    which is not among its own; only threads under way find a jump of this patch there.
    """

    function: str
    rung: str
    site: Patchlet
    holes: list[Patchlet] = []
    reentrant: bool = False  # the function branches back to its site
    door: Address
    dropped: bool = False


class CodeRange(Record):
    """A piece of code with the name that users know; end is exclusive."""

    function: str
    start: Address
    end: Address

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.start < self.end <= self.start + 64 * 2**20:
            raise ValueError("start and end of code do not fit")
        return self


class PageRecord(Record):
    """A patched page and its never-executed file-backed twin; device, inode and offset say of which file."""

    live: Address
    pristine: Address
    device: str
    inode: int
    offset: int


class Intent(Record):
    """The page twin that was about to be made, written before it is made; every other step can just be repeated."""

    page: PageRecord


class HookRecord(Record):
    """A data migration hook of one patch: where it is, and what became of it in this life of the patch.

    run: number of its call in this process, 0 when there was none. It is `begun` before it is called, so that it is
    never called twice; the control words of the room tell what came of it. limit in seconds.
    """

    kind: HookKind
    function: str
    address: Address
    limit: Annotated[float, Field(gt=0, le=60)]
    state: Literal["idle", "begun", "done", "failed"] = "idle"
    run: Run = 0
    reason: Reason | None = None
    why: str = ""


class PatchRecord(Record):
    """One patch in this process. gate: address of two words [new_from, new_until) that the stubs compare with."""

    name: str
    version: str
    digest: str
    cves: list[str]
    phase: Phase
    served: bool = False  # threads may have seen this area: it is never unmapped
    complete: bool = False  # it was finalized: all threads have run new code, whatever their generation
    links: str  # of base and references: the area serves again only where nothing has moved
    generation: Generation
    area: Address
    mapped: list[tuple[Address, Size]]  # what we have mapped for it, the workspace left out
    workspace: Address
    workspace_size: Size
    code: CodeRange
    gate: Address
    eh_frame: tuple[Address, Size] | None
    trampolines: list[Address]  # pages far away, for punned jumps
    points: list[str] = []  # functions that the user declares points of quiescence
    replaced: list[Address] = []  # areas of the patches that go when this one is in; until then a revert leads to them
    hooks: list[HookRecord] = []
    old: list[CodeRange]
    new: list[CodeRange]
    sites: list[SiteRecord]


class PointRecord(Record):
    """One wake-up point: its jump (hex), and whether it was declared, so that nobody looks at a stack there."""

    address: Address
    jump: Code
    declared: bool = False


class WakeRecord(Record):
    """The routines of the wake-up points in one module. They are never unmapped or rewritten: a thread may be in one.

    base: load bias of the module. code, data, workspace: where the parts of the area begin, sizes in bytes.
    armed: the points whose jumps are wanted in the text now.
    """

    base: Address
    device: str
    inode: int
    code: Address
    code_size: Size
    data: Address
    workspace: Address
    workspace_size: Size
    points: list[PointRecord] = []
    armed: list[Address] = []


class FinderRecord(Record):
    """The routine that the C++ runtime asks for unwind data (exceptions.py).

    device, inode: the file of libgcc. place: the instruction there that is replaced by a jump (hex) when it is wanted.
    data: the table. The routine lies before it and is never unmapped.
    """

    device: str
    inode: int
    place: Address
    jump: Code
    data: Address
    workspace: Address
    workspace_size: Size
    wanted: bool = False


class Document(Record):
    """The whole state. generation: the highest number ever given to a thread."""

    generation: Generation = 0
    patches: list[PatchRecord] = []
    pages: list[PageRecord] = []
    wake: list[WakeRecord] = []
    finders: list[FinderRecord] = []
    intent: Intent | None = None
    room: Address = 0  # where hooks are called, 0 when there is none
    arena: Address = 0  # shadow variables
    hook_runs: Run = 0  # the highest number of a hook's call

    def workspaces(self) -> list[tuple[int, int]]:
        """Return where page clones may lie: addresses and sizes."""
        return [(p.workspace, p.workspace_size) for p in self.patches] + self.rooms()

    def rooms(self) -> list[tuple[int, int]]:
        """Return those of them that stay as long as the process lives."""
        of_finders = [(f.workspace, f.workspace_size) for f in self.finders]
        return [(w.workspace, w.workspace_size) for w in self.wake] + of_finders

    def find(self, name: str) -> PatchRecord | None:
        """Return the patch of that name that threads may see; of two of one name the one that replaces the other."""
        return next((p for p in reversed(self.visible()) if p.name == name), None)

    def visible(self) -> list[PatchRecord]:
        """Return the patches that threads may see, in the order in which they lie over each other."""
        return [p for p in self.patches if p.phase not in ("retired", *BEFORE_SWITCH)]

    def in_transition(self) -> PatchRecord | None:
        """Return the patch under way, if any: one transition at a time."""
        resting = ("finalized", "retired", *BEFORE_SWITCH)
        return next((p for p in self.patches if p.phase not in resting), None)


def all_code(record: PatchRecord) -> list[CodeRange]:
    """Return the executable part of an area without gaps (functions, between them stubs and thunks), and the holes."""
    result: list[CodeRange] = []
    position = record.code.start
    for item in sorted(record.new, key=lambda r: r.start):
        if position < item.start:
            result.append(CodeRange(function="a stub", start=position, end=item.start))
        result.append(item)
        position = item.end
    far = [CodeRange(function="a stub", start=page, end=page + PAGE) for page in record.trampolines]
    return [*result, CodeRange(function="a stub", start=position, end=record.code.end), *far, *holes_of(record.sites)]


def holes_of(sites: list[SiteRecord]) -> list[CodeRange]:
    """Return the holes of some sites as code.

    A range begins one byte before a hole: a signal frame may hold the hole's first byte as the place to go on.
    """
    return [
        CodeRange(function=s.function, start=hole.address - 1, end=hole.address + len(hole.final) // 2)
        for s in sites
        for hole in s.holes
    ]


class State:
    """The document in one process, and the means to commit it."""

    def __init__(self, process: Process, memory: Memory, address: int) -> None:
        self._process = process
        self._memory = memory
        self.address = address
        self._sequence = 0
        self.document = Document()

    def has_room(self) -> bool:
        """Tell whether the document may still grow by all that a transition adds."""
        return len(self.document.model_dump_json()) < COPY_SIZE // 2

    def commit(self) -> None:
        """Make the document in memory the one in the target."""
        sequence = self._sequence + 1
        body = self.document.model_dump_json().encode()
        if len(body) + _COPY_HEAD.size > COPY_SIZE:
            raise PodgraftError(Reason.INTERNAL, f"the state document is too large ({len(body)} bytes)")
        copy = self.address + PAGE + (sequence & 1) * COPY_SIZE
        self._memory.write(copy, _COPY_HEAD.pack(sequence, len(body), zlib.crc32(body)) + body)
        reached(Step.COPY_WRITTEN)
        self._memory.write(self.address + _COMMIT_AT, struct.pack("<Q", sequence))
        self._sequence = sequence
        reached(Step.COMMITTED)

    def load(self) -> bool:
        """Read the document; False when the mapping holds none yet (an engine ended before its first commit).

        Raises:
            PodgraftError: FOREIGN_STATE when it is damaged or of another version.
        """
        magic, version, address = _HEADER.unpack(self._memory.read(self.address, _HEADER.size))
        if magic != MAGIC or address != self.address:
            return False
        if version != VERSION:
            raise PodgraftError(Reason.FOREIGN_STATE, f"the state in the process has version {version}")
        self._sequence = struct.unpack("<Q", self._memory.read(self.address + _COMMIT_AT, 8))[0]
        copy = self.address + PAGE + (self._sequence & 1) * COPY_SIZE
        sequence, length, crc = _COPY_HEAD.unpack(self._memory.read(copy, _COPY_HEAD.size))
        body = self._memory.read(copy + _COPY_HEAD.size, min(length, COPY_SIZE - _COPY_HEAD.size))
        if sequence != self._sequence or zlib.crc32(body) != crc:
            raise PodgraftError(Reason.FOREIGN_STATE, "the state in the process is damaged")
        try:
            self.document = Document.model_validate_json(body)
        except ValidationError as error:
            raise PodgraftError(Reason.FOREIGN_STATE, f"the state in the process does not parse: {error}") from None
        return True

    def initialise(self) -> None:
        """Write header and first document into a fresh mapping; the magic comes last."""
        self.commit()
        self._memory.write(self.address, _HEADER.pack(MAGIC, VERSION, self.address))
        reached(Step.STATE_BORN)


def read_state(process: Process, memory: Memory, blk: Block | None) -> State | None:
    """Return the state in the process, without touching anything; None when there is none."""
    root = blk.root() if blk else None
    mapping = Maps(process).at(root[0]) if root is not None else None
    if root is None or mapping is None or "r" not in mapping.perms:
        return None
    state = State(process, memory, root[0])
    return state if state.load() else None


def open_state(process: Process, memory: Memory, blk: Block, helper: Helper) -> State:
    """Return the state in the process, made new when there is none.

    The root is set before the mapping exists, so that an engine killed in between leaks nothing; what is mapped there
    is ours only if it says so: the program may have taken the place.
    """
    state = read_state(process, memory, blk)
    if state is not None:
        return state
    for _ in range(PLACES_TO_TRY):
        address = gap_near(process.maps(), blk.address, MAPPING_SIZE + PAGE, NEAR) + PAGE
        blk.set_root(address, MAPPING_SIZE)
        reached(Step.ROOT_SET)
        if try_map_fixed(helper, address - PAGE, MAPPING_SIZE + PAGE, PROT_NONE):
            reached(Step.STATE_MAPPED)
            protect(helper, address, MAPPING_SIZE, PROT_RW)
            reached(Step.STATE_OPENED)
            state = State(process, memory, address)
            state.initialise()
            return state
    raise PodgraftError(Reason.NO_ROOM_NEARBY, "the program maps memory faster than a place for the state is found")
