"""Checkpoints of the trainer: saved at commit points, resumed bit for bit, and left behind on signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainer_tools import config, loader, model, same_weights, step, trainer

import mtf
from mtf import checkpoint
from mtf.checkpoint.storage.folder import LocalStorage


def loaders() -> list[Any]:
    return [loader(20, 1, shuffle=True), loader(12, 2, shuffle=True)]


def make(root: Path, hooks: Any = (), **settings: Any) -> mtf.Trainer:
    saving = settings.pop("checkpoint", {})
    net = model(dropout=0.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.95**k)
    return trainer(
        config(["a", "b"], checkpoint=mtf.CheckpointConfig(root_dir=str(root), **saving), **settings),
        model=net,
        optimizers=optimizer,
        schedulers=[{"scheduler": rate, "interval": "step"}],
        hooks=hooks,
    )


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.is_symlink())


def test_the_guides_resume_test(tmp_path: Path) -> None:
    """Five steps, save, five more, load, five more again: the same. Also in the middle of an epoch of 8."""
    run, path, given = make(tmp_path), str(tmp_path / "test.ckpt"), loaders()
    for _ in range(2):
        run.fit(given, max_steps=run.global_step + 5)
        run.save_checkpoint(path)
        run.fit(given, max_steps=run.global_step + 5)
        state = run.get_state()
        run.load_checkpoint(path)
        run.fit(given, max_steps=run.global_step + 5)
        assert run.get_state() == state
    fresh = make(tmp_path)
    fresh.load_checkpoint(path)
    fresh.fit(loaders(), max_steps=20)
    assert fresh.get_state().diff(state) == []


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 16])
def test_resume_from_every_kind_of_boundary(tmp_path: Path, cut: int) -> None:
    validation = [loader(8, 5)]
    whole = make(tmp_path / "whole")
    whole.fit(loaders(), validation, max_steps=18)
    first = make(tmp_path / "run", checkpoint={"save_every_n_steps": 1})
    first.fit(loaders(), validation, max_steps=cut)
    second = make(tmp_path / "run")
    second.fit(loaders(), validation, max_steps=18, resume_from="latest")
    assert second.get_state().diff(whole.get_state()) == []


def test_frequencies_and_rotation(tmp_path: Path) -> None:
    run = make(tmp_path / "steps", checkpoint={"save_every_n_steps": 3, "max_checkpoints": 2})
    run.fit(loaders(), max_steps=10)
    assert names(tmp_path / "steps") == ["step-00000006", "step-00000009"]
    assert (tmp_path / "steps" / "latest").resolve().name == "step-00000009"
    epochs = make(tmp_path / "epochs", checkpoint={"save_every_n_epochs": 2, "filename_template": "e{epoch}-s{step}"})
    epochs.fit(loaders(), max_epochs=5)
    assert names(tmp_path / "epochs") == ["e2-s16", "e4-s32"]
    often = make(tmp_path / "minutes", checkpoint={"save_every_n_minutes": 1e-9, "max_checkpoints": None})
    often.fit(loaders(), max_steps=3)
    assert len(names(tmp_path / "minutes")) == 3


def test_nothing_is_written_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer(config(["a", "b"], logging=mtf.LoggingConfig())).fit(loaders(), [loader(4, 1)], max_epochs=2)
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_of_an_epochs_end_says_the_next_epoch(tmp_path: Path) -> None:
    ended: list[int] = []

    class Ends(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            ended.append(epoch)
            trainer.save_checkpoint(str(tmp_path / f"asked{epoch}"))

    run = make(tmp_path / "run", hooks=[Ends()], checkpoint={"save_every_n_steps": 8})
    run.fit(loaders(), max_epochs=1)
    for path in (tmp_path / "asked0", tmp_path / "run" / "step-00000008"):
        assert checkpoint.read_manifest(path)["epoch"] == 1
    again = make(tmp_path / "run", hooks=[Ends()])
    again.fit(loaders(), max_epochs=2, resume_from=str(tmp_path / "asked0"))
    assert ended == [0, 1]


@pytest.mark.parametrize("ends", ["by its limit", "on request"])
def test_a_fit_that_ends_inside_an_epoch_saves_there(tmp_path: Path, ends: str) -> None:
    class Stop(mtf.TrainerHooks):
        def on_after_optimizer_step(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5 and ends == "on request":
                trainer.request_stop("enough")

    expected = make(tmp_path / "whole")
    expected.fit(loaders(), max_steps=20)
    saving = {"save_at_end": True, "save_every_n_steps": 4}
    run = make(tmp_path / "run", hooks=[Stop()], checkpoint=saving)
    run.fit(loaders(), max_steps=6 if ends == "by its limit" else 20)
    assert names(tmp_path / "run") == ["step-00000004", "step-00000006"]
    again = make(tmp_path / "run", checkpoint=saving)
    again.fit(loaders(), max_steps=20, resume_from="latest")
    assert again.get_state().diff(expected.get_state()) == []
    assert names(tmp_path / "run") == ["step-00000012", "step-00000016", "step-00000020"]


@pytest.mark.parametrize("max_steps", [3, 4])
def test_what_hooks_do_where_fit_ends_is_saved(tmp_path: Path, max_steps: int) -> None:
    class Average(mtf.TrainerHooks):
        def on_train_end(self, trainer: Any) -> None:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.zero_()

    run = make(tmp_path, hooks=[Average()], checkpoint={"save_every_n_steps": 2, "save_at_end": True})
    run.fit(loaders(), max_steps=max_steps)
    fresh = make(tmp_path / "fresh")
    fresh.load_checkpoint(str(tmp_path / "latest"))
    assert fresh.get_state().diff(run.get_state()) == []


def test_best(tmp_path: Path) -> None:
    run = make(
        tmp_path / "run",
        checkpoint={"save_best": True, "monitor_metric": "val/loss", "max_checkpoints": 1},
    )
    run.fit(loaders(), [loader(8, 5)], max_epochs=4)
    best = (tmp_path / "run" / "best").resolve()
    values = [checkpoint.read_manifest(tmp_path / "run" / n)["metrics"]["val/loss"] for n in names(tmp_path / "run")]
    assert checkpoint.read_manifest(best)["metrics"]["val/loss"] == min(values)


def test_a_save_asked_for_inside_a_window_waits_for_its_end(tmp_path: Path) -> None:
    class Ask(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.num_batches == 2:
                trainer.save_checkpoint(str(tmp_path / "asked"))
                assert not (tmp_path / "asked").exists()

    settings = {"performance": mtf.PerformanceConfig(gradient_accumulation_steps=4)}
    run = make(tmp_path / "run", hooks=[Ask()], **settings)
    run.fit(loaders(), max_steps=1)
    expected = run.get_state()
    fresh = make(tmp_path / "run", **settings)
    fresh.load_checkpoint(str(tmp_path / "asked"))
    fresh.fit(loaders(), max_steps=2)
    run.fit(loaders(), max_steps=2)
    assert fresh.get_state().diff(run.get_state()) == []
    assert expected.tree["num_batches"] == 4


def test_a_save_asked_for_that_finds_the_disk_full_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    best = mtf.BestCheckpoint(str(tmp_path / "best"))
    run = make(tmp_path / "run", hooks=[best])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match=r"best/.*can't be written: No space left.*The run continues"):
            run.fit(loaders(), [loader(4, 1)], max_epochs=1)
        with pytest.raises(mtf.CheckpointError, match="No space left"):
            run.save_checkpoint(str(tmp_path / "by-hand"))
    assert (run.epoch, os.listdir(tmp_path)) == (1, [])
    run.fit(loaders(), [loader(4, 1)], max_epochs=2)
    assert best.best is not None


@pytest.mark.parametrize("where", ["step", "validation"])
def test_a_save_asked_for_when_fit_fails_comes_at_once(tmp_path: Path, where: str) -> None:
    class Rescue(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if where == "step" and trainer.num_batches == 5:
                raise KeyError("x")

        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if where == "validation":
                raise KeyError("x")

        def on_exception(self, trainer: Any, error: BaseException) -> None:
            trainer.save_checkpoint(str(tmp_path / "rescued"))

    settings = {"performance": mtf.PerformanceConfig(gradient_accumulation_steps=2)}
    whole = make(tmp_path / "run", **settings)
    whole.fit(loaders(), [loader(4, 1)], max_steps=6)
    run = make(tmp_path / "run", hooks=[Rescue()], **settings)
    with pytest.raises(KeyError):
        run.fit(loaders(), [loader(4, 1)], max_steps=6)
    fresh = make(tmp_path / "run", **settings)
    fresh.load_checkpoint(str(tmp_path / "rescued"))
    assert fresh.get_state().diff(run.get_state()) == []
    fresh.fit(loaders(), [loader(4, 1)], max_steps=6)
    assert fresh.get_state().diff(whole.get_state()) == []


def test_asynchronous_saves_are_the_same(tmp_path: Path) -> None:
    for kind in ("now", "later"):
        run = make(tmp_path / kind, checkpoint={"save_every_n_steps": 2, "asynchronous": kind == "later"})
        run.fit(loaders(), max_steps=7)
    for name in names(tmp_path / "now"):
        one, two = checkpoint.read(tmp_path / "now" / name), checkpoint.read(tmp_path / "later" / name)
        assert same_weights(one.model, two.model)
        assert mtf.TrainerState(one.state["trainer"]) == mtf.TrainerState(two.state["trainer"])
    assert names(tmp_path / "now") == names(tmp_path / "later")


def test_auto_resume_and_finished_runs(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "checkpoint": {"save_every_n_steps": 4},
        "fault_tolerance": mtf.FaultToleranceConfig(auto_resume=True),
    }
    make(tmp_path / "run", **settings).fit(loaders(), max_steps=6)
    second = make(tmp_path / "run", **settings)
    second.fit(loaders(), max_steps=16)
    assert second.num_batches == 16
    third = make(tmp_path / "run", **settings)
    with pytest.warns(UserWarning, match="nothing to do: the run has 16 updates and max_steps is 16"):
        third.fit(loaders(), max_steps=16)
    assert third.get_state().diff(second.get_state()) == []


def test_resume_from_latest_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(mtf.CheckpointError, match=r"there is no checkpoint in .*auto_resume=True begins from scratch"):
        make(tmp_path / "none").fit(loaders(), resume_from="latest")


def test_a_damaged_latest_is_reported_and_the_one_before_is_taken(tmp_path: Path) -> None:
    make(tmp_path, checkpoint={"save_every_n_steps": 2}).fit(loaders(), max_steps=6)
    with (tmp_path / "step-00000006" / "model.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    run = make(tmp_path)
    with pytest.warns(UserWarning, match="step-00000006"):
        run.fit(loaders(), max_steps=5, resume_from="latest")
    with pytest.raises(mtf.CheckpointError, match="step-00000006"):
        run.load_checkpoint(str(tmp_path / "step-00000006"))


def test_weights_open_with_safetensors_alone_and_tied_ones_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = nn.Linear(3, 3)
            self.two.weight = self.one.weight

    def tied_step(trainer: Any, batch: Any, *_: Any) -> Any:
        return (trainer.model.two(trainer.model.one(batch[0])) - batch[1]).pow(2).mean()

    def fresh() -> mtf.Trainer:
        net = Tied()
        return trainer(model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1), training_step=tied_step)

    run = fresh()
    run.fit([loader(8, 1)])
    run.save_checkpoint(str(tmp_path / "tied"))
    weights = load_file(tmp_path / "tied" / "model.safetensors")
    assert torch.equal(weights["one.weight"], run.model.one.weight)  # type: ignore[union-attr,arg-type]
    other = fresh()
    other.load_checkpoint(str(tmp_path / "tied"))
    assert other.model.one.weight is other.model.two.weight  # type: ignore[union-attr]
    assert other.get_state().diff(run.get_state()) == []


def test_optimizer_state_keeps_its_dtype() -> None:
    net = model().to(torch.bfloat16)

    def bf16(trainer: Any, batch: Any, *_: Any) -> Any:
        return nn.functional.mse_loss(trainer.model(batch[0].bfloat16()), batch[1].bfloat16())

    def fresh(net: nn.Module) -> mtf.Trainer:
        return trainer(
            model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), training_step=bf16
        )

    run = fresh(net)
    run.fit([loader(8, 1)], max_steps=1)
    for values in run.optimizers[0].state.values():
        values["momentum_buffer"] = values["momentum_buffer"].float() + 1e-6
    other = fresh(model().to(torch.bfloat16))
    other.load_state(run.get_state())
    assert {v["momentum_buffer"].dtype for v in other.optimizers[0].state.values()} == {torch.float32}
    assert other.get_state().diff(run.get_state()) == []


def test_loading_shares_no_memory_with_the_state() -> None:
    run = trainer()
    run.fit([loader(16, 1)], max_steps=2)
    state = run.get_state()
    copy = mtf.TrainerState(state.tree)
    run.load_state(state)
    run.fit([loader(16, 1)], max_steps=4)
    assert state == copy


def test_another_number_of_threads_is_pointed_out(tmp_path: Path) -> None:
    run = trainer()
    run.fit([loader(8, 1)])
    run.save_checkpoint(str(tmp_path / "one"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"saved with num_threads={threads}, here it is {threads + 1}"):
            trainer().load_checkpoint(str(tmp_path / "one"))
    finally:
        torch.set_num_threads(threads)


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    def broken(trainer: Any, *place: Any) -> Any:
        return step(trainer, *place)["loss"] * float("inf")

    settings = config(["a", "b"], performance=mtf.PerformanceConfig(on_nonfinite="raise"))
    run = trainer(settings, training_step=broken)
    run._parts.nonfinite.every_window = False  # as on a GPU, where looking would synchronise
    with pytest.raises(mtf.NonFiniteLoss, match="loss of loader 'a' is inf at batch 0"):
        run.fit([loader(8, 1), loader(8, 2)])
    run = trainer(settings, training_step=broken)
    run._parts.nonfinite.every_window = False

    class Save(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(str(tmp_path / "bad"))

    run.add_hook(Save())
    with pytest.raises(mtf.NonFiniteLoss):
        run.fit([loader(8, 1), loader(8, 2)], max_steps=1)
    assert not (tmp_path / "bad").exists()


def test_logger_state_is_kept_in_checkpoints_but_is_no_state(tmp_path: Path) -> None:
    class Ids(mtf.Logger):
        def log_metrics(self, row: Any, step: int) -> None:
            pass

        def state_dict(self) -> dict[str, Any]:
            return {"run_id": "abc"}

    run = make(tmp_path / "run")
    run._parts.reporter._logger = Ids()
    run.fit(loaders(), max_steps=1)
    run.save_checkpoint(str(tmp_path / "one"))
    fresh = make(tmp_path / "run")
    fresh.load_checkpoint(str(tmp_path / "one"))
    assert fresh._parts.reporter.state_dict() == {"run_id": "abc"}
    assert "abc" not in repr(run.get_state().tree)


# Signals ---------------------------------------------------------------------------------------------------------


class Signal(mtf.TrainerHooks):
    """Sends this process a signal after some batches."""

    def __init__(self, number: signal.Signals, at: int) -> None:
        self.number, self.at = number, at

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.num_batches == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 5, 8])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(tmp_path: Path, number: signal.Signals, at: int) -> None:
    """No batch is lost or repeated: with windows of 3, at batch 5 and at an epoch's last batch."""
    settings = {"performance": mtf.PerformanceConfig(gradient_accumulation_steps=3)}
    whole = make(tmp_path / "whole", **settings)
    whole.fit(loaders(), [loader(4, 1)], max_epochs=2)
    run = make(tmp_path / "run", hooks=[Signal(number, at)], **settings)
    before = signal.getsignal(number)
    if number is signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            run.fit(loaders(), [loader(4, 1)], max_epochs=2)
    else:
        with pytest.raises(mtf.Preempted) as left:
            run.fit(loaders(), [loader(4, 1)], max_epochs=2)
        assert left.value.code == 75
        assert left.value.checkpoint is not None
    assert signal.getsignal(number) == before
    assert (tmp_path / "run" / "PREEMPTED").exists()
    again = make(tmp_path / "run", **settings)
    again.fit(loaders(), [loader(4, 1)], max_epochs=2, resume_from="latest")
    assert not (tmp_path / "run" / "PREEMPTED").exists()
    assert again.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("frequency", ["PER_EPOCH", "EVERY_N_STEPS"])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_signal_in_a_validation_leaves_it_to_be_made_anew(
    tmp_path: Path, number: signal.Signals, frequency: str, is_fresh: bool
) -> None:
    validations: list[int] = []

    class Interrupting(mtf.TrainerHooks):
        def on_validation_batch_start(self, trainer: Any, batch: Any, batch_idx: int, *_: Any) -> None:
            validations.append(batch_idx)
            if len(validations) == 5:  # the second batch of the second validation
                os.kill(os.getpid(), number)

    def made(name: str, hooks: Any = ()) -> mtf.Trainer:
        every = 4 if frequency == "EVERY_N_STEPS" else None
        saving = {"save_every_n_steps": 4, "max_checkpoints": None, "monitor_metric": "val/loss", "save_best": True}
        validation = mtf.ValidationConfig(frequency=mtf.ValidationFrequency[frequency], every_n_steps=every)
        return make(tmp_path / name, hooks, validation=validation, checkpoint=saving)

    limits = {"val_loaders": {"v": loader(9, 5)}, "max_steps": 20}
    whole = made("whole")
    whole.fit(loaders(), **limits)
    run = made("run", [Interrupting()])
    with pytest.raises((mtf.Preempted, KeyboardInterrupt)):
        run.fit(loaders(), **limits)
    assert validations == [0, 1, 2, 0, 1]
    if is_fresh:
        run = made("run")
        run.load_checkpoint(str(tmp_path / "run" / "latest"))
    run.fit(loaders(), **limits)
    assert run.get_state().diff(whole.get_state()) == []
    assert names(tmp_path / "run") == names(tmp_path / "whole")
    for name in names(tmp_path / "run"):
        saved = [checkpoint.read(tmp_path / kind / name).manifest["metrics"] for kind in ("run", "whole")]
        assert saved[0].get("val/loss") == saved[1].get("val/loss"), name


@pytest.mark.filterwarnings("ignore:.*checkpoints of another run")
def test_an_interrupt_while_fit_leaves_gives_the_directory_back(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    run = make(tmp_path, checkpoint={"save_every_n_steps": 1})
    run._parts.reporter.close = interrupted  # type: ignore[method-assign]  # a second Ctrl-C, there
    with pytest.raises(KeyboardInterrupt):
        run.fit(loaders(), max_steps=1)
    make(tmp_path, checkpoint={"save_every_n_steps": 1}).fit(loaders(), max_steps=1)


@pytest.mark.filterwarnings("ignore:nothing to do")
@pytest.mark.parametrize("is_done", [False, True])
def test_a_signal_while_fit_waits_for_the_writer_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    wait = checkpoint.CheckpointManager.wait

    def interrupted(manager: checkpoint.CheckpointManager) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait(manager)

    run = make(tmp_path, checkpoint={"asynchronous": True, "save_every_n_steps": 2})
    if is_done:
        run.fit(loaders(), max_steps=4)
    monkeypatch.setattr(checkpoint.CheckpointManager, "wait", interrupted)
    with pytest.raises(mtf.Preempted) as left:
        run.fit(loaders(), max_steps=4)
    assert left.value.checkpoint == tmp_path / "step-00000004"
    assert (tmp_path / "PREEMPTED").exists()


def test_exit_code_and_choice_of_signals(tmp_path: Path) -> None:
    chosen = mtf.PreemptionConfig(signals=("USR2",), exit_code=3)
    with pytest.raises(mtf.Preempted) as left:
        make(tmp_path, hooks=[Signal(signal.SIGUSR2, 2)], preemption=chosen).fit(loaders())
    assert left.value.code == 3


def test_requeue_asks_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "bin" / "scontrol"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then echo JobState=RUNNING; else echo "$@" >> {tmp_path}/calls; fi\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for requeue in (False, True):
        run = make(
            tmp_path / f"run{requeue}",
            hooks=[Signal(signal.SIGTERM, 2)],
            preemption=mtf.PreemptionConfig(requeue_job=requeue),
        )
        with pytest.raises(mtf.Preempted):
            run.fit(loaders())
        assert (tmp_path / "calls").exists() == requeue
    assert (tmp_path / "calls").read_text() == "requeue 77\n"


def test_the_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2] / "helpers")!r}]
        from pathlib import Path
        from test_trainer_saving import Signal, loaders, make
        make(Path({str(tmp_path)!r}), hooks=[Signal(signal.SIGTERM, 3)]).fit(loaders())
        """
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 75, done.stderr
    assert names(tmp_path) == ["step-00000003"]


def test_resuming_in_fit_gives_no_warning(tmp_path: Path) -> None:
    make(tmp_path, checkpoint={"save_every_n_steps": 2}).fit(loaders(), max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tmp_path).fit(loaders(), max_steps=4, resume_from="latest")


# Runs that share a directory -------------------------------------------------------------------------------------


def test_a_fresh_run_touches_nothing_of_another_run(tmp_path: Path) -> None:
    saving = {"save_every_n_steps": 2, "max_checkpoints": 1, "monitor_metric": "val/loss", "save_best": True}
    validation = [loader(8, 5)]
    make(tmp_path, checkpoint=saving).fit(loaders(), validation, max_steps=8)
    others = {name: checkpoint.verify(tmp_path / name) for name in names(tmp_path)}
    second = make(tmp_path, checkpoint=saving, seed=5)
    with pytest.warns(UserWarning, match=rf"holds {len(others)} checkpoints of another run \(.*step-00000008"):
        second.fit(loaders(), validation, max_steps=8)
    for name, manifest in others.items():
        assert checkpoint.verify(tmp_path / name) == manifest
    own = [name for name in names(tmp_path) if name not in others]
    assert [name[:14] for name in own] == ["step-00000008-"], "the name was taken"
    assert (tmp_path / "best").resolve().name == own[0]
    assert (tmp_path / "latest").resolve().name == own[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = make(tmp_path, checkpoint={**saving, "save_best": False}, seed=5)
        with pytest.raises(UserWarning, match="of another run"):  # the first one's are still there
            third.fit(loaders(), max_steps=10, resume_from="latest")
    assert third.global_step == 8


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    saving = {"save_every_n_steps": 2, "max_checkpoints": 2}
    make(tmp_path, checkpoint=saving).fit(loaders(), max_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tmp_path, checkpoint=saving).fit(loaders(), max_steps=8, resume_from="latest")
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
    runs = {checkpoint.read_manifest(tmp_path / name)["run"] for name in names(tmp_path)}
    assert len(runs) == 1


def test_auto_resume_prefers_the_runs_own_newest_to_a_path(tmp_path: Path) -> None:
    """A job that is requeued must make progress."""
    make(tmp_path / "pretraining").fit(loaders(), max_steps=2)
    start = make(tmp_path / "pretraining")
    start.fit(loaders(), max_steps=3)
    start.save_checkpoint(str(tmp_path / "start"))
    settings: dict[str, Any] = {
        "checkpoint": {"save_every_n_steps": 1},
        "fault_tolerance": mtf.FaultToleranceConfig(auto_resume=True),
    }
    first = make(tmp_path / "run", **settings)
    first.fit(loaders(), max_steps=5, resume_from=str(tmp_path / "start"))
    assert names(tmp_path / "run") == ["step-00000004", "step-00000005"]
    second = make(tmp_path / "run", **settings)
    with pytest.warns(UserWarning, match=r"resume_from='.*start' isn't used.*step-00000005"):
        second.fit(loaders(), max_steps=6, resume_from=str(tmp_path / "start"))
    assert names(tmp_path / "run")[-1] == "step-00000006"


def test_a_resume_that_cannot_be_verified_says_so(tmp_path: Path) -> None:
    verifying = mtf.FaultToleranceConfig(verify_deterministic_resume=True)
    make(tmp_path, checkpoint={"save_every_n_steps": 2}).fit(loaders(), max_steps=2)
    run = make(tmp_path, checkpoint={"save_every_n_steps": 2}, fault_tolerance=verifying)
    with pytest.warns(UserWarning, match=r"holds no hashes of batches.*saved without .*not verified"):
        run.fit(loaders(), max_steps=4, resume_from="latest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tmp_path, fault_tolerance=verifying).fit(loaders(), max_steps=5, resume_from="latest")


def test_a_resume_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, checkpoint={"save_every_n_steps": 2}).fit(loaders(), max_steps=2)
    opened: list[str] = []
    real = LocalStorage.read

    def read(storage: LocalStorage, name: str) -> Any:
        opened.append(name)
        return real(storage, name)

    monkeypatch.setattr(LocalStorage, "read", read)
    make(tmp_path).fit(loaders(), max_steps=3, resume_from="latest")
    assert [name for name in opened if name != "manifest.json"].count("model.safetensors") == 1
    assert opened.count("state.safetensors") == 1
