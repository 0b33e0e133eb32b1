"""No row is drawn more often than its source's passes allow; the others take its share; a run ends alike."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

import mtf

LENGTHS = {"a": 400, "b": 30, "c": 120}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
ORDERS = ["EVEN", "SHUFFLED", "RANDOM"]


class Numbers(Dataset[int]):
    """Rows `offset`, `offset + 1` ..."""

    def __init__(self, offset: int, num: int) -> None:
        self.offset, self.num = offset, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> int:
        return self.offset + row


def data(kind: str = "arrays", lengths: dict[str, int] = LENGTHS) -> dict[str, Any]:
    offsets = {name: 1000 * number for number, name in enumerate(lengths)}
    if kind == "datasets":
        return {name: Numbers(offsets[name], num) for name, num in lengths.items()}
    return {name: torch.arange(num) + offsets[name] for name, num in lengths.items()}


def blend(kind: str = "arrays", lengths: dict[str, int] = LENGTHS, **options: Any) -> mtf.Blend:
    return mtf.Blend(
        data(kind, lengths),
        **{"weights": WEIGHTS, "global_batch_size": 10, "max_passes": {"b": 2}, "batches_per_pass": 9, **options},
    )


def read(source: mtf.Blend, most: int = 10_000) -> list[list[int]]:
    """Batches up to the end of the run, or `most`."""
    found: list[list[int]] = []
    while len(found) < most:
        before = len(found)
        for batch in source:
            found.append(batch.tolist())
            if len(found) == most:
                return found
        if len(found) == before:
            return found
    return found


when_spent = st.sampled_from(["others", "stop", "heir", "chain"])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    weights=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)),
    caps=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1),
    then=when_spent,
    order=st.sampled_from(ORDERS),
    size=st.integers(1, 12),
    curve=st.booleans(),
    ramp=st.booleans(),
    cut=st.integers(0, 40),
    world_size=st.integers(1, 3),
)
def test_rows_are_drawn_as_often_as_their_passes_allow_from_any_entry(
    lengths: Any,
    weights: Any,
    caps: Any,
    then: str,
    order: str,
    size: int,
    curve: bool,
    ramp: bool,
    cut: int,
    world_size: int,
) -> None:
    given_lengths = dict(zip("abc", lengths, strict=True))
    heirs = {"a": "c", "b": "c"} if then == "heir" else {"a": "b", "b": "c", "c": "a"}
    spent: Any = then if then in ("others", "stop") else {name: heirs[name] for name in caps if name in heirs}
    options: dict[str, Any] = {
        "order": order,
        "max_passes": caps,
        "when_spent": spent if spent else "others",
        "global_batch_size": [(0, size + 2), (5, 2 * size + 2)] if ramp else size + 2,
        "batches_per_pass": 5,
    }
    if curve:
        points = [(0, list(weights)), (6, [weights[2] + 1, weights[1], weights[0]])]
        options |= {"weights": None, "weight_curve": mtf.WeightCurve(points, "LINEAR", every=2)}
    else:
        options["weights"] = list(weights)

    whole = blend(lengths=given_lengths, **options)
    batches = read(whole, 60)
    drawn = Counter(x for batch in batches for x in batch)
    for number, (name, num) in enumerate(given_lengths.items()):
        rows = [drawn[1000 * number + row] for row in range(num)]
        assert max(rows) - min(rows) <= 1  # passes follow one another without a gap
        if name in caps:
            assert max(rows) <= caps[name]
    if len(batches) < 60:  # the run has ended: nothing more could be drawn
        numbers = [sum(drawn[1000 * n + row] for row in range(num)) for n, num in enumerate(given_lengths.values())]
        next_size = whole._sizes.size(len(batches))
        rest = [caps[name] * num - numbers[n] for n, (name, num) in enumerate(given_lengths.items()) if name in caps]
        assert min(rest) < next_size
        with pytest.raises(mtf.ConfigError, match=rf"there is no batch {len(batches)}: it has {len(batches)} batches"):
            whole.samples(len(batches))

    cut = min(cut, len(batches))
    head = blend(lengths=given_lengths, **options)
    assert read(head, cut) == batches[:cut] if cut else True
    tail = blend(lengths=given_lengths, **options)
    tail.load_state_dict(pickle.loads(pickle.dumps(head.state_dict())))
    assert read(tail, 60 - cut) == batches[cut:]
    assert read(blend("datasets", given_lengths, **options), 60) == batches

    if min(size + 2, 2 * size + 2) >= world_size:
        parts = [blend(lengths=given_lengths, **options).shard(rank, world_size) for rank in range(world_size)]
        of_ranks = [read(part, 60) for part in parts]
        assert [[row for part in parts_of for row in part] for parts_of in zip(*of_ranks, strict=True)] == batches


@pytest.mark.parametrize("order", ORDERS)
def test_the_others_take_the_share_in_proportion(order: str) -> None:
    source = blend(order=order)
    sources = np.concatenate([source.samples(step).source for step in range(2000)])
    last = int(np.flatnonzero(sources == 1)[-1])
    assert (sources == 1).sum() == 60
    after = np.bincount(sources[last + 1 :], minlength=3)
    wanted = len(sources[last + 1 :]) * np.array([5, 0, 2]) / 7
    assert np.abs(after - wanted).max() < {"EVEN": 2.5, "SHUFFLED": 10, "RANDOM": 200}[order]


@pytest.mark.parametrize("order", ORDERS)
def test_an_heir_takes_the_share_also_where_it_had_none(order: str) -> None:
    source = blend(order=order, weights=[0.5, 0.5, 0.0], when_spent={"b": "c"})
    sources = np.concatenate([source.samples(step).source for step in range(2000)])
    last = int(np.flatnonzero(sources == 1)[-1])
    assert (sources == 1).sum() == 60
    assert (sources == 2)[: last + 1].sum() == 0
    counts = np.bincount(sources, minlength=3)
    assert abs(counts[0] - 10_000) < {"EVEN": 2, "SHUFFLED": 10, "RANDOM": 300}[order]


def test_an_heir_gets_as_many_tokens() -> None:
    class Rows(mtf.RowSource):
        def __init__(self, num: int, tokens: float) -> None:
            self.num, self.tokens_per_row = num, tokens

        def num_rows(self) -> int:
            return self.num

        def row(self, pass_: int, place: int, key: int) -> int:
            return place

    rows = {"a": Rows(10**6, 100), "b": Rows(50, 50), "c": Rows(10**6, 10)}
    source = mtf.Blend(
        rows,
        {"a": 0.5, "b": 0.5, "c": 0.0},
        global_batch_size=50,
        weights_count="tokens",
        max_passes={"b": 1},
        when_spent={"b": "c"},
        order="EVEN",
    )
    sources = np.concatenate([source.samples(step).source for step in range(400)])
    after = np.bincount(sources[np.flatnonzero(sources == 1)[-1] + 1 :], minlength=3)
    assert abs(after[0] * 100 - after[2] * 10) < 300  # equal numbers of tokens, to three rows


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=4, unique=True).map(sorted),
    edits=st.dictionaries(st.integers(0, 39), st.sampled_from(["weights", "weight", "add", "remove"]), max_size=4),
    order=st.sampled_from(ORDERS),
    then=st.sampled_from(["others", {"b": "c"}]),
)
def test_edits_and_interruptions_in_any_order(cuts: list[int], edits: dict[int, str], order: str, then: Any) -> None:
    def make() -> mtf.Blend:
        more = {"more": lambda: torch.arange(9000, 9020), "b": lambda: data()["b"]}
        return blend(order=order, when_spent=then, source_factories=more)

    def edit(source: mtf.Blend, what: str) -> None:
        if what == "weights":
            source.update_weights([k + 1.0 for k in range(len(source.names))])
        elif what == "weight":
            source.set_weight("a", 3.0)
        elif what == "add" and "more" not in source.names:
            source.add_source("more", torch.arange(9000, 9020), weight=0.5, max_passes=1)
        elif what == "remove" and "b" in source.names:
            source.remove_source("b")
        elif what == "remove":
            source.add_source("b", data()["b"], weight=0.5, max_passes=2)

    def run(cuts: list[int]) -> list[int]:
        source, found, steps = make(), [], iter(())
        for step in range(40):
            if step in cuts:
                state = pickle.loads(pickle.dumps(source.state_dict()))
                source, steps = make(), iter(())
                source.load_state_dict(state)
            if step in edits:
                edit(source, edits[step])
            batch = next(steps, None)
            if batch is None:
                steps = iter(source)
                batch = next(steps)
            found += batch.tolist()
        return found

    rows = run([])
    assert run(cuts) == rows
    drawn = Counter(rows)
    assert max((drawn[1000 + row] for row in range(30)), default=0) <= 2
    assert max((drawn[9000 + row] for row in range(20)), default=0) <= 1


def test_a_far_sample_after_a_source_was_spent_is_the_same_from_a_state() -> None:
    for order in ("EVEN", "SHUFFLED"):
        source = blend(order=order, when_spent={"b": "c"}, lengths={**LENGTHS, "b": 1_000_000})
        far = 10**9 // 10
        rows = source.samples(far).row
        assert source.samples(far).part(0, 1).source.tolist().count(1) == 0
        source.set_weight("a", 0.7)
        again = blend(order=order, when_spent={"b": "c"}, lengths={**LENGTHS, "b": 1_000_000})
        state = pickle.loads(pickle.dumps(source.state_dict()))
        assert len(pickle.dumps(state)) < 6000
        again.load_state_dict(state)
        assert np.array_equal(again.samples(far).row, source.samples(far).row)
        assert not np.array_equal(rows, source.samples(far).row)


def test_random_continues_behind_its_saved_counts_without_drawing_from_the_start() -> None:
    """The state says where the run hands over and ends, so that nothing before it is drawn again."""
    source = blend(order="RANDOM", when_spent={"b": "c"})
    head = read(source, 50)
    state = source.state_dict()
    saved = state["run"]["schedule"]
    assert saved["version"] == 3
    assert saved["tail_change"] is None  # handed over before
    assert read(blend(order="RANDOM", when_spent={"b": "c"}), 50) == head
    early = blend(order="RANDOM", when_spent={"b": "c"})
    read(early, 3)
    change = early.state_dict()["run"]["schedule"]["tail_change"]
    counts = early._run.schedule.counts(change, 0)
    assert counts[1] == 60
    assert early._run.schedule.counts(change - 1, 0)[1] == 59


@pytest.mark.parametrize("kind", ["arrays", "datasets"])
def test_stop_ends_loops_mixtures_and_together(kind: str) -> None:
    options = {"when_spent": "stop", "order": "EVEN"}
    total = len(read(blend(kind, **options)))
    assert 15 < total < 22
    loader = mtf.MultiLoader({"b": blend(kind, **options)}, seed=1)
    found = [len(list(loader)) for _ in range(4)]
    assert sum(found) == total
    assert found[-1] == 0
    assert loader.why_over is not None
    assert "max_passes={'b': 2}" in loader.why_over
    again = mtf.MultiLoader({"b": blend(kind, **options)}, seed=1)
    again.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert list(again) == []
    assert again.why_over == loader.why_over
    both = mtf.MultiLoader(
        {"b": blend(kind, **options), "other": mtf.ArrayLoader(torch.arange(6), 1)},
        mtf.MultiDataLoaderConfig(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=1000),
        seed=1,
    )
    names = [batch.name for batch in both]
    assert names.count("b") == total
    together = mtf.Together({"b": blend(kind, **options), "other": mtf.ArrayLoader(torch.arange(6), 1)}, length=7)
    assert sum(len(list(together)) for _ in range(4)) == total
    inside = mtf.MultiLoader(
        {"t": mtf.Together({"b": blend(kind, **options), "other": mtf.ArrayLoader(torch.arange(6), 1)}, length=7)}
    )
    assert sum(len(list(inside)) for _ in range(4)) == total
    assert inside.why_over is not None


def test_stop_ends_training_like_a_finished_run(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    total = len(read(blend(when_spent="stop", order="EVEN")))

    def trainer(seen: list[int]) -> mtf.Trainer:
        model = torch.nn.Linear(1, 1)

        def step(trainer: Any, batch: Any, batch_idx: int, index: int, name: str) -> torch.Tensor:
            seen.append(len(batch))
            return model(batch[:, None].float() / 1000).square().mean()

        config = mtf.TrainerConfig(
            checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=4),
            logging=mtf.LoggingConfig(logger_type="none"),
        )
        return mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=1e-3), training_step=step)

    seen: list[int] = []
    first = trainer(seen)
    with caplog.at_level(logging.INFO, logger="mtf"):
        first.fit(blend(when_spent="stop", order="EVEN"), max_epochs=50)
    assert len(seen) == total == first.global_step
    assert f"training ends after update {total}: source 'dl0': it has" in caplog.text
    with pytest.warns(UserWarning, match="nothing to do: source 'dl0': it has"):
        first.fit(blend(when_spent="stop", order="EVEN"), max_epochs=50)
    resumed: list[int] = []
    second = trainer(resumed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        second.fit(blend(when_spent="stop", order="EVEN"), max_epochs=50, resume_from="latest")
    assert resumed == []
    assert any("nothing to do" in str(warning.message) for warning in said)


def test_other_caps_are_another_blend() -> None:
    state = blend().state_dict()
    for options in ({"max_passes": {"b": 3}}, {"max_passes": None}, {"when_spent": "stop"}, {"when_spent": {"b": "a"}}):
        with pytest.raises(mtf.StateMismatch, match="max_passes differ"):
            blend(**options).load_state_dict(state)
    with pytest.raises(mtf.StateMismatch, match="max_passes differ"):
        blend().load_state_dict(blend(max_passes=None).state_dict())


def test_the_plan_says_when_a_source_is_spent_and_why_the_run_ends() -> None:
    source = blend(order="EVEN", when_spent={"b": "c"})
    plan = source.plan(100)
    (spent,) = [s for s in plan.sources if s.name == "b"]
    assert spent.max_passes == 2
    assert spent.num_drawn == 60
    assert spent.spent_in is not None
    before = sum((source.samples(k).source == 1).sum() for k in range(spent.spent_in))
    assert before < 60 == before + (source.samples(spent.spent_in).source == 1).sum()
    assert plan.warnings == [f"'b' is spent after 2 passes, in batch {spent.spent_in}: 'c' takes its share"]
    assert plan.ends_because is None
    assert source.plan(spent.spent_in).sources[1].spent_in is None
    ending = blend(order="EVEN", when_spent="stop")
    total = len(read(blend(order="EVEN", when_spent="stop")))
    assert ending.plan(100).num_batches == total
    assert "then the run ends" in str(ending.plan(100))
    assert ending.plan(5, start=total).num_batches == 0
    assert str(ending.plan(5, start=total)).startswith(f"no batch from {total} on")


def test_views_end_with_the_run() -> None:
    source = blend(when_spent="stop", order="EVEN")
    total = len(read(blend(when_spent="stop", order="EVEN")))
    sampler = source.batch_sampler(micro_batch_size=5, rank=1, world_size=2)
    found = [positions for _ in range(4) for positions in sampler]
    assert len(found) == total
    dataset = source.dataset()
    assert [dataset[p] for p in found[-1]]
    with pytest.raises(IndexError, match="spent"):
        dataset[10 * total + 500]
    assert list(islice(sampler, 3)) == []


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"max_passes: there is no source 'bb'; did you mean 'b'\?", {"max_passes": {"bb": 1}}),
        (r"max_passes\['b'\] must be at least 1, but is 0", {"max_passes": {"b": 0}}),
        (r"max_passes\['b'\] must be a whole number of at least 1, but is 1.5", {"max_passes": {"b": 1.5}}),
        ("max_passes must be a dict", {"max_passes": 3}),
        (r'when_spent must be "others", "stop" or a dict', {"when_spent": "end"}),
        (r"when_spent: there is no source 'x'", {"when_spent": {"x": "a"}}),
        (r"when_spent\['b'\]: there is no source 'x'", {"when_spent": {"b": "x"}}),
        (r"when_spent\['a'\] has no effect: max_passes sets no number", {"when_spent": {"a": "b"}}),
        (r"when_spent\['b'\] must be another source", {"when_spent": {"b": "b"}}),
        ("has no effect without max_passes", {"max_passes": None, "when_spent": "stop"}),
    ],
)
def test_bad_caps_are_one_error_before_any_data_is_read(message: str, options: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        blend(**options)


def test_a_cap_needs_a_rule_for_the_blend() -> None:
    source = blend(max_passes=None)
    with pytest.raises(mtf.ConfigError, match="made without max_passes"):
        source.add_source("more", torch.arange(5), weight=1.0, max_passes=1)
    with pytest.raises(mtf.ConfigError, match=r"max_passes\['more'\]"):
        blend().add_source("more", torch.arange(5), weight=1.0, max_passes=0)
