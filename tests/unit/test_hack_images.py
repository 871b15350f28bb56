"""Layers of container images."""

from pathlib import Path

from hack.images.oci import pack
from hack.images.recipes import AGENT, OPERATOR
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
