"""Validation: exact over uneven loaders and short last batches, and without traces in the training."""

from __future__ import annotations

import math
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainer_tools import config, loader, model, rows, trainer

import mtf
from mtf import ValAggregation, ValidationConfig


def values(numbers: list[float], batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.tensor(numbers, dtype=torch.float64)), batch_size=batch_size)


def mean_step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Tensor]:
    return {"loss": batch[0].mean(), "count": torch.tensor(float(len(batch[0])))}


def run_with(validation: ValidationConfig, **settings: Any) -> mtf.Trainer:
    return trainer(config(validation=validation, **settings), validation_step=mean_step)


# 100 samples of 1.0 and 2 samples of 2.0: the mean of batch means is 1.5 and over [99, 1, 2]-sized batches worse;
# the mean over samples is 104 / 102 = 1.0196.
MANY, FEW = [1.0] * 100, [2.0] * 2


def test_micro_is_a_mean_over_samples_not_of_batch_means() -> None:
    row = run_with(ValidationConfig()).validate({"many": values(MANY, 99), "few": values(FEW, 2)})
    assert row["val/loss"] == pytest.approx(104 / 102, abs=1e-15)
    assert row["val/many/loss"] == 1.0
    assert row["val/few/loss"] == 2.0


def test_a_short_last_batch_counts_by_its_samples() -> None:
    numbers = [float(i) for i in range(10)]
    row = run_with(ValidationConfig()).validate(values(numbers, 4))
    assert row["val/loss"] == pytest.approx(4.5, abs=1e-15)
    assert row["val/dl0/loss"] == row["val/loss"]


def test_macro_is_a_mean_over_loaders() -> None:
    row = run_with(ValidationConfig(aggregation=ValAggregation.MACRO_AVG_EQUAL_LOADERS)).validate(
        {"many": values(MANY, 7), "few": values(FEW, 2)}
    )
    assert row["val/loss"] == 1.5


def test_validation_weights_and_their_precedence() -> None:
    loaders = {"many": values(MANY, 7), "few": values(FEW, 2)}
    weighted = ValidationConfig(aggregation=ValAggregation.MACRO_AVG_EQUAL_LOADERS, validation_weights=[7, 3])
    assert run_with(weighted).validate(loaders)["val/loss"] == pytest.approx(1.3)
    seen: list[dict[str, dict[str, float]]] = []

    def custom(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
        seen.append(metrics)
        return {"loss": sum(metrics[name]["loss"] * w for name, w in {"many": 0.6, "few": 0.4}.items())}

    both = ValidationConfig(aggregation_fn=custom, validation_weights=[1, 0], per_loader_metrics=False)
    assert run_with(both).validate(loaders) == {"val/loss": pytest.approx(1.4)}
    assert seen == [{"many": {"loss": 1.0, "count": pytest.approx(6.9)}, "few": {"loss": 2.0, "count": 2.0}}]


def test_primary_metric_per_loader() -> None:
    primary = ValidationConfig(aggregation=ValAggregation.PRIMARY_METRIC_PER_LOADER, primary_metrics={"few": "count"})
    row = run_with(primary).validate({"many": values(MANY, 50), "few": values(FEW, 2)})
    assert row == {"val/many/loss": 1.0, "val/few/count": 2.0, "val/primary": 1.5}
    primary.primary_metrics = {"few": "cuont"}
    with pytest.raises(mtf.ConfigError, match=r"'few' has no metric 'cuont'.*did you mean 'count'"):
        run_with(primary).validate({"many": values(MANY, 50), "few": values(FEW, 2)})


def test_global_and_per_loader_can_be_left_out() -> None:
    loaders = {"many": values(MANY, 50), "few": values(FEW, 2)}
    assert set(run_with(ValidationConfig(per_loader_metrics=False)).validate(loaders)) == {"val/loss", "val/count"}
    assert "val/loss" not in run_with(ValidationConfig(global_metrics=False)).validate(loaders)


def test_every_batch_exactly_once_and_in_order() -> None:
    """[1, 9] batches: 10 steps, not five passes over the short loader."""
    seen: list[tuple[str, int, int]] = []

    def watching(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Tensor:
        seen.append((dataloader_name, dataloader_idx, batch_idx))
        return batch[0].mean()

    run = trainer(validation_step=watching)
    run.validate({"one": values([1.0], 1), "nine": values([float(i) for i in range(9)], 1)})
    assert seen == [("one", 0, 0), *[("nine", 1, i) for i in range(9)]]


def test_a_length_that_is_not_implemented_does_not_matter() -> None:
    class Stream:
        def __len__(self) -> int:
            raise NotImplementedError

        def __iter__(self) -> Any:
            return iter(values([1.0, 2.0], 1))

    assert run_with(ValidationConfig()).validate(Stream())["val/loss"] == 1.5


@pytest.mark.parametrize("where", ["step", "metric", "aggregation"])
def test_an_error_in_a_reduction_is_raised(where: str) -> None:
    """Nothing on the way from a step's values to the numbers of a row is swallowed."""

    class Metric:
        def update(self, *_: Any) -> None:
            pass

        def reset(self) -> None:
            pass

        def compute(self) -> Any:
            raise LookupError("metric")

    def broken(*_: Any) -> Any:
        raise LookupError("aggregation")

    def validation_step(trainer: Any, batch: Any, *_: Any) -> Any:
        if where == "step":
            raise LookupError("step")
        return {"loss": batch[0].mean(), "own": Metric()} if where == "metric" else batch[0].mean()

    settings = ValidationConfig(aggregation_fn=broken if where == "aggregation" else None)
    run = trainer(config(validation=settings), validation_step=validation_step)
    with pytest.raises(LookupError, match=where):
        run.validate(values([1.0, 2.0], 1))
    assert run.model.training


def test_num_samples_of_the_result_wins() -> None:
    """Tokens instead of rows; a batch without tokens may have a mean of NaN."""

    def tokens(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        kept = batch[0][batch[0] > 0]
        return {"loss": kept.mean(), "num_samples": torch.tensor(len(kept)) if batch[0][0] == 1 else len(kept)}

    data = values([1.0, 0.0, 3.0, 5.0, 0.0, 0.0], 2)
    row = trainer(validation_step=tokens).validate(data)
    assert row == {"val/dl0/loss": 3.0, "val/loss": 3.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_num_samples_may_be_a_tensor(dtype: torch.dtype) -> None:
    """As sums over masks are: one that is 0 counts for nothing, and the total is exact beyond what float32 holds."""
    counts = [2**24, 1, 0, 1, 1]

    def tokens(trainer: Any, batch: Any, batch_idx: int, *_: Any) -> dict[str, Any]:
        count = torch.tensor(counts[batch_idx], dtype=dtype)
        return {"loss": count / count, "one": 1.0, "num_samples": count}

    row = trainer(validation_step=tokens).validate(values([0.0] * 5, 1))
    assert row["val/loss"] == row["val/one"] == 1.0


def test_mode_of_every_module_and_random_numbers_come_back() -> None:
    net = model(dropout=0.5)
    net[2].eval()
    run = trainer(model=net)
    modes: list[bool] = []

    def noisy(trainer: Any, batch: Any, *_: Any) -> Tensor:
        modes.append(any(m.training for m in trainer.model.modules()))
        np.random.rand()
        random.random()
        return torch.rand(())

    run.set_validation_step(noisy)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    first = run.validate(loader(12, 1, shuffle=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    assert [m.training for m in net] == [True, True, False, True]
    assert modes == [False] * 3
    assert run.validate(loader(12, 1, shuffle=True)) == first, "validation itself is deterministic"

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("broken step")

    run.set_validation_step(broken)
    with pytest.raises(RuntimeError, match="broken step"):
        run.validate(loader(12, 1))
    assert net.training


def test_no_graph_is_kept_and_the_training_step_is_the_default() -> None:
    run = trainer()
    graphs: list[bool] = []

    class Watch(mtf.TrainerHooks):
        def on_validation_batch_end(
            self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str, metrics: Any
        ) -> None:
            graphs.append(metrics["loss"].requires_grad)

    run.add_hook(Watch())
    x, y = rows(12, 1)
    with torch.no_grad():
        expected = nn.functional.mse_loss(run.model(x), y).item()
    assert run.validate(loader(12, 1))["val/loss"] == pytest.approx(expected, rel=1e-6)
    assert graphs == [False] * 3


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes below tracebacks are new in 3.11")
@pytest.mark.parametrize("what", ["step", "loader", "metric"])
def test_errors_say_in_which_validation_loader(what: str) -> None:
    def batches() -> Any:
        yield torch.ones(1)
        if what == "loader":
            raise OSError("broken loader")
        yield torch.ones(1)

    def broken(trainer: Any, batch: Any, batch_idx: int, *_: Any) -> Any:
        if what == "step" and batch_idx == 1:
            raise OSError("broken step")
        return {"loss": 1.0, "text": "no number" if what == "metric" and batch_idx == 1 else 1}

    with pytest.raises((OSError, mtf.ConfigError, mtf.SourceError)) as caught:
        trainer(validation_step=broken).validate({"one": values([1.0], 1), "two": batches()})
    if what == "loader":
        assert str(caught.value) == "validation loader 'two', batch 1: OSError: broken loader"
    else:
        assert caught.value.__notes__ == ["in the validation on loader 'two', at batch 1"]


class MeanMetric:
    """Accumulates as torchmetrics objects do."""

    def __init__(self) -> None:
        self.total, self.count, self.num_resets = 0.0, 0, 0

    def update(self, batch: Tensor) -> None:
        self.total += float(batch.sum())
        self.count += len(batch)

    def compute(self) -> Tensor:
        return torch.tensor(self.total / self.count)

    def reset(self) -> None:
        self.total, self.count = 0.0, 0
        self.num_resets += 1


def test_metric_objects_are_read_per_loader() -> None:
    metric = MeanMetric()

    def with_object(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        metric.update(batch[0])
        return {"loss": batch[0].mean(), "mean": metric}

    run = trainer(validation_step=with_object)
    for _ in range(2):
        row = run.validate({"many": values(MANY, 99), "few": values(FEW, 2)})
        assert row["val/many/mean"] == 1.0
        assert row["val/few/mean"] == 2.0
        assert row["val/mean"] == pytest.approx(104 / 102)


def test_an_object_of_training_and_validation_keeps_them_apart() -> None:
    """Rows have what it saw since the last row or validation; the validation's value is that of its own batches."""
    metric, rows_of_training = MeanMetric(), []

    def with_object(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        metric.update(batch[0])
        return {"loss": batch[0].mean() + 0.0 * trainer.model[0].weight.sum().double(), "mean": metric}

    class Rows(mtf.TrainerHooks):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rows_of_training.append(trainer.metrics.get("train/mean"))

    settings = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=4)
    often = ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=3)
    run = trainer(config(logging=settings, validation=often), training_step=with_object, hooks=[Rows()])
    run.fit([values([float(i) for i in range(9)], 1)], [values(MANY, 99), values(FEW, 2)])
    assert (run.metrics["val/dl0/mean"], run.metrics["val/dl1/mean"]) == (1.0, 2.0)
    assert rows_of_training[4] == 3.0, "updates 0 to 2 were before the validation"
    assert rows_of_training[8] == 6.5, "6 and 7 come after the next one"
    assert run.metrics["train/mean"] == 8.0


def test_an_object_forgets_a_validation_that_failed() -> None:
    metric, is_broken = MeanMetric(), True

    def with_object(trainer: Any, batch: Any, batch_idx: int, *_: Any) -> dict[str, Any]:
        if is_broken and batch_idx == 1:
            raise RuntimeError("broken step")
        metric.update(batch[0])
        return {"mean": metric}

    run = trainer(validation_step=with_object)
    with pytest.raises(RuntimeError, match="broken step"):
        run.validate([values([1.0, 2.0], 1)])
    is_broken = False
    assert run.validate([values([1.0, 2.0], 1)])["val/mean"] == 1.5


class Collection(MeanMetric):
    def compute(self) -> Any:
        mean = super().compute()
        return {"mean": mean, "twice": 2.0 * mean}


class PerClass(MeanMetric):
    def compute(self) -> Tensor:
        return super().compute().expand(3)


def test_a_collection_of_metrics_and_one_that_is_no_number() -> None:
    found: MeanMetric = Collection()

    def with_object(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        found.update(batch[0])
        return {"loss": batch[0].mean() + 0.0 * trainer.model[0].weight.sum(), "all": found}

    run = trainer(training_step=with_object)
    run.fit([values(MANY, 50)], [values(FEW, 2)])
    means = {"train/dl0/all/mean": 1.0, "train/all/twice": 2.0, "val/all/mean": 2.0, "val/dl0/all/twice": 4.0}
    assert {name: run.metrics[name] for name in means} == means
    found = PerClass()
    with pytest.raises(mtf.ConfigError, match=r"metric 'all' must have one element, it is a tensor of shape \(3,\)"):
        run.validate([values(FEW, 2)])


def test_torchmetrics_itself() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="optional: the protocol is tested above")
    metric = torchmetrics.MeanMetric()

    def with_object(trainer: Any, batch: Any, *_: Any) -> dict[str, Any]:
        metric.update(batch[0])
        return {"loss": batch[0].mean(), "mean": metric}

    row = trainer(validation_step=with_object).validate({"many": values(MANY, 99), "few": values(FEW, 2)})
    assert (row["val/many/mean"], row["val/few/mean"]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_weights": [1.0]}, r"one weight per validation loader \(\['many', 'few'\]\), it has 1"),
        ({"primary_metrics": {"fwe": "loss"}}, "no validation loader is called 'fwe'.*did you mean 'few'"),
    ],
)
def test_settings_are_checked_against_the_loaders(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        run_with(ValidationConfig(**settings)).validate({"many": values(MANY, 9), "few": values(FEW, 2)})


def test_an_empty_loader_is_left_out_loudly() -> None:
    with pytest.warns(UserWarning, match="without a batch are left out: .'none'"):
        row = run_with(ValidationConfig()).validate({"none": [], "few": values(FEW, 2)})
    assert row["val/loss"] == 2.0


def test_names_of_validation_loaders() -> None:
    named = config(["x", "y"], val_loader_config=mtf.MultiDataLoaderConfig(dataloader_names=["p", "q"]))
    loaders = [values(MANY, 9), values(FEW, 2)]
    assert "val/p/loss" in trainer(named, validation_step=mean_step).validate(loaders)
    run = trainer(config(["x", "y"]), validation_step=mean_step)
    assert "val/x/loss" in run.validate(loaders)
    assert "val/dl0/loss" in run.validate(loaders[:1])
    with pytest.raises(mtf.ConfigError, match="1 loaders for 2 names"):
        trainer(named, validation_step=mean_step).validate(loaders[:1])


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        (ValidationConfig(), [4, 8]),
        (ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=3), [3, 6]),
        (ValidationConfig(frequency=mtf.ValidationFrequency.NEVER), []),
    ],
)
def test_frequency(frequency: ValidationConfig, expected: list[int]) -> None:
    steps: list[int] = []

    class Watch(mtf.TrainerHooks):
        def on_validation_end(self, trainer: Any, metrics: Any) -> None:
            steps.append(trainer.global_step)

    trainer(config(validation=frequency), hooks=[Watch()]).fit([loader(16, 1)], [loader(8, 2)], max_epochs=2)
    assert steps == expected


def test_a_number_of_steps_without_the_frequency_is_pointed_out() -> None:
    run = trainer(config(validation=ValidationConfig(every_n_steps=2)))
    with pytest.warns(UserWarning, match="every_n_steps has no effect with frequency PER_EPOCH: set EVERY_N_STEPS"):
        run.fit([loader(8, 1)], [loader(8, 2)])


def test_nested_batches_and_odd_containers() -> None:
    """The first dimension of the first tensor, wherever it is; text alone counts as one sample."""
    from mtf.trainer.metrics import num_samples

    assert num_samples({"text": ["a", "b"], "x": (torch.zeros(5, 2),)}) == 5
    assert num_samples(["text"]) == 1
    assert num_samples(np.zeros((4, 2))) == 4


def test_aggregates_survive_values_that_are_not_finite() -> None:
    def infinite(trainer: Any, batch: Any, *_: Any) -> Tensor:
        return torch.tensor(math.inf)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trainer(validation_step=infinite).validate([loader(8, 1)])["val/loss"] == math.inf


def test_array_loaders_keep_their_position() -> None:
    data = mtf.ArrayLoader({"x": torch.arange(10.0)}, batch_size=4, shuffle=True)
    seen: list[list[float]] = []

    def watching(trainer: Any, batch: Any, *_: Any) -> Tensor:
        seen.append(batch["x"].tolist())
        return batch["x"].mean()

    run = trainer(validation_step=watching)
    for _ in range(2):
        assert run.validate(data)["val/loss"] == pytest.approx(4.5)
    assert seen[:3] == seen[3:]
    assert sorted(sum(seen[:3], [])) == list(range(10))  # noqa: RUF017 - three short lists
