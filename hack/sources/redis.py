"""Redis 7.0.15 of Debian as it was before the fix of one CVE: source tree, fix, and the binary that the demo runs.

`python3 -m hack.sources.redis` prepares everything and prints where it is.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hack.sources.fetch import checksums, ensure
from hack.tools import ToolFailedError, cache, digest_of, lock, main, run, step

PACKAGE, VERSION = "redis", "5:7.0.15-1~deb12u10"
CVE = "CVE-2025-32023"
FIX = "0006-CVE-2025-32023.patch"
BINARY = "src/redis-server"
# As Debian builds it, less the allocator: one library fewer in the image.
CFLAGS = "-O2 -g -fPIE -fstack-protector-strong -Wformat -Werror=format-security -D_FORTIFY_SOURCE=2"
LDFLAGS = "-pie -Wl,-z,relro -Wl,-z,now"
BUILD = (
    f"CFLAGS='{CFLAGS}' LDFLAGS='{LDFLAGS}' "
    # Without libsystemd, whether or not another build has installed it here meanwhile.
    "make -j2 -C src BUILD_TLS=yes MALLOC=libc USE_SYSTEMD=no OPTIMIZATION=-O2 redis-server redis-cli"
)


@dataclass(frozen=True)
class Redis:
    """tree: the vulnerable source, unbuilt. fix: the patch that Debian applied next. built: the same tree, built."""

    tree: Path
    fix: Path
    built: Path

    @property
    def server(self) -> Path:
        """The server that runs in the demo, with its symbols."""
        return self.built / BINARY

    @property
    def client(self) -> Path:
        """redis-cli of the same build."""
        return self.built / "src/redis-cli"


def prepare() -> Redis:
    """Unpack, patch up to the fix, and build; each is done once and then found in the cache.

    Raises:
        ToolFailedError: the source is not to be had, a patch does not apply, or the build fails.
    """
    key = digest_of(str(sorted(checksums().items())), FIX, BUILD)
    home = cache() / "redis" / key
    redis = Redis(home / "tree", home / "fix.patch", home / "built")
    with lock("redis"):
        if not redis.fix.exists():
            with step(f"source of Redis {VERSION} before {CVE}"):
                _unpack(ensure(PACKAGE, VERSION), redis)
        if not redis.client.exists():
            shutil.rmtree(redis.built, ignore_errors=True)
            shutil.copytree(redis.tree, redis.built, symlinks=True)
            with step("build Redis"):
                run("sh", "-c", BUILD, cwd=redis.built, log=cache() / "log" / "redis.log")
    return redis


def _unpack(sources: Path, redis: Redis) -> None:
    shutil.rmtree(redis.tree, ignore_errors=True)
    redis.tree.mkdir(parents=True)
    for name in sorted(checksums()):
        if ".orig.tar." in name:
            run("tar", "-C", redis.tree, "--strip-components=1", "-xf", sources / name)
    for name in sorted(checksums()):
        if ".debian.tar." in name:
            run("tar", "-C", redis.tree, "-xf", sources / name)
    patches = redis.tree / "debian" / "patches"
    for patch in _before_fix(patches / "series"):
        run(
            "patch",
            "-p1",
            "-F0",
            "-N",
            "-t",
            "-E",
            "-s",
            "--no-backup-if-mismatch",
            "-i",
            patches / patch,
            cwd=redis.tree,
        )
    partial = redis.fix.with_suffix(f".{os.getpid()}")
    shutil.copy(patches / FIX, partial)
    partial.rename(redis.fix)


def _before_fix(series: Path) -> Iterator[str]:
    for line in series.read_text().splitlines():
        patch = line.partition("#")[0].strip()
        if patch == FIX:
            return
        if patch:
            yield patch
    raise ToolFailedError(f"{series} does not name {FIX}")


def _print() -> None:
    redis = prepare()
    sys.stdout.write(f"tree={redis.tree}\nfix={redis.fix}\nserver={redis.server}\n")


if __name__ == "__main__":
    main(_print)
