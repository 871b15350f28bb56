"""Settings of the operator, from the environment (the chart writes it)."""

from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from podgraft_bundle.registry import Access

PREFIX = "PODGRAFT_"


@dataclass(frozen=True)
class Config:
    """namespace: where bundles are stored for the agents. Times in seconds."""

    namespace: str = Field(min_length=1)
    agent_seconds: float = Field(60.0, gt=0, description="silence after which a node is reported, not awaited")
    revert_seconds: float = Field(300.0, gt=0, description="how long a deletion waits for reverts at most")
    tick_seconds: float = Field(5.0, gt=0, description="every LivePatch is looked at this often")
    resync_seconds: float = Field(300.0, gt=0, description="everything is listed and compared this often")
    prometheus_urls: str = Field("", description="servers that LivePatches may name in their health gate, by commas")
    liveness_port: int = Field(8080, gt=0, lt=65536)
    metrics_port: int = Field(8082, gt=0, lt=65536)
    trust_dir: Path | None = Field(None, description="public keys whose signature lets a bundle in (*.pem)")
    allow_unsigned: bool = Field(False, description="do without signatures")  # noqa: FBT003 - as its neighbours
    registry_allow: str = Field("", description="prefixes of OCI references, with commas; empty for any")
    registry_insecure: str = Field("", description="registries without TLS, with commas")
    registry_ca: Path | None = Field(None, description="PEM file in place of the public certificate authorities")
    registry_credentials: Path | None = Field(None, description="folder of docker config files (*.json)")

    def registries(self) -> Access:
        """Return which registries may be asked, and how."""
        folder = self.registry_credentials
        return Access(
            allow=tuple(filter(None, self.registry_allow.split(","))),
            plain_http=tuple(filter(None, self.registry_insecure.split(","))),
            ca=self.registry_ca,
            credentials=tuple(sorted(folder.glob("*.json"))) if folder is not None else (),
        )


def read_config(environment: dict[str, str]) -> Config:
    """Read PODGRAFT_NAMESPACE and the others; raises pydantic.ValidationError."""
    names = Config.__dataclass_fields__
    given = {name: environment[PREFIX + name.upper()] for name in names if PREFIX + name.upper() in environment}
    return Config(**given)  # type: ignore[arg-type] # pydantic reads numbers from text
