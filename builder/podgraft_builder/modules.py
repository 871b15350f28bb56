"""Does the patch also change another module that may be in the same process? A bundle replaces code of one alone."""

from pathlib import Path

from elftools.elf.elffile import ELFFile

from podgraft_builder.compare import Comparison
from podgraft_builder.objects import ObjectFile
from podgraft_builder.records import Input, Record, content_hash, inputs_of
from podgraft_builder.verdict import Verdict
from podgraft_bundle.errors import Reason, Refusal

Modules = dict[Path, list[Input]]


def other_modules(records: list[Record], binary: Path, tree: Path) -> Modules:
    """Return the objects of what may be in one process with the binary: libraries, and for a library all programs."""
    links = {item.output: item for item in records if item.kind == "link" and item.output != binary.resolve()}
    alone = _is_program(binary)
    return {
        output: inputs_of(link, tree, records)
        for output, link in sorted(links.items())
        if output.is_file() and _is_elf(output) and not (alone and _is_program(output))
    }


def check_modules(before: Modules, after: Modules, remade: dict[str, bytes], tree: Path, verdict: Verdict) -> None:
    """Refuse where code of another module changes; remade maps the hash of an object to what took its place."""
    for output, old in before.items():
        new = {item.label(tree): item.data for item in after.get(output, old)}
        for item in old:
            data = new.get(item.label(tree), item.data)
            data = remade.get(content_hash(item.data), data)
            if data != item.data and _differs(item.label(tree), item.data, data):
                name = output.relative_to(tree) if output.is_relative_to(tree) else output
                detail = f"{item.label(tree)} of {name} changes as well"
                verdict.refuse(Reason.OTHER_MODULE_CHANGED, detail)
                break


def _differs(label: str, old: bytes, new: bytes) -> bool:
    try:
        comparison = Comparison(ObjectFile(label, old), ObjectFile(label, new)).run()
    except Refusal:
        return True
    return bool(comparison.changed or comparison.data or comparison.new_functions)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _is_program(path: Path) -> bool:
    if not _is_elf(path):
        return False
    with path.open("rb") as file:
        elf = ELFFile(file)
        fixed = elf["e_type"] == "ET_EXEC"
        return fixed or any(True for _ in elf.iter_segments("PT_INTERP"))
