"""Global names that a linker wrote as local: mold does so with all that is not exported, lld by version scripts."""

from collections.abc import Iterable

from podgraft_builder.compare import Comparison
from podgraft_builder.objects import ObjectFile
from podgraft_builder.pairs import Pair, old_objects
from podgraft_builder.running import Named, RunningBinary


def share_demoted(running: RunningBinary, comparisons: Iterable[Comparison], pairs: list[Pair]) -> None:
    """Let local symbols be known to all objects, where the objects that were built tell that they are global."""
    wanted = {s.name for c in comparisons for which in (c.old, c.new) for s in which.symbols if s.name and not s.local}
    found = {name: running.by_name[name] for name in wanted & running.by_name.keys()}
    doubtful = {name: items for name, items in found.items() if not any(item.shared for item in items)}
    if doubtful:
        running.share(_demoted(doubtful, old_objects(pairs), running.imported))


def _demoted(doubtful: dict[str, list[Named]], objects: list[ObjectFile], imported: set[str]) -> set[Named]:
    """Return what no object has as a local symbol, and one defines, or needs and does not import."""
    needed, own = set(), set()
    for which in objects:
        for symbol in which.symbols:
            if symbol.name not in doubtful:
                continue
            if symbol.local:
                own.add((which.source, symbol.name))
            elif symbol.section is not None or (symbol.bind == "STB_GLOBAL" and symbol.name not in imported):
                needed.add(symbol.name)
    return {item for name in needed for item in doubtful[name] if (item.file, item.name) not in own}
