"""The native schedule against the slow reference: exhaustive small mixtures, and generated ones with edits and cuts."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_schedule import Draw, Edit, Reference, Spec

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import EpochLengthPolicy, SamplingStrategy
from mtf.schedule.schedule import Schedule

POLICIES = ["SUM_OF_LENGTHS", "MAX_LENGTH", "MIN_LENGTH", "FIXED_NUM_STEPS"]
MAX_STEPS = 400


def make(spec: Spec, seed: int = 0) -> Schedule:
    config = MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy[spec.strategy],
        epoch_length_policy=EpochLengthPolicy[spec.policy],
        alternating_pattern=spec.pattern or None,
        burst_size=spec.burst,
        steps_per_epoch=spec.steps,
        cycle_short_loaders=spec.cycle,
        continue_across_epochs=spec.keep_going,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Schedule(config, spec.lengths, seed)


def step_once(schedule: Schedule, true_lengths: list[int]) -> Draw | None:
    """One step as a loop over real loaders takes it: ends of passes are reported when a source has no more batches."""
    while True:
        sources, passes, batches = schedule.draws(1)
        if len(sources) == 0:
            return None
        source, batch = int(sources[0]), int(batches[0])
        if schedule.lengths[source] is not None or batch < true_lengths[source]:
            schedule.advance(1)
            return source, int(passes[0]), batch
        schedule.end_pass(source, batch)


def run_epoch(schedule: Schedule, true_lengths: list[int]) -> list[Draw]:
    out = []
    while (draw := step_once(schedule, true_lengths)) is not None:
        out.append(draw)
        assert len(out) <= MAX_STEPS
    assert schedule.epoch_done
    assert schedule.num_steps() == len(out)
    schedule.next_epoch()
    return out


def small_specs() -> Any:
    for strategy, policy, cycle, burst, going in itertools.product(
        ["ROUND_ROBIN", "ALTERNATING", "SEQUENTIAL"], POLICIES, [True, False], [1, 2, 3], [None, True]
    ):
        for lengths in ([3, 5], [4, 1, 2], [2], [None, 3], [2, None, None]):
            unknown = None in lengths
            needs = cycle and policy in ("SUM_OF_LENGTHS", "MAX_LENGTH")
            if unknown and (needs or (strategy == "SEQUENTIAL" and policy == "MIN_LENGTH")):
                continue
            patterns: list[list[int]] = [[]]
            if strategy == "ALTERNATING":
                patterns = [p for p in ([0, 0, 1], [1, 0, 2, 0], [0]) if max(p) < len(lengths)]
            for pattern in patterns:
                yield Spec(
                    strategy,
                    policy,
                    list(lengths),
                    [2 if length is None else length for length in lengths],
                    cycle,
                    burst,
                    pattern,
                    17 if policy == "FIXED_NUM_STEPS" else None,
                    going,
                )


def test_every_small_mixture() -> None:
    num_specs = 0
    for spec in small_specs():
        reference, schedule = Reference(spec), make(spec)
        for _ in range(3):
            expected = list(reference.run_epoch())
            assert run_epoch(schedule, spec.true_lengths) == expected, spec
        num_specs += 1
    assert num_specs > 400


@st.composite
def specs(draw: st.DrawFn, strategies: list[str]) -> Spec:
    n = draw(st.integers(1, 4))
    policy = draw(st.sampled_from(POLICIES))
    strategy = draw(st.sampled_from(strategies))
    cycle = draw(st.booleans())
    true_lengths = draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))
    lengths: list[int | None] = list(true_lengths)
    known_only = (cycle and policy in ("SUM_OF_LENGTHS", "MAX_LENGTH")) or (
        strategy == "SEQUENTIAL" and policy == "MIN_LENGTH"
    )
    if not known_only:
        lengths = [None if draw(st.booleans()) else length for length in lengths]
    pattern = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)) if strategy == "ALTERNATING" else []
    steps = draw(st.integers(1, 30)) if policy == "FIXED_NUM_STEPS" else None
    going = draw(st.sampled_from([None, True, False]))
    return Spec(strategy, policy, lengths, true_lengths, cycle, draw(st.integers(1, 4)), pattern, steps, going)


def add(length: int) -> tuple[Edit, Any]:
    def reference(spec: Spec) -> Spec:
        spec.lengths = [*spec.lengths, length]
        spec.true_lengths = [*spec.true_lengths, length]
        return spec

    return reference, lambda s: s.add_source(f"new{len(s.names)}", length)


def remove(index: int) -> tuple[Edit, Any]:
    """Removes a source where this leaves one; else does nothing."""

    def allowed(present: list[int], pattern: list[int]) -> bool:
        return index in present and len(present) > 1 and (not pattern or any(p != index for p in pattern))

    def reference(spec: Spec) -> Spec:
        present = [i for i in range(len(spec.lengths)) if i not in spec.removed]
        if allowed(present, spec.pattern):
            spec.removed.add(index)
            spec.pattern = [p for p in spec.pattern if p != index]
        return spec

    def native(s: Schedule) -> None:
        present = [i for i, here in enumerate(s.present) if here]
        if allowed(present, s.mixture.pattern):
            s.remove_source(s.names[index])

    return reference, native


def change(strategy: str, burst: int) -> tuple[Edit, Any]:
    def reference(spec: Spec) -> Spec:
        spec.strategy, spec.burst = strategy, burst
        return spec

    return reference, lambda s: s.set_strategy(strategy, burst_size=burst)


EDITS = st.one_of(
    st.integers(1, 5).map(add),
    st.integers(0, 4).map(remove),
    st.tuples(st.sampled_from(["ROUND_ROBIN", "SEQUENTIAL"]), st.integers(1, 3)).map(lambda a: change(*a)),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_edits_and_cuts(data: st.DataObject) -> None:
    """Edited schedules follow the reference, and a state taken anywhere continues exactly."""
    spec = data.draw(specs(["ROUND_ROBIN", "ALTERNATING", "SEQUENTIAL"]))
    at = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12), EDITS), max_size=4))
    if None in spec.lengths and spec.policy == "MIN_LENGTH":
        at = []  # SEQUENTIAL could not find the shortest
    edits: dict[tuple[int, int], list[Edit]] = {}
    natives: dict[tuple[int, int], list[Any]] = {}
    for epoch, step, (reference_edit, native_edit) in at:
        edits.setdefault((epoch, step), []).append(reference_edit)
        natives.setdefault((epoch, step), []).append(native_edit)
    cuts = data.draw(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=4))

    reference, schedule = Reference(spec, edits), make(spec)
    for epoch in range(3):
        expected = list(reference.run_epoch())
        got: list[Draw] = []
        while True:
            for edit in natives.get((epoch, len(got)), []):
                edit(schedule)
            if (epoch, len(got)) in cuts:
                other = make(spec)
                if len(got) % 2:
                    other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
                else:
                    other = Schedule.from_bytes(schedule.to_bytes())
                assert other.state_dict() == schedule.state_dict()
                assert other.fingerprint() == schedule.fingerprint()
                schedule = other
            draw = step_once(schedule, reference.spec.true_lengths)
            if draw is None:
                break
            got.append(draw)
            assert len(got) <= MAX_STEPS
        assert got == expected
        check_views(schedule, epoch, got)
        schedule.next_epoch()


def check_views(schedule: Schedule, epoch: int, draws: list[Draw]) -> None:
    """All ways to look at an epoch show the same."""
    num_steps = schedule.num_steps(epoch)
    assert num_steps == len(draws)
    sources = schedule.sources(epoch)
    assert sources.tolist() == [source for source, _, _ in draws]
    n = len(schedule.names)
    for step in range(num_steps + 1):
        assert schedule.counts(step, epoch).tolist()[:n] == np.bincount(sources[:step], minlength=n).tolist()
    for step, (source, pass_, batch) in enumerate(draws):
        seen = schedule.at(step, epoch)
        assert (seen.step, seen.source, seen.pass_, seen.batch) == (step, source, pass_, batch)
        assert seen.name == schedule.names[source]
    for size in (1, 3, 7):
        chunks = [schedule.sources(epoch, k, k + size) for k in range(0, num_steps, size)]
        assert np.array_equal(np.concatenate([*chunks, np.empty(0, np.int32)]), sources)


WEIGHTS = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0, 1 / 3]), min_size=4, max_size=4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_weighted_mixtures(data: st.DataObject) -> None:
    """What the weights don't decide: policies, places, edits, cuts; the order itself has tests of its own."""
    spec = data.draw(specs(["ROUND_ROBIN"]))
    n = len(spec.lengths)

    def weights() -> list[float]:
        drawn = data.draw(WEIGHTS)[: len(schedule.names)] if schedule is not None else data.draw(WEIGHTS)[:n]
        return drawn if any(drawn) else [1.0] * len(drawn)

    schedule: Schedule | None = None
    config = MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.WEIGHTED,
        dataloader_weights=weights(),
        weighted_order=data.draw(st.sampled_from(["RANDOM", "SHUFFLED", "EVEN"])),
        burst_size=spec.burst,
        epoch_length_policy=EpochLengthPolicy[spec.policy],
        steps_per_epoch=spec.steps,
        cycle_short_loaders=spec.cycle,
        continue_across_epochs=spec.keep_going,
    )
    seed = data.draw(st.integers(0, 2**64 - 1))
    schedule = Schedule(config, spec.lengths, seed)
    shadow = Schedule(config, spec.lengths, seed)
    for epoch in range(2):
        got: list[Draw] = []
        edit_at = data.draw(st.integers(0, 20))
        cut_at = data.draw(st.integers(0, 20))
        start = list(schedule.start_counts)
        while True:
            if len(got) == edit_at:
                new = weights()
                schedule.update_weights(new)
                shadow.update_weights(new)
            if len(got) == cut_at:
                fresh = Schedule(config, spec.lengths, seed)
                fresh.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
                schedule = fresh
            draw = step_once(schedule, spec.true_lengths)
            assert draw == step_once(shadow, spec.true_lengths)
            if draw is None:
                break
            got.append(draw)
            assert len(got) <= MAX_STEPS
        check_views(schedule, epoch, got)
        check_places(start, got, spec)
        schedule.next_epoch()
        shadow.next_epoch()


def check_places(start: list[tuple[int, int]], draws: list[Draw], spec: Spec) -> None:
    """Each source gives the batches of its passes in order, none twice, none left out."""
    for i, place in enumerate(start):
        at = place
        for source, pass_, batch in draws:
            if source == i:
                if at[1] == spec.true_lengths[i]:
                    at = (at[0] + 1, 0)
                assert (pass_, batch) == at
                at = (at[0], at[1] + 1)
