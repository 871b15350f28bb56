"""Settings of the agent, from the environment (the chart writes it)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

PREFIX = "PODGRAFT_"


@dataclass(frozen=True)
class Config:
    """node: name of this node; namespace: where the operator stores bundles. Times in seconds."""

    node: str = Field(min_length=1)
    namespace: str = Field(min_length=1)
    proc: Path = Field(Path("/proc"), description="the host's /proc")
    cache_dir: Path = Field(Path("/var/cache/podgraft"), description="bundles by digest")
    engine: str = Field("podgraft-engine", description="the engine program")
    parallel: int = Field(4, ge=1, description="engine children at a time")
    scan_seconds: float = Field(5.0, gt=0, description="new processes are looked for this often")
    status_seconds: float = Field(2.0, gt=0, description="status is written at most this often")
    heartbeat_seconds: float = Field(20.0, gt=0, description="and at least this often while there is work")
    health_port: int = Field(8081, gt=0, lt=65536)
    metrics_port: int = Field(8082, gt=0, lt=65536)
    trust_dir: Path | None = Field(None, description="public keys whose signature lets a bundle in (*.pem)")
    allow_unsigned: bool = Field(False, description="do without signatures")  # noqa: FBT003 - as its neighbours


def read_config(environment: Mapping[str, str]) -> Config:
    """Read NODE_NAME and PODGRAFT_*; raises pydantic.ValidationError."""
    names = set(Config.__dataclass_fields__) - {"node"}
    given = {name: environment[PREFIX + name.upper()] for name in names if PREFIX + name.upper() in environment}
    return Config(node=environment.get("NODE_NAME", ""), **given)  # type: ignore[arg-type] # numbers from text
