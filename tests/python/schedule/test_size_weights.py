"""Weights from sizes: proportional, flattened by a temperature, and limited."""

from __future__ import annotations

from typing import Any

import pytest

import mtf


def test_known_values() -> None:
    sizes = {"a": 900, "b": range(100)}
    assert mtf.size_weights(sizes) == pytest.approx({"a": 0.9, "b": 0.1})
    assert mtf.size_weights(sizes, temperature=2) == pytest.approx({"a": 0.75, "b": 0.25})  # 30 to 10
    assert mtf.size_weights(sizes, maximum=300) == pytest.approx({"a": 0.75, "b": 0.25})
    assert mtf.size_weights(sizes, temperature=1e9) == pytest.approx({"a": 0.5, "b": 0.5})
    assert sum(mtf.size_weights({"a": 1e300, "b": 3, "c": 1e-300}, 0.5).values()) == pytest.approx(1.0)


def test_they_are_weights_of_a_mixture() -> None:
    config = mtf.MultiDataLoaderConfig(dataloader_weights=mtf.size_weights({"a": 3, "b": 1}))  # type: ignore[arg-type]
    assert config.dataloader_names == ["a", "b"]
    assert config.dataloader_weights == [0.75, 0.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "sizes must name one loader at least"),
        (({"a": 0},), "the size of 'a' must be a positive number, it is 0"),
        (({"a": "many"}, 0.0), "temperature must be above 0"),
        (({"a": 1}, 1.0, -1), "maximum must be above 0"),
        (({"a": float("inf")},), "the size of 'a' must be a positive number"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        mtf.size_weights(*arguments)
