"""Keywords, values and names of other tools at every public function: one clear error with what it is here."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import loader, trainer

import mtf
from mtf.config.foreign_names import FOREIGN_ATTRIBUTES, FOREIGN_OBJECTS, FOREIGN_VALUES
from mtf.config.keywords import checked_keywords

# Types that a user gets and doesn't make, protocols, enums, exceptions, and what takes any keywords.
NOT_MADE_BY_USERS = {
    "Batch", "BatchTrace", "Draw", "DrawnSample", "Logger", "MixingRound", "Preempted", "PreemptionGuard", "ResumeMode",
    "RowSource", "RunInfo", "SamplePlace", "SampleTable", "Schedule", "Snapshot", "Source", "Stream", "TokenOrigin",
    "TrainerHooks", "TrainerState", "RowSources", "SourceMeans", "Permutation", "fold_in", "Windows", "TokenRows",
    "TokenCorpus", "WeightCurve", "batch_rng", "register_logger", "seed_everything", "sources_of",
}  # fmt: skip


def made_by_users() -> list[str]:
    names = []
    for name in mtf.__all__:
        found: Any = getattr(mtf, name)
        is_other = not callable(found) or name in NOT_MADE_BY_USERS
        if is_other or (isinstance(found, type) and issubclass(found, (BaseException, mtf.Config))):
            continue
        if not hasattr(found, "__members__"):
            names.append(name)
    return names


@pytest.mark.parametrize("name", made_by_users())
def test_an_unknown_keyword_is_one_error_with_the_arguments(name: str) -> None:
    function = getattr(mtf, name)
    with pytest.raises(mtf.ConfigError) as caught:
        function(certainly_unknown=1)
    first = next(iter(inspect.signature(function).parameters), "")
    assert re.search(rf"has no argument 'certainly_unknown'.*\(arguments: {first}", str(caught.value))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mtf.Together({"a": [1]}, mode="min_size"), "Together has no argument 'mode'; here it is length"),
        (lambda: mtf.Together({"a": [1]}, length="min_size"), "did you mean 'min'?"),
        (lambda: mtf.Together([loader(8, 1)]), "as in Together({'labelled': loader_a"),
        (lambda: mtf.MultiLoader([[1]], weights={"a": 1}), "MultiDataLoaderConfig(dataloader_weights=...), given as"),
        (lambda: mtf.MultiLoader([[1]], burst_size=2), "so set MultiDataLoaderConfig(burst_size=...)"),
        (lambda: mtf.MultiLoader([[1]], {"a": 0.7}), 'it is MultiDataLoaderConfig(sampling_strategy="WEIGHTED"'),
        (lambda: mtf.MultiLoader([1], [2]), "several loaders are one dict or list, the first argument"),
        (lambda: mtf.Blend({"a": torch.zeros(4)}, batch_size=2), "here it is global_batch_size"),
        (lambda: mtf.ArrayLoader(torch.zeros(4), 2, num_workers=2), "here it is num_threads"),
        (lambda: mtf.AveragedWeights(beta=0.9), "here it is decay"),
        (lambda: mtf.AveragedWeights(0.9), "a decay is AveragedWeights(decay=0.9)"),
        (lambda: mtf.ThroughputMonitor(max_wait=0.1), "here it is max_wait_share"),
        (lambda: mtf.EarlyStopping(patience=-1), "patience must be an int of at least 0"),
        (lambda: mtf.EarlyStopping(min_delta=-0.1), "min_delta must be at least 0"),
        (lambda: mtf.total_updates(mtf.TrainerConfig(), [[1]], epochs=2), "here it is max_epochs"),
        (lambda: mtf.check_source({"a": [1]}), "check_source looks at one loader"),
        (lambda: mtf.Trainer(precision="bf16"), "in TrainerConfig it is a field of 'performance'"),
        (lambda: mtf.Trainer(seed=1), "so set TrainerConfig(seed=...)"),
        (lambda: mtf.Trainer(nn.Linear(1, 1)), "the order is Trainer(config, model, ...)"),
        (lambda: trainer().fit(train_dataloaders=[[1]]), "here it is fit(train_loaders=...)"),
        (lambda: trainer().fit([[1]], epochs=2), "here it is max_epochs"),
        (lambda: trainer().fit([loader(8, 1)], resume_from=True), "did you mean 'latest'?"),
        (lambda: trainer().log("x", 1.0, prog_bar=True), "Trainer.log has no argument 'prog_bar'"),
        (lambda: trainer(hooks=[mtf.EarlyStopping]), "that is the class: give EarlyStopping(...)"),
        (
            lambda: mtf.MultiDataLoaderConfig(epoch_length_policy="all_exhausted"),  # type: ignore[arg-type]
            "did you mean 'MAX_LENGTH'?",
        ),
        (
            lambda: mtf.MultiDataLoaderConfig(epoch_length_policy="max_size_cycle"),  # type: ignore[arg-type]
            "did you mean 'MAX_LENGTH'?",
        ),
        (lambda: mtf.ValidationConfig(frequency="steps"), "did you mean 'EVERY_N_STEPS'?"),  # type: ignore[arg-type]
    ],
)
def test_words_of_other_tools_lead_to_what_it_is_here(call: Any, words: str) -> None:
    with pytest.raises(mtf.ConfigError) as caught:
        call()
    assert words in str(caught.value)


def test_a_checkpoint_called_last_leads_to_latest() -> None:
    with pytest.raises(mtf.CheckpointError, match="the newest of root_dir is called 'latest'"):
        trainer().fit([loader(8, 1)], resume_from="last")


def test_a_setting_of_one_loader_lists_those_there_are() -> None:
    rules = {"a": {"lr": 0.1}}
    with pytest.raises(mtf.ConfigError, match=re.escape("no setting 'lr' (settings: optimizer_idx, lr_scale)")):
        trainer(mtf.TrainerConfig(per_loader_optimizers=rules))


@pytest.mark.parametrize(("name", "here"), FOREIGN_OBJECTS.items())
def test_classes_of_other_tools(name: str, here: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"no attribute {name!r}; here it is {here}")):
        getattr(mtf, name)
    for public in re.findall(r"mtf\.(\w+)", here):
        assert public in mtf.__all__


@pytest.mark.parametrize(("name", "here"), FOREIGN_ATTRIBUTES.items())
def test_attributes_of_other_trainers(name: str, here: str) -> None:
    run = trainer()
    with pytest.raises(AttributeError, match=re.escape(f"no attribute {name!r}; here it is {here}")):
        getattr(run, name)
    for attribute in re.findall(r"trainer\.(\w+)", here):
        assert attribute == "multi_loader_manager" or hasattr(run, attribute)
    for public in re.findall(r"mtf\.(\w+)", here):
        assert public in mtf.__all__


def test_a_misspelt_attribute_of_the_trainer_is_recognised() -> None:
    run = trainer()
    with pytest.raises(AttributeError, match="'global_steps'; did you mean 'global_step'"):
        run.global_steps  # noqa: B018
    assert not hasattr(run, "_anything")


def test_every_foreign_value_is_one_of_some_setting() -> None:
    here = {"max", "min", "latest", "ema", *(name for name in mtf.SamplingStrategy.__members__)}
    here |= {*mtf.EpochLengthPolicy.__members__, *mtf.ValidationFrequency.__members__, "tensorboard"}
    assert {value for values in FOREIGN_VALUES.values() for value in values} <= here


def test_a_batch_says_where_the_data_are() -> None:
    with mtf.MultiLoader({"a": loader(8, 1)}) as batches:
        with pytest.raises(mtf.UsageError, match=re.escape("that is batch.data, here [float32[")):
            for _, _ in batches:
                pass
        batch = next(iter(batches))
        with pytest.raises(mtf.UsageError, match="a Batch isn't what its loader gave"):
            batch[0]
        with pytest.raises(AttributeError, match=re.escape("batch.data has: batch.data.append")):
            batch.append  # noqa: B018
        assert not hasattr(batch, "to")
        assert dataclasses.replace(batch, step=7).step == 7


def test_a_metric_that_is_not_there_lists_those_that_are() -> None:
    run = trainer()
    with pytest.raises(KeyError, match="there are: none yet"):
        run.metrics["val/loss"]
    run.fit({"a": loader(8, 1)}, {"a": loader(8, 2)}, max_epochs=1)
    with pytest.raises(KeyError) as caught:
        run.metrics["val_loss"]
    assert "there is no metric 'val_loss'; did you mean 'val/loss'? (there are: " in str(caught.value)
    assert run.metrics == dict(run.metrics)
    assert run.metrics.get("val_loss") is None


def test_the_error_of_a_step_shows_the_batch() -> None:
    def step(trainer: Any, batch: Any, *_: Any) -> Any:
        return batch["labelled"]

    run = trainer(training_step=step)
    with pytest.raises(KeyError) as caught:
        run.fit(mtf.Together({"a": loader(8, 1), "b": loader(8, 2)}), max_epochs=1)
    notes = getattr(caught.value, "__notes__", None)
    assert notes is None or "with the batch {'a': [float32[" in notes[0]


def test_the_signature_and_the_result_stay() -> None:
    @checked_keywords(words={"other": "second"})
    def function(first: int, second: int = 2) -> int:
        """What it does."""
        return first + second

    assert (function(1), function(1, 3), function(first=1, second=1)) == (3, 4, 2)
    assert list(inspect.signature(function).parameters) == ["first", "second"]
    assert function.__doc__ == "What it does."
    with pytest.raises(TypeError, match="missing 1 required"):
        function()  # type: ignore[call-arg]
    with pytest.raises(mtf.ConfigError, match="here it is second"):
        function(1, other=3)  # type: ignore[call-arg]
