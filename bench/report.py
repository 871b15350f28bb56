"""Results as one page of tables and as plots; pure functions of what was recorded, but for the files they write."""

from pathlib import Path
from typing import Any, Protocol

from bench import calls, gaps, size, threads
from bench.harness import Options, markdown
from bench.latency import Latency
from bench.served import SERVED


class Benchmark(Protocol):
    """A module or an object; its docstring is the question that it answers."""

    __doc__: str | None

    def run(self, options: Options) -> dict[str, Any]:
        """Measure; what is returned is recorded as JSON."""

    def table(self, result: dict[str, Any]) -> str:
        """Return what was recorded as Markdown."""

    def plot(self, result: dict[str, Any], folder: Path) -> list[Path]:
        """Draw what was recorded; return the files."""


BENCHMARKS: dict[str, Benchmark] = {
    **{f"latency-{program}": Latency(program) for program in SERVED},
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
