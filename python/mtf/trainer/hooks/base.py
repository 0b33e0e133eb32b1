"""Hooks: a user's own code at fixed points of training. A hook overrides the methods it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from mtf.formatting import plain_repr

if TYPE_CHECKING:
    from torch import Tensor

Trainer: TypeAlias = Any
"""The ``mtf.Trainer`` that calls the hook. Its module imports this one, so it can't be named here; a hook may."""


class TrainerHooks:
    """Base of all hooks; every method does nothing. No ``super().__init__()`` is needed.

    A hook that defines ``state_dict()`` and ``load_state_dict(state)`` is saved with the trainer. All
    arguments are positional. A batch is what the training step gets, on the trainer's device.

    A hook that raises stops training. When training continues, by another ``fit`` or from a state or a checkpoint, it
    starts before the event: a window that was under way is trained on again from its first batch, and an event between
    two windows is called again for all hooks, followed by what would have followed it (a row, a validation, a save).
    What was done before the event isn't done again.
    """

    def __repr__(self) -> str:
        """The class and its plain attributes."""
        return plain_repr(self)

    def on_train_start(self, trainer: Trainer) -> None:
        """Every call of ``fit`` starts with it."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Every call of ``fit`` that raises nothing ends with it."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Once per epoch, before its first batch is fetched; edits made here hold for the whole epoch."""

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Once per epoch, after its schedulers and validation and before its checkpoint."""

    def on_train_batch_start(
        self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        """Before each training step. ``batch_idx`` counts inside that loader and epoch."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """After each training step and its backward pass; ``metrics`` is what the step returned, detached."""

    def on_before_backward(self, trainer: Trainer, loss: Tensor) -> None:
        """``loss`` is weighted and divided by the window's length already."""

    def on_after_backward(self, trainer: Trainer) -> None:
        """Gradients of this step have been added to those of its window."""

    def on_before_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Gradients are unscaled and clipped, and no optimizer has stepped yet; once for each that is going to."""

    def on_after_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Parameters are new, all optimizers have stepped, gradients aren't cleared yet. An error here is raised when
        the update is complete; the other hooks are told as well."""

    def on_gradient_clip(self, trainer: Trainer, grad_norm: Tensor) -> None:
        """``grad_norm``: 0-dim tensor, the joint norm before clipping. Only with ``clip_grad_norm``."""

    def on_validation_start(self, trainer: Trainer) -> None:
        """The model is in eval mode already."""

    def on_validation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """``metrics`` has the keys that ``trainer.validate`` returns.

        A hook that has ``on_validation_start`` as well is called on every way out of a validation, so that it can put
        back what it changed. Where a signal or an error ended the validation, ``metrics`` is empty, and a key that is
        read all the same is NaN.
        """

    def on_validation_batch_start(
        self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        """As in training."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """As in training."""

    def on_checkpoint_save(self, trainer: Trainer, path: str) -> None:
        """A checkpoint is complete at ``path``; with ``asynchronous=True`` some updates after that of which it is."""

    def on_checkpoint_load(self, trainer: Trainer, path: str) -> None:
        """The state from ``path`` is in place."""

    def on_source_pass_end(self, trainer: Trainer, name: str, pass_: int) -> None:
        """The last batch of a loader's pass has become part of an update.

        Where no length tells it, a pass has ended when a further batch was asked for: after the update of that one.
        """

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """``fit`` is about to raise ``error``. The state is that of the last update; a single rank may save it here."""


EVENTS: tuple[str, ...] = tuple(name for name in vars(TrainerHooks) if name.startswith("on_"))
