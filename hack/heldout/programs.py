"""The programs, and what is changed in them. Nothing of this is known to the builder."""

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FIRST_PORT = 7391
Child = subprocess.Popen[str]


@dataclass(frozen=True)
class Fix:
    """One change: in `file`, `old` becomes `new`. expected: "bundle", or the reason of a refusal."""

    title: str
    binary: str
    file: str
    old: str
    new: str
    expected: str = "bundle"


class Shipped(NamedTuple):
    """A program as Debian ships it, stripped: binary package, and path in it."""

    package: str
    path: str


@dataclass(frozen=True)
class Program:
    """One Debian source package.

    packages: what its build needs. build: what `podgraft build` is given. start: work folder, built tree and port ->
    command. ask: one request to a port, of which the answer tells old code from new. shipped: what runs instead of what
    is built here; `start` gets that program in the place of the tree, and nothing is built there.
    """

    name: str
    version: str
    kind: str
    packages: tuple[str, ...]
    build: str
    start: Callable[[Path, Path, int], list[str]]
    ask: Callable[[Child, int], str]
    fixes: tuple[Fix, ...]
    shipped: Shipped | None = None

    @property
    def port(self) -> int:
        """Return a port of its own: cpp-httplib cannot take one that another kind of server had a moment ago."""
        return FIRST_PORT + [program.name for program in PROGRAMS].index(self.name)


def _exchange(port: int, data: bytes) -> bytes:
    """Send a request; return what comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def _http(path: str) -> Callable[[Child, int], str]:
    def ask(_child: Child, port: int) -> str:
        answer = _exchange(port, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        lines = answer.decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("Date:", "Last-Modified:", "ETag:")))

    return ask


def _words(*lines: str) -> Callable[[Child, int], str]:
    """Send lines to a server that closes the connection after the last of them."""
    return lambda _child, port: _exchange(port, "".join(f"{line}\r\n" for line in lines).encode()).decode()


def _mqtt(_child: Child, port: int) -> str:
    """Connect, subscribe, ping (MQTT 3.1.1, sections 3.1, 3.8, 3.12); return what comes back until the line closes."""
    connect = bytes.fromhex("100d 0004 4d515454 04 02 003c 0001 61")
    subscribe = bytes.fromhex("8206 0001 0001 74 01")
    return _exchange(port, connect + subscribe + bytes.fromhex("c000") + bytes.fromhex("e000")).hex()


def _line(child: Child, _port: int) -> str:
    if child.stdin is None or child.stdout is None:
        raise ValueError("a program that answers lines has pipes")
    child.stdin.write("ask\n")
    child.stdin.flush()
    return child.stdout.readline()


def _tinyproxy(folder: Path, tree: Path, port: int) -> list[str]:
    (folder / "conf").write_text(f"Port {port}\nListen 127.0.0.1\nTimeout 60\nLogLevel Error\n")
    return [str(tree / "src/tinyproxy"), "-d", "-c", str(folder / "conf")]


def _mosquitto(folder: Path, tree: Path, port: int) -> list[str]:
    (folder / "conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    return [str(tree / "build/src/mosquitto"), "-c", str(folder / "conf")]


def _lighttpd(folder: Path, tree: Path, port: int) -> list[str]:
    (folder / "www").mkdir()
    (folder / "www" / "one.txt").write_text("one\n")
    (folder / "conf").write_text(
        f'server.document-root = "{folder}/www"\nserver.port = {port}\nserver.bind = "127.0.0.1"\n'
        # Those that it loads unasked are not built.
        'server.modules = ("mod_dirlisting")\nserver.compat-module-load = "disable"\ndir-listing.activate = "enable"\n'
    )
    return [str(tree / "out/src/lighttpd"), "-D", "-m", str(tree / "out/src"), "-f", str(folder / "conf")]


def _httplib(folder: Path, tree: Path, port: int) -> list[str]:
    return [str(tree / "example/simplesvr"), str(port), str(folder)]


# leveldb is a library: its user is a Python that calls it through its C interface.
_LEVELDB = """
import ctypes, sys
db = ctypes.CDLL(sys.argv[1])
for name in ("leveldb_options_create", "leveldb_open", "leveldb_property_value"):
    getattr(db, name).restype = ctypes.c_void_p
options = ctypes.c_void_p(db.leveldb_options_create())
for line in sys.stdin:
    error = ctypes.c_char_p()
    db.leveldb_open(options, sys.argv[2].encode(), ctypes.byref(error))
    print(error.value, flush=True)
"""


def _leveldb(folder: Path, tree: Path, _port: int) -> list[str]:
    return [sys.executable, "-c", _LEVELDB, str(tree / "build/libleveldb.so"), str(folder / "db")]


def _memcached(_folder: Path, program: Path, port: int) -> list[str]:
    return [str(program), "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-U", "0"]


def _redis(folder: Path, program: Path, port: int) -> list[str]:
    (folder / "redis-server").symlink_to(program)  # it is what it is called
    return [str(folder / "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]


_PINGRESP = "\treturn send__pingresp(mosq);\n}\n\nint handle__pingresp"

PROGRAMS = (
    Program(
        name="tinyproxy",
        version="1.11.1-2.1+deb12u1",
        kind="C, dpkg-buildpackage (debhelper, autotools)",
        packages=("debhelper", "automake", "autoconf"),
        # -d: its documentation tools are not needed. debhelper skips a build that it has done.
        build="DEB_BUILD_OPTIONS='nocheck nodoc' dpkg-buildpackage -B -d -nc -us -uc",
        start=_tinyproxy,
        ask=_http("/"),
        fixes=(
            Fix(
                title="text of the answer to a bad request",
                binary="src/tinyproxy",
                file="src/html-error.c",
                old="<p><em>Generated by %s version %s.</em></p>",
                new="<p><em>%s %s made this.</em></p>",
            ),
            Fix(
                title="static local added",
                binary="src/tinyproxy",
                file="src/html-error.c",
                old="        error_file = get_html_file (connptr->error_number);",
                new=(
                    "        static int many = 40;\n        connptr->error_number += ++many;\n"
                    "        error_file = get_html_file (connptr->error_number);"
                ),
            ),
            Fix(
                title="field added to a struct",
                binary="src/tinyproxy",
                file="src/conns.h",
                old="        int client_fd;",
                new="        int client_flags;\n        int client_fd;",
                expected="ChangedLayout",
            ),
        ),
    ),
    Program(
        name="mosquitto",
        version="2.0.11-1.2+deb12u2",
        kind="C, cmake and ninja (RelWithDebInfo), program, libraries and plugins",
        packages=("cmake", "ninja-build"),
        build=(
            "cmake -B build -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWITH_TLS=OFF -DWITH_CJSON=OFF "
            "-DDOCUMENTATION=OFF -DCMAKE_EXE_LINKER_FLAGS=-Wl,--build-id "
            "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--build-id && cmake --build build -j2"
        ),
        start=_mosquitto,
        ask=_mqtt,
        fixes=(
            Fix(
                title="a source that the program and a library share",
                binary="build/src/mosquitto",
                file="lib/handle_ping.c",
                old=_PINGRESP,
                new=_PINGRESP.replace("\treturn", "\tsend__pingresp(mosq);\n\treturn"),
            ),
            Fix(
                title="the granted quality of service",
                binary="build/src/mosquitto",
                file="src/handle_subscribe.c",
                old="\t\t\t\tqos = subscription_options;",
                new="\t\t\t\tqos = subscription_options & 0x02;",
            ),
        ),
    ),
    Program(
        name="lighttpd",
        version="1.4.69-1",
        kind="C, meson and ninja (-O3), program and plugins",
        packages=("meson", "ninja-build"),
        build=(
            "{ test -f out/build.ninja || meson setup out --buildtype=release -Ddebug=true -Dwith_pcre2=false "
            "-Db_lto=false; } && ninja -C out -j2 src/lighttpd src/mod_dirlisting.so"
        ),
        start=_lighttpd,
        ask=_http("/"),
        fixes=(
            Fix(
                title="a plugin",
                binary="out/src/mod_dirlisting.so",
                file="src/mod_dirlisting.c",
                old='CONST_STR_LEN("<title>Index of ")',
                new='CONST_STR_LEN("<title>What is in ")',
            ),
            Fix(
                title="an inline function in a header that program and plugins share",
                binary="out/src/lighttpd",
                file="src/buffer.h",
                old="    return b->used - (0 != b->used);",
                new="    return b->used & 0xffffff ? b->used - 1 : 0;",
                expected="OtherModuleChanged",
            ),
        ),
    ),
    Program(
        name="cpp-httplib",
        version="0.11.4+ds-1+deb12u1",
        kind="C++, make; templates, lambdas, threads, exceptions",
        packages=("g++",),
        build=(
            "make -C example simplesvr CXXFLAGS='-O2 -g -std=c++17 -I.. -pthread -fPIE' "
            "OPENSSL_SUPPORT=-pie ZLIB_SUPPORT= BROTLI_SUPPORT="
        ),
        start=_httplib,
        ask=_http("/nothing"),
        fixes=(
            Fix(
                title="body of a lambda",
                binary="example/simplesvr",
                file="example/simplesvr.cc",
                old="<p>Error Status: <span style='color:red;'>%d</span></p>",
                new="<p>Status: <b>%d</b></p>",
            ),
            Fix(
                title="inline function in a header",
                binary="example/simplesvr",
                file="httplib.h",
                old='case 404: return "Not Found";',
                new='case 404: return "Nothing Here";',
            ),
            Fix(
                title="static local with a guard added to a lambda",
                binary="example/simplesvr",
                file="example/simplesvr.cc",
                old='    res.set_content(buf, "text/html");',
                new=(
                    '    static const string more = to_string(res.status) + "!";\n'
                    '    res.set_content(buf + more, "text/html");'
                ),
            ),
        ),
    ),
    Program(
        name="leveldb",
        version="1.23-4",
        kind="C++, cmake and make, shared library in a Python process",
        packages=("cmake", "g++"),
        build=(
            "cmake -B build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DBUILD_SHARED_LIBS=ON -DLEVELDB_BUILD_TESTS=OFF "
            "-DLEVELDB_BUILD_BENCHMARKS=OFF && cmake --build build -j2"
        ),
        start=_leveldb,
        ask=_line,
        fixes=(
            Fix(
                title="method of a class",
                binary="build/libleveldb.so",
                file="util/status.cc",
                old='type = "Invalid argument: ";',
                new='type = "No good argument: ";',
            ),
        ),
    ),
    Program(
        name="memcached",
        version="1.6.18-1+deb12u1",
        kind="C, as Debian ships it, stripped; debian/rules",
        packages=("debhelper", "autoconf", "automake", "libevent-dev", "libsasl2-dev", "libssl-dev"),
        build="DEB_BUILD_OPTIONS=nocheck debian/rules build",
        start=_memcached,
        ask=_words("set one 0 0 3", "123", "incr one 5", "stats reset", "quit"),
        fixes=(
            Fix(
                title="the answer to what is stored; beside it small functions that nobody calls",
                binary="memcached",
                file="thread.c",
                old="    ret = do_store_item(item, comm, c, hv);",
                new="    ret = do_store_item(item, comm, c, hv) == STORED ? EXISTS : NOT_STORED;",
            ),
            Fix(
                title="the text of an answer",
                binary="memcached",
                file="proto_text.c",
                old='out_string(c, "RESET");',
                new='out_string(c, "DONE");',
            ),
        ),
        shipped=Shipped("memcached", "usr/bin/memcached"),
    ),
    Program(
        name="redis",
        version="5:7.0.15-1~deb12u10",
        kind="C, as Debian ships it, stripped; debian/rules",
        packages=("debhelper", "libjemalloc-dev", "liblzf-dev", "libssl-dev", "libsystemd-dev", "pkg-config"),
        build="DEB_BUILD_OPTIONS=parallel=2 debian/rules override_dh_auto_build",
        start=_redis,
        ask=_words("SET one 123", "STRLEN one", "FUNCTION LIST x", "QUIT"),
        fixes=(
            Fix(
                title="the length of a string",
                binary="src/redis-server",
                file="src/t_string.c",
                old="    addReplyLongLong(c,stringObjectLen(o));\n}\n\n/* LCS",
                new="    addReplyLongLong(c,stringObjectLen(o) + 1);\n}\n\n/* LCS",
            ),
            Fix(
                title="a file whose functions only tables name",
                binary="src/redis-server",
                file="src/functions.c",
                old='"Unknown argument %s"',
                new='"What is the argument %s"',
            ),
        ),
        shipped=Shipped("redis-tools", "usr/bin/redis-check-rdb"),
    ),
)
