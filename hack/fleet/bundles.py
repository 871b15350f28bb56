"""Two bundles for the demo's Redis, and how a client tells which of them a server runs."""

import difflib
import subprocess
from pathlib import Path

from hack.demo import bundle, observable
from hack.sources import redis
from hack.tools import ToolFailedError, cache

FIRST, SECOND = bundle.NAME, "redis-second"
OLD = 0
GENERATIONS = {FIRST: 1, SECOND: 2}
QUESTION, ANSWER = "podgraft", "second"


def ensure() -> dict[str, Path]:
    """Return both bundle files by name; the second has the fix of the first and a change of its own.

    Raises:
        ToolFailedError: a build refuses or fails.
    """
    source = redis.prepare()
    patch = cache() / "demo" / f"{SECOND}.patch"
    patch.parent.mkdir(exist_ok=True)
    patch.write_text(source.fix.read_text() + _echo(source.tree / "src" / "server.c"))
    return {FIRST: bundle.ensure(), SECOND: bundle.build(source, SECOND, patch)}


def generation(pid: int) -> int:
    """Ask a server, in the network namespace of its process, what code answers: OLD, or one of GENERATIONS.

    Raises:
        ToolFailedError: it does not answer, or as no single generation would.
    """
    fixed = observable.answer(lambda words, stdin: _redis_cli(pid, words, stdin)) == observable.FIXED
    second = _redis_cli(pid, ["ECHO", QUESTION], b"").strip() == ANSWER
    if second and not fixed:
        raise ToolFailedError(f"process {pid} runs a part of {SECOND}, and not the rest")
    return int(fixed) + int(second)


def _redis_cli(pid: int, words: list[str], stdin: bytes) -> str:
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", str(redis.prepare().client), *words]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=20)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ToolFailedError(f"redis-cli {' '.join(words)} for process {pid}: {error}") from error
    return done.stdout.decode()


def _echo(file: Path) -> str:
    before = file.read_text().splitlines(keepends=True)
    start = next(i for i, line in enumerate(before) if line.startswith("void echoCommand(client *c) {"))
    extra = [
        f'    if (strcmp(c->argv[1]->ptr, "{QUESTION}") == 0) {{\n',
        f'        addReplyBulkCString(c, "{ANSWER}");\n',
        "        return;\n",
        "    }\n",
    ]
    after = [*before[: start + 1], *extra, *before[start + 1 :]]
    return "".join(difflib.unified_diff(before, after, "a/src/server.c", "b/src/server.c"))
