"""Manual optimization: GAN and SAM as loops by hand, exact resumes, errors, hooks and schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_tools import Trace, config, loader, model, rows, same_weights, step, trainer

import mtf

MANUAL = mtf.PerformanceConfig(manual_optimization=True)


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Linear(2, 3)
        self.critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def gan_optimizers(net: Gan) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(net.generator.parameters(), 0.01), torch.optim.Adam(net.critic.parameters(), 0.02)]


def gan_losses(net: Gan, real: Tensor, noise: Tensor) -> tuple[Any, Any]:
    fake = net.generator(noise)
    critic = lambda: net.critic(fake.detach()).mean() - net.critic(real).mean()  # noqa: E731
    return critic, lambda: -net.critic(net.generator(noise)).mean()


def gan_step(trainer: Any, batch: Any, *place: Any) -> dict[str, Any]:
    net: Gan = trainer.model
    critic_loss, generator_loss = gan_losses(net, batch[0], torch.randn(len(batch[0]), 2))
    _generator, critic = trainer.optimizers
    found = critic_loss()
    trainer.manual.backward(found)
    trainer.manual.step(1)
    critic.zero_grad()
    other = generator_loss()
    trainer.manual.backward(other)
    trainer.manual.step(0)
    return {"loss": found, "generator": other}


def gan(settings: mtf.TrainerConfig | None = None, **more: Any) -> mtf.Trainer:
    net = Gan()
    settings = settings or config(performance=MANUAL)
    return trainer(settings, model=net, optimizers=gan_optimizers(net), training_step=gan_step, **more)


def test_a_gan_is_the_loop_by_hand() -> None:
    trace = Trace()
    run = gan(config(performance=MANUAL, step_rng="saved"), hooks=[trace])
    torch.manual_seed(5)
    run.fit([loader(40, 1)], max_epochs=2)
    net = Gan()
    optimizers = gan_optimizers(net)
    torch.manual_seed(5)
    for _, (real, _) in trace.batches:
        critic_loss, generator_loss = gan_losses(net, real, torch.randn(len(real), 2))
        critic_loss().backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        generator_loss().backward()
        optimizers[0].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert same_weights(run.model, net)
    assert run.global_step == run.num_batches == 20
    assert {"train/loss", "train/generator"} <= set(run.metrics)


@pytest.mark.parametrize("at", [3, 10])
def test_a_resume_is_exact(at: int, tmp_path: Path) -> None:
    straight, first, resumed = gan(), gan(), gan()
    straight.fit([loader(40, 1, shuffle=True)], max_steps=17)
    first.fit([loader(40, 1, shuffle=True)], max_steps=at)
    first.save_checkpoint(str(tmp_path / "c"))
    resumed.fit([loader(40, 1, shuffle=True)], max_steps=17, resume_from=str(tmp_path / "c"))
    assert resumed.get_state() == straight.get_state()


def sam_step(trainer: Any, batch: Any, *place: Any) -> dict[str, Any]:
    """Sharpness-aware minimisation (Foret et al. 2021)."""
    net, (optimizer,) = trainer.model, trainer.optimizers
    trainer.manual.backward(loss := step(trainer, batch, *place)["loss"])
    with torch.no_grad():
        norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
        moves = [p.grad * (0.05 / (norm + 1e-12)) for p in net.parameters()]
        for p, move in zip(net.parameters(), moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    trainer.manual.backward(step(trainer, batch, *place)["loss"])
    with torch.no_grad():
        for p, move in zip(net.parameters(), moves, strict=True):
            p.sub_(move)
    trainer.manual.step()
    return {"loss": loss}


def test_sam_lowers_the_loss_and_differs_from_the_plain_step() -> None:
    def fitted(settings: mtf.TrainerConfig, function: Any) -> mtf.Trainer:
        net = model()
        made = trainer(settings, model=net, optimizers=torch.optim.SGD(net.parameters(), 0.05), training_step=function)
        made.fit([loader(40, 1)], max_epochs=10)
        return made

    run, plain = fitted(config(performance=MANUAL), sam_step), fitted(config(), step)
    x, y = rows(40, 1)
    with torch.no_grad():
        assert nn.functional.mse_loss(run.model(x), y) < 0.3 * nn.functional.mse_loss(model()(x), y)
    assert not same_weights(run.model, plain.model)


def plain_step(trainer: Any, batch: Any, *place: Any) -> dict[str, Any]:
    result = step(trainer, batch, *place)
    trainer.manual.backward(result["loss"])
    trainer.manual.step()
    return result


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_step_by_hand_is_the_automatic_one(precision: Any) -> None:
    """With clipping, a scheduler, a loss scaler, and hooks that count."""

    class Events(mtf.TrainerHooks):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_before_backward(self, trainer: Any, loss: Any) -> None:
            self.seen.append("backward")

        def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            self.seen.append("before")

        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            self.seen.append("after")

        def on_gradient_clip(self, trainer: Any, grad_norm: Any) -> None:
            self.seen.append("clip")

    def fitted(*, manual: bool) -> tuple[mtf.Trainer, list[str]]:
        net, events = model(), Events()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scheduler = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5), "interval": "step"}
        performance = mtf.PerformanceConfig(manual_optimization=manual, clip_grad_norm=0.5, precision=precision)
        run = trainer(
            config(performance=performance),
            model=net,
            optimizers=optimizer,
            schedulers=[scheduler],
            training_step=plain_step if manual else step,
            validation_step=step,
            hooks=[events],
        )
        run.fit([loader(40, 1)], [loader(8, 2)], max_epochs=1)
        return run, events.seen

    (by_hand, seen), (automatic, expected) = fitted(manual=True), fitted(manual=False)
    differences = by_hand.get_state().diff(automatic.get_state())
    assert [line for line in differences if "item_counts" not in line] == []
    assert seen == expected


def test_an_error_before_the_first_step_takes_the_batch_back() -> None:
    failures = iter([2])
    after = []

    def failing(trainer: Any, batch: Any, *place: Any) -> Any:
        result = step(trainer, batch, *place)
        trainer.manual.backward(result["loss"])
        if trainer.global_step == 2 and next(failures, None):
            raise KeyError("x")
        trainer.manual.step()
        after.append(trainer.global_step)
        return result

    run, straight = (trainer(config(performance=MANUAL), training_step=s) for s in (failing, plain_step))
    with pytest.raises(KeyError):
        run.fit([loader(40, 1)], max_steps=5)
    run.fit([loader(40, 1)], max_steps=5)
    straight.fit([loader(40, 1)], max_steps=5)
    assert run.get_state() == straight.get_state()


def test_an_error_after_a_step_asks_for_a_checkpoint() -> None:
    def failing(trainer: Any, batch: Any, *place: Any) -> Any:
        plain_step(trainer, batch, *place)
        raise KeyError("x")

    run = trainer(config(performance=MANUAL), training_step=failing)
    with pytest.raises(KeyError):
        run.fit([loader(40, 1)], max_steps=5)
    with pytest.raises(mtf.UsageError, match=r"broke off in the middle"):
        run.fit([loader(40, 1)], max_steps=5)


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    def bad(trainer: Any, batch: Any, *place: Any) -> Any:
        trainer.manual.backward(step(trainer, batch, *place)["loss"] * float("nan"))
        trainer.manual.step()

    run = trainer(config(performance=MANUAL), training_step=bad)
    with pytest.raises(mtf.NonFiniteLoss, match=r"the loss of loader 'dl0' is nan at batch 0"):
        run.fit([loader(40, 1)], max_steps=5)
    assert same_weights(run.model, model())


def test_wrong_uses_are_refused() -> None:
    run = trainer()
    with pytest.raises(mtf.UsageError, match=r"needs performance.manual_optimization=True"):
        run.manual.step(0)
    run = trainer(config(performance=MANUAL), training_step=step)
    with pytest.raises(mtf.UsageError, match=r"outside a training step"):
        run.manual.backward(torch.zeros((), requires_grad=True))
    with pytest.raises(mtf.ConfigError, match=r"100 training steps in a row have called no trainer\.manual\.step"):
        run.fit([loader(800, 1)], max_epochs=1)
    with pytest.raises(mtf.ConfigError, match=r"there is no optimizer 3, there are 1"):
        trainer(config(performance=MANUAL), training_step=lambda t, *a: t.manual.step(3)).fit([loader(8, 1)])
    with pytest.raises(mtf.ConfigError, match=r"no effect with performance.manual_optimization"):
        mtf.PerformanceConfig(manual_optimization=True, gradient_accumulation_steps=2)
    with pytest.raises(mtf.ConfigError, match=r"on_nonfinite='skip' has no effect"):
        mtf.PerformanceConfig(manual_optimization=True, on_nonfinite="skip")
    with pytest.raises(mtf.ConfigError, match=r"SpikeGuard has no effect"):
        trainer(config(performance=MANUAL), training_step=plain_step, hooks=[mtf.SpikeGuard()]).fit([loader(8, 1)])
    for name, value in (("loss_weights_per_loader", {"dl0": 2.0}), ("per_loader_optimizers", {"dl0": {"lr_scale": 2}})):
        with pytest.raises(mtf.ConfigError, match=f"{name} has no effect with performance.manual_optimization"):
            mtf.TrainerConfig(performance=MANUAL, **{name: value})  # type: ignore[arg-type]
