"""Which failed requests the chaos itself has caused: those under way when their server was killed or removed."""

from dataclasses import dataclass, field

from hack.fleet.shop import CONNECTIONS

# A request counts from when it was due; one that waits for its answer when the server dies was due before.
BEFORE_SECONDS = 2.0
AFTER_SECONDS = 60.0


@dataclass
class Excuses:
    """Times (seconds since the epoch) at which a pod's server was ended, by pod."""

    ends: dict[str, list[float]] = field(default_factory=dict)

    def add(self, pod: str, at: float) -> None:
        """A pod's server is about to be ended, or its whole pod."""
        self.ends.setdefault(pod, []).append(at)

    def split(self, failures: dict[str, list[float]]) -> tuple[int, list[tuple[str, float]]]:
        """Return how many failures are excused, and those that are not.

        Each end of a server excuses one request on each connection: after it the generator waits for the next server.
        """
        excused, left = 0, []
        for pod, times in failures.items():
            open_ends = [[end, CONNECTIONS] for end in sorted(self.ends.get(pod, ()))]
            for due in sorted(times):
                match = next((one for one in open_ends if one[1] and _near(due, one[0])), None)
                if match is None:
                    left.append((pod, due))
                else:
                    match[1] -= 1
                    excused += 1
        return excused, left


def _near(due: float, end: float) -> bool:
    return end - BEFORE_SECONDS <= due <= end + AFTER_SECONDS
