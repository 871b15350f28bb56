"""What the chaos run excuses."""

from hack.chaos.excuses import Excuses


def test_an_end_excuses_one_request_of_each_connection() -> None:
    """A fifth failure, one at another time and one in another pod are failures."""
    excuses = Excuses()
    excuses.add("a", 100.0)
    excused, left = excuses.split({"a": [99.5, 100.1, 100.2, 100.3, 100.4, 300.0], "b": [100.1]})
    assert excused == 4
    assert left == [("a", 100.4), ("a", 300.0), ("b", 100.1)]


def test_each_end_excuses_its_own() -> None:
    """Two ends of one server excuse two requests of each connection."""
    excuses = Excuses()
    excuses.add("a", 100.0)
    excuses.add("a", 120.0)
    assert excuses.split({"a": [100.1] * 4 + [120.1] * 4}) == (8, [])
