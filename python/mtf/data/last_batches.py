"""Remembers what the last batches of every source were, so that a resume can tell whether a source is deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtf.data.content_hash import content_hash
from mtf.data.native_reader import NativeReader
from mtf.data.reader import PassEnded, Reader
from mtf.data.source import Snapshot
from mtf.errors import SourceError


@dataclass(frozen=True)
class Seen:
    """One batch of a source.

    Attributes:
        pass_: its pass.
        batch: its number in the pass.
        digest: hash of its content, as the loader gave it.
        before: state of the source before it, for sources that have one.
    """

    pass_: int
    batch: int
    digest: str
    before: Snapshot | None


class LastBatches:
    """The last batch of every source, in what was committed and in what wasn't yet.

    A batch is hashed when it is handed out, before anything can change it. That reads it once.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._committed: dict[str, Seen] | None = None

    def note(self, name: str, pass_: int, batch: int, data: Any, before: Snapshot | None) -> None:
        """A batch was handed out."""
        self._seen[name] = Seen(pass_, batch, content_hash(data), before)

    def commit(self) -> None:
        """What was handed out so far is state."""
        self._committed = dict(self._seen)

    def state_dict(self) -> dict[str, Any]:
        """By source: pass, batch, hash, and the snapshot before it."""
        seen = self._seen if self._committed is None else self._committed
        return {
            name: {"pass": s.pass_, "batch": s.batch, "hash": s.digest, "before": to_dict(s.before)}
            for name, s in seen.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self._committed = None
        self._seen = {
            name: Seen(entry["pass"], entry["batch"], entry["hash"], from_dict(entry["before"]))
            for name, entry in state.items()
        }

    def check(self, readers: Mapping[str, Reader | NativeReader]) -> None:
        """Fetches every remembered batch again. The readers stand somewhere else afterwards.

        Raises:
            SourceError: sources gave something else than before; names each.
        """
        wrong = []
        for name, seen in self._seen.items():
            if name in readers and (found := _difference(seen, readers[name])):
                wrong.append(f"loader {name!r}, pass {seen.pass_}, batch {seen.batch}: {found}")
        if wrong:
            raise SourceError(
                "not deterministic, so the training wouldn't go on as it was (mtf.check_source says why):\n  "
                + "\n  ".join(wrong)
            )


def _difference(seen: Seen, reader: Reader | NativeReader) -> str:
    if isinstance(reader, Reader):
        reader.snapshot = seen.before
    try:
        digest = content_hash(reader.take(seen.pass_, seen.batch))
    except PassEnded as ended:
        return f"the pass now has {ended.num_batches} batches only"
    finally:
        reader.discard()
    return "" if digest == seen.digest else f"its content is another: SHA-256 was {seen.digest[:12]}, is {digest[:12]}"


def to_dict(snapshot: Snapshot | None) -> dict[str, Any] | None:
    """A snapshot as plain data."""
    if snapshot is None:
        return None
    return {"pass": snapshot.pass_, "batch": snapshot.batch, "state": snapshot.data, "ended": snapshot.ended}


def from_dict(entry: Mapping[str, Any] | None) -> Snapshot | None:
    """A snapshot from plain data."""
    if entry is None:
        return None
    return Snapshot(entry["pass"], entry["batch"], entry["state"], entry["ended"])
