"""Find the functions of a binary without symbols: by their code, and where that is not unique, by who refers to them.

What is found becomes symbols; everything that uses them proves them again. Nothing is named by a guess: a function
whose code equals that of several has a name only where proven code, or a table that it uses, refers to it; so has a
small one, unless it refers itself to what only its file knows.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from iced_x86 import Mnemonic

from podgraft_builder.code import Body, decode
from podgraft_builder.instructions import Mismatch
from podgraft_builder.match import Proof
from podgraft_builder.objects import Function, ObjectFile
from podgraft_builder.pointers import follow_pointers, has_pointers
from podgraft_builder.running import Named, RunningBinary
from podgraft_bundle.errors import Reason, Refusal

# Fewer instructions than this may be equal by accident, where the running binary is from another source.
_ENOUGH = 12
Shape = tuple[int, ...]
Key = tuple[int, Function]  # number of the object


@dataclass
class _Search:
    """frames: address -> size of every function that runs. found: function of an object -> its address.

    names: global name -> address. read: number of an object and its section of data, once its entries were followed.
    """

    running: RunningBinary
    objects: list[ObjectFile]
    frames: dict[int, int]
    shapes: dict[Shape, list[int]] = field(default_factory=lambda: defaultdict(list))
    proofs: list[Proof] = field(default_factory=list)
    found: dict[Key, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    read: set[tuple[int, int]] = field(default_factory=set)

    def run(self) -> None:
        """Match until nothing new is learnt."""
        self.proofs = [Proof(which, self.running) for which in self.objects]
        for address, size in self.frames.items():
            self.shapes[_shape(decode(self.running.read(address, size) or b"", address))].append(address)
        while self._follow() or self._look() or self._unique():
            pass

    def _open(self) -> Iterator[Key]:
        for number, which in enumerate(self.objects):
            for function in dict.fromkeys(which.functions.values()):
                if (number, function) not in self.found:
                    yield number, function

    def _follow(self) -> bool:
        """Accept what proven code refers to, if it is the same code; say whether there was any."""
        new = False
        for number, function in list(self._open()):
            address = self._referred(number, function)
            if address is not None and self._try(number, function, address, keep=True):
                new = True
        return new

    def _referred(self, number: int, function: Function) -> int | None:
        known = self.proofs[number].sections.get(function.section)
        if known is not None:
            return known + function.start
        if function.local:
            return None
        named = [n.address for name in function.aliases for n in self.running.by_name.get(name, []) if n.shared]
        learnt = [self.names[name] for name in function.aliases if name in self.names]
        return next((a for a in (*named, *learnt) if a in self.frames), None)

    def _look(self) -> bool:
        """Follow the pointers in data that proven code refers to; say whether there was any such data."""
        new = False
        for number, proof in enumerate(self.proofs):
            for index in sorted(proof.sections):
                if (number, index) in self.read or not has_pointers(self.objects[number], index):
                    continue
                self.read.add((number, index))
                new = True
                trial = proof.copy()
                with suppress(Mismatch):
                    follow_pointers(trial, index)
                    self._take(number, trial)
        return new

    def _unique(self) -> bool:
        """Accept functions whose code is that of one function that runs, which is the code of no other of ours."""
        taken = self._spoken_for()
        claims: dict[int, list[Key]] = defaultdict(list)
        sure: list[tuple[int, Function, int]] = []
        for number, function in self._open():
            body = self.objects[number].decoded(function)
            meant = (self.running.named(name, local=function.local) for name in function.aliases)
            named = {n.address for some in meant for n in some}
            same = [a for a in self.shapes.get(_shape(body), ()) if a in named or (not named and a not in taken)]
            good = [a for a in same if self._try(number, function, a, keep=False)]
            for address in good:
                claims[address].append((number, function))
            if len(good) == 1 and (named or len(body.steps) >= _ENOUGH or self._is_tied(number, function)):
                sure.append((number, function, good[0]))
        # Several objects may hold one inline function, of which the linker took one.
        alone = [one for one in sure if len({f.name if f.weak else (n, f) for n, f in claims[one[2]]}) == 1]
        done = [self._try(*one, keep=True) for one in alone]
        return any(done)

    def _is_tied(self, number: int, function: Function) -> bool:
        """Say whether a function refers to what only its own object knows, and of which the place is known."""
        known = self.proofs[number].sections
        return any(p.symbol.local and p.section in known for _, p in self.objects[number].references_of(function))

    def _spoken_for(self) -> set[int]:
        """Return the addresses of which the name is known: no other function may be found there."""
        own = {
            address + function.start
            for which, proof in zip(self.objects, self.proofs, strict=True)
            for section, address in proof.sections.items()
            for function in which.functions_in(section)
        }
        return own | set(self.found.values()) | set(self.names.values()) | self.running.names_at.keys()

    def _try(self, number: int, function: Function, address: int, *, keep: bool) -> bool:
        proof = self.proofs[number]
        size = self.frames.get(address)
        if size is None:
            return False
        trial = proof.copy()
        try:
            trial.match_at(function, Named(function.name, "", "STT_FUNC", function.local, address, size))
        except Mismatch:
            return False
        if not keep:
            return self._agrees(trial)
        if not self._take(number, trial):
            return False
        self.found[number, function] = address
        return True

    def _agrees(self, trial: Proof) -> bool:
        return all(self.names.get(name, at) == at for name, at in trial.names.items())

    def _take(self, number: int, trial: Proof) -> bool:
        """Adopt what a trial has learnt, unless it knows a global name by another address; say whether it was."""
        if not self._agrees(trial):
            return False
        self.proofs[number].adopt(trial)
        self.names.update(trial.names)
        return True


def identify(running: RunningBinary, objects: list[ObjectFile]) -> str:
    """Give a binary without symbols those that can be proven from all objects of the old build; say how many.

    Raises:
        Refusal(RUNNING_BINARY_DIFFERS): proven code calls one thing by two names' worth of addresses.
    """
    search = _Search(running, objects, running.frames)
    search.run()
    _require_consistent(search)
    symbols = list(dict.fromkeys((*running.symbols, *_functions(search), *_variables(search))))
    known = {item.address for item in symbols}
    for address, size in search.frames.items():
        if address not in known and address not in running.entries:
            symbols.append(Named(f"function at {address:#x}", "", "STT_FUNC", local=True, address=address, size=size))
    ours = {s.name for which in objects for s in which.symbols if not s.local and s.section is not None}
    running.adopt(symbols, ours)
    return f"{len(set(search.found.values()))} of {len(search.frames)} functions that run are identified by their code"


def _require_consistent(search: _Search) -> None:
    owners: dict[int, set[str]] = defaultdict(set)
    for (number, function), address in search.found.items():
        if not function.weak:
            owners[address].add(f"{function.name} ({search.objects[number].label})")
        for name in function.aliases:
            learnt = search.names.get(name, address)  # a PLT entry says nothing of where the function is
            if not function.local and learnt != address and learnt not in search.running.entries:
                at = f"{learnt:#x} and at {address:#x}"
                raise Refusal(Reason.RUNNING_BINARY_DIFFERS, f"{name} is at {at} in {search.running.path}")
    for address, names in owners.items():
        if len(names) > 1:
            detail = f"{' and '.join(sorted(names))} are one function at {address:#x} of {search.running.path}"
            raise Refusal(Reason.FOLDED_FUNCTIONS, detail)


def _functions(search: _Search) -> Iterator[Named]:
    for (number, function), address in search.found.items():
        file = search.objects[number].source if function.local else ""
        for name in function.aliases:
            size = search.frames[address]
            yield Named(name, file, function.kind, function.local, address, size, weak=function.weak)


def _variables(search: _Search) -> Iterator[Named]:
    for which, proof in zip(search.objects, search.proofs, strict=True):
        for section, items in which.variables.items():
            for item in items:
                start = proof.sections.get(section)
                address = start + item.value if start is not None else None
                if address is None and not item.local:
                    address = search.names.get(item.name)
                if address is not None and item.kind == "STT_OBJECT":
                    yield Named(
                        item.name, which.source if item.local else "", item.kind, item.local, address, item.size
                    )


def _shape(body: Body) -> Shape:
    """Return what stays the same whatever the linker does: it makes `lea` of a `mov` from the GOT (psABI, B.2)."""
    return tuple(Mnemonic.MOV if m == Mnemonic.LEA else m for m in (step.instruction.mnemonic for step in body.steps))
