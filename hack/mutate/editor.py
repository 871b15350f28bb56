"""A small editor that knows C well enough to change what functions do, at random, one thing at a time."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

# A definition at the left margin that ends with a brace at the left margin: the style of the sources that are edited.
_FUNCTION = re.compile(
    r"^(?![#/ \t}])(?P<head>[^;{}\n=]*?\b(?P<name>\w+)\([^;{}]*?\)) ?\{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL
)
_HIDDEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_STRUCT = re.compile(r"^(?:typedef )?struct\b[^;{}()\n]*\{\n", re.MULTILINE)
_CALL = re.compile(r"^[ \t]+[A-Za-z_]\w*\([^;{}\n]*\);$", re.MULTILINE)
_OPERATORS = {"==": "!=", "!=": "==", "<=": "<", ">=": ">", "<": "<=", ">": ">=", "&&": "||", "||": "&&"}


@dataclass(frozen=True)
class Edit:
    """kind of an edit, the function (or struct) it is in, and the whole text after it."""

    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class Function:
    """start and end of the body in the text; head is the declaration."""

    name: str
    head: str
    begin: int
    start: int
    end: int


def masked(text: str) -> str:
    """Blank comments, strings and characters, so that what looks like code is code; every offset stays."""
    return _HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def functions(text: str, wanted: str) -> list[Function]:
    """Return the functions whose name fits a pattern."""
    return [
        Function(found["name"], found["head"], found.start(), found.start("body"), found.end("body"))
        for found in _FUNCTION.finditer(masked(text))
        if re.fullmatch(wanted, found["name"])
    ]


def edit(text: str, wanted: str, extra: str, dice: random.Random) -> Edit:
    """Change one thing in one function whose name fits `wanted`.

    extra: statements that answer the user, put into functions that are named in `wanted` for the edits that add code;
    it holds VALUE for an expression of type int.

    Raises:
        ValueError: the text has no such function.
    """
    found = functions(text, wanted)
    if not found:
        raise ValueError(f"no function named {wanted}")
    kinds = sorted(KINDS)
    while True:
        kind, function = dice.choice(kinds), dice.choice(found)
        changed = KINDS[kind](text, function, extra, dice)
        if changed is not None and changed != text:
            return Edit(kind, function.name, changed)


def _replace(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _matches(pattern: str, text: str, function: Function) -> list[re.Match[str]]:
    return list(re.compile(pattern, re.MULTILINE).finditer(masked(text), function.start, function.end))


def _constant(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = _matches(r"(?<![\w.])\d+(?![\w.])", text, function)
    if not found:
        return None
    one = dice.choice(found)
    return _replace(text, *one.span(), str(int(one.group(), 8 if one.group().startswith("0") else 10) + 1))


def _condition(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = _matches(r"(?<=\bif \()[^;{}()\n]+(?=\) )", text, function)
    if not found:
        return None
    one = dice.choice(found)
    return _replace(text, *one.span(), f"!({text[one.start() : one.end()]})")


def _operator(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = _matches(r"(?<= )(==|!=|<=|>=|<|>|&&|\|\|)(?= )", text, function)
    if not found:
        return None
    one = dice.choice(found)
    return _replace(text, *one.span(), _OPERATORS[one.group()])


def _call_removed(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = _matches(_CALL.pattern, text, function)
    if not found:
        return None
    return _replace(text, *dice.choice(found).span(), "    ;")


def _calls_swapped(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = _matches(_CALL.pattern, text, function)
    pairs = [(a, b) for a, b in pairwise(found) if b.start() == a.end() + 1]
    if not pairs:
        return None
    a, b = dice.choice(pairs)
    return _replace(text, a.start(), b.end(), f"{text[b.start() : b.end()]}\n{text[a.start() : a.end()]}")


def _text(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*[\w ]"')
    found = list(pattern.finditer(text, function.start, function.end))
    if not found:
        return None
    one = dice.choice(found)
    return _replace(text, one.end() - 1, one.end(), 'x"')


def _returned(text: str, function: Function, _extra: str, dice: random.Random) -> str | None:
    found = [one for one in _matches(r"(?<=\breturn )[^;{}\n]+(?=;)", text, function) if one.group().strip()]
    if not found or not re.match(r"(static )?(inline )?(int|long|long long|size_t|unsigned int) \w+\(", function.head):
        return None
    one = dice.choice(found)
    return _replace(text, *one.span(), f"({text[one.start() : one.end()]}) + 1")


def _local(text: str, function: Function, extra: str, dice: random.Random) -> str | None:
    size, step = dice.randint(3, 40), dice.randint(2, 9)
    lines = (
        f"    int added_room[{size}], added_sum = 0;\n"
        f"    for (int i = 0; i < {size}; i++) added_room[i] = i * {step};\n"
        f"    for (int i = 0; i < {size}; i += 3) added_sum += added_room[i];\n"
    )
    return _prefixed(text, function, lines, extra.replace("VALUE", "added_sum"))


def _static_local(text: str, function: Function, extra: str, dice: random.Random) -> str | None:
    start, step = dice.randint(1, 99), dice.randint(2, 4)
    lines = f"    static int added_count = {start};\n    added_count += {step};\n"
    return _prefixed(text, function, lines, extra.replace("VALUE", "added_count"))


def _new_function(text: str, function: Function, extra: str, dice: random.Random) -> str | None:
    changed = _prefixed(text, function, "", extra.replace("VALUE", f"added_function({dice.randint(2, 99)})"))
    body = f"return a * a + {dice.randint(1, 9)};"
    added = f"__attribute__((noinline)) static int added_function(int a) {{ {body} }}\n\n"
    return changed and _replace(changed, function.begin, function.begin, added)


def _prefixed(text: str, function: Function, lines: str, extra: str) -> str | None:
    if "client *c)" not in function.head:
        return None
    return _replace(text, function.start, function.start, f"{lines}    {extra}\n")


def _struct_field(text: str, _function: Function, _extra: str, dice: random.Random) -> str | None:
    found = list(_STRUCT.finditer(masked(text)))
    if not found:
        return None
    return _replace(text, (at := dice.choice(found).end()), at, "    int added_field;\n")


KINDS: dict[str, Callable[[str, Function, str, random.Random], str | None]] = {
    "constant": _constant,
    "condition negated": _condition,
    "operator": _operator,
    "call removed": _call_removed,
    "calls swapped": _calls_swapped,
    "text": _text,
    "returned value": _returned,
    "local variables": _local,
    "static local": _static_local,
    "new function": _new_function,
    "struct field": _struct_field,
}
