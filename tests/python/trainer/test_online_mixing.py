"""Weights from losses: the means are those of all samples, decisions survive errors and resumes, conflicts are told."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mtf

ROOT = Path(__file__).resolve().parents[3]
ROWS = {"a": 40, "b": 24, "c": 9}


def data() -> dict[str, dict[str, torch.Tensor]]:
    """Rows whose loss is known: `value` is what a row loses."""
    generator = torch.Generator().manual_seed(0)
    return {name: {"value": torch.rand(num, generator=generator)} for name, num in ROWS.items()}


def loaders(kind: str) -> Any:
    if kind == "blend":
        return mtf.Blend(data(), [0.5, 0.3, 0.2], global_batch_size=6)
    return {name: mtf.ArrayLoader(rows, batch_size=4, shuffle=True) for name, rows in data().items()}


class Run:
    """A trainer whose losses are the rows' own, and what its mixing function was asked."""

    def __init__(
        self, kind: str, accumulation: int = 1, fails_at: int | None = None, nan_at: int = -1, **options: Any
    ) -> None:
        self.rounds: list[mtf.MixingRound] = []
        self.seen: list[tuple[str, float]] = []  # of each row
        self.num_rows: list[int] = []  # of each batch
        self.fails_at, self.nan_at = fails_at, nan_at
        self.kind = kind
        mix = mtf.MultiDataLoaderConfig(
            sampling_strategy="WEIGHTED",
            weighted_order="EVEN",
            dataloader_weights=None if kind == "blend" else [0.5, 0.3, 0.2],
            epoch_length_policy="FIXED_NUM_STEPS",
            steps_per_epoch=1000,
        )
        config = mtf.TrainerConfig(
            multi=mix,
            performance=mtf.PerformanceConfig(gradient_accumulation_steps=accumulation, on_nonfinite="skip"),
            logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=1),
            seed=3,
        )
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        options = {"every": 4, "metric": "row_loss" if kind == "blend" else "loss", **options}
        self.trainer = mtf.Trainer(
            config,
            model,
            torch.optim.SGD(model.parameters(), lr=0.01),
            training_step=self.step,
            hooks=[mtf.OnlineMixing(self.mix, **options)],
        )

    def step(self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> dict[str, Any]:
        if trainer.num_batches == self.fails_at:
            self.fails_at = None
            raise RuntimeError("once")
        loss = batch["value"].mean() + 0 * trainer.model(torch.ones(1, 1)).sum()
        self.num_rows.append(len(batch["value"]))
        if trainer.num_batches == self.nan_at:
            loss = loss * math.nan
        if self.kind == "blend":
            sources = mtf.sources_of(batch)
            names = [sources.names[i] for i in sources.index.tolist()]
            self.seen += zip(names, batch["value"].tolist(), strict=True)
            return {"loss": loss, "row_loss": sources.means(batch["value"])}
        self.seen += [(name, value) for value in batch["value"].tolist()]
        return {"loss": loss}

    def mix(self, found: mtf.MixingRound) -> Mapping[str, float]:
        found.memory["sum"] = found.memory.get("sum", 0.0) + sum(found.means.values())
        self.rounds.append(found)
        return {name: weight * math.exp(found.means.get(name, 0.0)) for name, weight in found.weights.items()}

    def weights(self) -> dict[str, float]:
        multi = self.trainer.multi_loader_manager
        if self.kind == "blend":
            blend = multi.source("dl0")
            assert isinstance(blend, mtf.Blend)
            return blend.weights
        given = multi.config.dataloader_weights
        assert given is not None
        return {name: weight / sum(given) for name, weight in zip(multi.names, given, strict=True)}


@pytest.mark.parametrize("kind", ["blend", "mixture"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_function_gets_the_means_of_all_samples(kind: str, accumulation: int) -> None:
    run = Run(kind, accumulation, floor=0.05)
    run.trainer.fit(loaders(kind), max_steps=12)
    assert [found.update for found in run.rounds] == [4, 8, 12]
    assert [found.number for found in run.rounds] == [0, 1, 2]
    at, weights = 0, {"a": 0.5, "b": 0.3, "c": 0.2}
    for found in run.rounds:
        num = sum(found.counts.values())
        part, at = run.seen[at : at + num], at + num
        for name in ROWS:
            values = [value for source, value in part if source == name]
            assert found.counts[name] == len(values)
            if values:
                assert found.means[name] == pytest.approx(sum(values) / len(values), rel=1e-6)
        assert found.weights == pytest.approx(weights)
        raw = {name: weight * math.exp(found.means.get(name, 0.0)) for name, weight in found.weights.items()}
        weights = {name: 0.05 + 0.85 * value / sum(raw.values()) for name, value in raw.items()}
        weights = {name: round(weight * 65536) for name, weight in weights.items()}
        weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert at == len(run.seen)
    assert run.weights() == pytest.approx(weights, abs=1e-12)
    assert {name: run.trainer.metrics[f"mixing/{name}"] for name in ROWS} == pytest.approx(run.weights())


def test_the_next_updates_draw_with_the_new_weights() -> None:
    run = Run("blend", every=2)
    hook: Any = next(iter(run.trainer._hooks))
    hook._fn = lambda found: {"a": 0.0, "b": 0.0, "c": 1.0}
    run.trainer.fit(loaders("blend"), max_steps=40)
    assert {name for name, _ in run.seen[:12]} == {"a", "b", "c"}
    after = [name for name, _ in run.seen[12:]]
    assert after.count("c") / len(after) > 0.9
    assert run.weights() == pytest.approx({"a": 0.01, "b": 0.01, "c": 0.98}, abs=2e-5)


@pytest.mark.parametrize("kind", ["blend", "mixture"])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_decisions_survive_resumes_and_errors(kind: str, stop: int, tmp_path: Path) -> None:
    whole = Run(kind, 2)
    whole.trainer.fit(loaders(kind), max_steps=14)
    parts = Run(kind, 2)
    parts.trainer.fit(loaders(kind), max_steps=stop)
    parts.trainer.save_checkpoint(str(tmp_path / "state"))
    resumed = Run(kind, 2)
    resumed.trainer.load_checkpoint(str(tmp_path / "state"))
    resumed.trainer.fit(loaders(kind), max_steps=14)
    assert parts.rounds + resumed.rounds == whole.rounds
    assert parts.seen + resumed.seen == whole.seen
    assert resumed.weights() == whole.weights()
    assert resumed.trainer.get_state() == whole.trainer.get_state()
    failed = Run(kind, 2, fails_at=2 * stop + 1)
    given = loaders(kind)
    with pytest.raises(RuntimeError, match="once"):
        failed.trainer.fit(given, max_steps=14)
    failed.trainer.fit(given, max_steps=14)
    assert failed.rounds == whole.rounds
    assert failed.weights() == whole.weights()


@pytest.mark.parametrize("kind", ["blend", "mixture"])
def test_a_window_without_an_update_counts_nothing(kind: str) -> None:
    run = Run(kind, 2, nan_at=5)  # in the third window, whose first batch is finite
    with pytest.warns(UserWarning, match="its window is skipped"):
        run.trainer.fit(loaders(kind), max_steps=4)
    (found,) = run.rounds
    assert sum(found.counts.values()) == sum(run.num_rows) - run.num_rows[4] - run.num_rows[5]
    assert all(math.isfinite(mean) for mean in found.means.values())


def test_none_changes_nothing_and_decisions_are_told(caplog: pytest.LogCaptureFixture) -> None:
    run = Run("mixture", every=3)
    hook: Any = next(iter(run.trainer._hooks))
    hook._fn = lambda found: None if found.number == 0 else dict.fromkeys(ROWS, 1)
    with caplog.at_level(logging.INFO, "mtf.trainer"):
        run.trainer.fit(loaders("mixture"), max_steps=5)
        assert run.weights() == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})
        run.trainer.fit(loaders("mixture"), max_steps=7)
    assert run.weights() == pytest.approx(dict.fromkeys(ROWS, 1 / 3))
    said = [record.message for record in caplog.records if "OnlineMixing" in record.message]
    assert said == ["update 6: OnlineMixing sets the weights to a 0.3333, b 0.3333, c 0.3333"]


def test_a_blend_among_other_loaders_is_weighted() -> None:
    seen: list[mtf.MixingRound] = []

    def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> dict[str, Any]:
        out = {"loss": batch["value"].mean() + 0 * trainer.model(torch.ones(1, 1)).sum()}
        return {**out, "row_loss": mtf.sources_of(batch).means(batch["value"])} if name == "text" else out

    def mix(found: mtf.MixingRound) -> Mapping[str, float]:
        seen.append(found)
        return {"a": 1, "b": 1, "c": 2}

    blend = loaders("blend")
    model = nn.Linear(1, 1)
    config = mtf.TrainerConfig(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = [mtf.OnlineMixing(mix, every=4, metric="row_loss", blend="text", floor=0)]
    trainer = mtf.Trainer(config, model, optimizer, training_step=step, hooks=hooks)
    trainer.fit({"text": blend, "other": mtf.ArrayLoader(data()["a"], 4)}, max_steps=4)
    assert sum(seen[0].counts.values()) == 2 * 6
    assert blend.weights == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def fit(given: Any, hook: mtf.OnlineMixing, *more: Any, step: Any = None, **multi: Any) -> None:
    model = nn.Linear(1, 1)
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(**multi), logging=mtf.LoggingConfig(logger_type="none", progress_bar=False)
    )
    run: Any = step or (lambda trainer, batch, *_: {"loss": trainer.model(torch.ones(1, 1)).mean()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mtf.Trainer(config, model, optimizer, training_step=run, hooks=[hook, *more]).fit(given, max_steps=2)


def even(found: mtf.MixingRound) -> Mapping[str, float]:
    return dict.fromkeys(found.weights, 1.0)


def test_conflicts_and_mistakes_are_one_clear_error() -> None:
    weighted = {"sampling_strategy": "WEIGHTED"}
    curve = mtf.WeightCurve([(0, [1.0, 1.0, 1.0])])
    for given, more, multi, message in (
        (loaders("mixture"), (), {"sampling_strategy": "SEQUENTIAL"}, "sampling_strategy=SEQUENTIAL doesn't read"),
        (loaders("mixture"), (), {**weighted, "weight_curve": curve}, "and so does weight_curve"),
        (mtf.Blend(data(), weight_curve=curve, global_batch_size=4), (), {}, "and so does weight_curve"),
        (mtf.ArrayLoader(data()["a"], 4), (), {}, "several sources to weigh, but 'dl0' is one ArrayLoader"),
        (mtf.Blend({"a": data()["a"]}, global_batch_size=4), (), {}, r"but blend 'dl0' has \['a'\]"),
        (loaders("mixture"), (mtf.Curriculum({0: [1, 1, 1]}),), weighted, "so does another Curriculum"),
        (loaders("mixture"), (mtf.OnlineMixing(even),), weighted, "so does another OnlineMixing"),
        (loaders("blend"), (), {}, "must return 'loss' for the sources of blend 'dl0', as mtf.sources_of"),
    ):
        with pytest.raises(mtf.ConfigError, match=message):
            fit(given, mtf.OnlineMixing(even, every=1), *more, **multi)
    with pytest.raises(mtf.ConfigError, match=r"floor times 3 sources must be at most 1, but is 0\.4"):
        fit(loaders("mixture"), mtf.OnlineMixing(even, floor=0.4), **weighted)
    with pytest.raises(mtf.ConfigError, match="must return a number as 'accuracy', but it is None"):
        fit(loaders("mixture"), mtf.OnlineMixing(even, metric="accuracy"), **weighted)
    for wrong, message in (
        ({"a": 1}, r"a weight for each of \['a', 'b', 'c'\], but gave \{'a': 1\}"),
        (dict.fromkeys(ROWS, 0.0), "none negative and not all 0"),
        ({"a": 1, "b": -1, "c": 1}, "none negative and not all 0"),
        ({"a": 1, "b": math.nan, "c": 1}, "must give finite weights"),
    ):
        with pytest.raises(mtf.ConfigError, match=message):
            fit(loaders("mixture"), mtf.OnlineMixing(lambda found, w=wrong: w, every=1), **weighted)  # type: ignore[misc]
    for arguments, message in (
        ({"fn": 3}, "fn must be a function"),
        ({"fn": even, "every": 0}, "every must be at least 1, but is 0"),
        ({"fn": even, "floor": 1.0}, r"floor must be in \[0, 1\), but is 1.0"),
    ):
        with pytest.raises(mtf.ConfigError, match=message):
            mtf.OnlineMixing(**arguments)  # type: ignore[arg-type]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("online_mixing", ROOT / "examples" / "online_mixing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(means: dict[str, float], weights: dict[str, float], number: int = 0, memory: Any = None) -> mtf.MixingRound:
    return mtf.MixingRound(
        number, 16 * number, means, dict.fromkeys(weights, 8), weights, {} if memory is None else memory
    )


def test_doremi_grows_with_the_excess_loss() -> None:
    fn = example().doremi({"a": 1.0, "b": 2.0}, rate=1.0, smoothing=0.1)
    # Excess ln 3 and none (below the reference): 0.5 * 3 against 0.5, then a tenth of the uniform weights.
    assert fn(asked({"a": 1.0 + math.log(3), "b": 1.5}, {"a": 0.5, "b": 0.5})) == pytest.approx(
        {"a": 0.725, "b": 0.275}
    )
    assert fn(asked({"a": 0.5}, {"a": 0.5, "b": 0.5})) == pytest.approx({"a": 0.5, "b": 0.5})


def test_doge_grows_with_the_agreement_of_gradients() -> None:
    fn = example().doge(rate=0.1, mu=0.1)
    weights = fn(asked({"a": math.log(4), "b": 0.0}, {"a": 0.5, "b": 0.5}))
    assert weights["a"] / weights["b"] == pytest.approx(4)
    assert fn(asked({}, {"a": 0.7, "b": 0.3})) == pytest.approx({"a": 0.7, "b": 0.3})


def test_odm_explores_less_and_less() -> None:
    fn = example().odm(smoothing=0.5)
    memory: dict[str, Any] = {}
    first = fn(asked({"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 0.5}, 0, memory))
    assert memory["rewards"] == {"a": 1.0, "b": 2.0}  # half of the loss over the weight
    assert first == pytest.approx({"a": 0.5, "b": 0.5})  # explores only: 2 * min(1/2, sqrt(ln 2 / 2)) is 1
    later = fn(asked({"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 0.5}, 99, memory))
    assert memory["rewards"] == {"a": 1.5, "b": 3.0}
    before, now = (math.sqrt(math.log(2) / (2 * t)) for t in (99, 100))
    share = 1 / (1 + math.exp(before * (3.0 - 1.5)))
    assert later == pytest.approx({"a": (1 - 2 * now) * share + now, "b": (1 - 2 * now) * (1 - share) + now})
