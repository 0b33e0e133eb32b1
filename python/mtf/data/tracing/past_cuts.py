"""How the samples of a mixture's sources were cut into batches before edits at a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mtf.data.sources.base import Source
from mtf.data.sources.rest_of_pass import PassCut, RestOfPass, cut_from, rest_from
from mtf.data.sources.row_loader import RowLoader
from mtf.errors import ConfigError

MAX_KEPT = 32
"""Edits of a source that a state remembers, the latest ones."""


@dataclass(frozen=True)
class PastCut:
    """What held for a source before a position.

    Attributes:
        epoch: Epoch of the edit.
        step: Its step in the epoch.
        cut: How a pass was cut before; None where that isn't known, or the data were others.
        rest: The pass that was finished otherwise than it began.
    """

    epoch: int
    step: int
    cut: PassCut | None = None
    rest: RestOfPass | None = None

    def to_list(self) -> list[Any]:
        """Plain data, for a state."""
        cut, rest = self.cut, self.rest
        return [self.epoch, self.step, cut and cut.to_list(), rest and rest.to_list()]


def followed_by(entries: Sequence[Any], cut: PastCut) -> list[Any]:
    """What a state says of a source's past, with one edit more."""
    kept = [*entries, cut.to_list()][-MAX_KEPT:]
    if len(kept) <= len(entries):
        kept[0] = PastCut(kept[0][0], kept[0][1]).to_list()
    return kept


class PastCuts:
    """What held for the sources of a mixture before edits.

    Args:
        cuts: By name, in the order of their positions.
    """

    def __init__(self, cuts: Mapping[str, Sequence[PastCut]] | None = None) -> None:
        self._cuts = {name: list(entries) for name, entries in (cuts or {}).items() if entries}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PastCuts:
        """Of a MultiLoader's state; an edit of which it doesn't say what held before is known as such."""
        schedule = state["schedule"]
        here = int(schedule["epoch"]), int(schedule["step"])
        found: dict[str, list[PastCut]] = {}
        for name, entries in state.get("past_cuts", {}).items():
            cuts = [PastCut(int(e), int(s), cut_from(cut), rest_from(rest)) for e, s, cut, rest in entries]
            found[name] = [cut for cut in cuts if (cut.epoch, cut.step) <= here]
        names = [source["name"] for source in schedule["setups"][schedule["tail"]["setup"]]["sources"]]
        for event in schedule["events"]:
            for rest in event.get("rests", ()):
                cuts = found.setdefault(names[rest["source"]], [])
                if not any((cut.epoch, cut.step) == (here[0], event["step"]) for cut in cuts):
                    cuts.append(PastCut(here[0], int(event["step"])))
                    cuts.sort(key=lambda cut: (cut.epoch, cut.step))
        return cls(found)

    def add(self, name: str, epoch: int, step: int) -> None:
        """Other data under the name from a position on."""
        self._cuts.setdefault(name, []).append(PastCut(epoch, step))

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data, for a state that has the sources ``names``."""
        return {name: [cut.to_list() for cut in self._cuts[name][-MAX_KEPT:]] for name in names if name in self._cuts}

    def source_at(self, name: str, source: Source, epoch: int, step: int) -> Source:
        """The source as it was at a step.

        Raises:
            ConfigError: That isn't known.
        """
        for cut in self._cuts.get(name, ()):
            if (epoch, step) < (cut.epoch, cut.step):
                if not isinstance(source, RowLoader):
                    return source  # it says itself what it was, or that it can't say
                if cut.cut is None:
                    raise ConfigError(
                        f"step {step} of epoch {epoch} can't be traced: source {name!r} had other data or other "
                        f"batches before step {cut.step} of epoch {cut.epoch}, and the state doesn't say which; ask "
                        "for a later step, or a checkpoint from before"
                    )
                return source.as_it_was(cut.cut, cut.rest)
        return source

    def parts(
        self, name: str, source: Source, epoch: int, end: int, count: Callable[[int], int]
    ) -> Iterator[tuple[int, int, Source]]:
        """The steps ``[begin, stop)`` of an epoch up to ``end``, part by part, and the source as it was in each.

        Args:
            name: Of the source.
            source: As it is now.
            epoch: The epoch.
            end: The step to stop before.
            count: Gives the batches drawn from it before a step, so that parts without one are left out.

        Raises:
            ConfigError: What the source was isn't known.
        """
        inner = {cut.step for cut in self._cuts.get(name, ()) if cut.epoch == epoch and 0 < cut.step < end}
        if not isinstance(source, RowLoader):
            inner = set()
        bounds = [0, *sorted(inner), end]
        for begin, stop in pairwise(bounds):
            if len(bounds) == 2 or count(begin) != count(stop):
                yield begin, stop, self.source_at(name, source, epoch, begin)
