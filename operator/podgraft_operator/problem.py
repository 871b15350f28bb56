"""What stands in a LivePatch's way."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Why a LivePatch cannot go on until somebody changes something; goes into conditions and an Event."""

    reason: str
    message: str
