"""The base of every resource model: camelCase on the wire, unknown fields refused."""

from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "podgraft.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", description="digest of the bundle")]
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
Count = Annotated[int, Field(ge=0)]


@lru_cache(maxsize=1024)
def _first_seen(value: Any) -> Any:
    return value


# For parts that are the same in thousands of objects, and frozen: kept once.
SHARED = AfterValidator(_first_seen)


class Model(BaseModel):
    """A part of a resource. What the operator or a user writes must be understood in whole."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )

    def wire(self) -> dict[str, Any]:
        """Return the JSON object as the API server stores it: aliases, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Report(Model):
    """A part of a status. A reader of another version ignores what it does not know: status is no order."""

    model_config = ConfigDict(extra="ignore")


def rules(*checks: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extension for CEL checks, each a pair of rule and message."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in checks]}
