"""Layers of container images."""

import os
import subprocess
import sys
from pathlib import Path

from hack.images import contents
from hack.images.oci import pack
from hack.images.recipes import AGENT, CODE, OPERATOR
from hack.tools import digest_of


def test_equal_folders_give_equal_layers(tmp_path: Path) -> None:
    """Times and the order of creation leave no trace in a layer."""
    for name, files in (("one", ("a", "b")), ("two", ("b", "a"))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(file)
        pack(tmp_path / name, tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_the_digest_of_a_folder_sees_content_names_and_modes(tmp_path: Path) -> None:
    """Whatever changes an image changes the name under which it is cached."""
    (tmp_path / "file").write_text("text")
    seen = {digest_of(tmp_path)}
    (tmp_path / "file").chmod(0o755)
    seen.add(digest_of(tmp_path))
    (tmp_path / "file").write_text("other")
    seen.add(digest_of(tmp_path))
    (tmp_path / "file").rename(tmp_path / "name")
    seen.add(digest_of(tmp_path))
    assert len(seen) == 4


def test_the_operator_image_has_no_engine() -> None:
    """The GPL part and the builder stay out of the operator's image; each package is where the recipe says."""
    assert "podgraft_engine" not in OPERATOR.packages
    assert "podgraft_engine" in AGENT.packages
    for program in (OPERATOR, AGENT):
        assert all((folder / "__init__.py").exists() for folder in program.folders())


def test_our_code_is_compiled_in_the_image(tmp_path: Path) -> None:
    """A container can't write bytecode; Python takes what came with the image, whatever the times of the files are."""
    contents.code(AGENT, tmp_path)
    for source in (tmp_path / CODE).rglob("*.py"):
        os.utime(source, (0, 0))
    look = f"import sys; sys.path.insert(0, {str(tmp_path / CODE)!r}); import podgraft_engine.steps"
    seen = subprocess.run([sys.executable, "-Iv", "-c", look], capture_output=True, text=True, check=True).stderr
    assert f"steps.{sys.implementation.cache_tag}.pyc matches {tmp_path}" in seen
    assert f"code object from {tmp_path}" not in seen
