"""What speaks against a patch: collected, so that all of it can be shown; a human may overrule some of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from podgraft_bundle.errors import Reason, Refusal

# What `--allow` takes. Each of these is a question of what the program does at run time, which a human may know and
# objects cannot tell; docs/limitations.md says for each what one must know. What would make new code read old
# memory wrongly, or leave a part of the program unpatched in silence, is not among them.
OVERRULABLE = frozenset(
    {
        Reason.CHANGED_CONSTRUCTOR,
        Reason.CHANGED_DATA,
        Reason.COMPILER_DIFFERS,
        Reason.HARDENING_DIFFERS,
        Reason.LINKER_SET,
        Reason.NEVER_QUIESCENT,
        Reason.OTHER_MODULE_CHANGED,
        Reason.SETJMP_CALLER,
    }
)


@dataclass(frozen=True)
class Hazard:
    """One thing that speaks against the patch, and what became of it; function is empty where it concerns all."""

    reason: Reason
    detail: str
    hint: str
    function: str
    state: Literal["refused", "overruled", "warning"]


@dataclass
class Verdict:
    """All hazards of one patch; `allowed` are the reasons that a human has overruled beforehand."""

    allowed: frozenset[Reason] = frozenset()
    hazards: list[Hazard] = field(default_factory=list)

    def refuse(self, reason: Reason, detail: str, *, function: str = "", final: bool = False) -> None:
        """Note a reason to refuse; final: this case of it cannot be overruled."""
        self._add(Refusal(reason, detail), function, overruled=reason in self.allowed & OVERRULABLE and not final)

    def warn(self, reason: Reason, detail: str, *, function: str = "") -> None:
        """Note what the user should look at; it refuses nothing."""
        error = Refusal(reason, detail)
        hazard = Hazard(reason, detail, error.hint, function, "warning")
        if hazard not in self.hazards:  # copies of one function are in several objects
            self.hazards.append(hazard)

    def collect(self, check: Callable[[], None]) -> None:
        """Run a check and note what it refuses; such refusals are final."""
        try:
            check()
        except Refusal as error:
            self._add(error, "", overruled=False)

    def _add(self, error: Refusal, function: str, *, overruled: bool) -> None:
        state: Literal["refused", "overruled"] = "overruled" if overruled else "refused"
        hazard = Hazard(error.reason, error.detail, error.hint, function, state)
        if hazard not in self.hazards:
            self.hazards.append(hazard)

    def settle(self) -> None:
        """Raise the first Refusal that nobody overruled."""
        for hazard in self.hazards:
            if hazard.state == "refused":
                raise Refusal(hazard.reason, hazard.detail, hazard.hint)

    @property
    def overruled(self) -> list[str]:
        """Return what the manifest records: reason and detail of each hazard that was overruled."""
        return sorted({f"{item.reason}: {item.detail}" for item in self.hazards if item.state == "overruled"})
