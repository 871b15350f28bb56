"""Where Debian packages come from, as the apt configuration of the machine says. No mirror is named in this project."""

from dataclasses import dataclass

from hack.tools import ToolFailedError, run

FIELDS = ("REPO_URI", "RELEASE", "COMPONENT")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Archive:
    """One suite of a mirror."""

    uri: str
    release: str
    component: str

    def source_line(self) -> str:
        """Return the deb-src line for a sources.list."""
        return f"deb-src [signed-by={KEYRING}] {self.uri} {self.release} {self.component}"


def archives(codename: str) -> list[Archive]:
    """Return the suites of one Debian release that apt uses here, main component, the release itself first.

    Raises:
        ToolFailedError: apt knows no mirror of that release.
    """
    form = "|".join(f"$({field})" for field in FIELDS)
    lines = run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines()
    found = {Archive(*(line.split("|"))) for line in lines}
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    ours = [one for one in found if one.release in suites and one.component == "main"]
    if not any(one.release == codename for one in ours):
        raise ToolFailedError(f"apt's configuration has no mirror of Debian {codename}")
    return sorted(ours, key=lambda one: one.release)
