"""CRDs from the models: `python -m podgraft_api.crd [--check] [FOLDER]` writes, or compares, crds/*.yaml."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from podgraft_api import livepatch, nodepatch
from podgraft_api.model import GROUP, VERSION
from podgraft_api.structural import structural

HEADER = "# Generated from api/podgraft_api by `python -m podgraft_api.crd`. Do not edit.\n"


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


READY = '.status.conditions[?(@.type=="Ready")]'
AGE = _column("AGE", ".metadata.creationTimestamp", "date")
LIVEPATCH_COLUMNS = [
    _column("CVE", ".status.summary.cve"),
    _column("PATCHED", ".status.summary.patched"),
    _column("THREADS", ".status.summary.threads"),
    _column("READY", f"{READY}.status"),
    AGE,
    _column("STATUS", f"{READY}.reason", priority=1),
    _column("MESSAGE", f"{READY}.message", priority=1),
]
NODEPATCH_COLUMNS = [_column("HEARTBEAT", ".status.heartbeat", "date"), AGE]


def crd(model: type[BaseModel], plural: str, short: str, scope: str, columns: list[Any]) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one model as a JSON object."""
    kind = model.__name__
    schema = structural(model.model_json_schema(by_alias=True))
    # kstatus waits while observedGeneration differs; nested defaults apply only where the parent exists.
    schema["properties"]["status"]["default"] = {"observedGeneration": -1}
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    schema["properties"]["metadata"] = {"type": "object"}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": names | {"shortNames": [short], "categories": ["podgraft"]},
            "versions": [version],
        },
    }


def render() -> dict[str, str]:
    """Return file name -> YAML text of every CRD."""
    crds = (
        crd(livepatch.LivePatch, livepatch.PLURAL, "lp", "Namespaced", LIVEPATCH_COLUMNS),
        crd(nodepatch.NodePatch, nodepatch.PLURAL, "np", "Cluster", NODEPATCH_COLUMNS),
    )
    return {
        f"{GROUP}_{one['spec']['names']['plural']}.yaml": HEADER + yaml.safe_dump(one, sort_keys=True, width=110)
        for one in crds
    }


def main(argv: list[str] | None = None) -> int:
    """Write the CRDs, or with --check say which differ; exit code 0 when all is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m podgraft_api.crd", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("crds"))
    options = parser.parse_args(argv)
    files = {options.folder / name: text for name, text in render().items()}
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    if options.check:
        for path in stale:
            sys.stderr.write(f"{path} differs from the models; run python -m podgraft_api.crd\n")
        return 1 if stale else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(files[path], "utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
