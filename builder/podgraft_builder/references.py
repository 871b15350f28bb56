"""Where everything that new code refers to lies in the running binary: the undefined symbols of patch.o."""

import itertools
from dataclasses import dataclass, field

from podgraft_builder import reloc
from podgraft_builder.match import Proof
from podgraft_builder.objects import FUNCTION_KINDS, IFUNC, IFUNC_KINDS, Function
from podgraft_builder.running import DEBUG_FOLDER, TPOFF64, Named, RunningBinary
from podgraft_builder.symtab import Symbol
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import ARENA, Reference


@dataclass
class References:
    """The references of one patch; the first truth is what proven functions refer to, the second the symbol table."""

    running: RunningBinary
    proofs: dict[str, Proof]
    made: dict[str, Reference] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def function(self, label: str, old: Function, *, original: bool = False, call: bool = False) -> str:
        """Refer to a function of the object, proven equal to the one that runs."""
        named = self._weak(old) or self.proofs[label].prove(old)
        if old.kind == IFUNC and call:
            return self._chosen(label, old.name, named)
        if old.kind == IFUNC or named.kind in IFUNC_KINDS:
            raise Refusal(Reason.IFUNC_RESOLVER, f"{old.name} is chosen at start by an ifunc resolver")
        wish = f"{old.name}.original" if original else old.name
        return self._offset(wish, label, named.address)

    def _weak(self, old: Function) -> Named | None:
        """Return what runs by the name of a weak function, whichever object's copy of it the linker took."""
        if not old.weak:
            return None
        found = [n for n in self.running.by_name.get(old.name, []) if n.shared and n.kind in FUNCTION_KINDS]
        return found[0] if len({n.address for n in found}) == 1 else None

    def variable(self, label: str, old: Symbol) -> str:
        """Refer to an existing variable of the object."""
        proof = self.proofs[label]
        if old.kind == "STT_TLS":
            return self._tls(old.name, self._symbol(old.name, proof, local=old.local))
        known = proof.sections.get(old.section or 0)
        named = self._symbol(old.name, proof, local=old.local) if known is None else None
        if known is not None:
            address = known + old.value
        elif named is not None:
            address = named.address
        else:
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{old.name} ({label}): no proven function refers to it and no single symbol of the running binary"
                " has that name",
            )
        if named is not None and named.size != old.size:
            raise Refusal(
                Reason.RUNNING_BINARY_DIFFERS, f"{old.name} has {old.size} bytes, {named.size} in the running binary"
            )
        return self._offset(old.name, label, address)

    def preempted(self, label: str, name: str, kind: int, *, call: bool) -> str | None:
        """Refer to what a library exports as the library itself does: as the loader decided. None where it does not.

        Its own definition is not the one that counts where a module before it has another, or a copy of a variable.
        """
        if not self.running.preemptible(name):
            return None
        if call:
            entry = self.running.plt_of(name)
            return self._offset(f"{name}.plt", label, entry) if entry is not None else None
        if kind not in reloc.GOT | {reloc.R_64}:
            return None
        slot = self.running.slot_of(name, address_taken=True)
        if slot is None and not any(n.kind == "STT_OBJECT" for n in self.running.by_name.get(name, [])):
            return None
        return self._as_loaded(label, name, slot)

    def external(self, label: str, name: str, kind: int, *, call: bool) -> str:
        """Refer to a name that the object does not define: another object's, a library's, or the shadow memory."""
        return self.preempted(label, name, kind, call=call) or self._external(label, name, kind, call=call)

    def _external(self, label: str, name: str, kind: int, *, call: bool) -> str:
        if name == ARENA:
            return self._add(name, label, Reference(symbol="-", kind="arena"))
        if name in self.running.missing:
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{name} ({label}) was not found in {self.running.path}, which has no symbols",
                f"install its debug file (below {DEBUG_FOLDER}), or name a copy with symbols (--running)",
            )
        if f"__wrap_{name}" in self.running.by_name and name not in self._proven(label):
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{name} ({label}) may be __wrap_{name} for the linker, and no proven function of the object uses it",
            )
        # Another file's static of that name is never meant.
        known = [n for n in self.running.by_name.get(name, []) if n.shared]
        defined = [n for n in known if not n.local] or known
        if kind in {reloc.R_TPOFF32, reloc.R_GOTTPOFF}:
            return self._thread_local(name, defined, kind)
        if call:
            return self._called(label, name, defined)
        if len({n.address for n in defined}) == 1:
            self._not_ifunc(name, defined[0])
            return self._offset(name, label, defined[0].address)
        if len(defined) > 1:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"{name} is {len(defined)} things in the running binary")
        if name in self.running.canonical:
            return self._offset(f"{name}.plt", label, self.running.canonical[name])
        if kind not in reloc.GOT | {reloc.R_64}:
            raise Refusal(
                Reason.UNRESOLVED_REFERENCE,
                f"{name} ({label}) is used by its address, lies in a library, and the code does not go through the GOT",
                "build with -fPIE or -fPIC",
            )
        return self._as_loaded(label, name, self.running.slot_of(name, address_taken=True))

    def _called(self, label: str, name: str, defined: list[Named]) -> str:
        known = self._proven(label).get(name)
        if known is not None:
            wish = f"{name}.plt" if known in self.running.plt or known in self.running.chosen else name
            return self._offset(wish, label, known)
        if len({n.address for n in defined}) == 1:
            if defined[0].kind in IFUNC_KINDS:
                return self._chosen(label, name, defined[0])
            return self._offset(name, label, defined[0].address)
        if len(defined) > 1:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"{name} is {len(defined)} things in the running binary")
        entry = self.running.plt_of(name)
        if entry is not None:
            return self._offset(f"{name}.plt", label, entry)
        return self._as_loaded(label, name, self.running.slot_of(name, address_taken=False))

    def _as_loaded(self, label: str, name: str, slot: int | None) -> str:
        """Refer to what the loader put into the GOT slot of a name; without one the loaded modules are asked."""
        if slot is not None:
            return self._add(f"{name}.got", label, Reference(symbol="-", kind="got", offset=slot))
        return self._add(name, label, Reference(symbol="-", kind="export", export=name))

    def _proven(self, label: str) -> dict[str, int]:
        """Return the undefined names that proven functions of an object use, and where they lead."""
        return self.proofs[label].names if label in self.proofs else {}

    def _thread_local(self, name: str, defined: list[Named], kind: int) -> str:
        found = [n for n in defined if n.kind == "STT_TLS"]
        if len({n.address for n in found}) == 1:
            return self._tls(name, found[0])
        slot = self.running.slot_of(name, address_taken=True)
        for at, (symbol, type_) in self.running.slots.items():
            if symbol == name and type_ == TPOFF64:
                slot = at
        if slot is None or kind != reloc.R_GOTTPOFF:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"thread-local {name} is not in the running binary")
        return self._add(f"{name}.gottpoff", "", Reference(symbol="-", kind="got", offset=slot))

    def _tls(self, name: str, named: Named | None) -> str:
        value = self.running.tpoff(named) if named is not None else None
        if value is None:
            raise Refusal(Reason.UNRESOLVED_REFERENCE, f"thread-local {name} has no fixed place in the running binary")
        return self._add(name, "", Reference(symbol="-", kind="tpoff", value=value))

    def _symbol(self, name: str, proof: Proof, *, local: bool) -> Named | None:
        found = [n for n in self.running.by_name.get(name, []) if n.kind in {"STT_OBJECT", "STT_TLS"}]
        if local:
            found = [n for n in found if n.file == proof.object.source]
        else:
            found = [n for n in found if not n.local] or found
        return found[0] if len({n.address for n in found}) == 1 else None

    def _chosen(self, label: str, name: str, named: Named) -> str:
        """Refer to an ifunc for a call: by the entry that its resolver has filled. Raises Refusal."""
        entry = self.running.chosen_entry(named.address)
        if entry is None:
            self._not_ifunc(name, named)
        return self._offset(f"{name}.plt", label, entry or 0)

    def _not_ifunc(self, name: str, named: Named) -> None:
        if named.kind in IFUNC_KINDS:
            raise Refusal(Reason.IFUNC_RESOLVER, f"{name} is chosen at start by an ifunc resolver")

    def _offset(self, wish: str, label: str, address: int) -> str:
        return self._add(wish, label, Reference(symbol="-", kind="offset", offset=address))

    def _add(self, wish: str, label: str, reference: Reference) -> str:
        """Give a reference a symbol of its own; the same thing gets the same symbol."""
        source = self.proofs[label].object.source if label in self.proofs else label
        for name in itertools.chain((wish, f"{wish}.{source}"), (f"{wish}.{source}.{n}" for n in range(1, 10000))):
            known = self.made.get(name)
            named = reference.model_copy(update={"symbol": name})
            if known == named:
                return name
            if known is None and name not in self.taken:
                self.made[name] = named
                return name
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"too many things are named {wish}")
