"""Results as one page of tables and as plots; pure functions of what was recorded, but for the files they write."""

from pathlib import Path
from types import ModuleType
from typing import Any

from bench import calls, gaps, latency, size, threads
from bench.harness import markdown

BENCHMARKS: dict[str, ModuleType] = {
    "latency": latency,
    "threads": threads,
    "size": size,
    "calls": calls,
    "gaps": gaps,
}
_HEAD = """# Benchmarks

Written by `make bench` (`python -m bench --tables` writes it anew from `results.json`); do not edit. Numbers of one run
can be compared with each other; other machines give others.
"""


def page(results: dict[str, Any]) -> str:
    """Return the page: each benchmark with its question, its table, and on what it was measured."""
    parts = [_HEAD]
    for name, module in BENCHMARKS.items():
        if name in results:
            question = (module.__doc__ or "").strip()
            machine = results[name]["machine"]
            parts += [
                f"## {name}\n\n{question}\n",
                f"![{name}]({name}.svg)\n",
                module.table(results[name]).rstrip() + "\n",
                markdown(tuple(machine), [tuple(machine.values())]) + "\n",
            ]
    return "\n".join(parts)


def write(results: dict[str, Any], folder: Path) -> str:
    """Write README.md and the plots into a folder; return the text."""
    text = page(results)
    (folder / "README.md").write_text(text)
    for name, module in BENCHMARKS.items():
        if name in results:
            module.plot(results[name], folder)
    return text
