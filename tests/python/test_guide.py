"""Every scenario of the guide, through both names of the package; a test adds loaders and a training step only."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainer_tools import loader, model, same_weights, step

import mtf.trainer

PACKAGES = ["mtf", "model_training_framework"]


@pytest.fixture(params=PACKAGES)
def api(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Public names as the guide imports them, from ``<package>.trainer``; tests run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"{request.param}.trainer")
    return SimpleNamespace(**{name: getattr(module, name) for name in mtf.trainer.__all__})


def sgd(net: nn.Module) -> Any:
    return [torch.optim.SGD(net.parameters(), lr=0.05)]


def quiet(api: Any, **settings: Any) -> Any:
    return api.GenericTrainerConfig(
        logging=api.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=1), **settings
    )


def watched(api: Any) -> Any:
    """A hook that keeps the loader of every step, per epoch."""

    class Watch(api.TrainerHooks):  # type: ignore[misc]
        def __init__(self) -> None:
            self.epochs: dict[int, list[str]] = {}

        def on_train_batch_start(
            self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
        ) -> None:
            self.epochs.setdefault(trainer.epoch, []).append(dataloader_name)

    return Watch()


def trained(api: Any, multi: Any, loaders: Any, epochs: int = 1, hooks: Any = (), **settings: Any) -> tuple[Any, Any]:
    """A run of the small model with ``multi``; returns the trainer and the steps' loaders per epoch."""
    net, watch = model(), watched(api)
    trainer = api.GenericTrainer(config=quiet(api, multi=multi, **settings), model=net, optimizers=sgd(net))
    for hook in [watch, *hooks]:
        trainer.add_hook(hook)
    trainer.set_training_step(step)
    trainer.fit(loaders, max_epochs=epochs)
    return trainer, watch.epochs


def three(*lengths: int) -> list[Any]:
    return [loader(4 * length, i) for i, length in enumerate(lengths)]


def test_the_names_of_the_guide_are_importable() -> None:
    configs = [
        "MultiDataLoaderConfig",
        "SamplingStrategy",
        "EpochLengthPolicy",
        "ValidationConfig",
        "ValAggregation",
        "GenericTrainerConfig",
        "LoggingConfig",
        "FaultToleranceConfig",
        "CheckpointConfig",
        "PreemptionConfig",
        "PerformanceConfig",
        "DDPConfig",
    ]
    schemas = importlib.import_module("model_training_framework.config.schemas")
    for place, name in (
        ("config", "GenericTrainerConfig"),
        ("config", "SamplingStrategy"),
        ("trainer.config", "ValidationConfig"),
        ("trainer.hooks", "TrainerHooks"),
        ("trainer.hooks", "EarlyStopping"),
    ):
        assert getattr(importlib.import_module(f"model_training_framework.{place}"), name) is getattr(mtf, name)
    for package in PACKAGES:
        top, trainer = importlib.import_module(package), importlib.import_module(f"{package}.trainer")
        for name in configs:
            assert getattr(schemas, name) is getattr(trainer, name) is getattr(top, name)
        for name in ("GenericTrainer", "Trainer", "TrainerHooks", "MultiLoader"):
            assert getattr(trainer, name) is getattr(top, name)


# Strategies ------------------------------------------------------------------------------------------------------


def test_round_robin_is_fair(api: Any) -> None:
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.ROUND_ROBIN,
        epoch_length_policy=api.EpochLengthPolicy.SUM_OF_LENGTHS,
        dataloader_names=["dataset_a", "dataset_b", "dataset_c"],
    )
    _, drawn = trained(api, multi, three(2, 2, 2))
    assert drawn[0] == ["dataset_a", "dataset_b", "dataset_c"] * 2


def test_weighted_follows_importance(api: Any) -> None:
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.WEIGHTED,
        dataloader_weights=[0.5, 0.3, 0.2],
        epoch_length_policy=api.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=1000,
        dataloader_names=["primary", "auxiliary", "synthetic"],
    )
    _, drawn = trained(api, multi, three(4, 3, 2))
    shares = [drawn[0].count(name) / 1000 for name in multi.dataloader_names]
    # Five standard deviations of a binomial share over 1000 steps are below 0.08.
    assert len(drawn[0]) == 1000
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.08)


def test_alternating_repeats_its_pattern_in_bursts(api: Any) -> None:
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.ALTERNATING,
        alternating_pattern=[0, 0, 1, 2],
        burst_size=3,
        dataloader_names=["main", "augmented", "hard_negatives"],
    )
    _, drawn = trained(api, multi, three(12, 6, 6))
    period = ["main"] * 6 + ["augmented"] * 3 + ["hard_negatives"] * 3
    assert drawn[0] == period * 2


def test_sequential_completes_one_before_the_next(api: Any) -> None:
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.SEQUENTIAL,
        dataloader_names=["pretrain", "finetune", "adapt"],
        epoch_length_policy=api.EpochLengthPolicy.SUM_OF_LENGTHS,
    )
    _, drawn = trained(api, multi, three(3, 2, 1))
    assert drawn[0] == ["pretrain"] * 3 + ["finetune"] * 2 + ["adapt"]


# Aggregation -----------------------------------------------------------------------------------------------------


def constant(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Tensor]:
    """A loss that is the batch's mean, so that every aggregate is known."""
    return {"loss": batch[0].mean() + 0.0 * sum(p.sum() for p in trainer.model.parameters())}


def validated(api: Any, validation: Any, values: dict[str, list[float]]) -> dict[str, float]:
    """Validates on loaders whose samples have these losses."""
    given = {
        name: DataLoader(TensorDataset(torch.tensor(v).reshape(-1, 1)), batch_size=4) for name, v in values.items()
    }
    net = model()
    trainer = api.GenericTrainer(config=quiet(api, validation=validation), model=net, optimizers=sgd(net))
    trainer.set_training_step(constant)
    row: dict[str, float] = trainer.validate(given)
    return row


def test_micro_macro_and_primary_averages(api: Any) -> None:
    values = {"task_a": [1.0] * 6, "task_b": [4.0] * 2}
    micro = api.ValidationConfig(
        aggregation=api.ValAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES, per_loader_metrics=True, global_metrics=True
    )
    assert validated(api, micro, values) == {"val/loss": 1.75, "val/task_a/loss": 1.0, "val/task_b/loss": 4.0}
    macro = api.ValidationConfig(aggregation=api.ValAggregation.MACRO_AVG_EQUAL_LOADERS)
    assert validated(api, macro, values)["val/loss"] == 2.5
    primary = api.ValidationConfig(aggregation=api.ValAggregation.PRIMARY_METRIC_PER_LOADER)
    row = validated(api, primary, values)
    assert (row["val/task_a/loss"], row["val/task_b/loss"], row["val/primary"]) == (1.0, 4.0, 2.5)


def test_a_function_of_ones_own_aggregates(api: Any) -> None:
    def by_importance(metrics_dict: dict[str, dict[str, float]]) -> dict[str, float]:
        importance = {"task_a": 0.6, "task_b": 0.4}
        return {"loss": sum(importance[name] * metrics_dict[name]["loss"] for name in metrics_dict)}

    row = validated(
        api, api.ValidationConfig(aggregation_fn=by_importance), {"task_a": [1.0, 1.0], "task_b": [4.0] * 6}
    )
    assert row["val/loss"] == pytest.approx(0.6 * 1.0 + 0.4 * 4.0)


def test_validation_weights_match_those_of_training(api: Any) -> None:
    weights = [0.7, 0.3]
    multi = api.MultiDataLoaderConfig(sampling_strategy=api.SamplingStrategy.WEIGHTED, dataloader_weights=weights)
    validation = api.ValidationConfig(
        aggregation=api.ValAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES, validation_weights=weights
    )
    net = model()
    trainer = api.GenericTrainer(config=quiet(api, multi=multi, validation=validation), model=net, optimizers=sgd(net))
    trainer.set_training_step(constant)
    ones = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=4)
    fives = DataLoader(TensorDataset(torch.full((2, 1), 5.0)), batch_size=4)
    trainer.fit([ones, fives], [ones, fives])
    assert trainer.metrics["val/loss"] == pytest.approx(0.7 * 1.0 + 0.3 * 5.0)
    assert trainer.metrics["val/dl0/loss"] == 1.0


# Patterns --------------------------------------------------------------------------------------------------------


class MultiTaskModel(nn.Module):
    """One encoder, a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_encoder = nn.Linear(8, 6)
        self.task_a_head = nn.Linear(6, 3)
        self.task_b_head = nn.Linear(6, 1)

    def forward(self, x: Tensor, task: str) -> Tensor:
        features = self.shared_encoder(x)
        out: Tensor = self.task_a_head(features) if task == "classification" else self.task_b_head(features)
        return out


def multi_task_step(
    trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    x, y = batch
    output = trainer.model(x, task=dataloader_name)
    if dataloader_name == "classification":
        return {"loss": F.cross_entropy(output, y)}
    return {"loss": F.mse_loss(output, y)}


def test_multi_task_learning_with_optimizers_per_loader(api: Any) -> None:
    torch.manual_seed(0)
    net = MultiTaskModel()
    optimizer_a = torch.optim.Adam(net.task_a_head.parameters(), lr=0.001)
    optimizer_b = torch.optim.SGD(net.task_b_head.parameters(), lr=0.01)
    optimizer_shared = torch.optim.Adam(net.shared_encoder.parameters(), lr=0.0001)
    config = quiet(
        api,
        multi=api.MultiDataLoaderConfig(
            sampling_strategy=api.SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.6, 0.4],
            dataloader_names=["classification", "regression"],
        ),
        per_loader_optimizers={
            "classification": {"optimizer_idx": [0, 2]},
            "regression": {"optimizer_idx": [1, 2]},
        },
    )

    class Untouched(api.TrainerHooks):  # type: ignore[misc]
        """The other task's head doesn't move in a step."""

        def on_train_batch_start(self, trainer: Any, batch: Any, *place: Any) -> None:
            self.heads = {
                "classification": [p.clone() for p in net.task_b_head.parameters()],
                "regression": [p.clone() for p in net.task_a_head.parameters()],
            }
            self.name = place[-1]

        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            other = net.task_b_head if self.name == "classification" else net.task_a_head
            assert all(map(torch.equal, self.heads[self.name], other.parameters()))
            assert optimizer_idx in config.per_loader_optimizers[self.name]["optimizer_idx"]

    trainer = api.GenericTrainer(config=config, model=net, optimizers=[optimizer_a, optimizer_b, optimizer_shared])
    trainer.set_training_step(multi_task_step)
    trainer.add_hook(Untouched())
    classes = DataLoader(TensorDataset(torch.randn(24, 8), torch.randint(3, (24,))), batch_size=4)
    numbers = DataLoader(TensorDataset(torch.randn(16, 8), torch.randn(16, 1)), batch_size=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trainer.fit([classes, numbers], max_epochs=2)
    assert all(not torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_curriculum_by_order_and_by_pattern(api: Any) -> None:
    names = ["easy", "medium", "hard"]
    ordered = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.SEQUENTIAL,
        dataloader_names=names,
        epoch_length_policy=api.EpochLengthPolicy.SUM_OF_LENGTHS,
    )
    assert trained(api, ordered, three(1, 2, 1))[1][0] == ["easy", "medium", "medium", "hard"]
    gradual = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.ALTERNATING,
        alternating_pattern=[0, 0, 0, 0, 1, 1, 2],
        dataloader_names=names,
    )
    assert trained(api, gradual, three(4, 2, 1))[1][0] == ["easy"] * 4 + ["medium"] * 2 + ["hard"]


def test_curriculum_by_a_hook_that_updates_weights(api: Any) -> None:
    stages = {0: [1.0, 0.0, 0.0], 10: [0.0, 1.0, 0.0], 20: [0.0, 0.0, 1.0]}

    class CurriculumCallback(api.TrainerHooks):  # type: ignore[misc]
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            stage = 0 if epoch < 10 else 10 if epoch < 20 else 20
            trainer.multi_loader_manager.update_weights(stages[stage])

    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.WEIGHTED,
        dataloader_names=["easy", "medium", "hard"],
        dataloader_weights=[1.0, 1.0, 1.0],
        epoch_length_policy=api.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=6,
    )
    _, drawn = trained(api, multi, three(2, 2, 2), epochs=23, hooks=[CurriculumCallback()])
    only = {epoch: set(drawn[epoch]) for epoch in drawn}
    assert all(only[e] == {"easy"} for e in range(1, 11)), "the weights of epoch 0's end hold until epoch 10's end"
    assert all(only[e] == {"medium"} for e in range(11, 21))
    assert all(only[e] == {"hard"} for e in range(21, 23))


class DomainModel(nn.Module):
    """Task and domain heads on one encoder; the domain is judged once per batch."""

    class Pooled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.mean(0, keepdim=True))

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 4)
        self.task_head = nn.Linear(4, 3)
        self.domain_head = self.Pooled(4, 3)


def apply_target_augmentation(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def domain_step(
    trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    x, y = batch
    if dataloader_name == "target_domain":
        x = apply_target_augmentation(x)
    features = trainer.model.encoder(x)
    loss = F.cross_entropy(trainer.model.task_head(features), y)
    if trainer.config.use_domain_adversarial:
        domain_output = trainer.model.domain_head(features)
        domain_label = torch.tensor([dataloader_idx]).to(x.device)
        loss = loss - 0.1 * F.cross_entropy(domain_output, domain_label)
    return {"loss": loss, f"{dataloader_name}_loss": loss}


@pytest.mark.parametrize("is_adversarial", [False, True])
def test_domain_adaptation_with_a_setting_of_ones_own(api: Any, is_adversarial: bool) -> None:
    config = quiet(
        api,
        multi=api.MultiDataLoaderConfig(
            sampling_strategy=api.SamplingStrategy.ROUND_ROBIN,
            dataloader_names=["source_domain", "target_domain", "augmented"],
            cycle_short_loaders=True,
        ),
    )
    with pytest.raises(AttributeError, match="extras"):
        config.use_domain_adversarial  # noqa: B018
    config.use_domain_adversarial = is_adversarial
    assert api.GenericTrainerConfig.from_dict(config.to_dict()).use_domain_adversarial is is_adversarial

    torch.manual_seed(0)
    net = DomainModel()
    head = net.domain_head.weight.clone()
    trainer = api.GenericTrainer(config=config, model=net, optimizers=sgd(net))
    trainer.set_training_step(domain_step)
    loaders = [DataLoader(TensorDataset(torch.randn(n, 5), torch.randint(3, (n,))), batch_size=4) for n in (24, 8, 12)]
    trainer.fit(loaders)
    assert torch.equal(net.domain_head.weight, head) is not is_adversarial
    for name in config.multi.dataloader_names:
        assert trainer.metrics[f"train/{name}/{name}_loss"] == trainer.metrics[f"train/{name}/loss"]


def test_imbalanced_datasets_by_inverse_weights(api: Any) -> None:
    weights = [100 / 10000, 1.0, 10.0]
    weights = [w / sum(weights) for w in weights]
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.WEIGHTED,
        dataloader_weights=weights,
        dataloader_names=["majority", "medium", "minority"],
        epoch_length_policy=api.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=1000,
    )
    _, drawn = trained(api, multi, three(50, 10, 1))
    assert drawn[0].count("minority") / 1000 == pytest.approx(weights[2], abs=0.06)
    assert drawn[0].count("majority") < 20


# Advanced --------------------------------------------------------------------------------------------------------


def adaptive(api: Any, switch_epoch: int) -> Any:
    class AdaptiveStrategy(api.TrainerHooks):  # type: ignore[misc]
        def __init__(self, switch_epoch: int = 10) -> None:
            self.switch_epoch = switch_epoch

        def on_epoch_start(self, trainer: Any, epoch: int) -> None:
            if epoch == self.switch_epoch:
                trainer.multi_loader_config.sampling_strategy = api.SamplingStrategy.WEIGHTED
                trainer.multi_loader_config.dataloader_weights = [0.5, 0.3, 0.2]
                trainer.multi_loader_manager.rebuild_schedule()

    return AdaptiveStrategy(switch_epoch)


def test_switching_the_strategy_at_an_epochs_start(api: Any) -> None:
    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.SEQUENTIAL, dataloader_names=["a", "b", "c"]
    )
    trainer, drawn = trained(api, multi, three(8, 6, 4), epochs=4, hooks=[adaptive(api, 2)])
    in_order = ["a"] * 8 + ["b"] * 6 + ["c"] * 4
    assert drawn[0] == drawn[1] == in_order
    assert sorted(drawn[2]) != drawn[2], "WEIGHTED mixes"
    assert sorted(drawn[3]) != drawn[3], "and continues mixing"
    assert trainer.multi_loader_config.sampling_strategy is api.SamplingStrategy.WEIGHTED

    # A run that is resumed on either side of the switch is the same run.
    for stop in (30, 36, 37, 50):
        parts = []
        for _ in range(2):
            net, watch = model(), watched(api)
            part = api.GenericTrainer(config=quiet(api, multi=multi), model=net, optimizers=sgd(net))
            part.set_training_step(step)
            part.add_hook(adaptive(api, 2))
            part.add_hook(watch)
            parts.append((part, watch))
        parts[0][0].fit(three(8, 6, 4), max_steps=stop)
        parts[0][0].save_checkpoint("switch")
        parts[1][0].load_checkpoint("switch")
        parts[1][0].fit(three(8, 6, 4), max_epochs=4)
        both = {e: parts[0][1].epochs.get(e, []) + parts[1][1].epochs.get(e, []) for e in range(4)}
        assert both == drawn
        assert same_weights(parts[1][0].model, trainer.model)


def test_adding_a_loader_at_an_epochs_end(api: Any) -> None:
    def create_hard_negatives_loader() -> Any:
        return loader(12, 7)

    class DynamicLoaderCallback(api.TrainerHooks):  # type: ignore[misc]
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            if epoch == 20 and not hasattr(self, "added_hard"):
                trainer.add_dataloader(loader=create_hard_negatives_loader(), name="hard_negatives", weight=0.2)
                self.added_hard = True

    multi = api.MultiDataLoaderConfig(
        sampling_strategy=api.SamplingStrategy.WEIGHTED,
        dataloader_weights=[0.5, 0.5],
        dataloader_names=["easy", "usual"],
        epoch_length_policy=api.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=30,
    )
    trainer, drawn = trained(api, multi, three(4, 4), epochs=24, hooks=[DynamicLoaderCallback()])
    assert all("hard_negatives" not in drawn[e] for e in range(21))
    later = [name for e in range(21, 24) for name in drawn[e]]
    assert 0.03 < later.count("hard_negatives") / 90 < 0.35, "0.2 of 1.2 in expectation"
    assert trainer.multi_loader_manager.names == ["easy", "usual", "hard_negatives"]


@pytest.mark.filterwarnings("ignore:.*sets a learning rate and puts it back")  # which is what the message is for
def test_learning_rates_per_loader(api: Any) -> None:
    """Changed and put back inside the step, as the guide has it; schedulers per loader; and ``lr_scale``."""
    scales = {"easy": 1.0, "medium": 0.5, "hard": 0.125}
    seen: dict[str, float] = {}

    def scaled_step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
        for param_group in trainer.optimizers[0].param_groups:
            param_group["lr"] *= scales[dataloader_name]
        seen[dataloader_name] = trainer.optimizers[0].param_groups[0]["lr"]
        result = step(trainer, batch, batch_idx, dataloader_idx, dataloader_name)
        for param_group in trainer.optimizers[0].param_groups:
            param_group["lr"] /= scales[dataloader_name]
        return result

    class PerLoaderScheduler:
        def __init__(self, schedulers: dict[str, Any]) -> None:
            self.schedulers = schedulers

        def step(self, loader_name: str) -> None:
            if loader_name in self.schedulers:
                self.schedulers[loader_name].step()

    names = list(scales)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    own = PerLoaderScheduler({"hard": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)})
    trainer = api.GenericTrainer(
        config=quiet(api, multi=api.MultiDataLoaderConfig(dataloader_names=names)), model=net, optimizers=[optimizer]
    )
    trainer.set_training_step(scaled_step)

    class AfterBatch(api.TrainerHooks):  # type: ignore[misc]
        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            own.step("hard" if trainer.num_batches == 3 else "easy")

    trainer.add_hook(AfterBatch())
    trainer.fit(three(1, 1, 1))
    assert seen == {name: 0.5 * scale for name, scale in scales.items()}
    assert optimizer.param_groups[0]["lr"] == 0.25

    # The scale multiplies the rate of that loader's updates, and nothing of it stays.
    moved = {}
    for scale in (1.0, 0.5):
        net = model()
        before = [p.detach().clone() for p in net.parameters()]
        trainer = api.GenericTrainer(
            config=quiet(api, per_loader_optimizers={"dl0": {"lr_scale": scale}}), model=net, optimizers=sgd(net)
        )
        trainer.set_training_step(step)
        trainer.fit(three(1), max_steps=1)
        moved[scale] = [(p - b).detach() for p, b in zip(net.parameters(), before, strict=True)]
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    for whole, half in zip(moved[1.0], moved[0.5], strict=True):
        torch.testing.assert_close(whole / 2, half, rtol=1e-4, atol=1e-6)


# Practices and troubleshooting -----------------------------------------------------------------------------------


def test_loader_proportions_are_logged(api: Any) -> None:
    net = model()
    config = api.GenericTrainerConfig(
        multi=api.MultiDataLoaderConfig(dataloader_names=["loader1", "loader2"]),
        logging=api.LoggingConfig(
            log_loader_proportions=True, logger_type="jsonl", log_scalars_every_n_steps=3, progress_bar=False
        ),
    )
    trainer = api.GenericTrainer(config=config, model=net, optimizers=sgd(net))
    trainer.set_training_step(step)
    trainer.fit(three(2, 2))
    assert trainer.metrics["loader_proportions/loader1_batches"] == pytest.approx(2 / 3)
    assert 0.0 <= trainer.metrics["loader_proportions/loader1_divergence"] <= 1 / 6 + 1e-9


def test_exhaustion(api: Any) -> None:
    names = ["short", "long"]
    for policy, expected in (
        ("MAX_LENGTH", names * 4),
        ("MIN_LENGTH", names * 2),
        ("SUM_OF_LENGTHS", names * 3),
    ):
        multi = api.MultiDataLoaderConfig(
            dataloader_names=names,
            cycle_short_loaders=True,
            drop_last=False,
            epoch_length_policy=api.EpochLengthPolicy[policy],
        )
        assert trained(api, multi, three(2, 4))[1][0] == expected
    leaves = api.MultiDataLoaderConfig(dataloader_names=names, cycle_short_loaders=False)
    assert trained(api, leaves, three(2, 4))[1][0] == [*names, *names, "long", "long"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_deterministic_resume(api: Any, shuffle: bool) -> None:
    loaders = [loader(12, 1, shuffle=shuffle), loader(20, 2, shuffle=shuffle)]
    net = model(dropout=0.2)
    trainer = api.GenericTrainer(
        config=quiet(api, fault_tolerance=api.FaultToleranceConfig(verify_deterministic_resume=True)),
        model=net,
        optimizers=[torch.optim.Adam(net.parameters(), lr=0.01)],
    )
    trainer.set_training_step(step)

    trainer.fit(loaders, max_steps=5)
    state1 = trainer.get_state()
    trainer.save_checkpoint("test.ckpt")
    trainer.fit(loaders, max_steps=10)
    state2 = trainer.get_state()
    trainer.load_checkpoint("test.ckpt")
    assert trainer.get_state() == state1
    trainer.fit(loaders, max_steps=10)
    state3 = trainer.get_state()
    assert state2 == state3
    assert state1 != state2


def test_setting_a_seed_makes_runs_equal(api: Any) -> None:
    def run(seed: int) -> Any:
        torch.manual_seed(42)
        net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        trainer = api.GenericTrainer(config=quiet(api, seed=seed), model=net, optimizers=sgd(net))
        trainer.set_training_step(step)
        trainer.fit([loader(12, 1, shuffle=True), loader(8, 2, shuffle=True)])
        return trainer.get_state()

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_memory_by_accumulation_and_by_workers_that_leave(api: Any) -> None:
    """Two workers that don't persist and windows of two give the update of the whole batch."""

    def run(batch_size: int, steps: int, **options: Any) -> Any:
        net = model()
        trainer = api.GenericTrainer(
            config=quiet(api, performance=api.PerformanceConfig(gradient_accumulation_steps=steps)),
            model=net,
            optimizers=sgd(net),
        )
        trainer.set_training_step(step)
        trainer.fit([loader(16, 1, batch_size=batch_size, **options)])
        assert trainer.global_step == 2
        return trainer.model

    small, whole = run(4, 2, num_workers=1, persistent_workers=False), run(8, 1)
    for a, b in zip(small.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)
