"""Configurations as plain data: conversions, and errors that name the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mtf.config.base import Config
from mtf.config.checks import nearest, parse_enum
from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError


@dataclass
class Inner(Config):
    rate: float = 1.0
    mode: Literal["min", "max"] = "min"


@dataclass
class Outer(Config):
    need: int
    inner: Inner = field(default_factory=Inner)
    path: Path | None = None
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, list[int]] = field(default_factory=dict)
    either: bool | str = False


def test_nested_round_trip() -> None:
    data = {"need": 3, "inner": {"rate": 2, "mode": "max"}, "path": "a/b", "pair": [4, 5], "table": {"x": [1]}}
    outer = Outer.from_dict(data)
    assert outer == Outer(3, Inner(2.0, "max"), Path("a/b"), (4, 5.0), {"x": [1]})
    assert Outer.from_dict(outer.to_dict()) == outer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Outer.need is required"),
        ({"need": 1, "iner": {}}, "Outer has no field 'iner'; did you mean 'inner'?"),
        ({"need": 1, "inner": {"rat": 1}}, "Outer.inner has no field 'rat'; did you mean 'rate'?"),
        ({"need": "x"}, "Outer.need must be an int, got 'x'"),
        ({"need": True}, "Outer.need must be an int, got True"),
        ({"need": 1, "inner": {"rate": "fast"}}, "Outer.inner.rate must be a number, got 'fast'"),
        ({"need": 1, "inner": {"mode": "mix"}}, "Outer.inner.mode must be one of 'min', 'max', got 'mix'"),
        ({"need": 1, "inner": 3}, "Outer.inner must be a mapping"),
        ({"need": 1, "pair": [1]}, "Outer.pair must have 2 entries, got 1"),
        ({"need": 1, "table": {"x": 3}}, "Outer.table['x'] must be a list, got 3"),
        ({"need": None}, "Outer.need must be an int, got None"),
    ],
)
def test_errors_name_the_field(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Outer.from_dict(data)
    assert message in str(caught.value)


def test_no_plain_form() -> None:
    with pytest.raises(ConfigError, match=r"Outer.table\['f'\] has no plain form"):
        Outer(1, table={"f": print}).to_dict()  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "word", ["FIXED_NUM_STEPS", "fixed_num_steps", "fixed-num-steps", "EpochLengthPolicy.FIXED_NUM_STEPS"]
)
def test_enum_by_any_spelling(word: str) -> None:
    assert parse_enum(EpochLengthPolicy, word, "p") is EpochLengthPolicy.FIXED_NUM_STEPS


def test_enum_aliases_and_typo() -> None:
    assert EpochLengthPolicy.MAX_OF_LENGTHS is EpochLengthPolicy.MAX_LENGTH
    assert EpochLengthPolicy.MIN_OF_LENGTHS is EpochLengthPolicy.MIN_LENGTH
    assert parse_enum(EpochLengthPolicy, "MAX_OF_LENGTHS", "p") is EpochLengthPolicy.MAX_LENGTH
    with pytest.raises(
        ConfigError, match=r"order must be one of RANDOM, SHUFFLED, EVEN, got 'evn'; did you mean 'EVEN'"
    ):
        parse_enum(WeightedOrder, "evn", "order")


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("zzz", ["alpha", "beta"]) == ""


def test_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "sampling_strategy: WEIGHTED\ndataloader_weights: [1, 2e-1]\nweight_curve: {points: [[0, [1, 2]]]}\n"
    )
    config = MultiDataLoaderConfig.from_yaml(file)
    assert config.sampling_strategy is SamplingStrategy.WEIGHTED
    assert config.dataloader_weights == [1.0, 0.2]
    assert config.weight_curve == WeightCurve([(0, [1.0, 2.0])], Interpolation.STEP)
    assert MultiDataLoaderConfig.from_dict(config.to_dict()) == config
    file.write_text("")
    assert MultiDataLoaderConfig.from_yaml(file) == MultiDataLoaderConfig()
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        MultiDataLoaderConfig.from_yaml(file)
    with pytest.raises(ConfigError, match="cannot read"):
        MultiDataLoaderConfig.from_yaml(tmp_path / "none.yaml")


def test_curve_points() -> None:
    with pytest.raises(ConfigError, match=r"weight_curve.points\[1\] must be \(step, weights\), got 3"):
        WeightCurve([(0, [1.0]), 3])  # type: ignore[list-item]


def test_a_class_that_is_no_dataclass_is_refused() -> None:
    class Forgotten(Config):
        rate: float = 1.0

    with pytest.raises(ConfigError, match="Forgotten must be a dataclass: put @dataclass above it"):
        Forgotten.from_dict({"rate": 2.0})
