"""What counts as an answer of Prometheus, and what as a good one."""

import json
from typing import Any

import pytest

from podgraft_api.strategy import Prometheus
from podgraft_operator.prometheus import NoAnswer, values, verdict


def answer(kind: str, result: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()


def test_numbers_of_scalars_and_vectors() -> None:
    """Each series has its value; a scalar is one."""
    assert values(answer("scalar", [1.0, "3"])) == [3.0]
    assert values(answer("vector", [{"metric": {}, "value": [1.0, "1"]}, {"metric": {}, "value": [1.0, "2"]}])) == [
        1,
        2,
    ]


@pytest.mark.parametrize(
    "body",
    [
        answer("vector", []),
        answer("matrix", [{"metric": {}, "values": [[1, "1"]]}]),
        answer("string", [1.0, "text"]),
        answer("vector", [{"metric": {}}]),
        answer("scalar", "3"),
        b"<html>",
        b"[]",
        b"\xff",
        b'{"status": "error"}',
    ],
)
def test_everything_else_is_no_answer(body: bytes) -> None:
    """An empty vector, other types, and other servers give nothing to judge by."""
    with pytest.raises(NoAnswer):
        values(body)


@pytest.mark.parametrize(
    ("numbers", "good"),
    [([1.0], True), ([2.0], True), ([0.9], False), ([2.1], False), ([1.5, 3.0], False), ([float("nan")], False)],
)
def test_every_value_must_lie_between_the_limits(numbers: list[float], good: bool) -> None:
    """The limits themselves are good; NaN is not."""
    query = Prometheus.model_validate({"url": "http://p", "query": "q", "atLeast": 1, "atMost": 2})
    assert (verdict(query, numbers) is None) is good
