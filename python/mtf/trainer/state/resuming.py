"""Which checkpoint a run continues from, to which run a directory's checkpoints belong, and what a resume warns of."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from mtf import checkpoint
from mtf.call_site import user_level
from mtf.checkpoint import run_directory
from mtf.checkpoint.format.layout import Checkpoint
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.config.trainer import TrainerConfig
from mtf.distributed.ranks import SingleRank
from mtf.errors import CheckpointError, ConfigError, StateMismatch

# Settings that may be changed on the way, after which training isn't what it would have been.
_COURSE = (
    ("performance", "precision"),
    ("performance", "gradient_accumulation_steps"),
    ("performance", "accumulate_by"),
    ("performance", "clip_grad_norm"),
    ("performance", "clip_grad_value"),
    ("performance", "manual_optimization"),
    ("performance", "matmul_precision"),
    ("loss_weights_per_loader",),
    ("per_loader_optimizers", "lr_scale"),
)


class RunDirectory:
    """The directory of a run's checkpoints, as all ranks see it.

    Attributes:
        run: id of the run, which its checkpoints carry; None before it has one, or where its first checkpoint has none.
    """

    def __init__(self, config: TrainerConfig, ranks: SingleRank, manager: CheckpointManager) -> None:
        self.run: str | None = None
        self._has_run = False
        self._is_used = False
        self._config = config
        self._ranks = ranks
        self._manager = manager

    def find(
        self, source: str | None, *, is_new: bool, while_waiting: Callable[[], None]
    ) -> tuple[Checkpoint | None, bool]:
        """Reads the checkpoint to continue from, if there is one. A collective.

        Args:
            source: a checkpoint's path, ``"latest"``, or None: then only ``auto_resume``, in a run that is new.
            is_new: whether nothing was trained or loaded so far.
            while_waiting: called while the directory's lock is another's; may raise.

        Returns:
            The checkpoint, and whether it is the newest one of the directory rather than the one at ``source``.

        Raises:
            CheckpointError: there is no such checkpoint, or another run writes into the directory.
            ConfigError: ``source`` is no path, or the ranks don't see the same checkpoint.
        """
        if source is not None and not isinstance(source, (str, os.PathLike)):
            meant = "; did you mean 'latest'?" if source is True else ""
            raise ConfigError(f"resume_from must be 'latest' or a checkpoint's path, it is {source!r}{meant}")
        ranks, auto_resume = self._ranks, self._config.fault_tolerance.auto_resume
        self._is_used = ranks.broadcast_object(
            run_directory.is_used(self._config.checkpoint, auto_resume)
            or source == "latest"
            or self._config.preemption.max_time is not None
        )
        if self._is_used:
            run_directory.claim(self._manager, ranks, while_waiting, self._config.ddp.timeout_s)
        found = self._newest() if source == "latest" or (auto_resume and is_new) else None
        if found is None and source == "latest":
            raise CheckpointError(
                f"resume_from='latest': there is no checkpoint in {self._manager.root}; "
                "fault_tolerance.auto_resume=True begins from scratch then"
            )
        if found is not None and source not in (None, "latest"):
            warnings.warn(
                f"resume_from={str(source)!r} isn't used: under fault_tolerance.auto_resume this run continues "
                f"from its own newest checkpoint, {found.path}",
                stacklevel=user_level(),
            )
        is_own = found is not None
        if found is None and source is not None:
            # Rank 0 compares the files of sharded tensors with their hashes, for all ranks, before any rank uses them:
            # each rank doing so would read all of them as many times as there are ranks.
            found = checkpoint.read(source, verify_shards=ranks.rank == 0)
        if found is not None:
            # A rank that hasn't found it, or found it damaged, has raised; the same path may be another file elsewhere.
            ranks.require_equal("the checkpoint to resume from", {str(found.path): found.manifest.get("files")})
        return found, is_own

    def _newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of the directory. Rank 0 looks for it, and compares every file's checksum; the
        others read what they need of the same one."""
        ranks = self._ranks
        found = self._manager.load_latest() if ranks.rank == 0 else None
        path = ranks.broadcast_object(None if found is None else found.path)
        return checkpoint.read(path, verify_shards=False) if found is None and path is not None else found

    def newest_of_run(self) -> Checkpoint | None:
        """The newest valid checkpoint of the run that has begun. A collective."""
        found = self._newest()
        return None if found is None or found.manifest.get("run") != self.run else found

    def continue_run(self, run: str | None) -> None:
        """After a checkpoint of ``run`` was loaded: what is saved from here on belongs to the same run."""
        self.run, self._has_run = run, True

    def begin_run(self, num_updates: int) -> None:
        """Gives a fresh run an id, and names the checkpoints of other runs in its directory. A collective.

        Args:
            num_updates: updates of the run so far.
        """
        names: list[str] = []
        if self._ranks.rank == 0:
            with suppress(CheckpointError):  # a directory that can't be listed: the first save says so
                if not self._has_run:
                    self.run = secrets.token_hex(4)
                    found = self._manager.others(self.run)
                    if num_updates and found:  # load_state gave a state that doesn't say of which run it is
                        self.run = found[-1].run
                names = [other.name for other in self._manager.others(self.run)]
        self._has_run = True
        self.run, names = self._ranks.broadcast_object((self.run, names))
        self._manager.begin_run(self.run, names)
        if names and self._is_used and self._ranks.rank == 0:
            warnings.warn(
                f"checkpoint.root_dir: {self._manager.root} holds {len(names)} checkpoints of another run "
                f"({', '.join(names[-3:])}). They are neither counted nor deleted; to continue that run use "
                "fit(resume_from='latest'), else give each run a directory of its own",
                CheckpointWarning,
                stacklevel=user_level(),
            )


def arithmetic(config: TrainerConfig) -> dict[str, Any]:
    """What changes the last bits of results besides the state."""
    return {"num_threads": torch.get_num_threads(), "compile_model": config.performance.compile_model}


def require_of_a_trainer(found: Checkpoint) -> None:
    """Raises ``StateMismatch`` for a checkpoint that no trainer saved."""
    if not isinstance(found.state, Mapping) or not {"trainer", "loggers"} <= set(found.state):
        raise StateMismatch(f"{found.path}: is whole, but no Trainer saved it; checkpoint.read gives what it holds")


def warn_of_changes(found: Checkpoint, config: TrainerConfig) -> None:
    """Warns of each setting with which training continues differently than it would have."""
    for name, value in arithmetic(config).items():
        saved = found.manifest.get(name, value)
        if saved != value:
            warnings.warn(
                f"{found.path} was saved with {name}={saved}, here it is {value}: last bits may differ",
                stacklevel=user_level(),
            )
    described = config.describe()
    for place in _COURSE:
        there, here = _setting(found.manifest.get("config"), place), _setting(described, place)
        if there and there != here:
            warnings.warn(
                f"{found.path} was saved with {'.'.join(place)}={there[0]}, here it is {here[0]}: training "
                "continues with the new setting, and not as it would have",
                stacklevel=user_level(),
            )


def warn_if_unverifiable(found: Checkpoint, config: TrainerConfig, world_size: int) -> None:
    """``verify_deterministic_resume`` must not pass because there is nothing to compare."""
    multi = found.state["trainer"].get("multi")
    if not config.fault_tolerance.verify_deterministic_resume or multi is None or not found.manifest["step"]:
        return
    saved = 1 + len(found.state["trainer"].get("other_ranks", ()))
    if multi.get("last_batches") and saved == world_size:
        return
    reason = (
        f"{saved} ranks saved it, here are {world_size}"
        if multi.get("last_batches")
        else "it was saved without fault_tolerance.verify_deterministic_resume"
    )
    warnings.warn(
        f"{found.path} holds no hashes of batches that this run could fetch again, because {reason}: this resume "
        "is not verified, and there is nothing to do, because the next one will be",
        CheckpointWarning,
        stacklevel=user_level(),
    )


def _setting(config: Any, place: tuple[str, ...]) -> list[Any]:
    """A setting in a described configuration; empty where it has none of this name."""
    for name in place:
        if not isinstance(config, Mapping):
            return []
        if name == "lr_scale":  # of each loader whose rule has one
            config = {loader: scale for loader, rule in config.items() if (scale := rule.get(name, 1.0)) != 1.0}
        elif name in config:
            config = config[name]
        else:
            return []
    return [config]
