"""The sanity validation changes no bit, and finds what would fail later; limits and rhythms of validations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from trainer_tools import config, loader, model, rows, step, trainer

import mtf


class Noisy(Dataset[Any]):
    """Augments with a generator of its own, and counts."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.num_read = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        self.num_read += 1
        x = torch.tensor(self.rng.normal(size=3) + self.num_read, dtype=torch.float32)
        return x, x.sum(0, keepdim=True)


class Stream:
    """Continues where it stopped, and says where that is."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        for _ in range(3):
            self.position += 1
            yield rows(4, self.position)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Drawing(nn.Module):
    """Draws from the process-wide generators and one of its own, counts its calls in a buffer, and has dropout."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        noise = torch.rand(x.shape, generator=self.generator) + torch.rand(x.shape) + float(np.random.rand())
        found: torch.Tensor = self.net(x + noise)
        return found


def val_loaders(kind: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    made: dict[str, Any] = {
        "shuffled": lambda: loader(24, 5, shuffle=True, generator=generator),
        "noisy": lambda: DataLoader(Noisy(), batch_size=4),
        "workers": lambda: DataLoader(Noisy(), batch_size=4, num_workers=1, persistent_workers=True),
        "stream": Stream,
        "list": lambda: [rows(4, 1), rows(4, 2), rows(4, 3)],
        "array": lambda: mtf.ArrayLoader(rows(24, 5), batch_size=4, shuffle=True),
    }
    return {kind: made[kind]()}


class Logs(mtf.TrainerHooks):
    """Every row of validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.starts = 0

    def on_validation_start(self, trainer: Any) -> None:
        self.starts += 1

    def on_validation_end(self, trainer: Any, metrics: Any) -> None:
        self.rows.append(dict(metrics))


@pytest.mark.parametrize("kind", ["shuffled", "noisy", "workers", "stream", "list", "array"])
@pytest.mark.parametrize("step_rng", ["derived", "saved"])
def test_it_changes_no_bit(kind: str, step_rng: Any) -> None:
    def run(sanity_batches: int) -> tuple[mtf.TrainerState, list[dict[str, float]], Logs, list[bool]]:
        seen: list[bool] = []
        logs = Logs()
        settings = config(step_rng=step_rng, validation=mtf.ValidationConfig(sanity_batches=sanity_batches))

        def validation_step(trainer: Any, *args: Any) -> Any:
            seen.append(trainer.is_sanity_checking)
            trainer.log("own/metric", 1e9 if trainer.is_sanity_checking else 2.0)
            return step(trainer, *args)

        net = Drawing()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        made = trainer(settings, model=net, optimizers=optimizer, hooks=[logs], validation_step=validation_step)
        np.random.seed(1)
        torch.manual_seed(1)
        made.fit([loader(24, 1, shuffle=True)], val_loaders(kind), max_epochs=2)
        return made.get_state(), logs.rows, logs, seen

    without, with_it = run(0), run(2)
    assert with_it[1] == without[1]
    assert with_it[2].starts == without[2].starts == 2
    assert with_it[0].diff(without[0]) == []
    assert with_it[3][:2] == [True, True]
    assert not any(with_it[3][2:])
    assert with_it[3][2:] == without[3]


def test_what_nothing_can_put_back_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Opaque:
        taken = 0

        def __iter__(self) -> Iterator[Any]:
            self.taken += 1
            yield rows(4, self.taken)

    opaque = Opaque()
    with caplog.at_level("INFO", "mtf"):
        trainer().fit([loader(8, 1)], {"opaque": opaque, "list": [rows(4, 1)]}, max_epochs=1)
    assert opaque.taken == 1
    assert "leaves out the validation loaders opaque" in caplog.text


def test_it_runs_before_the_first_update_only() -> None:
    seen: list[int] = []

    def validation_step(trainer: Any, *args: Any) -> Any:
        seen.append(trainer.global_step)
        return step(trainer, *args)

    settings = config(validation=mtf.ValidationConfig(sanity_batches=1))
    run = trainer(settings, validation_step=validation_step)
    run.fit([loader(40, 1)], [loader(8, 2)], max_steps=3)
    run.fit([loader(40, 1)], [loader(8, 2)], max_epochs=1)
    assert seen == [0, 10, 10]
    resumed = trainer(settings, validation_step=validation_step)
    resumed.load_state(run.get_state())
    resumed.fit([loader(40, 1)], [loader(8, 2)], max_epochs=2)
    assert seen == [0, 10, 10, 20, 20]
    never = config(validation=mtf.ValidationConfig(frequency="never"))  # type: ignore[arg-type]
    trainer(never, validation_step=validation_step).fit([loader(8, 1)], [loader(8, 2)], max_epochs=1)
    assert len(seen) == 5


def test_a_mistake_in_the_validation_step_is_found_before_training() -> None:
    def broken(trainer: Any, *args: Any) -> Any:
        raise KeyError("labels")

    run = trainer(validation_step=broken)
    before = run.get_state()
    with pytest.raises(KeyError, match=r"labels") as raised:
        run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=1)
    assert "in the sanity validation before the first update" in "".join(raised.value.__notes__)
    assert (run.global_step, run.is_sanity_checking) == (0, False)
    assert run.get_state()["model"].keys() == before["model"].keys()


class Logging(mtf.TrainerHooks):
    """A user's hook, which may log any metric."""

    def on_epoch_end(self, trainer: Any, epoch: int) -> None:
        trainer.log("val/fid", 1.0)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: {"hooks": [mtf.EarlyStopping("val_loss")]}, "EarlyStopping: .* 'val_loss'; did you mean 'val/loss'"),
        (lambda: {"hooks": [mtf.BestCheckpoint("x", "val/acuracy")]}, "BestCheckpoint: .* no metric 'val/acuracy'"),
        (
            lambda: {"settings": config(checkpoint=mtf.CheckpointConfig(monitor_metric="val/los", save_best=True))},
            "checkpoint.monitor_metric: .* did you mean 'val/loss'",
        ),
        (lambda: {"scheduler": "val/los"}, r"schedulers\[0\]\['monitor'\]: .* did you mean 'val/loss'"),
    ],
)
def test_a_wrong_monitor_is_found_before_training(made: Any, message: str) -> None:
    arguments = made()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watched = arguments.pop("scheduler", None)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    schedulers = [] if watched is None else [{"scheduler": plateau(optimizer), "monitor": watched}]
    run = trainer(model=net, optimizers=optimizer, schedulers=schedulers, **arguments)
    with pytest.raises(mtf.ConfigError, match=message):
        run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=1)
    assert run.global_step == 0


def test_a_metric_that_a_users_hook_may_log_is_no_mistake() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    run = trainer(
        model=net,
        optimizers=optimizer,
        schedulers=[{"scheduler": scheduler, "interval": "step", "monitor": "val/fid"}],
        hooks=[Logging()],
    )
    with pytest.warns(UserWarning, match=r"'val/fid' isn't there"):  # in the first epoch
        run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=1)


@pytest.mark.parametrize("limit", [2, 0.5])
def test_a_limit_uses_the_first_batches(limit: float) -> None:
    run = trainer(config(validation=mtf.ValidationConfig(limit_batches=limit)))
    row = run.validate([loader(16, 2)])
    x, y = rows(16, 2)
    expected = nn.functional.mse_loss(run.model(x[:8]), y[:8]).item()
    assert row["val/loss"] == pytest.approx(expected)


def test_a_share_needs_a_length() -> None:
    run = trainer(config(validation=mtf.ValidationConfig(limit_batches=0.5)))
    with pytest.raises(mtf.ConfigError, match=r"limit_batches=0\.5 is a share, and validation loader 'dl0' has no len"):
        run.validate([Stream()])


def test_a_validation_at_the_start_is_of_the_initial_weights(tmp_path: Path) -> None:
    logs = Logs()
    settings = config(validation=mtf.ValidationConfig(at_start=True))
    run = trainer(settings, hooks=[logs])
    expected = run.validate([loader(8, 2)])
    logs.rows.clear()
    run.fit([loader(24, 1)], [loader(8, 2)], max_steps=2)
    run.fit([loader(24, 1)], [loader(8, 2)], max_epochs=1)
    assert len(logs.rows) == 2
    assert logs.rows[0] == expected
    plain = trainer()
    plain.fit([loader(24, 1)], [loader(8, 2)], max_epochs=1)
    assert plain.get_state()["model"].keys() == run.get_state()["model"].keys()
    assert mtf.TrainerState({"m": plain.get_state()["model"]}) == mtf.TrainerState({"m": run.get_state()["model"]})


@pytest.mark.parametrize("frequency", ["per_epoch", "every_n_steps"])
@pytest.mark.parametrize("parts", [[8], [3, 8], [1, 2, 5, 8]])
def test_a_loader_takes_part_in_every_nth_validation(frequency: Any, parts: list[int]) -> None:
    """Also where fit is called in parts: which validation it is follows from the position."""
    every = {"every_n_steps": 2} if frequency == "every_n_steps" else {}
    settings = config(
        validation=mtf.ValidationConfig(frequency=frequency, loader_every_n={"big": 2}, **every)  # type: ignore[arg-type]
    )
    logs, given = Logs(), {"quick": loader(4, 2), "big": loader(12, 3)}
    run = trainer(settings, hooks=[logs, mtf.EarlyStopping("val/big/loss", patience=50)])
    for updates in parts:
        run.fit([loader(8, 1)], given, max_steps=updates)  # two updates are an epoch
    has_big = ["val/big/loss" in row for row in logs.rows]
    assert has_big == [False, True, False, True]
    assert ["val/loss" in row for row in logs.rows] == has_big
    assert all("val/quick/loss" in row for row in logs.rows)


def test_monitored_metrics_of_training(tmp_path: Path) -> None:
    run = trainer(hooks=[mtf.EarlyStopping("train/loss", patience=2, min_delta=100.0)])
    run.fit([loader(16, 1)], max_epochs=10)
    assert (run.epoch, run.should_stop) == (3, True)
    best = mtf.BestCheckpoint(str(tmp_path / "best"), "train/loss")
    run = trainer(hooks=[best])
    run.fit([loader(16, 1)], max_epochs=3)
    assert best.best == run.metrics["train/loss"]
    assert (tmp_path / "best" / "manifest.json").is_file()
    saving = mtf.CheckpointConfig(root_dir=str(tmp_path / "run"), monitor_metric="train/loss", save_best=True)
    run = trainer(config(checkpoint=saving))
    run.fit([loader(16, 1)], max_epochs=3)
    assert (tmp_path / "run" / "best").exists()
    wrong = trainer(hooks=[mtf.EarlyStopping("train/los")])
    with pytest.raises(mtf.ConfigError, match=r"'train/los'; did you mean 'train/loss'"):
        wrong.fit([loader(8, 1)], max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit_batches": 0}, "limit_batches must be an int of at least 1, or a share"),
        ({"limit_batches": 1.5}, "limit_batches must be an int of at least 1, or a share"),
        ({"sanity_batches": -1}, "sanity_batches must be an int of at least 0"),
        ({"loader_every_n": {"a": 0}}, r"loader_every_n\['a'\] must be an int of at least 1"),
        (
            {"loader_every_n": {"a": 2}, "per_loader_metrics": False},
            "loader_every_n needs validation.per_loader_metrics",
        ),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        mtf.ValidationConfig(**settings)


def test_a_rhythm_of_a_loader_that_is_not_there_is_refused() -> None:
    run = trainer(config(validation=mtf.ValidationConfig(loader_every_n={"bog": 2})))
    with pytest.raises(mtf.ConfigError, match=r"loader_every_n: no validation loader is called 'bog'"):
        run.fit([loader(8, 1)], {"big": loader(8, 2)}, max_epochs=1)
