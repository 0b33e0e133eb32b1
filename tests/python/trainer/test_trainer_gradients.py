"""Each rule of gradients against a loop written by hand over the same batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_tools import FEATURES, Trace, config, loader, model, same_weights, step, trainer

import mtf


def loss_of(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.mse_loss(net(batch[0]), batch[1])


def two_loaders() -> list[Any]:
    return [loader(20, 1), loader(12, 2)]


def test_plain_updates() -> None:
    trace, net = Trace(), model()
    run = trainer(model=net, hooks=[trace])
    hand = copy.deepcopy(net)
    run.fit(two_loaders(), max_epochs=2)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    for _, batch in trace.batches:
        optimizer.zero_grad()
        loss_of(hand, batch).backward()
        optimizer.step()
    assert len(trace.batches) == 16
    assert run.global_step == 16
    assert same_weights(net, hand)


@pytest.mark.parametrize("window", [2, 3, 8, 100])
def test_a_window_divides_each_loss_by_its_true_length(window: int) -> None:
    """8 batches in an epoch: windows of 3 leave a tail of 2, windows of 100 are one window of 8."""
    trace, net = Trace(), model()
    hand = copy.deepcopy(net)
    run = trainer(
        config(performance=mtf.PerformanceConfig(gradient_accumulation_steps=window)), model=net, hooks=[trace]
    )
    run.fit(two_loaders(), max_epochs=2)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    num_updates = 0
    for epoch in (trace.batches[:8], trace.batches[8:]):
        for begin in range(0, 8, window):
            group = epoch[begin : begin + window]
            optimizer.zero_grad()
            for _, batch in group:
                (loss_of(hand, batch) * (1.0 / len(group))).backward()
            optimizer.step()
            num_updates += 1
    assert run.global_step == num_updates
    assert same_weights(net, hand)


def test_loss_weights_multiply_before_backward() -> None:
    trace, net = Trace(), model()
    hand = copy.deepcopy(net)
    settings = config(
        ["a", "b"],
        loss_weights_per_loader={"a": 0.25, "b": 3.0},
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=2),
    )
    trainer(settings, model=net, hooks=[trace]).fit(two_loaders())
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    weights = {"a": 0.25, "b": 3.0}
    for begin in range(0, 8, 2):
        optimizer.zero_grad()
        for name, batch in trace.batches[begin : begin + 2]:
            (loss_of(hand, batch) * (weights[name] / 2)).backward()
        optimizer.step()
    assert same_weights(net, hand)


class Heads(nn.Module):
    """A shared body and a head per loader."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(FEATURES, 4)
        self.a = nn.Linear(4, 1)
        self.b = nn.Linear(4, 1)

    def forward(self, x: Tensor, name: str) -> Tensor:
        out: Tensor = getattr(self, name)(torch.tanh(self.body(x)))
        return out


def heads_step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Tensor:
    return nn.functional.mse_loss(trainer.model(batch[0], dataloader_name), batch[1])


def heads_optimizers(net: Heads) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Adam(net.a.parameters(), lr=0.01),
        torch.optim.SGD(net.b.parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(net.body.parameters(), lr=0.003),
    ]


RULES = {"a": {"optimizer_idx": [0, 2], "lr_scale": 0.5}, "b": {"optimizer_idx": [1, 2]}}


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_optimizers_per_loader(window: int, clip: float | None) -> None:
    """Which optimizers step, at which rate, clipped over exactly the parameters that step."""
    trace, net = Trace(), Heads()
    hand = copy.deepcopy(net)
    optimizers = heads_optimizers(net)
    settings = config(
        ["a", "b"],
        per_loader_optimizers=RULES,
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=window, clip_grad_norm=clip),
    )
    trainer(settings, model=net, optimizers=optimizers, training_step=heads_step, hooks=[trace]).fit(two_loaders())
    by_hand = heads_optimizers(hand)
    for begin in range(0, 8, window):
        group = trace.batches[begin : begin + window]
        hand.zero_grad()
        for name, batch in group:
            loss = nn.functional.mse_loss(hand(batch[0], name), batch[1])
            (loss * (1.0 / len(group))).backward()
        names = [name for name, _ in group]
        scales: dict[int, list[float]] = {}
        for name in names:
            for i in RULES[name]["optimizer_idx"]:  # type: ignore[attr-defined]
                scales.setdefault(i, []).append(RULES[name].get("lr_scale", 1.0))  # type: ignore[arg-type]
        stepping = sorted(scales)
        if clip is not None:
            parameters = [p for i in stepping for g in by_hand[i].param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(parameters, clip)
        for i in stepping:
            rate = by_hand[i].param_groups[0]["lr"]
            by_hand[i].param_groups[0]["lr"] = rate * (sum(scales[i]) / len(scales[i]))
            by_hand[i].step()
            by_hand[i].param_groups[0]["lr"] = rate
    assert same_weights(net, hand)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.01, 0.1, 0.003]


def test_nothing_leaks_between_windows_of_different_loaders() -> None:
    """Loader b's gradient of head a (all heads take part) must not be there when optimizer a steps next."""

    def both_heads(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Tensor:
        x, y = batch
        other = "b" if dataloader_name == "a" else "a"
        loss: Tensor = ((trainer.model(x, dataloader_name) - y) ** 2).mean() + trainer.model(x, other).mean()
        return loss

    trace, net = Trace(), Heads()
    hand = copy.deepcopy(net)
    rules = {"a": {"optimizer_idx": 0}, "b": {"optimizer_idx": 1}}
    settings = config(["a", "b"], per_loader_optimizers=rules)
    with pytest.warns(UserWarning, match="belong to no optimizer"):
        run = trainer(
            settings, model=net, optimizers=heads_optimizers(net)[:2], training_step=both_heads, hooks=[trace]
        )
    run.fit(two_loaders())
    by_hand = dict(zip("ab", heads_optimizers(hand)[:2], strict=True))
    for name, batch in trace.batches:
        hand.zero_grad()
        other = "b" if name == "a" else "a"
        (((hand(batch[0], name) - batch[1]) ** 2).mean() + hand(batch[0], other).mean()).backward()
        by_hand[name].step()
    assert same_weights(net, hand)
    assert all(p.grad is None for p in net.parameters())


def test_lr_scale_works_with_a_scheduler_and_restores_the_rate() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    used: list[float] = []

    class Rates(mtf.TrainerHooks):
        def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            used.append(trainer.optimizers[0].param_groups[0]["lr"])

    rules = {"a": {"lr_scale": 0.0}, "b": {"lr_scale": 0.3}}
    run = trainer(
        config(["a", "b"], per_loader_optimizers=rules),
        model=net,
        optimizers=optimizer,
        schedulers={"scheduler": scheduler, "interval": "step"},
        hooks=[Rates()],
    )
    before = copy.deepcopy(net)
    run.fit([loader(8, 1), loader(8, 2)], max_steps=1)
    assert same_weights(before, net), "a factor of 0 moves nothing"
    run.fit([loader(8, 1), loader(8, 2)], max_steps=4)
    assert used == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_an_optimizer_without_gradients_does_not_step_and_its_scheduler_waits() -> None:
    net = Heads()
    optimizers = heads_optimizers(net)
    schedulers = [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.5), "interval": "step"} for o in optimizers]
    run = trainer(config(["a", "b"]), model=net, optimizers=optimizers, schedulers=schedulers, training_step=heads_step)
    run.fit(two_loaders(), max_steps=3)  # a, b, a
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([0.01 / 4, 0.1 / 2, 0.003 / 8])


def test_schedulers_of_single_loaders_step_on_their_updates() -> None:
    net = Heads()
    optimizers = heads_optimizers(net)
    per_loader = {
        "a": torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.5),
        "b": torch.optim.lr_scheduler.ExponentialLR(optimizers[1], 0.1),
    }
    settings = config(["a", "b"], per_loader_optimizers=RULES, per_loader_schedulers=per_loader)
    trainer(settings, model=net, optimizers=optimizers, training_step=heads_step).fit(two_loaders(), max_steps=5)
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**3)
    assert optimizers[1].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_epoch_schedulers_and_monitors() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5, eps=0.0)
    run = trainer(model=net, optimizers=optimizer, schedulers=[{"scheduler": plateau, "monitor": "val/loss"}])
    run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-9 * 0.25), "the first epoch sets the mark"
    with pytest.raises(mtf.ConfigError, match=r"\['monitor'\]: there is no metric 'val/los'; did you mean 'val/loss'"):
        trainer(model=net, optimizers=optimizer, schedulers=[{"scheduler": plateau, "monitor": "val/los"}]).fit(
            [loader(8, 1)], [loader(8, 2)]
        )


class Watching:
    """A scheduler that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def step(self, value: float) -> None:
        self.seen.append(value)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


@pytest.mark.parametrize("stops", [[16], [1, 5, 6, 9, 16]])
def test_a_step_scheduler_that_monitors_gets_each_value_once(stops: list[int]) -> None:
    """Rows come every 3 updates, validations every 5; never a value of before."""
    rows: list[dict[str, float]] = []
    of_training, of_validation = Watching(), Watching()

    class Rows(mtf.TrainerHooks):
        def on_validation_end(self, trainer: Any, metrics: Any) -> None:
            rows.append(dict(metrics))

    settings = config(
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=3),
        validation=mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=5),
    )
    watched = {"train/loss": of_training, "val/loss": of_validation}
    schedulers = [{"scheduler": s, "interval": "step", "monitor": name} for name, s in watched.items()]
    run = trainer(settings, schedulers=schedulers, hooks=[Rows()])
    for stop in stops:
        run.fit(two_loaders(), [loader(8, 3)], max_steps=stop)
    assert of_validation.seen == [row["val/loss"] for row in rows]
    assert (len(of_training.seen), len(of_validation.seen)) == (5, 3)
    assert len(set(of_training.seen)) == 5


def test_a_step_scheduler_whose_metric_never_comes_is_named() -> None:
    schedulers = [{"scheduler": Watching(), "interval": "step", "monitor": name} for name in ("train/los", "val/los")]
    run = trainer(schedulers=schedulers)
    with pytest.warns(UserWarning, match="isn't there") as said:
        run.fit(two_loaders())
    assert "did you mean 'train/loss'" in str(said[0].message)
    assert "'val/los' isn't there, so its scheduler doesn't step (so far: no validation)" in str(said[1].message)
    with pytest.warns(UserWarning, match="isn't there") as said:
        run.fit(two_loaders(), [loader(8, 3)])
    assert ["did you mean 'val/loss'" in str(w.message) for w in said] == [False, True]


def test_clipping_reports_the_joint_norm() -> None:
    norms: list[Tensor] = []

    class Norms(mtf.TrainerHooks):
        def on_gradient_clip(self, trainer: Any, grad_norm: Tensor) -> None:
            norms.append(grad_norm)
            clipped = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
            assert clipped.item() == pytest.approx(min(0.01, grad_norm.item()), rel=1e-3)

    net = model()
    hand = copy.deepcopy(net)
    trace = Trace()
    trainer(config(performance=mtf.PerformanceConfig(clip_grad_norm=0.01)), model=net, hooks=[Norms(), trace]).fit(
        two_loaders(), max_steps=1
    )
    loss_of(hand, trace.batches[0][1]).backward()
    assert norms[0].dim() == 0
    assert torch.equal(
        norms[0], torch.nn.utils.get_total_norm([p.grad for p in hand.parameters() if p.grad is not None])
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_against_a_hand_written_loop(precision: Any) -> None:
    trace, net = Trace(), model()
    hand = copy.deepcopy(net)
    dtypes: list[torch.dtype] = []

    def watched(trainer: Any, *place: Any) -> Any:
        dtypes.append(trainer.model(place[0][0]).dtype)
        return step(trainer, *place)

    settings = config(performance=mtf.PerformanceConfig(precision=precision, clip_grad_norm=0.5))
    trainer(settings, model=net, training_step=watched, hooks=[trace]).fit(two_loaders())
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert set(dtypes) == {dtype}
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    for _, batch in trace.batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            hand(batch[0])
            loss = loss_of(hand, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    assert same_weights(net, hand)


def test_fp16_overflow_skips_the_window_for_all_optimizers() -> None:
    """One infinite gradient: nobody steps, no scheduler steps, the update counts, the scale goes down."""
    net = Heads()
    before = copy.deepcopy(net)
    optimizers = heads_optimizers(net)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizers[2], 0.5)

    def huge(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Tensor:
        loss: Tensor = trainer.model.a.weight.float().sum() * 1e38 + trainer.model.body.weight.sum()
        return loss

    run = trainer(
        config(performance=mtf.PerformanceConfig(precision="fp16")),
        model=net,
        optimizers=optimizers,
        schedulers=[{"scheduler": scheduler, "interval": "step"}],
        training_step=huge,
    )
    scaler = run._parts.precision.scaler
    assert scaler is not None
    scale = scaler.get_scale()
    run.fit(two_loaders(), max_steps=1)
    assert run.global_step == 1
    assert scaler.get_scale() == scale / 2
    assert same_weights(before, net)
    assert optimizers[2].param_groups[0]["lr"] == 0.003


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_parameter_of_two_optimizers_in_one_window_under_fp16(clip: float | None) -> None:
    """Its gradient is unscaled once, though both step."""
    trace, net = Trace(), model()
    hand = copy.deepcopy(net)

    def optimizers(net: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(net[0].parameters(), lr=0.02)]

    settings = config(
        ["a", "b"],
        per_loader_optimizers={"a": {"optimizer_idx": 0}, "b": {"optimizer_idx": 1}},
        performance=mtf.PerformanceConfig(precision="fp16", gradient_accumulation_steps=2, clip_grad_norm=clip),
    )
    run = trainer(settings, model=net, optimizers=optimizers(net), hooks=[trace])
    scale = 256.0
    run._parts.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.fit(two_loaders())
    by_hand = optimizers(hand)
    for begin in range(0, 8, 2):
        hand.zero_grad()
        window = trace.batches[begin : begin + 2]
        for _, batch in window:
            with torch.autocast("cpu", dtype=torch.float16):
                loss = loss_of(hand, batch)
            (loss * (1.0 / len(window)) * scale).backward()
        for p in hand.parameters():
            p.grad.mul_(1.0 / scale)
        if clip is not None:
            nn.utils.clip_grad_norm_(hand.parameters(), clip)
        assert {name for name, _ in window} == {"a", "b"}
        for optimizer in by_hand:
            optimizer.step()
    assert same_weights(net, hand)


def test_sparse_gradients_under_fp16_and_their_norm() -> None:
    net = nn.Embedding(10, 3, sparse=True)
    before = net.weight.detach().clone()

    def look_up(trainer: Any, batch: Any, *_: Any) -> Tensor:
        squares: Tensor = trainer.model(batch[0][:, 0].abs().long()).pow(2).mean()
        return squares

    settings = config(performance=mtf.PerformanceConfig(precision="fp16"))
    optimizer = torch.optim.SparseAdam(net.parameters())
    run = trainer(settings, model=net, optimizers=optimizer, training_step=look_up, hooks=[mtf.GradientMonitor()])
    run.fit([loader(8, 1)])
    assert run.metrics["gradients/norm"] > 0
    assert not torch.equal(net.weight[0], before[0])
    assert torch.equal(net.weight[9], before[9])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"accuracy": 1.0}, r"a dict with 'loss' \(a tensor\), it returned \{'accuracy': 1.0\}"),
        (None, "it returned None"),
        (torch.zeros(3, requires_grad=True), r"a loss with one element, its shape is \(3,\): take a mean"),
        (1.5, r"must return a loss tensor .* it returned 1\.5"),
        ((torch.zeros((), requires_grad=True), 2), r"must return a loss tensor .* it returned \(float32\[\], 2\)"),
        (torch.zeros(()), "without a graph"),
    ],
)
def test_what_a_step_returns_is_checked(result: Any, message: str) -> None:
    run = trainer(config(["a"]), training_step=lambda *_: result)
    with pytest.raises(mtf.ConfigError, match=f"loader 'a' .batch 0.*{message}"):
        run.fit([loader(8, 1)])


def test_a_parameter_of_two_optimizers_must_be_declared() -> None:
    net = Heads()
    twice: list[torch.optim.Optimizer] = [torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(mtf.ConfigError, match="belongs to optimizers 0 and 1, and loader 'a' uses both"):
        trainer(config(["a", "b"]), model=net, optimizers=twice, training_step=heads_step).fit(two_loaders())
    declared = config(["a", "b"], per_loader_optimizers={"a": {"optimizer_idx": 0}, "b": {"optimizer_idx": 1}})
    trainer(declared, model=net, optimizers=twice, training_step=heads_step).fit(two_loaders())
    half = config(["a", "b"], per_loader_optimizers={"a": {"optimizer_idx": 0}})
    with pytest.raises(mtf.ConfigError, match="loader 'b' uses both"):
        trainer(half, model=net, optimizers=twice, training_step=heads_step).fit(two_loaders())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_loader_optimizers": {"alpha": {}}}, "per_loader_optimizers: no loader is called 'alpha'"),
        ({"per_loader_optimizers": {"a": {"optimizer_idx": [1]}}}, r"contains 1; it must be an int in \[0, 1\)"),
        ({"per_loader_optimizers": {"a": {"optimiser_idx": 0}}}, "did you mean 'optimizer_idx'"),
        ({"per_loader_optimizers": {"a": {"lr_scale": -1}}}, "lr_scale.* must be finite and not negative"),
        ({"per_loader_optimizers": {"a": 0}}, r"per_loader_optimizers\['a'\] must be a dict such as .*got 0"),
        ({"loss_weights_per_loader": {"aa": 1.0}}, "loss_weights_per_loader: no loader is called 'aa'"),
        ({"loss_weights_per_loader": {"a": float("nan")}}, "must be finite and not negative, it is nan"),
        ({"per_loader_schedulers": {"a": 3}}, r"per_loader_schedulers\['a'\] is no learning rate scheduler"),
    ],
)
def test_settings_that_name_loaders_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        trainer(config(["a", "b"], **settings)).fit(two_loaders())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda net: {"a": torch.optim.SGD(net.parameters(), lr=0.1)},
            r"optimizers\[0\] must be an optimizer made with parameters.*'a'",
        ),
        (
            lambda net: [torch.optim.SGD(net.parameters(), lr=0.1), net],
            r"optimizers\[1\] must be an optimizer made with parameters.*param_groups",
        ),
        (
            lambda net: net.parameters(),
            r"optimizers\[0\] must be an optimizer made with parameters, and has no param_groups",
        ),
        (lambda net: torch.optim.LBFGS(net.parameters()), r"optimizers\[0\]: LBFGS.step\(\) needs a closure"),
    ],
    ids=["dict", "model", "parameters", "closure"],
)
def test_what_is_no_optimizer_for_updates_is_refused_at_once(given: Any, message: str) -> None:
    net = model()
    with pytest.raises(mtf.ConfigError, match=message):
        trainer(model=net, optimizers=given(net))


def test_fit_without_optimizers_says_that_nothing_changes() -> None:
    run = trainer(optimizers=None)
    assert run.validate([loader(8, 1)])["val/loss"] > 0
    with pytest.warns(UserWarning, match="no optimizer, so fit changes no parameter"):
        run.fit([loader(8, 1)])


def test_a_parameter_that_a_hook_lets_learn_and_no_optimizer_owns_keeps_no_gradient() -> None:
    """Else all gradients since then would be in its first update, once an optimizer gets it."""
    nets = nn.ModuleDict({"one": model(1), "two": model(2).requires_grad_(False)})
    grads: list[bool] = []

    class Unfreeze(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: Any, epoch: int) -> None:
            grads.extend(p.grad is None for p in nets.parameters())
            nets["two"].requires_grad_(True)

    def both(trainer: Any, batch: Any, *_: Any) -> Tensor:
        loss: Tensor = ((nets["one"](batch[0]) + nets["two"](batch[0]) - batch[1]) ** 2).mean()
        return loss

    optimizer = torch.optim.SGD(nets["one"].parameters(), lr=0.1)
    trainer(model=nets, optimizers=optimizer, training_step=both, hooks=[Unfreeze()]).fit([loader(8, 1)], max_epochs=2)
    assert all(grads)


class OwnRate(torch.optim.Optimizer):
    """Keeps no learning rate, or one that is None, as optimizers that find their own do."""

    def __init__(self, parameters: Any, **defaults: Any) -> None:
        super().__init__(parameters, defaults)

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(0.01 * p.grad)


@pytest.mark.parametrize("defaults", [{}, {"lr": None}])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_optimizer_without_a_learning_rate(defaults: dict[str, Any], precision: Any) -> None:
    net, rates = model(), mtf.LearningRateMonitor()
    settings = config(
        ["a", "b"],
        performance=mtf.PerformanceConfig(precision=precision),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=1),
    )
    run = trainer(settings, model=net, optimizers=OwnRate(net.parameters(), **defaults), hooks=[rates])
    assert "OwnRate()" in repr(run)
    run.fit(two_loaders())
    assert run.metrics["train/loss"] > 0
    assert not [name for name in run.metrics if name.startswith("lr/")]
    assert [step for step, (rate,) in rates.history if rate != rate] == list(range(8))
    scaled = config(["a", "b"], per_loader_optimizers={"b": {"lr_scale": 0.5}})
    with pytest.raises(mtf.ConfigError, match=r"'b'.*lr_scale.*optimizers\[0\] .OwnRate. has no learning rate"):
        trainer(scaled, model=net, optimizers=OwnRate(net.parameters(), **defaults)).fit(two_loaders())


def test_frozen_parts_and_several_models() -> None:
    nets = nn.ModuleDict({"one": model(1), "two": model(2)})
    for p in nets["two"].parameters():
        p.requires_grad_(False)
    nets["two"].eval()
    frozen = copy.deepcopy(nets["two"])

    def both(trainer: Any, batch: Any, *_: Any) -> Tensor:
        x, y = batch
        loss: Tensor = ((trainer.model["one"](x) + trainer.model["two"](x) - y) ** 2).mean()
        return loss

    optimizer = torch.optim.SGD(nets["one"].parameters(), lr=0.1)
    run = trainer(model=nets, optimizers=optimizer, training_step=both)
    run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=2)
    assert same_weights(frozen, nets["two"])
    assert nets["one"].training
    assert not nets["two"].training
