"""Write the JSON schema of the manifest: `python -m podgraft_bundle.schema`."""

import json
from pathlib import Path

from podgraft_bundle.manifest import Manifest

PATH = Path(__file__).with_name("manifest.schema.json")


def manifest_schema() -> str:
    """Return the JSON schema of manifest.json as text, as it is committed."""
    return json.dumps(Manifest.model_json_schema(mode="validation"), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(manifest_schema())
