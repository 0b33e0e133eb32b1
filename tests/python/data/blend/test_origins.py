"""Each row of a blended batch knows its source, and metrics by source are right over rows and ranks."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

import mtf
from mtf.trainer.metrics import MetricTable

SOURCES = {"a": torch.arange(100), "b": torch.arange(1000, 1030), "c": torch.arange(2000, 2005)}


def blend(**options: Any) -> mtf.Blend:
    return mtf.Blend(SOURCES, [0.5, 0.3, 0.2], **{"global_batch_size": 16, **options})


def test_rows_are_named_in_a_loop_and_in_a_window_of_batches() -> None:
    loader = mtf.MultiLoader({"b": blend(), "other": mtf.ArrayLoader(torch.arange(8), batch_size=2)}, seed=1)
    held = list(islice(loader, 9))
    for batch in held:
        if batch.name == "other":
            with pytest.raises(mtf.ConfigError, match=r"mtf\.Blend"):
                mtf.sources_of(batch)
            continue
        for given in (batch, batch.data):
            found = mtf.sources_of(given)
            assert found.names == ("a", "b", "c")
            assert torch.equal(found.index, batch.data // 1000)
            assert found.counts == tuple(torch.bincount(batch.data // 1000, minlength=3).tolist())


def test_rows_are_named_through_parts_ranks_and_together() -> None:
    part = mtf.MultiLoader({"b": blend(by_source=True)}, seed=1, rank=1, world_size=3)
    batch = next(iter(part))
    assert torch.equal(mtf.sources_of(batch).index, torch.cat(list(batch.data.values())) // 1000)
    together = mtf.MultiLoader(mtf.Together({"blend": blend(), "other": mtf.ArrayLoader(torch.arange(8), 2)}), seed=1)
    both = next(iter(together)).data
    assert torch.equal(mtf.sources_of(both["blend"]).index, both["blend"] // 1000)


def test_a_batch_that_was_replaced_is_refused() -> None:
    batch = next(iter(mtf.MultiLoader({"b": blend()}, seed=1)))
    for other in (batch.data + 1, {"x": 3}, []):
        with pytest.raises(mtf.ConfigError, match="replaced by others"):
            mtf.sources_of(other)


def test_an_edit_doesnt_change_the_names_of_a_batch_before_it() -> None:
    source = blend()
    batches = iter(mtf.MultiLoader({"b": source}, seed=1))
    first = next(batches).data
    source.update_weights([0, 0, 1])
    second = next(batches).data
    assert torch.equal(mtf.sources_of(first).index, first // 1000)
    assert (mtf.sources_of(second).index == 2).all()


def test_sums_need_one_value_per_row() -> None:
    found = mtf.sources_of(next(iter(mtf.MultiLoader({"b": blend()}, seed=1))))
    with pytest.raises(mtf.ConfigError, match="one number per row"):
        found.means(torch.ones(3))


class _TwoRanks:
    """Adds what the other rank has."""

    def __init__(self, other: MetricTable) -> None:
        self.other = other

    def union(self, names: Any) -> list[str]:
        self.other._read()
        self.keys = sorted({*names, *(f"{a}\0{b}" for a, b in self.other._counts)})
        return self.keys

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        places = [tuple(key.split("\0", 1)) for key in self.keys]
        there = [[table.get(place, 0.0) for place in places] for table in (self.other._sums, self.other._counts)]
        return values + torch.tensor(there, dtype=values.dtype)


def test_means_are_over_rows_whatever_the_ranks_have() -> None:
    values: dict[str, list[float]] = {name: [] for name in SOURCES}
    tables = [MetricTable(), MetricTable()]
    for rank, table in enumerate(tables):
        loader = mtf.MultiLoader({"blend": blend()}, seed=1, rank=rank, world_size=2)
        for batch in islice(loader, 5):
            per_row = batch.data.double() ** 2
            for row in batch.data.tolist():
                values["abc"[row // 1000]].append(float(row) ** 2)
            table.add("blend", "square", mtf.sources_of(batch).means(per_row))
            table.commit()
    row = tables[0].means(_TwoRanks(tables[1]), per_loader=True)  # type: ignore[arg-type]
    for name, found in values.items():
        assert row[f"train/{name}/square"] == pytest.approx(sum(found) / len(found))
    everything = [value for found in values.values() for value in found]
    assert row["train/square"] == pytest.approx(sum(everything) / len(everything))


def test_a_failed_window_leaves_nothing_in_the_means() -> None:
    batch = next(iter(mtf.MultiLoader({"b": blend()}, seed=1)))
    means = mtf.sources_of(batch).means(batch.data.double())
    once, twice = MetricTable(), MetricTable()
    for table in (once, twice):
        table.add("b", "x", means)
        table.commit()
    twice.add("b", "x", mtf.SourceMeans(means.names, means.sums * 100, means.counts))
    twice.roll_back()
    assert once.state_dict() == twice.state_dict()


def test_the_trainer_logs_means_by_source() -> None:
    seen: dict[str, list[float]] = {name: [] for name in SOURCES}

    def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Any]:
        for row in batch.tolist():
            seen["abc"[row // 1000]].append(float(row))
        loss = trainer.model(batch[:, None].float() / 1000).pow(2).mean()
        return {"loss": loss, "value": mtf.sources_of(batch).means(batch.double())}

    model = torch.nn.Linear(1, 1)
    logging = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=6)
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=2)
    config = mtf.TrainerConfig(logging=logging, performance=performance)
    trainer = mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=1e-3), training_step=step)
    trainer.fit(blend(), max_steps=6)
    for name, found in seen.items():
        assert trainer.metrics[f"train/{name}/value"] == pytest.approx(sum(found) / len(found))
