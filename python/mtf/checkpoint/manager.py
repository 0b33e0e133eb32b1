"""The checkpoints of one run: named, locked, rotated, found again, written in the step or on a thread.

Imports no torch before the first save.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mtf.call_site import user_level
from mtf.checkpoint.async_writer import BackgroundWriter
from mtf.checkpoint.discovery import Candidate, T, best, is_better, metric_value, newest_valid, scan
from mtf.checkpoint.format.manifest import verify
from mtf.checkpoint.format.naming import NameTemplate
from mtf.checkpoint.policy import SavePolicy
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.object_transaction import ObjectTransaction
from mtf.checkpoint.storage.registry import open_storage, place_of
from mtf.checkpoint.storage.root import begin, open_root
from mtf.checkpoint.storage.signals import defer_signals
from mtf.checkpoint.storage.transaction import Transaction
from mtf.errors import CheckpointError, CheckpointIOError

if TYPE_CHECKING:
    from mtf.checkpoint.format.layout import Checkpoint, CheckpointPayload

AnyTransaction = Transaction | ObjectTransaction
Fill = Callable[[AnyTransaction], None]


class ManagerConfig(Protocol):
    """The fields that a manager reads; ``mtf.CheckpointConfig`` has them."""

    root_dir: str
    save_every_n_steps: int | None
    save_every_n_epochs: int | None
    save_every_n_minutes: float | None
    max_checkpoints: int | None
    keep_every_n_steps: int | None
    monitor_metric: str | None
    monitor_mode: Literal["min", "max"]
    asynchronous: bool
    filename_template: str


class CheckpointManager:
    """Saves into ``root_dir`` and finds what was saved there.

    Nothing is touched before the first save: then the directory is made, its lock taken, and what killed saves left
    behind is removed. Not thread-safe: the training loop's thread owns it.
    """

    def __init__(
        self,
        config: ManagerConfig,
        on_saved: Callable[[Path | str], None] | None = None,
        storage: Storage | None = None,
    ) -> None:
        """
        Args:
            config: where, under which names and how many.
            storage: in place of ``config.root_dir``.
            on_saved: called on the owner's thread with the path of each checkpoint once it is durable; for an
                asynchronous save that is in :meth:`poll`, :meth:`wait` or the next save.
        """
        self._root = open_root(config.root_dir if storage is None else storage)
        self.frequency = SavePolicy(config.save_every_n_steps, config.save_every_n_epochs, config.save_every_n_minutes)
        self.last_error: CheckpointError | None = None
        self._config = config
        self._template = NameTemplate(config.filename_template)
        self._on_saved = on_saved
        self._lock = self._root.storage.lock()
        self._writer = BackgroundWriter()
        self._sequence: int | None = None
        self._best_value: float | None = None
        self._damaged: set[str] = set()
        self._run: str | None = None
        self._has_run = False  # else every checkpoint in the directory is taken for the same run's
        self._taken: frozenset[str] = frozenset()
        self._finished: list[Storage] = []
        self._spare: CheckpointPayload | None = None

    def __repr__(self) -> str:
        """Where and when it saves."""
        return f"CheckpointManager({str(self.root)!r}, {self.frequency!r})"

    @property
    def root(self) -> Any:
        """The run's folder: a ``Path``, or a URL where it isn't on a file system."""
        return self._root.place

    # Runs

    def others(self, run: str | None) -> list[Candidate]:
        """The checkpoints in the directory that belong to other runs than ``run``, oldest first."""
        return [found for found in scan(self._root, self._template) if found.error is None and found.run != run]

    def begin_run(self, run: str | None, taken: Iterable[str]) -> None:
        """From now on saves belong to ``run``. Checkpoints of other runs are never counted, replaced or deleted.

        Args:
            run: its id; None: that of checkpoints without one.
            taken: names of the checkpoints of other runs.
        """
        if run != self._run or not self._has_run:
            self._best_value = self._sequence = None
        self._run, self._has_run = run, True
        self._taken = frozenset(taken)

    # Saving

    def folder_for(self, step: int, epoch: int) -> Storage:
        """Where the checkpoint after ``step`` updates goes: another name where another run has this one."""
        name = self._template.name(step, epoch)
        return self._root.folder(f"{name}-{self._run}" if name in self._taken else name)

    def path_for(self, step: int, epoch: int) -> Any:
        """As :meth:`folder_for`, as a ``Path`` or a URL."""
        return place_of(self.folder_for(step, epoch))

    def save(
        self,
        *,
        step: int,
        epoch: int,
        model: Mapping[str, Any],
        state_tree: Any,
        schedule: bytes,
        metrics: Mapping[str, float] | None = None,
        manifest: Mapping[str, Any] | None = None,
        required: bool = False,
    ) -> Any:
        """Saves a checkpoint under its template's name.

        Asynchronously this returns after the copy to host memory, having waited for the save before. That memory is
        kept for the next copy until :meth:`close`.

        Args:
            step: updates done.
            epoch: epoch that training continues in.
            model: the model's ``state_dict()``.
            state_tree: see :mod:`mtf.checkpoint.format.codec`.
            schedule: the native scheduler's bytes.
            metrics: newest metrics, for ``monitor_metric`` and for people.
            manifest: further members of the manifest.
            required: the run can't go on without this save: it is durable when this returns, and a failure is an error.

        Returns:
            The path (or URL), durable (synchronous) or under way (asynchronous); None if the system refused the write
            (disk full, no permission), which is reported by a warning: the run continues and older checkpoints stay.

        Raises:
            CheckpointError: another run holds the directory; the state holds something that no checkpoint holds; or,
                with ``required``, the write failed.
        """
        from mtf.checkpoint.format import layout

        self._settle(required=False)
        asynchronous = self._config.asynchronous and not required
        # The writer is idle now, so the copy before is free to be written over.
        payload = layout.CheckpointPayload.take(model, state_tree, schedule, copy=asynchronous, spare=self._spare)
        self._spare = payload if asynchronous else None
        fields = layout.manifest_fields(
            {"step": step, "epoch": epoch, "metrics": dict(metrics or {}), **(manifest or {})}
        )

        def fill(transaction: AnyTransaction) -> None:
            layout.fill(transaction, payload)

        return self._save(self.folder_for(step, epoch), fill, fields, asynchronous, required)

    def save_files(
        self,
        path: str | Path | Storage,
        fill: Fill,
        fields: Mapping[str, Any],
        *,
        asynchronous: bool = False,
        required: bool = False,
    ) -> Any:
        """Saves a checkpoint whose files ``fill`` writes, maybe on a thread; otherwise as :meth:`save`."""
        self._settle(required=False)
        return self._save(open_storage(path), fill, fields, asynchronous and not required, required)

    def _save(self, folder: Storage, fill: Fill, fields: Mapping[str, Any], asynchronous: bool, required: bool) -> Any:
        try:
            self._prepare()
        except OSError as error:
            self._fail(
                CheckpointIOError(f"{self.root}: checkpoints can't be written: {error.strerror or error}"), required
            )
            return None
        self._sequence = (self._sequence or 0) + 1
        fields = {**fields, "sequence": self._sequence, **({} if self._run is None else {"run": self._run})}
        value = metric_value(dict(fields.get("metrics") or {}), self._config.monitor_metric)
        if value is not None and is_better(value, self._best_value, self._config.monitor_mode):
            self._best_value = value

        def job() -> None:
            with begin(folder) as transaction:
                fill(transaction)
                transaction.commit(fields)
            self._finished.append(folder)
            self._tidy(folder)

        self.frequency.saved()
        if asynchronous:
            self._writer.submit(job)
            return place_of(folder)
        try:
            job()
        except CheckpointError as error:
            self._fail(error, required)
            return None
        finally:
            self._tell()
        return place_of(folder)

    def poll(self) -> None:
        """Tells of asynchronous saves that have finished meanwhile. Never waits."""
        if not self._writer.busy:
            self._settle(required=False)

    def wait(self, *, required: bool = False) -> None:
        """Returns when no save is under way.

        Raises:
            CheckpointError: with ``required``, the save under way failed.
        """
        self._settle(required=required)

    def close(self) -> None:
        """Waits for the save under way and gives the lock back. A later save takes it again. Idempotent."""
        try:
            self._settle(required=False)
        finally:
            with defer_signals():
                self._spare = None
                self._lock.release()

    def _settle(self, *, required: bool) -> None:
        try:
            self._writer.wait()
        except CheckpointError as error:
            self._fail(error, required)
        finally:
            self._tell()

    def _tell(self) -> None:
        while self._finished:
            saved = self._finished.pop(0)
            self.last_error = None
            if self._on_saved is not None:
                self._on_saved(place_of(saved))

    def _fail(self, error: CheckpointError, required: bool) -> None:
        self.last_error = error
        with contextlib.suppress(CheckpointError):  # a directory that can't be listed: `error` says it
            self._best_value = self._best_on_disk()
        if required or not isinstance(error, CheckpointIOError):
            raise error
        warnings.warn(
            f"{error}. The run continues; older checkpoints are still there.",
            local.CheckpointWarning,
            stacklevel=user_level(),
        )

    # The directory

    def waiting_for(self) -> str | None:
        """Why the directory can't be claimed yet, in words; None if :meth:`claim` should be called now.

        Raises:
            CheckpointIOError: the directory can't be read.
        """
        try:
            return self._lock.waiting_for()
        except OSError as error:
            raise CheckpointIOError(f"{self.root}: can't be read: {error}") from error

    def claim(self) -> str:
        """Makes the directory and takes its lock, which the first save does otherwise.

        Returns:
            The lock's token: what processes that share the directory find by :meth:`seen_token`.

        Raises:
            CheckpointError: another run holds it.
            OSError: the directory can't be written.
        """
        self._prepare()
        return self._lock.token

    def seen_token(self) -> str:
        """The token of the lock that is in the directory, whichever process holds it; empty where there is none."""
        return self._lock.holder_token()

    def _prepare(self) -> None:
        first = not self._lock.held
        self._lock.acquire()
        if first:
            self._root.clean()
        if first or self._sequence is None:
            candidates = scan(self._root, self._template)
            self._sequence = max((candidate.sequence for candidate in candidates), default=0)
            self._best_value = self._best_on_disk(candidates)

    def _tidy(self, newest: Storage) -> None:
        """After a commit: prunes and renews the links. What goes wrong here doesn't undo the save."""
        try:
            keep_all = self._config.max_checkpoints is None and self._config.monitor_metric is None
            candidates = [] if keep_all else scan(self._root, self._template)
            best_one = self._best(candidates)
            for candidate in self._superfluous(candidates, newest, best_one):
                self._root.remove(candidate.folder)
            parent, _, name = newest.url.rpartition("/")
            if parent == str(self.root):
                self._root.point("latest", name)
            if best_one is not None:
                self._root.point("best", best_one.name)
        except (OSError, CheckpointError) as error:
            warnings.warn(
                f"{self.root}: old checkpoints can't be tidied up: {error}. The new one is safe; remove the old ones",
                local.CheckpointWarning,
                stacklevel=user_level(),
            )

    def _superfluous(self, candidates: list[Candidate], newest: Storage, best_one: Candidate | None) -> list[Candidate]:
        if self._config.max_checkpoints is None:
            return []
        newest_name = newest.url.rpartition("/")[2]
        kept = {newest_name}
        if best_one is not None:
            # guard: best is kept
            kept.add(best_one.name)
        removed = []
        for candidate in reversed(candidates):
            # Damaged ones are evidence, and other names and runs are somebody else's: none is counted or touched.
            if (
                not self._may_rotate(candidate)
                or candidate.error is not None
                or candidate.name in (self._damaged - {newest_name})
            ):
                continue
            if candidate.name in kept:
                continue
            if len(kept) < self._config.max_checkpoints:
                kept.add(candidate.name)
            else:
                removed.append(candidate)
        return removed

    def _may_rotate(self, candidate: Candidate) -> bool:
        """Whether the run saved it by itself, and not to be kept for good."""
        every = self._config.keep_every_n_steps
        if every is not None and candidate.step > 0 and candidate.step % every == 0:
            return False
        return self._is_of_run(candidate) and (candidate.ours or candidate.name.endswith(f"-{self._run}"))

    def _is_of_run(self, candidate: Candidate) -> bool:
        return not self._has_run or candidate.run == self._run

    # Finding

    def latest(self) -> Any:
        """The newest checkpoint that passes every check; None if there are none at all.

        A damaged one is reported by a warning, kept, and the one before is taken.

        Raises:
            CheckpointError: there are checkpoints and none is valid.
        """

        def load(folder: Storage) -> Path | str:
            verify(folder)
            return place_of(folder)

        return self._newest(load)

    def load_latest(self) -> Checkpoint | None:
        """Like :meth:`latest`, but reads it."""
        from mtf.checkpoint.format import layout

        return self._newest(layout.read)

    def _newest(self, load: Callable[[Storage], T]) -> T | None:
        self._settle(required=False)
        result, damaged = newest_valid(scan(self._root, self._template), load)
        self._damaged.update(candidate.name for candidate in damaged)
        return result

    def best(self) -> Any:
        """The checkpoint with the best ``monitor_metric``, of equals the oldest; None if no checkpoint has it."""
        found = self._best(scan(self._root, self._template))
        return None if found is None else place_of(found.folder)

    def improves(self, metrics: Mapping[str, Any]) -> bool:
        """Whether these metrics are better than those of every checkpoint saved so far, also by earlier runs."""
        value = metric_value(dict(metrics), self._config.monitor_metric)
        if self._sequence is None and self._best_value is None:
            self._best_value = self._best_on_disk()
        return value is not None and is_better(value, self._best_value, self._config.monitor_mode)

    def _best(self, candidates: list[Candidate]) -> Candidate | None:
        usable = [c for c in candidates if c.name not in self._damaged and self._is_of_run(c)]
        return best(usable, self._config.monitor_metric, self._config.monitor_mode)

    def _best_on_disk(self, candidates: list[Candidate] | None = None) -> float | None:
        found = self._best(scan(self._root, self._template) if candidates is None else candidates)
        return None if found is None else metric_value(found.metrics, self._config.monitor_metric)
