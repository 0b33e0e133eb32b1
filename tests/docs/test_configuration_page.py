"""docs/configuration.md is made from the dataclasses: all are there, each field explained, none too many."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import mtf
from mtf.config.base import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference() -> Any:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("configuration_reference")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_every_configuration_is_there(reference: Any) -> None:
    shown = reference.configurations()
    assert shown[:2] == [mtf.TrainerConfig, mtf.MultiDataLoaderConfig]
    names = [name for name, module in mtf._PUBLIC.items() if module.startswith("mtf.config.")]
    public = {v for name in names if isinstance(v := getattr(mtf, name), type) and issubclass(v, Config)} - {Config}
    assert set(shown) == public


def test_every_field_is_explained_and_nothing_else(reference: Any) -> None:
    for cls in reference.configurations():
        fields = [field.name for field in dataclasses.fields(cls) if field.init]
        assert list(reference.meanings(cls)) == fields, cls
        for setting in reference.settings(cls):
            assert len(setting.meaning) > 8, f"{cls.__name__}.{setting.name}"


def test_the_page_shows_defaults_and_choices(reference: Any) -> None:
    page = reference.page()
    assert "\n**burst_size**: ``int``, default ``1``\n   steps taken in a row" in page
    assert "\n**points**: ``list[tuple[int, list[float]]]``, required\n" in page
    assert "``SamplingStrategy.ROUND_ROBIN``" in page
    for enum in reference.enums():
        for name in enum.__members__:
            assert f"``{name}``" in page


def test_a_field_that_nobody_explains_is_noticed(reference: Any) -> None:
    @dataclasses.dataclass
    class Made:
        """A configuration.

        Attributes:
            one: the first,
                over two lines.
        """

        one: int = 1
        two: int = 2

    assert reference.meanings(Made) == {"one": "the first, over two lines."}
    with pytest.raises(KeyError, match="two"):
        reference.settings(Made)


def test_the_page_uses_it() -> None:
    assert ".. mtf-configuration::" in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
