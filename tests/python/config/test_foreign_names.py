"""Words of other tools, and spellings that are understood."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest

import mtf
from mtf.config.base import Config
from mtf.config.checks import field_types, nearest
from mtf.config.foreign_names import FOREIGN_NAMES


@pytest.mark.parametrize(("word", "here"), FOREIGN_NAMES.items())
def test_every_translation_leads_to_a_setting_or_an_argument(word: str, here: str) -> None:
    call = re.fullmatch(r"(Trainer|fit)\((.*)\)", here)
    if call:
        pytest.importorskip("torch")
        function: Any = mtf.Trainer.fit if call[1] == "fit" else mtf.Trainer.__init__
        for name in re.findall(r"(\w+)=", call[2]):
            assert name in inspect.signature(function).parameters
        return
    kind: Any = mtf.TrainerConfig
    for part in here.split("."):
        assert part in field_types(kind), f"{word}: {here}"
        kind = field_types(kind)[part]


def test_a_did_you_mean_translates() -> None:
    with pytest.raises(mtf.ConfigError, match=re.escape("did you mean 'performance.clip_grad_norm'?")):
        mtf.TrainerConfig(gradient_clip_val=1.0)  # type: ignore[call-arg]
    with pytest.raises(mtf.ConfigError, match=re.escape("'gradient_clip_val'; did you mean 'clip_grad_norm'?")):
        mtf.PerformanceConfig(gradient_clip_val=1.0)  # type: ignore[call-arg]
    with pytest.raises(mtf.ConfigError, match=re.escape("did you mean 'fit(max_epochs=...)'?")):
        mtf.TrainerConfig.from_dict({"max_epochs": 3})
    with pytest.raises(mtf.ConfigError, match=re.escape("did you mean 'dataloader_weights'?")):
        mtf.MultiDataLoaderConfig(probabilities=[0.5, 0.5])  # type: ignore[call-arg]
    assert nearest("Grad-Clip", ["other"]) == ""


def test_a_word_of_another_tool_that_is_assigned_is_pointed_out() -> None:
    config = mtf.TrainerConfig()
    with pytest.warns(UserWarning, match=re.escape("did you mean 'fit(max_epochs=...)'?")):
        config.max_epochs = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.use_domain_adversarial = True


def test_a_field_of_a_part_is_found_there() -> None:
    with pytest.raises(mtf.ConfigError, match=re.escape("field of 'performance', so set performance.precision")):
        mtf.TrainerConfig(precision="bf16")  # type: ignore[call-arg]
    with pytest.raises(mtf.ConfigError, match=re.escape("so set checkpoint.save_best")):
        mtf.TrainerConfig.from_dict({"save_best": True})


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("bf16-mixed", "bf16"),
        ("16-mixed", "fp16"),
        ("32-true", "fp32"),
        (32, "fp32"),
        ("BF16-Mixed", "bf16"),
        (16, "fp16"),
    ],
)
def test_precision_as_other_tools_write_it(given: Any, means: str) -> None:
    assert mtf.PerformanceConfig(precision=given).precision == means
    assert mtf.TrainerConfig.from_dict({"performance": {"precision": given}}).performance.precision == means
    config = mtf.PerformanceConfig()
    config.precision = given
    assert config.precision == means
    config.require_valid()


def test_a_precision_that_means_something_else_is_refused() -> None:
    with pytest.raises(mtf.ConfigError, match="precision must be one of"):
        mtf.PerformanceConfig(precision="bf16-true")  # type: ignore[arg-type]
    with pytest.raises(mtf.ConfigError, match="precision must be"):
        mtf.PerformanceConfig(precision=True)  # type: ignore[arg-type]


def test_fsdp2_is_fsdp() -> None:
    assert mtf.DDPConfig(strategy="fsdp2").strategy == "fsdp"  # type: ignore[arg-type]


class TestWeightsByName:
    def test_a_dict_gives_weights_and_names(self) -> None:
        config = mtf.MultiDataLoaderConfig(
            sampling_strategy="WEIGHTED", dataloader_weights={"clean": 0.8, "noisy": 0.2}
        )  # type: ignore[arg-type]
        assert config.dataloader_names == ["clean", "noisy"]
        assert config.dataloader_weights == [0.8, 0.2]
        assert mtf.MultiDataLoaderConfig.from_dict(config.to_dict()) == config

    def test_names_that_are_given_decide_the_order(self) -> None:
        given = {"dataloader_weights": {"b": 1, "a": 3}, "dataloader_names": ["a", "b"]}
        assert mtf.MultiDataLoaderConfig(**given).dataloader_weights == [3, 1]  # type: ignore[arg-type]
        assert mtf.TrainerConfig.from_dict({"multi": given}).multi.dataloader_weights == [3, 1]

    @pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "x": 2.0}])
    def test_other_names_are_refused(self, weights: dict[str, float]) -> None:
        with pytest.raises(mtf.ConfigError, match=r"keys of dataloader_weights, .*, must be exactly dataloader_names"):
            mtf.MultiDataLoaderConfig(dataloader_weights=weights, dataloader_names=["a", "b"])  # type: ignore[arg-type]

    def test_they_may_be_assigned(self) -> None:
        config = mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"])
        config.dataloader_weights = {"b": 1.0, "a": 3.0}  # type: ignore[assignment]
        config.require_valid()
        assert config.dataloader_weights == [3.0, 1.0]


@dataclass
class Mine(mtf.GenericTrainerConfig):
    """A user's own configuration of a run."""

    hidden: int = 8


class TestSubclasses:
    def test_a_trainers_configuration_may_have_more_fields(self) -> None:
        config = Mine(hidden=3, seed=4)
        assert (config.hidden, config.seed) == (3, 4)
        config.hidden = 5
        assert config.hidden == 5
        assert config.extras == {}
        assert Mine.from_dict(config.to_dict()) == config
        assert dataclasses.replace(config, seed=1) == Mine(hidden=5, seed=1)
        multi = mtf.MultiDataLoaderConfig(burst_size=2)
        assert Mine(train_loader_config=multi).multi is multi  # type: ignore[call-arg]

    def test_own_configurations_name_their_fields(self) -> None:
        @dataclass
        class Data(Config):
            batch_size: int = 1

        with pytest.raises(mtf.ConfigError, match=r"Data has no field 'batch_sise'; did you mean 'batch_size'\?"):
            Data(batch_sise=2)  # type: ignore[call-arg]
