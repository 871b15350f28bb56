"""Make etcd forget the past, so that every watch that begins in it is told 410 Gone.

`python3 -m hack.cluster.etcd` runs in the network namespace of machine 0, where etcd listens; see `disrupt.compact`.
"""

import base64
import json
import urllib.request
from typing import Any

from hack.cluster.controlplane import ETCD


def compact() -> int:
    """Drop every revision but the present one, and return its number (etcd's JSON gateway, v3 API)."""
    key = base64.b64encode(b"\0").decode()
    revision = int(_ask("kv/range", {"key": key, "limit": "1"})["header"]["revision"])
    _ask("kv/compaction", {"revision": str(revision), "physical": True})
    return revision


def _ask(path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{ETCD}/v3/{path}", json.dumps(body).encode())  # noqa: S310 - our own constant
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
        return json.load(answer)


if __name__ == "__main__":
    print(compact())
