"""kubectl and helm, as a user types them."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hack.tools import ToolFailedError

Json = dict[str, Any]


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig and one namespace."""

    kubeconfig: Path
    namespace: str

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> bytes:
        """Run kubectl to its end, return its standard output; raises ToolFailedError with its standard error."""
        result = subprocess.run(self._words(arguments), input=stdin, capture_output=True, check=False)
        if result.returncode != 0:
            said = result.stderr.decode(errors="replace").strip()
            raise ToolFailedError(f"kubectl {' '.join(map(str, arguments))}: {said}")
        return result.stdout

    def json(self, *arguments: str) -> Json:
        """Run `kubectl … -o json` and return what it says."""
        answer: Json = json.loads(self.run(*arguments, "-o", "json"))
        return answer

    def stream(self, *arguments: str) -> "Stream":
        """Start a kubectl that goes on, as with -w."""
        return Stream(self._words(arguments))

    def _words(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *map(str, arguments)]


class Stream:
    """The lines of a command that goes on until the block ends."""

    def __init__(self, command: list[str]) -> None:
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the command."""
        self._child.kill()
        self._child.wait()

    def __iter__(self) -> Iterator[str]:
        """Yield line by line; ends when the block has been left or the command has ended."""
        assert self._child.stdout is not None  # noqa: S101 # asked for above
        for line in self._child.stdout:
            yield line.rstrip("\n")
