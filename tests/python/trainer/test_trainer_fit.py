"""``fit``: limits, calls in parts, edits, other loaders, stopping, and what it refuses."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from trainer_tools import Trace, config, loader, model, rows, same_weights, step, trainer

import mtf

WINDOWS = mtf.PerformanceConfig(gradient_accumulation_steps=3)


def loaders() -> list[Any]:
    return [loader(20, 1, shuffle=True), loader(12, 2)]


def noisy(settings: mtf.TrainerConfig | None = None, **arguments: Any) -> mtf.Trainer:
    """With dropout, a scheduler and momentum: everything that could go wrong in a resume."""
    net = model(dropout=0.3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.9**k)
    return trainer(
        settings,
        model=net,
        optimizers=optimizer,
        schedulers=[{"scheduler": scheduler, "interval": "step"}],
        **arguments,
    )


def test_max_epochs_and_max_steps_count_from_the_beginning() -> None:
    run = trainer()
    run.fit(loaders())
    assert (run.epoch, run.global_step) == (1, 8), "with neither limit: one epoch"
    run.fit(loaders())
    assert run.epoch == 2, "and one more"
    run.fit(loaders(), max_steps=18)
    assert (run.epoch, run.global_step) == (2, 18)
    run.fit(loaders(), max_epochs=3, max_steps=100)
    assert (run.epoch, run.global_step) == (3, 24)
    with pytest.warns(UserWarning, match="nothing to do: the run has 3 epochs and max_epochs is 3"):
        run.fit(loaders(), max_epochs=3)
    with pytest.warns(UserWarning, match="nothing to do: the run has 24 updates and max_steps is 5"):
        run.fit(loaders(), max_steps=5)
    with pytest.raises(mtf.ConfigError, match="max_steps must be an int of at least 0, it is -1"):
        run.fit(loaders(), max_steps=-1)


@pytest.mark.parametrize("step_rng", ["derived", "saved"])
@pytest.mark.parametrize("cuts", [[1], [8], [3, 4, 5], [8, 16], list(range(1, 20))])
def test_parts_are_the_same_run_bit_for_bit(cuts: list[int], step_rng: Any) -> None:
    settings = config(["a", "b"], step_rng=step_rng)
    torch.manual_seed(11)
    whole = noisy(settings)
    whole.fit(loaders(), [loader(8, 3)], max_steps=20)
    torch.manual_seed(11)
    parts, given = noisy(settings), loaders()
    for cut in [*cuts, 20]:
        parts.fit(given, [loader(8, 3)], max_steps=cut)
    assert parts.get_state().diff(whole.get_state()) == []
    assert parts.get_state() == whole.get_state()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("fresh_loaders", [False, True])
def test_parts_in_fresh_trainers_with_windows(cut: int, fresh_loaders: bool) -> None:
    """8 batches an epoch in windows of 3: updates 3 and 6 end epochs."""
    settings = config(["a", "b"], performance=WINDOWS)
    whole = noisy(settings)
    whole.fit(loaders(), max_steps=7)
    first, given = noisy(settings), loaders()
    first.fit(given, max_steps=cut)
    second = noisy(settings)
    second.load_state(first.get_state())
    second.fit(loaders() if fresh_loaders else given, max_steps=7)
    assert second.get_state().diff(whole.get_state()) == []


def test_the_last_update_of_an_epoch_ends_it_also_at_max_steps() -> None:
    events: list[str] = []

    class Epochs(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: Any, epoch: int) -> None:
            events.append(f"start {epoch}")

        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            events.append(f"end {epoch}")

        def on_train_start(self, trainer: Any) -> None:
            events.append("fit")

    run = trainer(hooks=[Epochs()])
    for stop in (3, 8, 9, 16):
        run.fit(loaders(), max_steps=stop)
    assert events == ["fit", "start 0", "fit", "end 0", "fit", "start 1", "fit", "end 1"]


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch_batches": 1},
        {"prefetch_workers": 0},
        {"prefetch_workers": 3, "prefetch_batches": 16},
        {"prefetch_bytes": 10},
        {"shared_workers": 2},
    ],
    ids=str,
)
def test_prefetching_changes_nothing_in_the_state_also_after_a_resume(options: dict[str, Any]) -> None:
    def make(**options: Any) -> mtf.Trainer:
        return noisy(config(multi=mtf.MultiDataLoaderConfig(dataloader_names=["a", "b", "c"], **options)))

    def given(num_workers: int = 0) -> dict[str, Any]:
        return {
            "a": loader(20, 1, shuffle=True, num_workers=num_workers),
            "b": mtf.ArrayLoader(rows(12, 2), 4, shuffle=True),
            "c": mtf.ThreadLoader(TensorDataset(*rows(10, 3)), 4, shuffle=True),
        }

    num_workers = 2 if "shared_workers" in options else 0
    whole, first, second = make(), make(**options), make()
    whole.fit(given(), max_epochs=3)
    first.fit(given(num_workers), max_steps=13)
    second.load_state(first.get_state())
    for run, workers in ((first, num_workers), (second, 0)):
        run.fit(given(workers), max_epochs=3)
        assert run.get_state().diff(whole.get_state()) == []
        run.multi_loader_manager.close()


def test_a_step_may_come_later_or_from_a_subclass() -> None:
    net = model()
    run = mtf.GenericTrainer(config(), model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1))
    assert mtf.GenericTrainer is mtf.Trainer
    with pytest.raises(mtf.ConfigError, match="there is no training step"):
        run.fit(loaders())
    run.set_training_step(step)
    run.fit(loaders(), max_steps=1)

    class Mine(mtf.Trainer):
        def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
            return nn.functional.mse_loss(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
            return {"loss": torch.tensor(1.0), "mine": torch.tensor(2.0)}

    mine = Mine(config(), model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1))
    mine.fit(loaders(), [loader(4, 1)])
    assert mine.metrics["val/mine"] == 2.0


@pytest.mark.parametrize(
    "given",
    [loader(8, 1), [loader(8, 1)], (loader(8, 1),), {"dl0": loader(8, 1)}],
    ids=["one", "list", "tuple", "dict"],
)
def test_ways_to_give_loaders(given: Any) -> None:
    run = trainer()
    run.fit(given)
    assert run.global_step == 2
    assert run.multi_loader_manager.names == ["dl0"]


def test_batch_idx_counts_inside_a_loader_and_epoch() -> None:
    places: list[tuple[int, int, str]] = []

    class Places(mtf.TrainerHooks):
        def on_train_batch_start(self, trainer: Any, batch: Any, *place: Any) -> None:
            places.append(place)  # type: ignore[arg-type]

    run = trainer(config(["a", "b"]), hooks=[Places()])
    given = [loader(8, 1), loader(8, 2)]
    run.fit(given, max_steps=3)
    run.fit(given, max_epochs=2)
    epoch = [(0, 0, "a"), (0, 1, "b"), (1, 0, "a"), (1, 1, "b")]
    assert places == epoch + epoch


def test_fit_inside_a_hook_is_refused() -> None:
    class Nested(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: Any, epoch: int) -> None:
            trainer.fit(loaders())

    with pytest.raises(mtf.ConfigError, match="fit was called inside fit"):
        trainer(hooks=[Nested()]).fit(loaders())


def test_get_state_inside_a_window_is_refused() -> None:
    class Early(mtf.TrainerHooks):
        def on_after_backward(self, trainer: Any) -> None:
            trainer.get_state()

    with pytest.raises(mtf.ConfigError, match="get_state was called inside a window"):
        trainer(hooks=[Early()]).fit(loaders())


def test_request_stop_ends_after_the_window() -> None:
    class Stop(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.num_batches == 4:
                trainer.request_stop("enough")

    run = trainer(config(["a", "b"], performance=WINDOWS), hooks=[Stop()])
    given = loaders()
    run.fit(given, max_epochs=5)
    assert (run.num_batches, run.global_step) == (6, 2)
    run.fit(given, max_epochs=1)
    assert run.num_batches == 8


def test_other_loaders_are_refused_by_name() -> None:
    run = trainer()
    run.fit({"a": loader(8, 1), "b": loader(8, 2)}, max_steps=1)
    with pytest.raises(mtf.StateMismatch, match=r"\['c'\] aren't known to the state and \['b'\] are missing"):
        run.fit({"a": loader(8, 1), "c": loader(8, 2)}, max_steps=2)
    state = run.get_state()
    fresh = trainer()
    fresh.load_state(state)
    with pytest.raises(mtf.StateMismatch, match="b"):
        fresh.fit({"a": loader(8, 1), "c": loader(8, 2)}, max_steps=2)
    with pytest.raises(mtf.StateMismatch, match="length"):
        fresh.fit({"a": loader(8, 1), "b": loader(80, 2)}, max_steps=2)


def test_a_state_of_another_trainer_is_refused_field_by_field() -> None:
    run = trainer()
    run.fit(loaders(), max_steps=1)
    state = run.get_state()
    other = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    different = trainer(model=other, optimizers=[torch.optim.Adam(other.parameters()) for _ in range(2)])
    before = different.get_state()
    with pytest.raises(mtf.StateMismatch) as caught:
        different.load_state(state)
    message = str(caught.value)
    assert "model: '0.weight' has shape (6, 3), in the state (5, 3)" in message
    assert "model: the state has no '2.weight'" in message
    assert "optimizers: 2 here, 1 in the state" in message
    assert different.get_state() == before


def add_and_drop(trainer: mtf.Trainer) -> None:
    trainer.add_dataloader(loader=loader(16, 9), name="extra")
    trainer.remove_dataloader("b")


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_epoch_end", "on_epoch_start"])
def test_edits_take_effect_at_the_end_of_the_window(event: str) -> None:
    trace = Trace()

    class Edit(mtf.TrainerHooks):
        done = False

    def edit(self: Any, run: Any, *_: Any) -> None:
        if not self.done and (run.num_batches == 2 or event != "on_train_batch_end"):
            self.done = True
            add_and_drop(run)

    setattr(Edit, event, edit)
    run = trainer(config(["a", "b"], performance=WINDOWS), hooks=[trace, Edit()])
    given = [loader(24, 1), loader(24, 2)]
    run.fit(given, max_epochs=2)
    names = [name for name, _ in trace.batches]
    start = {"on_train_batch_end": 3, "on_epoch_start": 0, "on_epoch_end": 12}[event]
    assert names[:start] == (["a", "b"] * 6)[:start]
    assert "b" not in names[start:]
    assert set(names[start : start + 4]) == {"a", "extra"}


def edited(run: mtf.Trainer, given: Any, cuts: list[int], last: int) -> None:
    for cut in [*cuts, last]:
        run.fit(given, max_steps=cut)


class AddLater(mtf.TrainerHooks):
    """Adds a loader in the middle of the first epoch, once in a run's life."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.add_dataloader(loader=loader(16, 9), name="extra")


@pytest.mark.parametrize("cut", [2, 4, 6, 13])
@pytest.mark.parametrize("way", ["factory", "dict", "same trainer"])
def test_an_added_loader_is_part_of_the_state(cut: int, way: str) -> None:
    whole = noisy(config(["a", "b"]), hooks=[AddLater()])
    whole.fit(loaders(), max_steps=20)
    run, given = noisy(config(["a", "b"]), hooks=[AddLater()]), loaders()
    run.fit(given, max_steps=cut)
    if way == "same trainer":
        run.fit(given, max_steps=20)
        assert run.get_state().diff(whole.get_state()) == []
        return
    factories: dict[str, Callable[[], Any]] = {"extra": lambda: loader(16, 9)}
    fresh = noisy(config(["a", "b"]), hooks=[AddLater()], loader_factories=factories if way == "factory" else {})
    fresh.load_state(run.get_state())
    again: Any = dict(zip("ab", loaders(), strict=True))
    if way == "dict" and cut > 3:
        again["extra"] = loader(16, 9)
    fresh.fit(again, max_steps=20)
    assert fresh.get_state().diff(whole.get_state()) == []


def test_a_missing_added_loader_is_named() -> None:
    run = noisy(config(["a", "b"]), hooks=[AddLater()])
    run.fit(loaders(), max_steps=6)
    fresh = noisy(config(["a", "b"]))
    fresh.load_state(run.get_state())
    with pytest.raises(mtf.StateMismatch, match=r"'extra'.*loader_factories"):
        fresh.fit(loaders(), max_steps=8)


def test_hooks_see_the_edited_configuration_and_the_users_stays() -> None:
    settings = config(["a", "b"])
    run = trainer(settings)
    assert run.multi_loader_config is settings.multi
    run.fit(loaders(), max_steps=2)
    run.multi_loader_config.burst_size = 2
    run.multi_loader_manager.rebuild_schedule()
    assert run.multi_loader_config.burst_size == 2
    assert settings.multi.burst_size == 1


@pytest.mark.parametrize("policy", ["raise", "warn", "skip"])
def test_nonfinite_losses(policy: Any) -> None:
    def sometimes(trainer: Any, batch: Any, *place: Any) -> Any:
        loss = step(trainer, batch, *place)["loss"]
        return loss * float("nan") if trainer.num_batches == 2 else loss

    net, trace = model(), Trace()
    settings = config(["a", "b"], performance=mtf.PerformanceConfig(on_nonfinite=policy))
    run = trainer(settings, model=net, training_step=sometimes, hooks=[trace])
    where = r"the loss of loader 'a' is nan at batch 1 of this epoch, training step 2"
    if policy == "raise":
        before = model()
        with pytest.raises(mtf.NonFiniteLoss, match=where):
            run.fit(loaders())
        assert run.global_step == 2, "found before the update"
        assert all(torch.isfinite(p).all() for p in net.parameters())
        assert not same_weights(before, net)
        return
    with pytest.warns(UserWarning, match=where):
        run.fit(loaders(), max_steps=4)
    assert run.global_step == 4
    assert all(torch.isfinite(p).all() for p in net.parameters()) == (policy == "skip")
    if policy == "skip":
        hand = model()
        optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
        for i, (_, batch) in enumerate(trace.batches):
            if i != 2:
                optimizer.zero_grad()
                nn.functional.mse_loss(hand(batch[0]), batch[1]).backward()
                optimizer.step()
        assert same_weights(net, hand)


def test_an_error_in_a_step_leaves_the_last_update_as_state() -> None:
    broken = {"at": 5}

    def sometimes(trainer: Any, *place: Any) -> Any:
        if trainer.num_batches == broken["at"]:
            raise RuntimeError("out of memory")
        return step(trainer, *place)

    settings = config(["a", "b"], performance=mtf.PerformanceConfig(gradient_accumulation_steps=2))
    run, whole, given = noisy(settings, training_step=sometimes), noisy(settings), loaders()
    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit(given, max_epochs=1)
    assert all(p.grad is None for p in run.model.parameters())
    whole.fit(loaders(), max_steps=2)
    assert run.get_state().diff(whole.get_state()) == []
    broken["at"] = -1
    fresh = noisy(settings)
    fresh.load_state(run.get_state())
    fresh.fit(loaders(), max_epochs=1)
    whole.fit(loaders(), max_epochs=1)
    assert fresh.get_state().diff(whole.get_state()) == []
    run.fit(given, max_epochs=1)
    assert run.get_state().diff(whole.get_state()) == [], "also in the same trainer"


def test_a_model_in_eval_mode_is_pointed_out() -> None:
    net = model()
    net.eval()
    with pytest.warns(UserWarning, match="the model is in eval mode"):
        trainer(model=net).fit(loaders(), max_steps=1)


def test_deterministic_algorithms_only_inside() -> None:
    inside: list[bool] = []

    def watching(trainer: Any, *place: Any) -> Any:
        inside.append(torch.are_deterministic_algorithms_enabled())
        return step(trainer, *place)

    settings = config(performance=mtf.PerformanceConfig(deterministic=True))
    run = trainer(settings, training_step=watching)
    run.fit(loaders(), max_steps=1)
    run.validate([loader(4, 1)])
    assert inside == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_things_that_need_a_fit_first() -> None:
    with pytest.raises(mtf.ConfigError, match="exists from the first fit on"):
        trainer().multi_loader_manager  # noqa: B018
    with pytest.raises(mtf.ConfigError, match=r"model must be a torch.nn.Module, it is None"):
        mtf.Trainer()


def arrays() -> dict[str, Any]:
    """Loaders whose fetches don't touch the generators of the process, and so don't seed them."""
    return {name: mtf.ArrayLoader(rows(16, seed), 4, shuffle=True) for seed, name in enumerate("ab")}


def test_saved_random_numbers_go_on_and_derived_ones_do_not_care() -> None:
    """Under 'derived' what the user draws between two fits changes nothing; 'saved' puts the generators back."""
    for mode, make in itertools.product(("derived", "saved"), (loaders, arrays)):
        states = []
        for disturb in (False, True):
            torch.manual_seed(3)
            run, given = noisy(config(["a", "b"], step_rng=mode)), make()
            torch.manual_seed(3)
            run.fit(given, max_steps=3)
            state = run.get_state()
            if disturb:
                torch.rand(7)
            run.load_state(state)
            run.fit(given, max_steps=8)
            states.append(run.get_state())
        assert states[0].diff(states[1]) == []


def test_no_warning_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noisy(config(["a", "b"])).fit(loaders(), [loader(4, 1)], max_epochs=2)
