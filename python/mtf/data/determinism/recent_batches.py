"""Remembers what the last batches of every source were, so that a resume can tell whether a source is deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from mtf.data.determinism.content_hash import content_hash
from mtf.data.prefetch.native_reader import NativeReader
from mtf.data.prefetch.source_reader import PassEnded, SourceReader
from mtf.data.sources.base import ResumeMode, Snapshot
from mtf.errors import SourceError

_BLOCK = 4  # at most twice as many batches of a source are remembered, and one more than this at least


@dataclass(frozen=True)
class BatchRecord:
    """One batch of a source.

    Attributes:
        pass_: its pass.
        batch: its number in the pass.
        digest: hash of its content, as the loader gave it.
        before: state of the source before it, for sources that have one; only of the first batch of each block.
    """

    pass_: int
    batch: int
    digest: str
    before: Snapshot | None


class RecentBatches:
    """The last five to eight batches of every source, in what was committed and in what wasn't yet.

    A batch is hashed when it is handed out, before anything can change it. That reads it once. Batches come and go in
    blocks, so that two states of a source are held, however large they are, and none has to be made for the purpose.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[BatchRecord, ...]] = {}
        self._committed: dict[str, tuple[BatchRecord, ...]] | None = None

    def note(self, name: str, pass_: int, batch: int, data: Any, before: Snapshot | None) -> None:
        """A batch was handed out."""
        seen = self._seen.get(name, ())
        if len(seen) == 2 * _BLOCK:
            seen = seen[_BLOCK:]
        kept = before if len(seen) % _BLOCK == 0 else None
        self._seen[name] = (*seen, BatchRecord(pass_, batch, content_hash(data), kept))

    def forget(self, name: str, *, is_committed: bool) -> None:
        """The source was removed; another one may get its name. ``is_committed``: and that is state already."""
        self._seen.pop(name, None)
        if is_committed and self._committed is not None:
            self._committed.pop(name, None)

    def commit(self) -> None:
        """What was handed out so far is state."""
        self._committed = dict(self._seen)

    def state_dict(self) -> dict[str, Any]:
        """By source, its batches from the oldest on: pass, batch, hash, and the snapshot before it."""
        seen = self._seen if self._committed is None else self._committed
        return {
            name: [{"pass": s.pass_, "batch": s.batch, "hash": s.digest, "before": to_dict(s.before)} for s in batches]
            for name, batches in seen.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state."""
        self._committed = None
        self._seen = {
            name: tuple(BatchRecord(e["pass"], e["batch"], e["hash"], from_dict(e["before"])) for e in entries)
            for name, entries in state.items()
        }

    def check(self, readers: Mapping[str, SourceReader | NativeReader]) -> None:
        """Fetches every remembered batch again. The readers stand somewhere else afterwards.

        Raises:
            SourceError: sources gave something else than before; names each, and the first batch that differs.
        """
        found = {name: _difference(seen, readers[name]) for name, seen in self._seen.items() if name in readers}
        wrong = [f"loader {name!r}, {difference}" for name, difference in found.items() if difference]
        if wrong:
            raise SourceError(
                "not deterministic, so the training wouldn't continue as it was (mtf.check_source says why):\n  "
                + "\n  ".join(wrong)
            )


def _difference(seen: Sequence[BatchRecord], reader: SourceReader | NativeReader) -> str:
    """The first batch of ``seen`` that is another now; empty where all are the same."""
    if isinstance(reader, SourceReader):
        if reader.source.resume_mode is ResumeMode.STATEFUL:
            # Those read while the loader was new: it can't go back there. The resume itself compares the last of them.
            seen = list(dropwhile(lambda one: one.before is None or one.before.data is None, seen))
            if not seen:
                return ""
        reader.snapshot = seen[0].before
    try:
        for one in seen:
            place = f"pass {one.pass_}, batch {one.batch}"
            try:
                digest = content_hash(reader.take(one.pass_, one.batch))
                reader.pending_batch = None
            except PassEnded as ended:
                return f"{place}: the pass now has {ended.num_batches} batches only"
            if digest != one.digest:
                return f"{place}: its content is another: SHA-256 was {one.digest[:12]}, is {digest[:12]}"
        return ""
    finally:
        reader.discard()
        if isinstance(reader, SourceReader):
            reader.overruns.clear()  # told when it was first met


def to_dict(snapshot: Snapshot | None) -> dict[str, Any] | None:
    """A snapshot as plain data."""
    if snapshot is None:
        return None
    digest = {} if snapshot.digest is None else {"digest": snapshot.digest}
    entry = {"pass": snapshot.pass_, "batch": snapshot.batch, "state": snapshot.data, "ended": snapshot.ended, **digest}
    return {**entry, "global": True} if snapshot.is_global else entry


def from_dict(entry: Mapping[str, Any] | None) -> Snapshot | None:
    """A snapshot from plain data."""
    if entry is None:
        return None
    is_global = bool(entry.get("global"))
    return Snapshot(entry["pass"], entry["batch"], entry["state"], entry["ended"], entry.get("digest"), is_global)
