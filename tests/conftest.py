"""The order of the layers."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what needs the three-node cluster last: while it is up, other tests wait for processors."""
    items.sort(key=lambda item: "e2e" in item.path.parts)
