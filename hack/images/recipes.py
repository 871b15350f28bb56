"""What goes into each image."""

from dataclasses import dataclass
from pathlib import Path

from hack.tools import REPOSITORY

LIBRARIES = "opt/podgraft/libraries"
CODE = "opt/podgraft/code"
SCRIPT = """#!/usr/bin/python3
import sys

from {module} import main

sys.exit(main())
"""


@dataclass(frozen=True)
class Program:
    """An image of ours: `extra` of pyproject.toml names its libraries, `packages` is our code, nothing else gets in."""

    name: str
    extra: str
    packages: tuple[str, ...]
    scripts: dict[str, str]
    user: str

    @property
    def image(self) -> str:
        """The name of the image without tag."""
        return f"localhost/{self.name}"

    def folders(self) -> list[Path]:
        """Return where the packages are in this repository."""
        return [next(REPOSITORY.glob(f"*/{package}")) for package in self.packages]


SHARED = ("podgraft_bundle", "podgraft_api", "podgraft_kube")
OPERATOR = Program(
    name="podgraft-operator",
    extra="operator",
    packages=(*SHARED, "podgraft_operator"),
    scripts={"podgraft-operator": "podgraft_operator.main"},
    user="65532:65532",
)
# The engine comes as a program of its own, which the agent starts; it is the one part under GPL-2.0-only.
AGENT = Program(
    name="podgraft-agent",
    extra="agent",
    packages=(*SHARED, "podgraft_agent", "podgraft_engine"),
    scripts={"podgraft-agent": "podgraft_agent.main", "podgraft-engine": "podgraft_engine.main"},
    user="0:0",
)
PROGRAMS = (OPERATOR, AGENT)

REDIS_IMAGE = "localhost/podgraft-demo-redis:7.0.15"
PAUSE_IMAGE = "localhost/pause:1"
