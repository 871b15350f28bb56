"""What is known of the edits: a file of the repository, so that a run goes on where it ended, on any machine."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

from hack.mutate.play import Result


class Known:
    """The results of one state of builder and engine, by number. What the file holds of another state is left out."""

    def __init__(self, file: Path, state: str) -> None:
        self._file, self._state, self._lock = file, state, threading.Lock()
        held = json.loads(file.read_text()) if file.is_file() else {}
        results = [Result(**result) for result in held.get("results", [])] if held.get("state") == state else []
        self.results = {result.number: result for result in results}

    def add(self, result: Result) -> Result:
        """Keep a result; the file is whole at any moment. Returns the result."""
        with self._lock:
            self.results[result.number] = result
            partial = self._file.with_suffix(".partial")
            lines = ",\n".join(json.dumps(asdict(self.results[number])) for number in sorted(self.results))
            partial.write_text(f'{{"state": {json.dumps(self._state)}, "results": [\n{lines}\n]}}\n')
            partial.rename(self._file)
        return result
