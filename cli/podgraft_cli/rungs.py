"""Where the functions of a new bundle will be entered: the engine is asked, as its own program."""

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from podgraft_bundle.errors import PodgraftError
from podgraft_bundle.protocol import Failed, Problem, Refused, Request, Surveyed
from podgraft_cli.engine import Engine, installed


@dataclass(frozen=True)
class Rungs:
    """Rungs of the site ladder by function, what speaks against others, and why there may be none at all."""

    by_function: dict[str, str]
    problems: tuple[Problem, ...] = ()
    unknown: str | None = None

    def of(self, function: str) -> str:
        """Return the rung of a function; those of static functions of one name, if they differ."""
        return self.by_function.get(function, "-")


NONE = Rungs({})


def ready_engine() -> AbstractContextManager[Engine | None]:
    """Start an engine, if there is one, that will be asked for rungs later."""
    return Engine(own_session=True) if installed() else nullcontext()


def find_rungs(engine: Engine | None, bundle: Path, binary: Path) -> Rungs:
    """Ask the engine which rung each function of a bundle gets in the file of its module.

    An engine that fails takes nothing from a bundle that is written: its rungs are unknown then.
    """
    if engine is None:
        return Rungs({}, unknown="podgraft-engine is not installed beside podgraft")
    found: dict[str, list[str]] = defaultdict(list)
    problems: list[Problem] = []
    surveyed = False
    try:
        for event in engine.ask(Request(op="sites", bundle=str(bundle), file=str(binary))):
            if isinstance(event, Surveyed):
                surveyed = True
                problems += event.problems
                for site in event.sites:
                    found[site.function].append(site.rung)
            elif isinstance(event, Refused | Failed):
                return Rungs({}, unknown=f"{event.reason}: {event.detail}")
    except PodgraftError as error:
        return Rungs({}, unknown=error.detail)
    if not surveyed:
        return Rungs({}, unknown=f"the engine ended with {engine.exit_code:d}")
    return Rungs({name: "/".join(dict.fromkeys(rungs)) for name, rungs in found.items()}, tuple(problems))
