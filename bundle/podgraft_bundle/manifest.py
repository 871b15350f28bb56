"""The manifest of a bundle: what is replaced, in which module, and how each reference is found in the target."""

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FORMAT = "podgraft.dev/graft"
# 2: with hooks or shadow variables. Others stay 1, byte for byte, so that older engines take them.
FORMAT_VERSIONS = (1, 2)
# The undefined symbol by which code that includes podgraft.h finds shadow memory; the number is that of its layout.
ARENA = "podgraft_arena_v1"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
BuildId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,128}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?$")]
Symbol = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
CveId = Annotated[str, StringConstraints(pattern=r"^CVE-[0-9]{4}-[0-9]{4,}$")]
Offset = Annotated[int, Field(ge=0, lt=2**47)]


class Strict(BaseModel):
    """Unknown fields are errors: a newer meaning must never be silently dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Module(Strict):
    """An ELF file that the target maps, known by its build id."""

    name: str = Field(max_length=255, description="file name, for humans")
    build_id: BuildId


class Range(Strict):
    """A piece of old code: link-time virtual address in the module, bytes, and the hash of those bytes."""

    symbol: Symbol
    offset: Offset
    size: Annotated[int, Field(gt=0, lt=2**24)]
    sha256: Sha256


class ReplacedFunction(Strict):
    """One function of the target module and the symbol in patch.o that takes its place."""

    entry: Range
    parts: list[Range] = Field(default_factory=list, description=".cold parts, old code as well")
    new_symbol: Symbol
    save_registers: list[str] = Field(
        default_factory=list, description="registers the new function clobbers and the old one does not"
    )


class Reference(Strict):
    """How one undefined symbol of patch.o gets its value in the target.

    offset: module base + offset. got: the 8 bytes at module base + offset, already resolved by the loader.
    export: the address of an exported symbol, looked up in the loaded libraries. tpoff: the constant `value`
    (signed distance from the thread pointer, psABI x86-64 section 3.4.6 local-exec). arena: the shadow memory of the
    process, in the layout that the symbol's name says.
    """

    symbol: Symbol
    kind: Literal["offset", "got", "export", "tpoff", "arena"]
    offset: Offset | None = None
    export: Symbol | None = None
    version: str | None = None
    value: int | None = None


HookKind = Literal["pre_apply", "post_apply", "pre_revert", "post_revert"]
HOOK_KINDS: tuple[HookKind, ...] = get_args(HookKind)


class Hook(Strict):
    """A function of patch.o that the helper calls once; limit in seconds, then it is abandoned."""

    kind: HookKind
    symbol: Symbol
    limit: Annotated[float, Field(gt=0, le=60)] = 5.0


class Requires(Strict):
    """What the node must have."""

    kernel: str = "5.13"
    cpu: list[str] = Field(default_factory=lambda: ["fsgsbase"])


class ObjectFile(Strict):
    """The relocatable ELF inside the bundle."""

    file: Literal["patch.o"] = "patch.o"
    size: Annotated[int, Field(gt=0)]
    sha256: Sha256


class Manifest(Strict):
    """Everything the engine must know; the schema is `podgraft_bundle/manifest.schema.json`."""

    format: Literal["podgraft.dev/graft"] = "podgraft.dev/graft"
    format_version: Literal[1, 2] = 1
    name: Name
    version: str = Field(default="1", max_length=63)
    cves: list[CveId] = Field(default_factory=list)
    arch: Literal["x86_64"] = "x86_64"
    module: Module
    functions: Annotated[list[ReplacedFunction], Field(min_length=1)]
    gone: list[Range] = Field(
        default_factory=list, description="functions that the new source lacks: a thread in one runs old code"
    )
    references: list[Reference] = Field(default_factory=list)
    hooks: list[Hook] = Field(
        default_factory=list, max_length=len(HOOK_KINDS), description="one of a kind", exclude_if=lambda v: not v
    )
    points: list[Symbol] = Field(default_factory=list, description="declared points of quiescence")
    replaces: list[Name] = Field(
        default_factory=list,
        description="bundles that this one supersedes: they go when it is in, and a revert leads past them",
    )
    over: list[Name] = Field(
        default_factory=list,
        description="bundles whose functions this one may replace again: a revert leads back to them",
    )
    overruled: list[str] = Field(default_factory=list, description="hazards a human has overruled")
    requires: Requires = Field(default_factory=Requires)
    object: ObjectFile

    @property
    def uses_shadow(self) -> bool:
        """Say whether the new code has shadow variables."""
        return any(reference.kind == "arena" for reference in self.references)

    @model_validator(mode="after")
    def _check_hooks(self) -> Self:
        if len({hook.kind for hook in self.hooks}) != len(self.hooks):
            raise ValueError("there are two hooks of one kind")
        if self.format_version != version_for(self.hooks, self.references):
            raise ValueError("format version 2 is for bundles with hooks or shadow variables, and only for them")
        return self


def version_for(hooks: list[Hook], references: list[Reference]) -> Literal[1, 2]:
    """Return the oldest format version that can say this."""
    return 2 if hooks or any(reference.kind == "arena" for reference in references) else 1
