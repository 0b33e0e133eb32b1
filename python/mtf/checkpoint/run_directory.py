"""Before the first update: one run per checkpoint folder, and one folder for all ranks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from mtf.call_site import user_level
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import CheckpointWarning, host_name
from mtf.config.checkpoint import CheckpointConfig
from mtf.distributed.ranks import SingleRank
from mtf.errors import CheckpointError, ConfigError

_SLICE_S = 5.0
_SEEN_WITHIN_S = 10.0
_POLL_S = 0.1


def is_used(config: CheckpointConfig, auto_resume: bool) -> bool:
    """Whether a run writes checkpoints by itself, or looks for those of an earlier start."""
    every = (config.save_every_n_steps, config.save_every_n_epochs, config.save_every_n_minutes)
    return auto_resume or config.save_at_end or config.save_best or any(value is not None for value in every)


def claim(directory: CheckpointManager, ranks: SingleRank, may_leave: Callable[[], None], timeout_s: float) -> None:
    """Takes the folder's lock on rank 0, and sees that every rank has the same folder. A collective.

    A run that was killed on another machine leaves a lock that counts as dead two minutes after its last heartbeat:
    so long this waits, and says so.

    Args:
        directory: the run's.
        ranks: those that train.
        may_leave: called between looks, on all ranks; raises on all where a signal has come. A collective.
        timeout_s: of the ranks' collectives, which the others wait in meanwhile.

    Raises:
        CheckpointError: on all ranks: another run writes there.
        ConfigError: on all ranks: the folder isn't shared; names the ranks that see another one, and their machines.
    """
    token, refusal = "", None
    is_told = False
    while True:
        waiting = None
        may_leave()
        if ranks.rank == 0:
            waiting = directory.waiting_for()
            if waiting is None:
                token, refusal = _try(directory)
            elif not is_told:
                is_told = True
                warnings.warn(
                    f"checkpoint.root_dir: {waiting}; set another folder if this run must not wait",
                    CheckpointWarning,
                    stacklevel=user_level(),
                )
        waiting, token, refusal = ranks.broadcast_object((waiting, token, refusal))
        if waiting is None:
            break
        time.sleep(min(_SLICE_S, timeout_s / 4) if ranks.rank == 0 else 0.0)
    if refusal is not None:
        raise CheckpointError(refusal)
    if token and ranks.world_size > 1:
        _require_shared(directory, ranks, token, timeout_s)


def _try(directory: CheckpointManager) -> tuple[str, str | None]:
    try:
        return directory.claim(), None
    except CheckpointError as error:
        return "", str(error)
    except OSError:
        return "", None  # the first save says what the system refuses


def _require_shared(directory: CheckpointManager, ranks: SingleRank, token: str, timeout_s: float) -> None:
    # A network file system may show an older state of a folder for some seconds.
    limit = time.monotonic() + min(_SEEN_WITHIN_S, timeout_s / 2)
    while not (sees := directory.seen_token() == token) and time.monotonic() < limit:
        time.sleep(_POLL_S)
    everywhere = ranks.gather((sees, host_name(), str(directory.root)))
    blind = [(rank, host, root) for rank, (seen, host, root) in enumerate(everywhere) if not seen]
    if not blind:
        return
    shown = ", ".join(f"rank {rank} on {host} (in {root})" for rank, host, root in blind[:8])
    more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
    raise ConfigError(
        f"checkpoint.root_dir must be one folder that all ranks share, but {shown}{more} can't see what rank 0 on "
        f"{everywhere[0][1]} has written in {everywhere[0][2]}: put it on a file system that all machines share"
    )
