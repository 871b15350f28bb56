"""The programs of a cluster: Kubernetes as one Go binary, and helm. Built once, then found in the cache."""

import os
from pathlib import Path

from hack.tools import ToolFailedError, cache, digest_of, lock, run, step

KUBERNETES = "v1.34.4"
HELM = "v3.22.0"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
SOURCE = Path(__file__).parent / "kube"
VERSION_PACKAGE = "k8s.io/component-base/version"
# GOTOOLCHAIN=local: the Go of this machine or an error, never a download in the middle of a build.
GO = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}


def folder() -> Path:
    """Return the folder with kubectl, helm and the others; put it on PATH."""
    return cache() / "bin" / f"kubernetes-{KUBERNETES}-helm-{HELM}"


def ensure() -> Path:
    """Build what is missing and return the folder that holds the programs.

    Raises:
        ToolFailedError: there is no Go, or a build failed.
    """
    with lock("binaries"):
        _ensure_kubernetes()
        _ensure_helm()
    return folder()


def _ensure_kubernetes() -> None:
    name = f"kube-{KUBERNETES}-{digest_of(SOURCE)}"
    binary = cache() / "bin" / name
    if not binary.exists():
        major, minor, _ = KUBERNETES.removeprefix("v").split(".")
        version = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        flags = " ".join(["-s -w", *(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in version.items())])
        partial = binary.with_suffix(f".{os.getpid()}")
        with step(f"build Kubernetes {KUBERNETES} (the first time takes about 6 minutes on 2 cores)"):
            _go("build", "-ldflags", flags, "-o", str(partial), ".", cwd=SOURCE)
        partial.rename(binary)
    folder().mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        link = folder() / program
        if not link.is_symlink() or link.readlink() != Path("..") / name:
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / name)


def _ensure_helm() -> None:
    if not (folder() / "helm").exists():
        with step(f"build helm {HELM} (the first time takes about 2 minutes)"):
            _go("install", f"helm.sh/helm/v3/cmd/helm@{HELM}", env={"GOBIN": str(folder())})


def _go(*arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    try:
        run("go", *arguments, cwd=cwd, env=GO | (env or {}), log=cache() / "log" / "go.log")
    except FileNotFoundError:
        raise ToolFailedError("`go` is not on PATH; Go 1.24 or newer builds Kubernetes and helm") from None
