"""The first real fix: Redis 7.0.15, CVE-2025-32023."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podgraft_builder.build import build
from podgraft_builder.options import Options
from podgraft_builder.running import RunningBinary

CASE = "redis-7.0.15-CVE-2025-32023"
FLAGS = "-O2 -g -fPIE -fstack-protector-strong -Wformat -Werror=format-security -D_FORTIFY_SOURCE=2"
COMMAND = (
    f'CFLAGS="{FLAGS}" LDFLAGS="-pie -Wl,-z,relro -Wl,-z,now"'
    " make -j2 -C src BUILD_TLS=yes MALLOC=libc OPTIMIZATION=-O2 redis-server"
)
DEFAULT = Path(__file__).parents[3] / "shared" / "corpus" / "sources"
SOURCES = Path(os.environ.get("PODGRAFT_SOURCES") or DEFAULT)
CACHE = Path(os.environ.get("PODGRAFT_CACHE") or Path.home() / ".cache" / "podgraft") / "test-redis"


@pytest.fixture(scope="module")
def pair() -> Path:
    """The tree before the fix and the fix, unpacked once; `running` is built from it plainly, once."""
    script = SOURCES.parent / "make-pair.sh"
    if not script.is_file():
        pytest.skip(f"no corpus beside {SOURCES}")
    if not (CACHE / "new.patch").is_file():
        subprocess.run(["sh", script, CASE, CACHE], check=True, capture_output=True)
    running = CACHE / "running"
    if not running.is_file():
        subprocess.run(["cp", "-a", CACHE / "old", CACHE / "plain"], check=True)
        subprocess.run(["sh", "-c", COMMAND], cwd=CACHE / "plain", check=True, capture_output=True)
        (CACHE / "plain" / "src" / "redis-server").rename(running)
        subprocess.run(["rm", "-rf", CACHE / "plain"], check=True)
    return CACHE


def test_cve_2025_32023(pair: Path, tmp_path: Path, link: Any) -> None:
    """Three functions with their cold parts are replaced, and every call of theirs leads where it must."""
    options = Options(
        source=pair / "old",
        patch=pair / "new.patch",
        command=COMMAND,
        binary=Path("src/redis-server"),
        output=tmp_path / "redis.graft",
        running=pair / "running",
    )
    outcome = build(options, lambda _text: None)
    manifest = outcome.bundle.manifest
    running = RunningBinary(pair / "running")
    assert manifest.module.build_id == running.build_id
    functions = {f.entry.symbol: f for f in manifest.functions}
    assert sorted(functions) == ["hllMerge", "hllSparseRegHisto", "hllSparseToDense"]
    for name, function in functions.items():
        assert function.entry.offset == running.by_name[name][0].address
    assert [p.symbol for p in functions["hllMerge"].parts] == ["hllMerge.cold"]
    linked = link.link(outcome)
    assert set(linked.calls("hllSparseToDense")) == {"old:sdsnewlen", "old:sdsfree", "new:hllSparseToDense.cold"}
