"""What the compiler wrapper recorded, and which objects a link took."""

import ast
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# One part of the map; others name archives, too, as those that need a shared library, and hold prose (ldlang.c).
_ARCHIVES = re.compile(r"^Archive member included[^\n]*\n\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
# A path may have a space, but a run of them separates columns: other tables of the map name archives there.
_MEMBER = re.compile(r"^((?:[^\s()]| (?! ))+\.a)\(([^()\n]+)\)", re.MULTILINE)
_LOAD = re.compile(r"^LOAD (.+)$", re.MULTILINE)
# Other linkers have no LOAD: gold names a file behind address and size, lld and mold before each of its sections.
_PLACED = re.compile(r"^ .*?0x[0-9a-f]+ +0x[0-9a-f]+ (\S.*)$|^ +[0-9a-fx]+ .*\d {9}(\S.*):\([^()]*\)$", re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """One object that was compiled, or (kind "link") one file that was linked.

    Kind "text": a source of which the compiler made text, and what that became is not known. Kind "blind": an object
    that is made from more than its record can tell.
    """

    kind: str
    cwd: Path
    output: Path
    compiler: str = ""
    arguments: tuple[str, ...] = ()
    source: str = ""
    copy: Path = Path()
    depends: frozenset[str] = frozenset()
    map: Path = Path()
    program: str = ""  # what one call compiles and links: its objects have new names each time


def read_log(store: Path) -> list[Record]:
    """Return the records of one store, oldest first."""
    log = store / "log"
    if not log.exists():
        return []
    folder = cache(lambda path: path.resolve())  # the objects of a build read the same headers in the same folders

    @cache
    def resolved(name: str) -> str:
        path = Path(name)
        return str(path.resolve() if path.is_symlink() else folder(path.parent) / path.name)

    return [_record(ast.literal_eval(line), resolved) for line in log.read_text().splitlines()]


def _record(line: dict[str, str | list[str]], resolved: Callable[[str], str]) -> Record:
    text = {key: value for key, value in line.items() if isinstance(value, str)}
    return Record(
        kind=text["kind"],
        cwd=Path(text["cwd"]),
        output=Path(resolved(text["output"])),
        compiler=text.get("compiler", ""),
        arguments=tuple(line.get("arguments", ())),
        source=text.get("source", ""),
        copy=Path(text.get("copy", "")),
        depends=frozenset(resolved(name) for name in text.get("depends", "").split("\0") if name),
        map=Path(text.get("map", "")),
        program=text.get("program", ""),
    )


@dataclass(frozen=True)
class Input:
    """One object of a link: a file, or a member of an archive."""

    path: Path
    member: str | None
    data: bytes

    def label(self, tree: Path) -> str:
        """Return a name that is the same for the old and the new build."""
        path = str(self.path.relative_to(tree)) if self.path.is_relative_to(tree) else str(self.path)
        return f"{path}({self.member})" if self.member else path


def link_of(records: list[Record], binary: Path) -> Record | None:
    """Return the last link that made the binary, if the wrappers saw one."""
    made = [item for item in records if item.kind == "link" and item.output == binary.resolve()]
    return made[-1] if made else None


def loaded(link: Record) -> list[Path]:
    """Return the files that the map of a link names."""
    return [(link.cwd / name).resolve() for name in _loaded(link.map.read_text(errors="replace"))]


def _loaded(text: str) -> list[str]:
    """Return the files of a map (ld manual, "-M"), archive members as `archive(member)` where the linker names them."""
    found = _LOAD.findall(text) or [gold or other for gold, other in _PLACED.findall(text)]
    return list(dict.fromkeys(found))


def inputs_of(link: Record, tree: Path, records: list[Record], run: list[Record]) -> list[Input]:
    """Return the objects of the tree that a link took, files and archive members.

    run: the records of the build that made the link; an object may have been made again, with other flags, behind it.
    """
    text = link.map.read_text(errors="replace")
    copies = {item.output: item.copy for item in records if item.kind == "compile"}
    taken = _made_again(link, run)
    found: list[Input] = []
    for path in loaded(link):
        if path in copies and path.parent == copies[path].parent:
            found.append(Input(Path(path.name.split("-", 1)[-1]), None, copies[path].read_bytes()))
        elif path.is_relative_to(tree) and path.is_file():
            data = taken.get(path, path).read_bytes()
            if data.startswith(b"\x7fELF") and data[16:18] == b"\x01\x00":  # ET_REL
                found.append(Input(path, None, data))
    used: dict[Path, list[str]] = {}
    members_part = _ARCHIVES.search(text)
    members = members_part.group(1) if members_part else "\n".join(_loaded(text))
    for name, member in dict.fromkeys(_MEMBER.findall(members)):
        path = (link.cwd / name).resolve()
        if path.is_relative_to(tree):
            used.setdefault(path, []).append(member)
    for path, members in used.items():
        found += [
            Input(path, name if number == 0 else f"{name}#{number + 1}", content)
            for name, contents in archive_members(path).items()
            if name in members
            for number, content in enumerate(contents)
        ]
    return found


def _made_again(link: Record, run: list[Record]) -> dict[Path, Path]:
    """Return path -> copy of what a link took, for objects that were compiled before it and once more after it."""
    if link not in run:
        return {}
    at = run.index(link)
    before = {item.output: item.copy for item in run[:at] if item.kind == "compile"}
    return {item.output: before[item.output] for item in run[at:] if item.kind == "compile" and item.output in before}


def archive_members(path: Path) -> dict[str, list[bytes]]:
    """Return name -> contents of an `ar` archive, GNU long names and thin archives included (ar(5)).

    Names may repeat. A map does not tell which of them was linked: all are taken, and one that changes and
    that is not in the running binary is refused later.
    """
    data = path.read_bytes()
    thin, names, stream = data.startswith(b"!<thin>\n"), b"", io.BytesIO(data)
    members: dict[str, list[bytes]] = {}
    stream.seek(8)
    while len(header := stream.read(60)) == 60:
        raw, size = header[:16].decode().rstrip(), int(header[48:58])
        special = raw in {"/", "//", "/SYM64/"}
        if raw.startswith("/") and not special:
            start = int(raw[1:])
            name = names[start:].split(b"/\n", 1)[0].decode()
        else:
            name = raw.rstrip("/")
        if thin and not special:
            members.setdefault(Path(name).name, []).append((path.parent / name).read_bytes())
            continue
        content = stream.read(size)
        stream.seek(size & 1, io.SEEK_CUR)
        if raw == "//":
            names = content
        elif not special:
            members.setdefault(name, []).append(content)
    return members


def content_hash(data: bytes) -> str:
    """Return the name under which two builds know the same object."""
    return hashlib.sha256(data).hexdigest()
