"""Put the layers together; every layer has a name made of what is in it, and is made when that name is new."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from hack.images import base, contents
from hack.images.oci import Layout, pack
from hack.images.recipes import PAUSE_IMAGE, PROGRAMS, REDIS_IMAGE, Program
from hack.sources import redis
from hack.tools import REPOSITORY, cache, digest_of, lock, step

EXPORT = cache() / "images" / "export"


class Builder:
    """Images in one layout; `used` collects the tags that the current images stand on."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.there = layout.tags()
        self.used: set[str] = set()

    def layer(self, parent: str | None, tag: str, what: str, fill: Callable[[Path], None]) -> str:
        """Make `tag` = `parent` + the folder that `fill` fills, unless it is there; return the tag."""
        self.used.add(tag)
        if tag not in self.there:
            with step(what), tempfile.TemporaryDirectory(dir=cache() / "images") as folder:
                root, archive = Path(folder) / "root", Path(folder) / "layer.tar"
                fill(root)
                pack(root, archive)
                self.layout.add_layer(parent, tag, archive)
            self.there.add(tag)
        return tag

    def base(self) -> str:
        """Make the base image."""
        key = digest_of(base.RECIPE)
        tag = f"base-{key}"
        self.used.add(tag)
        if tag not in self.there:
            archive = base.archive(key)
            with step("base layer"):
                self.layout.add_layer(None, tag, archive)
            self.there.add(tag)
        return tag

    def program(self, program: Program) -> str:
        """Make an image of ours: base, libraries, code."""
        parent = self.base()
        wanted = digest_of(contents.LOCK, REPOSITORY / "pyproject.toml", Path(contents.__file__), parent)
        libraries = self.layer(
            parent, f"{program.name}-libraries-{wanted}", f"libraries of {program.name}",
            lambda root: contents.libraries(program, root),
        )  # fmt: skip
        key = digest_of(libraries, str(program), Path(__file__), *program.folders())
        tag = f"{program.name}-{key}"
        new = tag not in self.there
        self.layer(libraries, tag, f"code of {program.name}", lambda root: contents.code(program, root))
        if new:
            entry = next(iter(program.scripts))
            # kopf asks for a user's name; the number of ours has none.
            options = (f"--config.entrypoint={entry}", f"--config.user={program.user}", "--config.env=USER=podgraft")
            self.layout.configure(tag, *options)
        return tag

    def redis(self) -> str:
        """Make the demo's Redis."""
        key = digest_of(str(redis.prepare()), contents.LOAD, Path(contents.__file__))
        return self.layer(self.base(), f"redis-{key}", "demo Redis", contents.demo_redis)

    def pause(self) -> str:
        """Make the pause image; it has no base."""
        tag = f"pause-{digest_of(contents.PAUSE)}"
        new = tag not in self.there
        self.layer(None, tag, "pause image", contents.pause)
        if new:
            self.layout.configure(tag, "--config.entrypoint=/pause")
        return tag


def pause() -> Path:
    """Build the pause image alone, which a cluster needs for any pod; return its layout."""
    folder = cache() / "images" / "pause"
    with lock("images"):
        layout = Layout()
        layout.export({PAUSE_IMAGE: Builder(layout).pause()}, folder)
    return folder


def everything() -> Path:
    """Build all images, return the layout with just these; images.json in it tells repository and tag of each."""
    with lock("images"):
        layout = Layout()
        builder = Builder(layout)
        names = {PAUSE_IMAGE: builder.pause(), REDIS_IMAGE: builder.redis()}
        tags = {}
        for program in PROGRAMS:
            tag = builder.program(program)
            tags[program.name] = tag.rpartition("-")[2]
            names[f"{program.image}:{tags[program.name]}"] = tag
        layout.keep_only(builder.used)
        layout.export(names, EXPORT)
        about = {one.name: {"repository": one.image, "tag": tags[one.name]} for one in PROGRAMS}
        (EXPORT / "images.json").write_text(json.dumps(about, indent=1))
    return EXPORT
