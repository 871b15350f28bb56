"""How each program of the corpus is built, started and loaded. Nothing of this is known to the builder."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hack.tools import run

# As Debian builds its packages.
CFLAGS = "-O2 -g -fPIE -fstack-protector-strong -Wformat -Werror=format-security -D_FORTIFY_SOURCE=2"
LDFLAGS = "-pie -Wl,-z,relro -Wl,-z,now"
# A bound for a load that nobody ends.
LOAD_SECONDS = "300"
NGINX_MODULES = (
    "http_ssl http_v2 http_realip http_auth_request http_dav http_slice http_mp4 http_stub_status http_sub"
    " mail_ssl stream_ssl stream_ssl_preread"
)


@dataclass(frozen=True)
class Program:
    """packages: Debian's. configure: run in the tree ("" for none), then touch. build: what `podgraft build` is given.

    scripts: where a change makes the build command configure again.
    start and load are functions of the source corpus, a work folder, the tree and the case, and return a command.
    """

    name: str
    packages: tuple[str, ...]
    configure: str
    build: str
    port: int
    start: Callable[[Path, Path, Path, str], list[str]]
    load: Callable[[Path, str], list[str]]
    errors: str
    touch: str = ":"
    scripts: tuple[str, ...] = ()

    def load_errors(self, text: str) -> str:
        """Return what a load generator says about failed requests, empty when there were none."""
        found = re.search(self.errors, text)
        return found.group(0).strip() if found else ""


def _redis(_corpus: Path, folder: Path, tree: Path, case: str) -> list[str]:
    options = ["--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    options += ["--io-threads", "4", "--io-threads-do-reads", "yes"]
    return [str(tree / "src/redis-server"), *options, *_password(case, "--requirepass")]


def _redis_load(_folder: Path, case: str) -> list[str]:
    options = ["-h", "127.0.0.1", "-p", "6379", "-c", "10", "-n", "100000000", "-t", "set"]
    return ["redis-benchmark", *options, *_password(case, "-a")]


def _password(case: str, option: str) -> list[str]:
    """Clients that are not logged in exist only where there is a password."""
    return [option, "x"] if case.endswith("CVE-2025-21605") else []


def _nginx(corpus: Path, folder: Path, tree: Path, _case: str) -> list[str]:
    for name in ("logs", "tmp", "html", "dav"):
        (folder / name).mkdir()
    (folder / "html" / "index.html").write_text("hi\n")
    run("chmod", "-R", "a+rwX", folder)  # workers of a root master are nobody
    return [str(tree / "objs/nginx"), "-p", str(folder), "-c", str(corpus / "nginx-demo.conf")]


def _nginx_load(_folder: Path, _case: str) -> list[str]:
    return ["wrk", "-t1", "-c10", f"-d{LOAD_SECONDS}s", "http://127.0.0.1:8080/"]


def _unbound(corpus: Path, folder: Path, tree: Path, _case: str) -> list[str]:
    shutil.copyfile(corpus / "unbound-demo.conf", folder / "unbound.conf")
    return [str(tree / "unbound"), "-d", "-c", "unbound.conf"]


def _unbound_load(folder: Path, _case: str) -> list[str]:
    (folder / "queries").write_text("one.corpus.test A\ntwo.corpus.test A\n")
    options = ["-s", "127.0.0.1", "-p", "5301", "-d", "queries", "-c", "8", "-T", "1", "-Q", "2000", "-l", LOAD_SECONDS]
    return ["dnsperf", *options]


PROGRAMS = {
    "redis": Program(
        name="redis",
        packages=("libssl-dev", "redis-tools"),
        configure="",
        build=(
            f"CFLAGS='{CFLAGS}' LDFLAGS='{LDFLAGS}' "
            "make -j2 -C src BUILD_TLS=yes MALLOC=libc USE_SYSTEMD=no OPTIMIZATION=-O2 redis-server"
        ),
        port=6379,
        start=_redis,
        load=_redis_load,
        errors=r"(?i).*\berror\b.*",
    ),
    "nginx": Program(
        name="nginx",
        packages=("libssl-dev", "libpcre2-dev", "zlib1g-dev", "wrk"),
        configure=(
            f"./configure --prefix=/usr/share/nginx --with-cc-opt='{CFLAGS}' --with-ld-opt='{LDFLAGS}' --with-compat "
            "--with-debug --with-pcre-jit --with-threads --with-mail --with-stream "
            + " ".join(f"--with-{name}_module" for name in NGINX_MODULES.split())
        ),
        build="make -j2 -f objs/Makefile binary",
        port=8080,
        start=_nginx,
        load=_nginx_load,
        errors=r"Non-2xx.*|Socket errors.*",
        scripts=("auto/", "configure"),
    ),
    "unbound": Program(
        name="unbound",
        packages=("libssl-dev", "libexpat1-dev", "libevent-dev", "libnghttp2-dev", "bison", "flex", "dnsperf"),
        configure=(
            f"./configure --cache-file=../config.cache CFLAGS='{CFLAGS}' LDFLAGS='{LDFLAGS}' --disable-rpath "
            "--disable-flto --with-libevent --with-libnghttp2 --enable-subnet --enable-cachedb --enable-tfo-client "
            "--with-pthreads --disable-static --with-pidfile= --with-chroot-dir= --with-username="
        ),
        build="make -j2 unbound",
        port=5301,
        start=_unbound,
        load=_unbound_load,
        errors=r"Queries lost:\s+[1-9].*",
        # The tarball's generated parser is taken for old where unpacking has given its grammar a newer time.
        touch="touch util/configlexer.lex util/configparser.y",
    ),
}
