"""Keep the line numbers of unchanged code: `#line` after each place where a patch moved them.

__LINE__ in an assertion would otherwise make every function below a patched one differ.
"""

import re
import subprocess
from pathlib import Path

C_LIKE = frozenset(
    [".c", ".h", ".cc", ".hh", ".cpp", ".hpp", ".cxx", ".hxx", ".c++", ".C", ".H", ".inc", ".inl", ".def", ".m"]
)
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.MULTILINE)
_WORD = re.compile(r'//(?:[^\\\n]|\\.)*|/\*|\*/|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|[()]', re.DOTALL)


def keep_line_numbers(before: Path, after: Path) -> None:
    """Insert `#line` into a patched C file so that its unchanged lines keep the numbers they had in `before`."""
    result = subprocess.run(["diff", "-U0", before, after], capture_output=True, check=False)
    hunks = [
        (int(a), int(b or 1), int(c), int(d or 1))
        for a, b, c, d in _HUNK.findall(result.stdout.decode(errors="replace"))
    ]
    text = after.read_bytes().decode("latin-1")
    lines = text.split("\n")
    safe = _statement_starts(lines)
    for index, (old, old_count, new, new_count) in reversed(list(enumerate(hunks))):
        old_next = old + old_count if old_count else old + 1
        new_next = new + new_count if new_count else new + 1
        limit = hunks[index + 1][2] if index + 1 < len(hunks) else len(lines)
        where = next((line for line in range(new_next, limit + 1) if safe[line - 1]), None)
        if where is not None:
            lines.insert(where - 1, f"#line {old_next + where - new_next}")
    after.write_bytes("\n".join(lines).encode("latin-1"))


def _statement_starts(lines: list[str]) -> list[bool]:
    """Tell for each line whether a directive may stand before it: no comment, continuation or argument list."""
    safe, comment, depth, continued = [], False, 0, False
    for line in lines:
        if line.startswith("}"):
            depth = 0  # #if branches may unbalance the count; a function's end sets it right
        safe.append(not comment and not continued and depth == 0)
        directive = continued or line.lstrip().startswith("#")
        for match in _WORD.finditer(line):
            word = match.group()
            if comment:
                comment = word != "*/"
            elif word == "/*":
                comment = True
            elif word in "()" and not directive:
                depth = max(0, depth + (1 if word == "(" else -1))
        continued = line.endswith("\\")
    return safe
