"""What a bundle costs once the old build is kept, against what make costs for the same fix; without ccache."""

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hack.corpus.bundles import Ground, command, environment, prepare
from hack.corpus.cases import Corpus, work
from hack.tools import REPOSITORY, ToolFailedError, digest_of, run, step

KEPT = "old build: the one that is kept from an earlier patch"  # what the builder says


@dataclass(frozen=True)
class Speed:
    """Seconds of the clock, and of the processors: of `podgraft build` for a tree that it knows, and of make."""

    case: str
    build: float
    build_cpu: float
    make: float
    make_cpu: float


def measure(corpus: Corpus, ground: Ground) -> Speed:
    """Measure a case that became a bundle, or return what is known of it.

    Raises:
        ToolFailedError: one of the builds failed.
    """
    known = known_speed(ground)
    if known is not None:
        return known
    with step(f"{ground.case.name}: build time"):
        result = _measure(corpus, ground)
    _file(ground).write_text(json.dumps({"key": _key(ground), **asdict(result)}, indent=1))
    return result


def known_speed(ground: Ground) -> Speed | None:
    """Return what the cache holds, if the builder has not changed."""
    known = json.loads(_file(ground).read_text()) if _file(ground).is_file() else {"key": None}
    return Speed(**known) if known.pop("key") == _key(ground) else None


def _measure(corpus: Corpus, ground: Ground) -> Speed:
    tree, fix = prepare(corpus, ground)
    words = command(ground, tree, fix)
    # A cache of its own: other builds on this machine would throw the kept one out.
    with_cache = {**environment(), "PODGRAFT_CACHE": str(work() / "builds")}
    run(*words, env=with_cache)  # the first one of this tree; others are built on it
    without = {**with_cache, "CCACHE_DISABLE": "1"}
    del without["CCACHE_NODISABLE"]
    log = ground.home / "speed.log"
    build, build_cpu = _timed(words, tree, without, log)
    if KEPT not in log.read_text():
        raise ToolFailedError(f"the old build of {ground.case.name} was not kept: {log}")
    make = ["sh", "-c", ground.program.build]
    run(*make, cwd=tree, env=environment())
    run("patch", "-p1", "-s", "-i", fix, cwd=tree)
    return Speed(ground.case.name, build, build_cpu, *_timed(make, tree, without, log))


def _timed(words: list[str], folder: Path, env: Mapping[str, str], log: Path) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run(*words, cwd=folder, env=env, log=log)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _file(ground: Ground) -> Path:
    return ground.home / "speed.json"


def _key(ground: Ground) -> str:
    return digest_of(REPOSITORY / "builder", str(asdict(ground.case)), ground.program.build)
