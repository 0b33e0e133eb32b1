"""The meaning of a schedule, step by step and as slow as it likes: what the native core is compared with.

Nothing here is computed ahead. Each step asks whether the epoch is over, then who is next. Ends of passes of sources
of unknown length happen when they are asked for a batch that they don't have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

Draw = tuple[int, int, int]


@dataclass
class Spec:
    """A mixture. ``lengths[i] is None``: unknown to the schedule; ``true_lengths`` says what the source really has."""

    strategy: str
    policy: str
    lengths: list[int | None]
    true_lengths: list[int]
    cycle: bool = True
    burst: int = 1
    pattern: list[int] = field(default_factory=list)
    steps: int | None = None
    keep_going: bool | None = None
    removed: set[int] = field(default_factory=set)

    @property
    def continues(self) -> bool:
        return self.policy == "FIXED_NUM_STEPS" if self.keep_going is None else self.keep_going

    @property
    def active(self) -> list[int]:
        present = [i for i in range(len(self.lengths)) if i not in self.removed]
        return [i for i in present if i in self.pattern] if self.strategy == "ALTERNATING" else present


Edit = Callable[[Spec], Spec]


class Reference:
    """Walks through epochs; ``edits[(epoch, step)]`` are applied before the draw of that step."""

    def __init__(self, spec: Spec, edits: dict[tuple[int, int], list[Edit]] | None = None) -> None:
        self.spec = spec
        self.edits = edits or {}
        self.places = [(0, 0)] * len(spec.lengths)
        self.epoch = 0

    def run_epoch(self) -> Iterator[Draw]:
        n = len(self.spec.lengths)
        self.counts, self.round_counts, self.spent = [0] * n, [0] * n, [False] * n
        self.reset_turns()
        step = 0
        while True:
            for edit in self.edits.get((self.epoch, step), []):
                edited = edit(replace(self.spec, removed=set(self.spec.removed)))
                if edited == self.spec:
                    continue  # an edit that changes nothing is none: turns go on
                self.spec = edited
                new = len(self.spec.lengths) - len(self.places)
                self.places += [(0, 0)] * new
                self.counts += [0] * new
                self.round_counts += [0] * new
                self.spent += [False] * new
                self.reset_turns()
            source = self.next_source(step)
            if source is None:
                break
            pass_, batch = self.places[source]
            if batch == self.spec.lengths[source]:
                pass_, batch = pass_ + 1, 0
            yield source, pass_, batch
            self.places[source] = (pass_, batch + 1)
            self.counts[source] += 1
            self.round_counts[source] += 1
            step += 1
        self.num_steps = step
        for i, (pass_, batch) in enumerate(self.places):
            done = self.spent[i] or batch == self.spec.lengths[i]
            if done if self.spec.continues else batch > 0:
                self.places[i] = (pass_ + 1, 0)
        self.epoch += 1

    @property
    def drops_out(self) -> bool:
        return not self.spec.cycle and self.spec.policy != "MIN_LENGTH"

    def reset_turns(self) -> None:
        spec = self.spec
        self.entries = list(spec.pattern) if spec.strategy == "ALTERNATING" else list(spec.active)
        self.at, self.left = 0, spec.burst

    def is_alive(self, source: int) -> bool:
        length = self.spec.lengths[source]
        return not self.spent[source] and (length is None or self.places[source][1] < length)

    def next_source(self, step: int) -> int | None:
        """The source of this step; None when the epoch is over."""
        spec = self.spec
        while True:
            if spec.policy == "FIXED_NUM_STEPS" and step >= (spec.steps or 0):
                return None
            if spec.policy == "SUM_OF_LENGTHS" and spec.cycle:
                total = sum(spec.lengths[i] if i in spec.active else c for i, c in enumerate(self.counts))  # type: ignore[misc]
                if step >= total:
                    return None
            if self.ends_with_the_longest() and all(self.counts[i] >= spec.lengths[i] for i in spec.active):  # type: ignore[operator]
                return None
            source = self.peek()
            if source is None:
                return None
            if spec.policy == "MIN_LENGTH" and not self.is_alive(source):
                return None
            if self.has_batch(source):
                self.take()
                return source
            # The source is asked for a batch that it doesn't have: its pass ends here.
            if spec.policy == "MIN_LENGTH":
                self.spent[source] = True
                return None
            if self.drops_out:
                self.spent[source] = True
            else:
                self.places[source] = (self.places[source][0] + 1, 0)
                self.round_counts[source] = 10**9

    def ends_with_the_longest(self) -> bool:
        return self.spec.policy == "MAX_LENGTH" and self.spec.cycle and self.spec.strategy != "SEQUENTIAL"

    def has_batch(self, source: int) -> bool:
        return self.spec.lengths[source] is not None or self.places[source][1] < self.spec.true_lengths[source]

    def peek(self) -> int | None:
        spec = self.spec
        if spec.strategy == "SEQUENTIAL":
            return self.peek_block()
        if self.drops_out:
            if not any(self.is_alive(i) for i in self.entries):
                return None
            while not self.is_alive(self.entries[self.at]):
                self.at, self.left = (self.at + 1) % len(self.entries), spec.burst
        return self.entries[self.at]

    def take(self) -> None:
        if self.spec.strategy == "SEQUENTIAL":
            return
        self.left -= 1
        if self.left == 0:
            self.at, self.left = (self.at + 1) % len(self.entries), self.spec.burst

    def peek_block(self) -> int | None:
        spec = self.spec
        known = [spec.lengths[i] for i in spec.active]
        for _ in range(2):
            for i in spec.active:
                block = spec.lengths[i]
                if spec.policy == "MIN_LENGTH":
                    block = min(known)  # type: ignore[type-var]
                elif spec.policy == "MAX_LENGTH" and spec.cycle:
                    block = max(known)  # type: ignore[type-var]
                is_done = self.round_counts[i] >= (10**9 if block is None else block)
                if not is_done and (not self.drops_out or self.is_alive(i)):
                    return i
            if not (spec.policy == "FIXED_NUM_STEPS" and spec.cycle):
                return None
            self.round_counts = [0] * len(self.round_counts)
        return None
