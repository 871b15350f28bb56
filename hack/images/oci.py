"""One OCI layout in the cache, written by umoci; a tag says what went into an image, so nothing is made twice."""

import json
import os
import shutil
import tarfile
from pathlib import Path

from hack.tools import cache, run


class Layout:
    """The images under `folder`. Layers are added by tar file, never by unpacking what is below them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache() / "images" / "layout"
        if not (self.folder / "oci-layout").exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            run("umoci", "init", "--layout", self.folder)

    def tags(self) -> set[str]:
        """Return the names of all images, finished or not."""
        return set(run("umoci", "ls", "--layout", self.folder).split())

    def add_layer(self, parent: str | None, tag: str, archive: Path) -> None:
        """Make image `tag` from image `parent` (or from nothing) and one more layer."""
        if parent is None:
            run("umoci", "new", "--image", f"{self.folder}:{tag}")
            parent = tag
        # GNU tar's own headers carry what umoci copies verbatim; the layer's digest is the archive's.
        run("umoci", "raw", "add-layer", "--image", f"{self.folder}:{parent}", "--tag", tag, archive)

    def configure(self, tag: str, *options: str) -> None:
        """Set entry point, user and the like (options of `umoci config`)."""
        run("umoci", "config", "--image", f"{self.folder}:{tag}", *options)

    def keep_only(self, tags: set[str]) -> None:
        """Forget all images but these, and free the disk."""
        for tag in self.tags() - tags:
            run("umoci", "rm", "--image", f"{self.folder}:{tag}")
        run("umoci", "gc", "--layout", self.folder)

    def export(self, names: dict[str, str], folder: Path) -> None:
        """Write a layout that holds just the images `names` (full name -> tag), as hard links."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "blobs" / "sha256").mkdir(parents=True)
        index = json.loads((self.folder / "index.json").read_text())
        by_tag = {one["annotations"]["org.opencontainers.image.ref.name"]: one for one in index["manifests"]}
        manifests = []
        for name, tag in names.items():
            # containerd and kind read the full name from this annotation.
            annotations = {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rpartition(":")[2],
            }
            manifests.append({**by_tag[tag], "annotations": annotations})
            for digest in self._reachable(by_tag[tag]["digest"]):
                target = folder / "blobs" / "sha256" / digest
                if not target.exists():
                    os.link(self.folder / "blobs" / "sha256" / digest, target)
        shutil.copy(self.folder / "oci-layout", folder)
        (folder / "index.json").write_text(json.dumps({**index, "manifests": manifests}))

    def _reachable(self, digest: str) -> list[str]:
        name = digest.removeprefix("sha256:")
        manifest = json.loads((self.folder / "blobs" / "sha256" / name).read_text())
        parts = [manifest["config"], *manifest["layers"]]
        return [name, *(part["digest"].removeprefix("sha256:") for part in parts)]


def pack(root: Path, archive: Path) -> None:
    """Write a folder as a layer: owned by root, without times, so that equal content gives an equal layer."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        for path in sorted(root.rglob("*")):
            file.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=plain)
