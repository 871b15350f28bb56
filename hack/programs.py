"""Common servers and libraries as Debian ships them, for what is measured on real code; prints one path a line.

What is installed is used as it is. The rest is unpacked from its package into the cache: nothing is installed, no
service is started.
"""

import tempfile
from pathlib import Path

from hack.tools import cache, run, step

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
# package, file
PROGRAMS = (
    ("apache2-bin", "/usr/sbin/apache2"),
    ("bash", "/bin/bash"),
    ("bind9-libs", f"{LIBRARIES}/libdns-9*.so"),
    ("cpp-12", "/usr/lib/gcc/x86_64-linux-gnu/12/cc1"),
    ("dovecot-core", "/usr/lib/dovecot/libdovecot.so.0.*"),
    ("git", "/usr/bin/git"),
    ("haproxy", "/usr/sbin/haproxy"),
    ("libc6", "/lib/x86_64-linux-gnu/libc.so.6"),
    ("libcurl4", f"{LIBRARIES}/libcurl.so.4.*"),
    ("libexpat1", "/lib/x86_64-linux-gnu/libexpat.so.1.*"),
    ("libglib2.0-0", f"{LIBRARIES}/libglib-2.0.so.0.*"),
    ("libgnutls30", f"{LIBRARIES}/libgnutls.so.30.*"),
    ("libpython3.11", f"{LIBRARIES}/libpython3.11.so.1.0"),
    ("libsqlite3-0", f"{LIBRARIES}/libsqlite3.so.0.*"),
    ("libssl3", f"{LIBRARIES}/libcrypto.so.3"),
    ("libssl3", f"{LIBRARIES}/libssl.so.3"),
    ("libstdc++6", f"{LIBRARIES}/libstdc++.so.6.*"),
    ("libsystemd-shared", f"{LIBRARIES}/systemd/libsystemd-shared-252.so"),
    ("libxml2", f"{LIBRARIES}/libxml2.so.2.*"),
    ("lighttpd", "/usr/sbin/lighttpd"),
    ("mariadb-server-core", "/usr/sbin/mariadbd"),
    ("memcached", "/usr/bin/memcached"),
    ("nginx", "/usr/sbin/nginx"),
    ("openssh-server", "/usr/sbin/sshd"),
    ("openssl", "/usr/bin/openssl"),
    ("perl-base", "/usr/bin/perl"),
    ("postfix", "/usr/lib/postfix/libpostfix-global.so"),
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
    ("python3.11-minimal", "/usr/bin/python3.11"),
    ("redis-tools", "/usr/bin/redis-check-rdb"),
    ("rsync", "/usr/bin/rsync"),
    ("squid", "/usr/sbin/squid"),
    ("systemd", "/lib/systemd/systemd"),
    ("unbound", "/usr/sbin/unbound"),
    ("varnish", "/usr/sbin/varnishd"),
    ("vim", "/usr/bin/vim.basic"),
    ("zlib1g", "/lib/x86_64-linux-gnu/libz.so.1.*"),
)


def _below(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern.lstrip("/")) if path.is_file())


def _unpacked(package: str) -> Path:
    """Return the folder with a package's files, fetched by apt at the first call."""
    folder = cache() / "programs" / package
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with step(f"package {package}"), tempfile.TemporaryDirectory(dir=folder.parent) as work:
            run("apt-get", "-qq", "download", package, cwd=Path(work))
            (archive,) = Path(work).glob("*.deb")
            run("dpkg-deb", "--extract", archive, Path(work) / "root")
            (Path(work) / "root").rename(folder)
    return folder


def find() -> list[Path]:
    """Return where the files are.

    Raises:
        ToolFailedError: apt does not know a package; ValueError: a package holds no such file.
    """
    found = []
    for package, pattern in PROGRAMS:
        here = _below(Path("/"), pattern) or _below(_unpacked(package), pattern)
        if not here:
            raise ValueError(f"package {package} has no {pattern}")
        found.append(here[-1])
    return found


if __name__ == "__main__":
    for file in find():
        print(file)
