"""Saves, states and errors at awkward places: between hooks, at an epoch's end, while data is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_tools as tools
from torch import Tensor

import mtf


class Counting(mtf.TrainerHooks):
    """Counts the events it sees; part of the state."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def _count(self, event: str) -> None:
        self.seen[event] = self.seen.get(event, 0) + 1

    def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
        self._count("start")

    def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
        self._count("end")

    def on_validation_end(self, trainer: mtf.Trainer, metrics: Any) -> None:
        self._count("validation")

    def on_source_pass_end(self, trainer: mtf.Trainer, name: str, pass_: int) -> None:
        self._count(f"pass of {name}")

    def state_dict(self) -> dict[str, int]:
        return dict(self.seen)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = dict(state)


def at(event: str, number: int, action: Callable[[mtf.Trainer], None]) -> mtf.TrainerHooks:
    """A hook that does ``action`` once, when ``event`` happens for the ``number``-th time (from 0)."""
    calls = 0

    def called(self: Any, trainer: mtf.Trainer, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            action(trainer)

    hook: mtf.TrainerHooks = type("At", (mtf.TrainerHooks,), {event: called})()
    return hook


class Batches:
    """Batches without shuffling; ``said`` is what ``len`` says, and ``fails`` may raise while one is made."""

    def __init__(self, num: int, seed: int, said: int | None = None, fails: Callable[[], None] | None = None) -> None:
        self._x, self._y = tools.rows(2 * num, seed)
        self._said = num if said is None else said
        self._fails = fails

    def __len__(self) -> int:
        return self._said

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(0, len(self._x), 2):
            if self._fails is not None:
                self._fails()
            yield self._x[i : i + 2], self._y[i : i + 2]


def make(*first: mtf.TrainerHooks, frequency: str = "PER_EPOCH", **performance: Any) -> mtf.Trainer:
    """A trainer with an epoch scheduler, and a counting hook after ``first``."""
    model = tools.model(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = tools.config(
        ["a", "b"],
        validation=mtf.ValidationConfig(
            frequency=mtf.ValidationFrequency[frequency],
            every_n_steps=3 if frequency == "EVERY_N_STEPS" else None,
        ),
        performance=mtf.PerformanceConfig(**performance),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=2),
    )
    return tools.trainer(
        settings,
        model=model,
        optimizers=optimizer,
        schedulers=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9),
        hooks=[*first, Counting()],
    )


def loaders() -> dict[str, Any]:
    return {"a": tools.loader(12, 1, shuffle=True), "b": tools.loader(8, 2)}


def validation() -> dict[str, Any]:
    return {"v": tools.loader(5, 3)}


def uninterrupted(frequency: str = "PER_EPOCH") -> mtf.TrainerState:
    run = make(frequency=frequency)
    run.fit(loaders(), validation(), max_steps=17)
    return run.get_state()


@pytest.mark.parametrize("frequency", ["PER_EPOCH", "EVERY_N_STEPS"])
@pytest.mark.parametrize(
    "event",
    ["on_train_start", "on_epoch_start", "on_source_pass_end", "on_validation_start", "on_validation_end",
     "on_train_batch_end", "on_epoch_end", "on_train_end"],
)  # fmt: skip
def test_a_save_asked_for_in_any_hook_goes_on_exactly(tmp_path: Path, event: str, frequency: str) -> None:
    whole = uninterrupted(frequency)
    path = str(tmp_path / "saved")
    number = 0 if event.startswith("on_train_") and event != "on_train_batch_end" else 1
    run = make(at(event, number, lambda trainer: trainer.save_checkpoint(path)), frequency=frequency)
    run.fit(loaders(), validation(), max_steps=17)
    assert run.get_state().diff(whole) == [], "a save changes nothing"
    fresh = make(frequency=frequency)
    fresh.load_checkpoint(path)
    if event == "on_train_end":
        with pytest.warns(UserWarning, match="nothing to do"):
            fresh.fit(loaders(), validation(), max_steps=17)
    else:
        fresh.fit(loaders(), validation(), max_steps=17)
    assert fresh.get_state().diff(whole) == []


@pytest.mark.parametrize("max_steps", [17, 10])
def test_a_state_taken_at_an_epochs_end_does_not_end_it_again(max_steps: int) -> None:
    whole = make()
    whole.fit(loaders(), validation(), max_steps=max_steps)
    states: list[mtf.TrainerState] = []
    # The state is taken by the last of the hooks: it can't know what those after it are going to do.
    run = make()
    run.add_hook(at("on_epoch_end", 1, lambda trainer: states.append(trainer.get_state())))
    run.fit(loaders(), validation(), max_steps=7)
    run.fit(loaders(), validation(), max_steps=10)
    fresh = make()
    fresh.load_state(states[0])
    fresh.fit(loaders(), validation(), max_steps=max_steps)
    assert fresh.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize("event", ["on_validation_start", "on_epoch_end"])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_an_error_at_an_epochs_end_repeats_only_what_was_left(event: str, is_fresh: bool) -> None:
    whole = uninterrupted()

    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("once")

    run = make(at(event, 1, fail))
    with pytest.raises(KeyError, match="once"):
        run.fit(loaders(), validation(), max_steps=17)
    if is_fresh:
        state = run.get_state()
        run = make()
        run.load_state(state)
    run.fit(loaders(), validation(), max_steps=17)
    assert run.get_state().diff(whole) == []


def test_an_error_after_the_last_update_of_an_epoch_leaves_its_end_to_the_next_fit() -> None:
    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("once")

    run = make(at("on_validation_end", 4, fail), frequency="EVERY_N_STEPS")
    with pytest.raises(KeyError, match="once"):
        run.fit(loaders(), validation(), max_steps=15)
    assert (run.global_step, run.epoch, run._run.epoch_is_open) == (15, 2, True)
    run.fit(loaders(), validation(), max_steps=15)
    assert (run.global_step, run.epoch, run._run.epoch_is_open) == (15, 3, False)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("num_errors", [1, 3])
def test_errors_in_a_row_lose_no_batch(window: int, num_errors: int) -> None:
    whole = make(gradient_accumulation_steps=window)
    whole.fit(loaders(), validation(), max_steps=6)

    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("in a window")

    run = make(*(at("on_train_batch_end", 4, fail) for _ in range(num_errors)), gradient_accumulation_steps=window)
    for _ in range(num_errors):
        with pytest.raises(KeyError):
            run.fit(loaders(), validation(), max_steps=6)
    run.fit(loaders(), validation(), max_steps=6)
    assert run.get_state().diff(whole.get_state()) == []


@pytest.mark.filterwarnings("ignore:.*are produced again")
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_while_a_window_is_fetched_loses_no_batch(window: int, place: int) -> None:
    def run(*, failing: bool) -> mtf.TrainerState:
        made = 0

        def fail() -> None:
            nonlocal made
            made += 1
            if failing and made == place + 1:
                raise OSError("the disk")

        given = {"a": Batches(6, 1, fails=fail), "b": tools.loader(8, 2)}
        trainer = make(gradient_accumulation_steps=window)
        if failing:
            with pytest.raises(mtf.SourceError, match="the disk"):
                trainer.fit(given, max_epochs=2)
        trainer.fit(given, max_epochs=2)
        return trainer.get_state()

    assert run(failing=True).diff(run(failing=False)) == []


@pytest.mark.filterwarnings("ignore:.*are produced again", "ignore:.*len.. said it would end")
@pytest.mark.parametrize("cut", range(1, 8))
def test_a_loader_that_goes_on_after_its_end_is_noticed_at_the_same_step(cut: int) -> None:
    def given() -> dict[str, Any]:
        return {"a": Batches(4, 1, said=3), "b": tools.loader(12, 2)}

    whole = make()
    whole.fit(given(), max_steps=8)
    first = make()
    first.fit(given(), max_steps=cut)
    second = make()
    second.load_state(first.get_state())
    second.fit(given(), max_steps=8)
    assert second.get_state().diff(whole.get_state()) == []


@pytest.mark.filterwarnings("ignore:.*but len.. said 4")
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("policy", ["FIXED_NUM_STEPS", "MIN_LENGTH"])
def test_every_pass_that_ends_is_told_once_also_where_its_length_is_wrong(policy: str, window: int) -> None:
    told: list[tuple[str, int]] = []

    class Telling(mtf.TrainerHooks):
        def on_source_pass_end(self, trainer: mtf.Trainer, name: str, pass_: int) -> None:
            told.append((name, pass_))

    settings = tools.config(
        multi=mtf.MultiDataLoaderConfig(
            epoch_length_policy=mtf.EpochLengthPolicy[policy],
            steps_per_epoch=8 if policy == "FIXED_NUM_STEPS" else None,
            dataloader_names=["a", "b"],
        ),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=window),
    )
    run = tools.trainer(settings, hooks=[Telling()])
    num_of_b = 2 if policy == "FIXED_NUM_STEPS" else 9
    run.fit({"a": Batches(3, 1, said=4), "b": tools.loader(4 * num_of_b, 2)}, max_epochs=1)
    # a b a b a b a b, where a gives three batches in a pass and promised four; under MIN_LENGTH that ends the epoch.
    assert sorted(told) == ([("a", 0), ("b", 0), ("b", 1)] if policy == "FIXED_NUM_STEPS" else [("a", 0)])


def test_a_removed_loader_leaves_nothing_in_the_state() -> None:
    whole, first = (make(at("on_epoch_end", 0, lambda t: t.remove_dataloader("a"))) for _ in range(2))
    second = make()
    whole.fit(loaders(), max_steps=8)
    first.fit(loaders(), max_steps=6)
    second.load_state(first.get_state())
    second.fit(loaders(), max_steps=8)
    assert second.get_state().diff(whole.get_state()) == []
    assert list(whole.get_state()["multi"]["global_batch_sizes"]) == ["b"]


def test_shares_are_logged_when_a_loader_has_been_removed() -> None:
    run = make(at("on_epoch_end", 0, lambda trainer: trainer.remove_dataloader("a")))
    run.fit(loaders(), max_steps=9)
    assert run.metrics["loader_proportions/b_batches"] == 1.0
    assert run.metrics["loader_proportions/b_divergence"] == 0.0


def test_a_run_that_was_stopped_early_stays_stopped() -> None:
    def stopping(patience: int) -> mtf.Trainer:
        return make(mtf.EarlyStopping("val/loss", patience=patience, min_delta=1e9))

    run = stopping(2)
    run.fit(loaders(), validation(), max_epochs=9)
    assert run.epoch == 3
    state = run.get_state()
    run.fit(loaders(), validation(), max_epochs=9)
    assert run.get_state() == state
    fresh = stopping(2)
    fresh.load_state(state)
    fresh.fit(loaders(), validation(), max_epochs=9)
    assert fresh.get_state() == state
    patient = stopping(3)
    patient.load_state(state)
    patient.fit(loaders(), validation(), max_epochs=9)
    assert patient.epoch == 4


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.parametrize(
    ("event", "number"),
    [("on_validation_start", 1), ("on_validation_end", 1), ("on_validation_batch_end", 3), ("on_source_pass_end", 1),
     ("on_source_pass_end", 2), ("on_validation_end", 4)],
)  # fmt: skip
def test_what_an_update_owes_after_an_error_is_done_first(
    tmp_path: Path, event: str, number: int, is_fresh: bool
) -> None:
    """The counting hook comes after the one that fails, so it sees every event exactly once."""
    whole = uninterrupted("EVERY_N_STEPS")

    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("once")

    run = make(at(event, number, fail), frequency="EVERY_N_STEPS")
    with pytest.raises(KeyError, match="once"):
        run.fit(loaders(), validation(), max_steps=17)
    step = run.global_step
    if is_fresh:
        run.save_checkpoint(str(tmp_path / "owing"))
        run = make(frequency="EVERY_N_STEPS")
        run.load_checkpoint(str(tmp_path / "owing"))
    assert run._run.pending.is_anything
    seen = []
    run.add_hook(at("on_validation_end", 0, lambda trainer: seen.append(trainer.global_step)))
    run.fit(loaders(), validation(), max_steps=step)
    assert not run._run.pending.is_anything
    assert run.global_step == step, "pending work makes no update"
    assert seen == ([step] if step % 3 == 0 else []), "a validation that follows is pending as well"
    run.fit(loaders(), validation(), max_steps=17)
    assert run.get_state().diff(whole) == []


@pytest.mark.parametrize("event", ["on_validation_start", "on_validation_end", "on_source_pass_end"])
def test_a_state_taken_in_a_hook_after_an_update_goes_on_exactly(event: str) -> None:
    whole = uninterrupted("EVERY_N_STEPS")
    states: list[mtf.TrainerState] = []
    # The last of the hooks takes it: what those after it are going to do can't be part of it.
    run = make(frequency="EVERY_N_STEPS")
    first = at(event, 1, lambda trainer: states.append(trainer.get_state()))
    if "validation" in event:  # its events are repeated, so those of the counting hook must come later
        run = make(first, frequency="EVERY_N_STEPS")
    else:
        run.add_hook(first)
    run.fit(loaders(), validation(), max_steps=17)
    assert run.get_state().diff(whole) == []
    fresh = make(frequency="EVERY_N_STEPS")
    fresh.load_state(states[0])
    fresh.fit(loaders(), validation(), max_steps=17)
    assert fresh.get_state().diff(whole) == []


def test_a_row_and_a_save_after_an_error_come_as_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(mtf.Logger):
        def __init__(self) -> None:
            self.seen: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.seen.append((step, {k: v for k, v in metrics.items() if not k.startswith("throughput")}))

    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("once")

    rows, saves = [], []
    for number in (10**9, 0):
        logger, root = Rows(), tmp_path / str(number)
        monkeypatch.setattr("mtf.trainer.reporting.reporter.make_logger", lambda *_, logger=logger: logger)
        run = tools.trainer(
            tools.config(
                ["a", "b"],
                logging=mtf.LoggingConfig(logger_type="console", progress_bar=False, log_scalars_every_n_steps=2),
                checkpoint=mtf.CheckpointConfig(root_dir=str(root), save_every_n_steps=2, max_checkpoints=9),
            ),
            hooks=[at("on_source_pass_end", number, fail)],
        )
        if number == 0:  # the pass of b ends with update 4
            with pytest.raises(KeyError):
                run.fit(loaders(), max_steps=5)
            assert len(list(root.glob("step-*"))) == 1, "the save at update 4 hasn't come yet"
        run.fit(loaders(), max_steps=5)
        rows.append(logger.seen)
        saves.append(sorted(path.name for path in root.glob("step-*")))
    assert rows[0] == rows[1]
    assert saves[0] == saves[1]


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_an_epochs_start_that_raised_is_called_again(is_fresh: bool, number: int) -> None:
    """For all hooks, those that did their part before the error too; so an edit made there is made once more."""

    class Edits(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
            trainer.multi_loader_manager.update_weights([1 + epoch, 2])

    def weighted(*hooks: mtf.TrainerHooks) -> mtf.Trainer:
        settings = tools.config(
            multi=mtf.MultiDataLoaderConfig(
                dataloader_names=["a", "b"],
                sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
                dataloader_weights=[0.5, 0.5],
            )
        )
        return tools.trainer(settings, hooks=[Edits(), *hooks, Counting()])

    def fail(trainer: mtf.Trainer) -> None:
        raise KeyError("once")

    whole = weighted()
    whole.fit(loaders(), max_epochs=3)
    run = weighted(at("on_epoch_start", number, fail))
    with pytest.raises(KeyError, match="once"):
        run.fit(loaders(), max_epochs=3)
    assert (run.epoch, run._run.epoch_is_open) == (number, False)
    if is_fresh:
        state = run.get_state()
        run = weighted()
        run.load_state(state)
    run.fit(loaders(), max_epochs=3)
    assert run.get_state().diff(whole.get_state()) == []
