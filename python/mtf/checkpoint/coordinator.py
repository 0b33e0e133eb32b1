"""Writing a checkpoint of all ranks: rank 0 writes what all have, and each its pieces where the model is sharded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtf.call_site import user_level
from mtf.checkpoint import CheckpointManager
from mtf.checkpoint.async_writer import BackgroundWriter
from mtf.checkpoint.format import layout
from mtf.checkpoint.format.layout import Checkpoint
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.checkpoint.storage.object_transaction import ObjectTransaction
from mtf.checkpoint.storage.registry import open_storage, place_of
from mtf.checkpoint.storage.root import begin
from mtf.checkpoint.storage.transaction import Transaction
from mtf.config.trainer import TrainerConfig
from mtf.distributed.ranks import SingleRank
from mtf.errors import CheckpointError, CheckpointIOError
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    from mtf.checkpoint.sharded import Allocate, Pieces, SaveCoordinator

_FIELDS = ("step", "epoch", "metrics")


class RankCheckpointer:
    """Writes what every rank has collected.

    Args:
        manager: of the run's directory; only rank 0's is used for saving.
        ranks: those that save.
        config: its ``checkpoint.asynchronous`` and ``ddp.timeout_s`` are read at each save.
    """

    def __init__(self, manager: CheckpointManager, ranks: SingleRank, config: TrainerConfig) -> None:
        self._manager = manager
        self._ranks = ranks
        self._config = config
        self._writer = BackgroundWriter()

    def in_root(self, parts: dict[str, Any], *, required: bool) -> Any:
        """Saves under the template's name; see ``CheckpointManager.save``. With ``required`` it is durable, and its
        failure is an error, on all ranks when this returns."""
        folder = self._manager.folder_for(parts["step"], parts["epoch"])
        path = place_of(folder)
        if self._ranks.is_sharded:
            path = self._sharded(folder, parts, required=required)
        elif self._ranks.rank == 0:
            path = self._manager.save(**parts, required=required)
        return self._outcome(path) if required else path

    def to_path(self, path: str | Path, parts: dict[str, Any], tell: Callable[[Any], None], *, required: bool) -> None:
        """Saves under a name that the user gave; durable on all ranks when this returns. Without ``required`` a write
        that the system refuses (a full disk) is a warning, except where the model is sharded."""
        if self._ranks.is_sharded:
            self._sharded(open_storage(path), parts, required=True, tell=tell)
        elif self._ranks.rank == 0:
            contents = {name: parts[name] for name in ("model", "state_tree", "schedule")}
            try:
                written = layout.write(path, manifest=_manifest(parts), **contents)
            except CheckpointError as error:
                if required or not isinstance(error, CheckpointIOError):
                    raise
                warnings.warn(
                    f"{error}. The run continues; the checkpoint that was asked for isn't there.",
                    CheckpointWarning,
                    stacklevel=user_level(),
                )
            else:
                tell(written)
        self._outcome(path)

    def state_of(self, found: Checkpoint) -> dict[str, Any]:
        """The trainer's tree in a checkpoint that was read; sharded tensors as this trainer wants them."""
        from mtf.checkpoint import sharded

        tree = {**found.state["trainer"], "model": found.model}
        if tree["multi"] is not None:
            tree["multi"] = {**tree["multi"], "schedule": Schedule.from_bytes(found.schedule).state_dict()}
        if not sharded.holds_pieces(found.manifest):
            return tree
        tree["model"] = {**found.model, **found.state["sharded_model"]}
        result: dict[str, Any] = sharded.put_together(tree, open_storage(found.path), found.manifest, self._allocator())
        return result

    def wait(self) -> None:
        """Returns when this rank writes nothing any more."""
        try:
            self._writer.wait()
        except CheckpointError as error:
            warnings.warn(
                f"{error}. The run continues; older checkpoints are still there.",
                CheckpointWarning,
                stacklevel=user_level(),
            )

    def _outcome(self, result: Any) -> Any:
        """Returns on every rank when rank 0 is here. One that failed never comes, and is named by the others."""
        return self._ranks.broadcast_object(result)

    def _sharded(
        self,
        folder: Storage,
        parts: dict[str, Any],
        *,
        required: bool,
        tell: Callable[[Any], None] | None = None,
    ) -> Any:
        from mtf.checkpoint import sharded
        from mtf.distributed import process_group
        from mtf.distributed.ranks import MultiRank

        ranks = self._ranks
        assert isinstance(ranks, MultiRank)
        asynchronous = self._config.checkpoint.asynchronous and not required
        self.wait()
        ranks.group.num_saves += 1
        whole = {"model": parts["model"], "state": parts["state_tree"]}
        tree, pieces = sharded.split_shards(whole, copy=asynchronous)
        meeting = sharded.SaveCoordinator(
            ranks.group.store,
            ranks.group.num_saves,
            ranks.rank,
            ranks.world_size,
            self._config.ddp.timeout_s,
            process_group.is_broken,
        )
        if ranks.rank == 0:
            return self._lead(folder, parts, tree, pieces, meeting, asynchronous, required, tell)
        if asynchronous:
            self._writer.submit(lambda: meeting.follow(folder, pieces))
        elif required:
            meeting.follow(folder, pieces)
        else:
            self._writer.submit(lambda: meeting.follow(folder, pieces))
            self.wait()
        return place_of(folder)

    def _lead(
        self,
        folder: Storage,
        parts: Mapping[str, Any],
        tree: dict[str, Any],
        pieces: Pieces,
        meeting: SaveCoordinator,
        asynchronous: bool,
        required: bool,
        tell: Callable[[Any], None] | None,
    ) -> Any:
        model = {name: value for name, value in tree["model"].items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in tree["model"].items() if name not in model}
        state = {**tree["state"], "sharded_model": rest}
        payload = layout.CheckpointPayload.take(model, state, parts["schedule"], copy=asynchronous)
        fields = layout.manifest_fields(_manifest(parts))

        def fill(transaction: Transaction | ObjectTransaction) -> None:
            meeting.lead(transaction, pieces)
            layout.fill(transaction, payload)

        try:
            if tell is None:
                return self._manager.save_files(folder, fill, fields, asynchronous=asynchronous, required=required)
            with begin(folder) as transaction:
                fill(transaction)
                transaction.commit(fields)
            tell(place_of(folder))
            return place_of(folder)
        finally:
            if not asynchronous:
                meeting.give_up()

    def _allocator(self) -> Callable[[str], Allocate]:
        """Sharded as the trainer's model is, or whole where it isn't."""
        from torch.distributed import tensor as dtensor

        from mtf.distributed.fsdp import FSDPStrategy

        strategy = getattr(self._ranks, "strategy", None)
        if not isinstance(strategy, FSDPStrategy):
            return lambda name: lambda shape, dtype: torch.zeros(shape, dtype=dtype)
        mesh = strategy.mesh

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            placement = dtensor.Shard(0) if shape else dtensor.Replicate()
            return dtensor.zeros(*shape, dtype=dtype, device_mesh=mesh, placements=[placement])

        return lambda name: allocate


def _manifest(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: parts[name] for name in _FIELDS}, **parts["manifest"]}
