"""The servers that are measured under load: how each is started, what asks it, and the fix that goes into it."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchFailedError
from hack.corpus import bundles, network
from hack.corpus.cases import Corpus
from hack.corpus.programs import PROGRAMS
from hack.demo import bundle
from hack.images.contents import LOAD
from hack.sources import redis
from hack.tools import REPOSITORY, lock, run

PROTOCOLS = Path(__file__).parent / "load"


@dataclass(frozen=True)
class Served:
    """One server. command: starts it in the foreground; load: the protocol of the load; bundle and name: the fix."""

    command: list[str]
    port: int
    load: Path
    bundle: str
    name: str


def _redis(work: Path) -> Served:
    source, fix = redis.prepare(), bundle.ensure()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --io-threads 4 --io-threads-do-reads yes --dir {work} --save".split()
    return Served([str(source.server), *options, ""], port, LOAD / "redis.c", str(fix), bundle.NAME)


def _of_corpus(case_name: str, load: Path) -> Callable[[Path], Served]:
    """Return what prepares a case of the corpus: it is built as `make corpus` does, in a network with fixed ports."""

    def prepare(work: Path) -> Served:
        corpus = Corpus()
        case = corpus.chosen(case_name)[0]
        ground = bundles.Ground(case, PROGRAMS[case.program])
        run(REPOSITORY / "hack" / "install-packages", "ccache", *ground.program.packages)
        with lock("corpus"):
            corpus.fetch(case)
            built = bundles.build(corpus, ground)
        if built.verdict != "bundle":
            raise BenchFailedError(f"{case_name} is no bundle: {built.reason} {built.detail}")
        network.enter()
        work.chmod(0o755)
        command = ground.program.start(corpus.folder, work, ground.built, case.name)
        return Served(command, ground.program.port, load, str(ground.bundle), case.name.lower())

    return prepare


# Each fix is to a function that the load calls, but for unbound: which calls it for names that it can compress.
SERVED: dict[str, Callable[[Path], Served]] = {
    "redis": _redis,
    "nginx": _of_corpus("nginx-1.22.1-CVE-2026-42945", PROTOCOLS / "http.c"),
    "unbound": _of_corpus("unbound-1.22.0-CVE-2026-44390", PROTOCOLS / "dns.c"),
}
