"""What stands in a LivePatch's way."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Why a LivePatch cannot go on now; goes into conditions and an Event. passing: it will by itself, presently."""

    reason: str
    message: str
    passing: bool = False
