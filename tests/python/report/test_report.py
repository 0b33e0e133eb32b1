"""A run's report is what the run did: exact against recorded draws, whatever was interrupted, edited or thrown away."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from trainer_tools import config, loader, trainer

import mtf
from mtf.report import read_run
from mtf.report.report import RunReport

NAMES = ["web", "code", "books"]
SIZES = [40, 24, 12]  # rows, in batches of 4


class Recorder(mtf.TrainerHooks):
    """The source and the loss of every step."""

    def __init__(self) -> None:
        self.sources: list[int] = []
        self.losses: list[tuple[str, float]] = []

    def on_train_batch_end(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str, metrics: Any
    ) -> None:
        self.sources.append(dataloader_idx)
        self.losses.append((dataloader_name, float(metrics["loss"])))


class Edit(mtf.TrainerHooks):
    """Changes weights within an epoch, and between two."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.num_batches == 27:
            trainer.multi_loader_manager.update_weights([1, 1, 8])

    def on_epoch_end(self, trainer: Any, epoch: int) -> None:
        if epoch == 2:
            trainer.multi_loader_manager.update_weights([8, 1, 1])


def run(
    path: Path,
    hooks: list[mtf.TrainerHooks] | None = None,
    *,
    kind: str = "jsonl",
    every: int = 5,
    window: int = 1,
    save: int | None = 20,
    keep: int | None = None,
    fit: dict[str, Any] | None = None,
    multi: mtf.MultiDataLoaderConfig | None = None,
    training_step: Any = None,
    **logging: Any,
) -> mtf.Trainer:
    """A run of three sources in ``path``, 20 steps in an epoch."""
    settings = config(
        experiment_name="trial",
        multi=multi
        or mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            dataloader_weights=[5, 3, 2],
            dataloader_names=NAMES,
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=20,
        ),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=window),
        checkpoint=mtf.CheckpointConfig(
            root_dir=str(path / "checkpoints"),
            save_every_n_steps=save,
            monitor_metric="val/loss",
            **({} if save is None else {"max_checkpoints": keep}),
        ),
        logging=mtf.LoggingConfig(
            logger_type=kind,  # type: ignore[arg-type]
            log_scalars_every_n_steps=every,
            progress_bar=False,
            **({} if kind == "none" else {"log_dir": str(path / "logs")}),
            **logging,
        ),
        seed=11,
    )
    arguments = {} if training_step is None else {"training_step": training_step}
    made = trainer(settings, hooks=hooks or [], **arguments)
    loaders = [loader(size, seed) for seed, size in enumerate(SIZES)]
    made.fit(loaders, [loader(8, 9) for _ in NAMES], **(fit or {"max_steps": 70}))
    return made


def remarks(report: RunReport) -> list[str]:
    """Its notes, without what a busy machine may add."""
    return [note for note in report.notes if not note.startswith("Training waited")]


def draws(report: RunReport) -> list[int]:
    """The source of each step, from a history that has an edge at every one of them."""
    assert report.history is not None
    assert len(report.history.edges) == report.history.num_steps + 1
    return np.diff(report.history.counts, axis=1).argmax(axis=0).tolist()


def test_everything_of_a_plain_run(tmp_path: Path) -> None:
    recorder = Recorder()
    made = run(tmp_path, [recorder])
    report = read_run(tmp_path)
    assert (report.name, report.strategy, report.seed, report.update, report.position) == (
        *("trial", "WEIGHTED, RANDOM", 11, 70),
        (3, 10),
    )
    assert draws(report) == recorder.sources
    assert report.history is not None
    assert report.history.epoch_starts.tolist() == [0, 20, 40, 60, 70]
    assert [s.num_batches for s in report.sources] == np.bincount(recorder.sources).tolist()
    for i, source in enumerate(report.sources):
        assert source.length == SIZES[i] // 4
        assert source.passes == pytest.approx(recorder.sources.count(i) / source.length)
        assert source.share == pytest.approx(recorder.sources.count(i) / 70)
        assert source.expected_share == pytest.approx([0.5, 0.3, 0.2][i])
        assert source.weight == pytest.approx([0.5, 0.3, 0.2][i])
        in_first_row = [loss for name, loss in recorder.losses[:5] if name == source.name]
        if in_first_row:
            assert source.first_loss == pytest.approx(np.mean(in_first_row))
        in_last_row = [loss for name, loss in recorder.losses[65:] if name == source.name]
        if in_last_row:
            assert source.last_loss == pytest.approx(np.mean(in_last_row))
    waits = [source.wait_s for source in report.sources]
    assert sum(w or 0.0 for w in waits) == pytest.approx(made.multi_loader_manager.stats()["wait_s"])
    assert [(c.name, c.update, c.epoch, c.error) for c in report.checkpoints] == [
        *(("step-00000020", 20, 1, None), ("step-00000040", 40, 2, None), ("step-00000060", 60, 3, None)),
    ]
    assert "latest" in report.checkpoints[-1].links
    assert [link for c in report.checkpoints for link in c.links].count("best") == 1
    assert report.checkpoints[0].monitored == pytest.approx(report.metrics.series["val/loss"].first)
    assert [(s.first_update, s.last_update, s.reason) for s in report.sessions] == [(0, 70, None)]
    assert report.versions["mtf"] == mtf.__version__
    assert report.config["seed"] == 11
    assert remarks(report) == []
    assert set(report.validation_metrics()) == {"loss"}
    assert set(report.validation_metrics()["loss"]) == {"", *NAMES}


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_other_files_say_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "tensorboard":
        pytest.importorskip("tensorboard", reason="an extra")
    made = run(tmp_path / kind, kind=kind)
    if kind == "tensorboard":
        made._parts.reporter._logger.close()  # type: ignore[union-attr]
    run(tmp_path / "jsonl")
    one, two = read_run(tmp_path / kind), read_run(tmp_path / "jsonl")
    same = {name for name in two.metrics.series if not name.startswith("throughput/")}
    assert same == {name for name in one.metrics.series if not name.startswith("throughput/")}
    for name in same:
        for left, right in zip(one.metrics.series[name].points(), two.metrics.series[name].points(), strict=True):
            assert left.tolist() == pytest.approx(right.tolist(), rel=1e-6)
    assert draws(one) == draws(two)


def test_pictures_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    from PIL import Image

    settings: dict[str, Any] = {"kind": "tensorboard", "log_pictures": True}
    made = run(tmp_path, [Edit()], fit={"max_steps": 30}, **settings)
    made.save_checkpoint(str(tmp_path / "here"))
    made._parts.reporter._logger.close()  # type: ignore[union-attr]
    made = run(tmp_path, [Edit()], fit={"max_steps": 65, "resume_from": str(tmp_path / "here")}, **settings)
    made._parts.reporter._logger.close()  # type: ignore[union-attr]
    found = events.EventAccumulator(str(tmp_path / "logs" / "trial"), size_guidance={events.IMAGES: 0})
    found.Reload()
    names = ["pictures/data_wait", "pictures/passes", "pictures/schedule", "pictures/shares"]
    assert sorted(found.Tags()["images"]) == names
    for name in names:
        images = found.Images(name)
        assert [image.step for image in images] == [20, 40, 60]
        pixels = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
        assert pixels.shape[1] == 1000
        assert pixels.std() > 10, "it isn't blank"
    # The whole run is shown, also what was drawn before the resume.
    assert mtf.Schedule.from_bytes(made._parts.reporter._recorder._states[0]).position == (0, 0)  # type: ignore[union-attr]


def test_a_picture_that_fails_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="an extra")
    pytest.importorskip("tensorboard", reason="an extra")
    monkeypatch.setattr("mtf.report.timeline.Timeline.history", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"can't be drawn: ZeroDivisionError.*training continues") as caught:
        made = run(tmp_path, save=None, kind="tensorboard", log_pictures=True)
    assert len(caught) == 1
    assert made.global_step == 70
    made._parts.reporter._logger.close()  # type: ignore[union-attr]


def test_a_run_log_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "logs" / "trial" / "run.jsonl").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"run.jsonl can't be written .*training continues"):
        made = run(tmp_path, save=None)
    assert made.global_step == 70


def test_edits_are_followed(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, [recorder, Edit()], save=None)
    report = read_run(tmp_path)
    assert draws(report) == recorder.sources
    assert remarks(report) == []
    assert [s.weight for s in report.sources] == pytest.approx([0.8, 0.1, 0.1])


def test_an_edit_that_no_state_tells_of_is_noticed(tmp_path: Path) -> None:
    run(tmp_path, [Edit()], save=None)
    run_log = tmp_path / "logs" / "trial" / "run.jsonl"
    lines = run_log.read_text().splitlines()
    kept = [line for i, line in enumerate(lines) if json.loads(line)["event"] != "schedule" or i < 2]
    run_log.write_text("\n".join(kept) + "\n")
    (note,) = remarks(read_run(tmp_path))
    assert "differs from the shares logged at update 70" in note


@pytest.mark.parametrize("window", [3, 7])
def test_windows_map_updates_to_steps(window: int, tmp_path: Path) -> None:
    recorder = Recorder()
    made = run(tmp_path, [recorder], window=window, every=1, save=None, fit={"max_steps": 11})
    report = read_run(tmp_path)
    assert draws(report) == recorder.sources
    assert (report.update, report.window) == (11, window)
    assert report.position == made.multi_loader_manager.schedule.position
    (tmp_path / "logs" / "trial" / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n')
    run_log = tmp_path / "logs" / "trial" / "run.jsonl"
    run_log.write_text("".join(line for line in run_log.read_text().splitlines(True) if '"pause"' not in line))
    broken = read_run(tmp_path)
    epoch, updates = divmod(4, -(-20 // window))
    assert broken.position == (epoch, min(updates * window, 20)) or broken.position == (epoch - 1, 20)


def test_a_run_that_was_killed_and_resumed_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    class Kill(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.num_batches == 53:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [Kill()])
    with (tmp_path / "logs" / "trial" / "run.jsonl").open("a") as file:
        file.write('{"event": "sched')  # killed while writing
    killed = read_run(tmp_path)
    assert killed.update == 50
    assert draws(killed) == draws_of_70(tmp_path)[:50]
    assert killed.sessions[-1].last_update is None
    run(tmp_path, fit={"max_steps": 30, "resume_from": str(tmp_path / "checkpoints" / "step-00000020")}, save=None)
    report = read_run(tmp_path)
    assert report.update == 30
    assert draws(report) == draws_of_70(tmp_path)[:30]
    assert [(s.first_update, s.last_update) for s in report.sessions] == [(0, None), (20, 30)]
    assert [(c.update, c.replaced) for c in report.checkpoints] == [(20, False), (40, True)]
    assert remarks(report) == ["The session that began at update 0 broke off; the run went on from update 20."]
    assert report.metrics.series["train/loss"].points()[0].tolist() == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]


def draws_of_70(path: Path) -> list[int]:
    """What an undisturbed run draws."""
    recorder = Recorder()
    run(path / "undisturbed", [recorder], kind="none", save=None)
    return recorder.sources


def test_updates_that_were_done_twice(tmp_path: Path) -> None:
    run(tmp_path, fit={"max_steps": 50})
    run(tmp_path, fit={"max_steps": 60, "resume_from": str(tmp_path / "checkpoints" / "step-00000040")})
    (note,) = remarks(read_run(tmp_path))
    assert note.startswith("Updates 41 to 50 were done twice")


def test_the_later_of_two_rows_wins(tmp_path: Path) -> None:
    run(tmp_path, save=None)
    rows = tmp_path / "logs" / "trial" / "metrics.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"step": step, key: value}) + "\n"
            for step, key, value in [
                *((10, "train/loss", 1.0), (10, "val/loss", 1.5), (20, "train/loss", 2.0), (30, "train/loss", 3.0)),
                *((20, "train/loss", 20.0), (20, "val/loss", 25.0), (25, "train/loss", 26.0)),
            ]
        )
    )
    metrics = read_run(tmp_path).metrics
    assert [v.tolist() for v in metrics.series["train/loss"].points()] == [[10.0, 20.0, 25.0], [1.0, 20.0, 26.0]]
    assert [v.tolist() for v in metrics.series["val/loss"].points()] == [[10.0, 20.0], [1.5, 25.0]]
    assert (metrics.num_rows, metrics.num_replaced) == (5, 2)


def test_checkpoints_alone(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, [recorder], kind="none", keep=1)
    for folder in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "step-00000060"):
        report = read_run(folder)
        assert draws(report) == recorder.sources[:60], "the past is told by the configuration: nothing was edited"
        assert (report.name, report.update, report.sessions) == ("trial", 60, [])
        assert report.metrics.series["val/loss"].last is not None
        assert [note.split(";")[0] for note in remarks(report)] == ["No rows of metrics were found"]


def test_folders_of_two_runs_are_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run(tmp_path / name)
    with pytest.raises(mtf.ConfigError, match="holds 2 runs, name one of them: first/logs/trial, second/logs/trial"):
        read_run(tmp_path)
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name / "logs")
    with pytest.raises(mtf.ConfigError, match="holds 2 folders of checkpoints, name one of them: first/"):
        read_run(tmp_path)


def test_checkpoints_alone_of_an_edited_run(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, [recorder, Edit()], kind="none", fit={"max_steps": 60})
    report = read_run(tmp_path)
    assert [note for note in report.notes if "edited" in note] == [
        f"The mixture was edited between steps {a} and {b}: what was drawn between them is shown as it was planned "
        "before."
        for a, b in ((20, 40), (40, 60))
    ]
    for old in ("step-00000020", "step-00000040"):
        shutil.rmtree(tmp_path / "checkpoints" / old)
    report = read_run(tmp_path)
    assert "What was drawn before epoch 3 is not known: no state of it was kept." in report.notes
    assert report.history is not None
    assert (report.history.first_epoch, report.history.num_steps) == (3, 0)


def test_logs_alone_and_logs_that_lead_to_checkpoints(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path / "a", [recorder])
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert len(read_run(tmp_path / "b" / "logs").checkpoints) == 3
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    report = read_run(tmp_path / "b" / "logs" / "trial")
    assert report.checkpoints == []
    assert draws(report) == recorder.sources


def test_sources_that_come_and_go(tmp_path: Path) -> None:
    class Grow(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            if epoch == 0:
                trainer.add_dataloader(loader(8, 5), "hard", weight=5.0)
            if epoch == 1:
                trainer.remove_dataloader("web")

    recorder = Recorder()
    run(tmp_path, [recorder, Grow()], save=None)
    report = read_run(tmp_path)
    assert [s.name for s in report.sources] == [*NAMES, "hard"]
    assert draws(report) == recorder.sources
    assert remarks(report) == []


def test_lengths_that_are_found_out(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from torch.utils.data.TensorDataset(*next(iter(loader(28, 3, batch_size=28))))

    recorder = Recorder()
    settings = config(
        experiment_name="stream",
        multi=mtf.MultiDataLoaderConfig(
            dataloader_names=["stream", "known"],
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=20,
        ),
        logging=mtf.LoggingConfig(logger_type="jsonl", log_dir=str(tmp_path), progress_bar=False),
    )
    stream = torch.utils.data.DataLoader(Stream(), batch_size=4)
    trainer(settings, hooks=[recorder]).fit([stream, loader(16, 1)], max_steps=50)
    report = read_run(tmp_path)
    assert draws(report) == recorder.sources
    assert report.sources[1].passes == pytest.approx(25 / 4)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    run(tmp_path, save=None)
    rows = tmp_path / "logs" / "trial" / "metrics.jsonl"
    rows.write_text('{"step": 1, "train/loss": "nan"}\n{"step": 2, "train/loss": 0.5}\n{"step": 3, "tra')
    report = read_run(tmp_path)
    loss = report.metrics.series["train/loss"]
    assert (loss.first, loss.last, loss.num_values, loss.num_bad) == (0.5, 0.5, 2, 1)
    assert "Values that are not finite were left out: train/loss (1)." in report.notes


def test_much_waiting_is_pointed_out(tmp_path: Path) -> None:
    run(tmp_path, save=None)
    rows = tmp_path / "logs" / "trial" / "metrics.jsonl"
    rows.write_text('{"step": 9, "throughput/data_wait_share": 0.45, "throughput/code/data_wait_s": 3.0}\n')
    assert read_run(tmp_path).notes[0].startswith("Training waited for data 45% of the time, longest for code")


def test_damaged_states_are_named(tmp_path: Path) -> None:
    run(tmp_path, save=None)
    run_log = tmp_path / "logs" / "trial" / "run.jsonl"
    lines = [json.loads(line) for line in run_log.read_text().splitlines()]
    for line in lines:
        if line["event"] == "schedule":
            line["state"] = line["state"][:40]
    run_log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = read_run(tmp_path)
    assert report.history is None
    damaged, unknown = remarks(report)
    assert damaged.startswith("The schedule's state after update 0 can't be read: ")
    assert unknown.startswith("Neither a run log nor a checkpoint tells of the schedule")
    assert [source.name for source in report.sources] == sorted(NAMES)
    assert report.metrics.last_update == 70


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    run(tmp_path)
    manifest = tmp_path / "checkpoints" / "step-00000040" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step": 40', b'"step": 41'))
    report = read_run(tmp_path)
    assert [c.error is None for c in report.checkpoints].count(False) == 1
    assert any("step-00000040" in note and "damaged" in note for note in report.notes)


def test_plain_data_is_json(tmp_path: Path) -> None:
    run(tmp_path)
    report = read_run(tmp_path)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["update"] == 70
    assert data["schedule"]["counts"][0][-1] == report.sources[0].num_batches
    assert data["metrics"]["train/loss"]["last"] == report.metrics.series["train/loss"].last
    assert math.isfinite(data["sources"][0]["max_deviation"])
    assert str(report).splitlines()[0] == "trial: 70 updates, epoch 3, step 10"
    assert len(str(report).splitlines()) >= 5
    assert repr(report).startswith("RunReport('trial', 70 updates, 3 sources, ")
    assert repr(report.history) == ("History([web, code, books], 70 steps counted at 71 places, epochs 0 and later)")
    assert repr(report.metrics.series["val/loss"]).startswith("Series(3 values, first ")
    assert repr(report.metrics).endswith("up to update 70)")
    assert repr(report.palette) == "Palette(web: #0b78b8, code: #e69a0c, books: #05a077, 0 others)"


def test_a_timeline_tells_of_more_edits_than_a_state_keeps() -> None:
    from mtf.report.timeline import Timeline

    settings = mtf.MultiDataLoaderConfig(
        sampling_strategy="WEIGHTED",
        weighted_order="EVEN",
        dataloader_weights=[1.0, 1.0],
        epoch_length_policy="FIXED_NUM_STEPS",
        steps_per_epoch=400,
    )
    schedule = mtf.Schedule(settings, [50, 50], seed=0)
    states, drawn = [mtf.Schedule.from_bytes(schedule.to_bytes())], []
    for step in range(400):
        if step % 8 == 0:
            schedule.update_weights([1.0, 1.0 + step / 100])
            states.append(mtf.Schedule.from_bytes(schedule.to_bytes()))
        drawn.append(schedule.at(step).source)
        schedule.advance(1)
    assert states[-1].known_from() > 0
    history = Timeline(states).history(0, 400, max_bins=400)
    assert history.counts[1].tolist() == [0, *np.cumsum(drawn).tolist()]
    assert np.abs(history.counts - history.expected).max() < 2
    # With a state for every fifth edit only, what lies between them is interpolated.
    some = Timeline(states[::5]).history(0, 400, max_bins=400)
    assert np.abs(some.counts - history.counts).max() < 20
    assert some.counts[:, -1].sum() == 400
