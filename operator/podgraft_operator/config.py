"""Settings of the operator, from the environment (the chart writes it)."""

from pydantic import Field
from pydantic.dataclasses import dataclass

PREFIX = "PODGRAFT_"


@dataclass(frozen=True)
class Config:
    """namespace: where bundles are stored for the agents. Times in seconds."""

    namespace: str = Field(min_length=1)
    agent_seconds: float = Field(60.0, gt=0, description="silence after which a node is reported, not awaited")
    revert_seconds: float = Field(300.0, gt=0, description="how long a deletion waits for reverts at most")
    tick_seconds: float = Field(5.0, gt=0, description="every LivePatch is looked at this often")
    resync_seconds: float = Field(60.0, gt=0, description="everything is listed and compared this often")
    liveness_port: int = Field(8080, gt=0, lt=65536)
    metrics_port: int = Field(8082, gt=0, lt=65536)


def read_config(environment: dict[str, str]) -> Config:
    """Read PODGRAFT_NAMESPACE and the others; raises pydantic.ValidationError."""
    names = Config.__dataclass_fields__
    given = {name: environment[PREFIX + name.upper()] for name in names if PREFIX + name.upper() in environment}
    return Config(**given)  # type: ignore[arg-type] # pydantic reads numbers from text
