"""Shares of a blend are of rows, of tokens, or of the labels that a loss counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mtf
from mtf.data.blend.weights_count import RowWeights


def token_sources() -> dict[str, Any]:
    """Full rows, rows that are two thirds full, and full rows of short documents."""
    rng = np.random.default_rng(0)
    full = mtf.TokenCorpus(rng.integers(1, 99, 64 * 300), documents=np.arange(0, 64 * 300 + 1, 64))
    part = mtf.TokenCorpus(rng.integers(1, 99, 43 * 300), documents=np.arange(0, 43 * 300 + 1, 43))
    short = mtf.TokenCorpus(rng.integers(1, 99, 4 * 3000), documents=np.arange(0, 4 * 3000 + 1, 4))
    return {"full": full.packed(64), "part": part.packed(64), "short": short.packed(64)}


def counted(blend: mtf.Blend, batches: int, kind: str) -> dict[str, float]:
    """Shares of the first batches, from the batches themselves."""
    names = list(blend.names)
    sums = dict.fromkeys(names, 0.0)
    stream = iter(blend)
    for number in range(batches):
        batch = next(stream)
        labels, inputs = batch["loss_mask"].sum(1), (batch["input_ids"] != 0).sum(1)
        per_row = {"rows": torch.ones_like(inputs), "tokens": inputs, "supervised_tokens": labels}[kind]
        for source, count in zip(blend.sources_of(0, number).tolist(), per_row.tolist(), strict=True):
            sums[names[source]] += count
    total = sum(sums.values())
    return {name: value / total for name, value in sums.items()}


WEIGHTS = {"full": 0.5, "part": 0.3, "short": 0.2}


@pytest.mark.parametrize("kind", ["rows", "tokens", "supervised_tokens"])
def test_shares_are_of_what_weights_count(kind: Any) -> None:
    blend = mtf.Blend(token_sources(), WEIGHTS, global_batch_size=64, weights_count=kind, batches_per_pass=1000)
    assert counted(blend, 40, kind) == pytest.approx(WEIGHTS, abs=0.002)
    if kind != "rows":
        assert counted(blend, 40, "rows") != pytest.approx(WEIGHTS, abs=0.02)


def test_curves_and_edits_count_the_same() -> None:
    curve = mtf.WeightCurve([(0, [0.8, 0.1, 0.1]), (20, [0.2, 0.4, 0.4])])
    blend = mtf.Blend(
        token_sources(), weight_curve=curve, global_batch_size=64, weights_count="tokens", batches_per_pass=1000
    )
    assert counted(blend, 20, "tokens") == pytest.approx({"full": 0.8, "part": 0.1, "short": 0.1}, abs=0.004)
    equal = mtf.Blend(token_sources(), global_batch_size=64, weights_count="tokens", batches_per_pass=1000)
    assert counted(equal, 20, "tokens") == pytest.approx(dict.fromkeys(WEIGHTS, 1 / 3), abs=0.004)
    equal.update_weights(WEIGHTS)
    assert edited_shares(equal) == pytest.approx(WEIGHTS, abs=0.004)
    equal.set_weight("full", 0.5 * 2)
    assert edited_shares(equal) == pytest.approx({"full": 1 / 1.5, "part": 0.3 / 1.5, "short": 0.2 / 1.5}, abs=0.004)


def edited_shares(blend: mtf.Blend) -> dict[str, float]:
    """Shares of tokens that the plan has for what follows."""
    plan = blend.plan(40)
    tokens = {source.name: source.num_tokens or 0 for source in plan.sources}
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def test_what_cannot_be_counted_is_refused() -> None:
    sources = token_sources()
    with pytest.raises(mtf.ConfigError, match="weights_count must be one of rows, tokens, supervised_tokens"):
        mtf.Blend(sources, global_batch_size=8, weights_count="token")  # type: ignore[arg-type]
    with pytest.raises(mtf.ConfigError, match="source 'a' doesn't say how many tokens a row holds"):
        mtf.Blend({"a": torch.zeros(10, 3)}, global_batch_size=8, weights_count="tokens")
    with pytest.raises(mtf.ConfigError, match="weights must have one entry per source"):
        mtf.Blend(sources, [1.0], global_batch_size=8, weights_count="tokens")
    singles = mtf.TokenCorpus(np.arange(1, 100), documents=np.arange(100))
    with pytest.raises(mtf.ConfigError, match="without a token that counts"):
        mtf.Blend({"a": singles.packed(8)}, global_batch_size=8, weights_count="supervised_tokens")


def test_weights_keep_their_form() -> None:
    class Rows:
        tokens_per_row = 4.0

    weights = RowWeights("tokens", {"a": Rows(), "b": Rows()})
    assert weights.of(["a", "b"], {"b": 2.0}) == {"b": 0.5}
    assert weights.of(["a", "b"], [2.0, 4.0]) == [0.5, 1.0]
    assert RowWeights("rows", {"a": object()}).of(["a"], [3]) == [3]


class Ten(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that say how many tokens they hold."""

    def __init__(self, tokens_per_row: float | None) -> None:
        if tokens_per_row is not None:
            self.tokens_per_row = tokens_per_row

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.tensor(row)


def curve_of(blend: mtf.Blend) -> list[int]:
    curve = blend._run.schedule.mixture.curve
    assert curve is not None
    return [step for step, _ in curve[0]]


@pytest.mark.parametrize(
    ("unit", "interpolation", "points", "expected"),
    [
        ("batches", "STEP", [0, 5, 20], [0, 20, 140]),  # four samples, from batch 10 on eight
        ("samples", "STEP", [0, 21, 22], [0, 21, 22]),
        # A sample holds 0.5 * 10 + 0.5 * 30 = 20 tokens, then 15, then 30.
        ("tokens", "STEP", [0, 200, 350, 10_000_000_000_000], [0, 10, 20, 20 + 333_333_333_322]),
        ("tokens", "STEP", [0, 201, 350], [0, 11, 20]),
        ("tokens", "STEP", [100, 200], [5, 10]),
        ("tokens", "LINEAR", [0, 175, 175 + 225], [0, 10, 20]),  # 17.5 on average, then 22.5
    ],
)
def test_points_of_a_curve_are_exact_samples(unit: Any, interpolation: Any, points: Any, expected: Any) -> None:
    weights = [[0.5, 0.5], [0.75, 0.25], [0.0, 1.0], [1.0, 0.0]]
    curve = mtf.WeightCurve(list(zip(points, weights, strict=False)), interpolation, every=1, unit=unit)
    sources = {"short": Ten(10), "long": Ten(30)}
    blend = mtf.Blend(sources, weight_curve=curve, global_batch_size=[(0, 4), (10, 8)], order="EVEN")
    assert curve_of(blend) == expected if unit != "batches" else curve_of(blend) == [0, 20, 40 + 10 * 8]


def test_a_curve_in_tokens_takes_effect_where_so_many_were_drawn() -> None:
    curve = mtf.WeightCurve([(0, [0.9, 0.05, 0.05]), (100_000, [0.05, 0.05, 0.9])], unit="tokens")
    sources = token_sources()
    blend = mtf.Blend(
        sources, weight_curve=curve, global_batch_size=16, weights_count="tokens", batches_per_pass=10_000, order="EVEN"
    )
    change = curve_of(blend)[1]
    drawn = blend._run.schedule.counts(change, 0)
    tokens = sum(int(n) * rows.tokens_per_row for n, rows in zip(drawn, sources.values(), strict=True))
    assert 100_000 - 64 * 3 < tokens < 100_000 + 64 * 3
    plan = blend.plan(tokens=100_000)
    assert abs(plan.start + plan.num_batches - change / 16) < 1.5
    record = mtf.WeightCurve.from_dict(curve.to_dict())
    assert record == curve


def test_plans_of_tokens() -> None:
    blend = mtf.Blend(token_sources(), WEIGHTS, global_batch_size=16, weights_count="tokens")
    for tokens in (1, 900, 12_345, 10**12):
        plan = blend.plan(tokens=tokens, batches_per_update=3)
        assert plan.num_tokens is not None
        assert plan.num_tokens >= tokens
        assert plan.num_updates == -(-plan.num_batches // 3)
        assert plan.num_tokens == pytest.approx(sum(source.num_tokens or 0 for source in plan.sources), abs=2)
        if plan.num_batches > 1:
            fewer = blend.plan(plan.num_batches - 1)
            assert fewer.num_tokens is not None
            assert fewer.num_tokens < tokens
    assert "updates: " in str(plan)
    assert "tokens" in str(plan)
    later = blend.plan(tokens=5000, start=10**6)
    assert later.num_batches == pytest.approx(blend.plan(tokens=5000).num_batches, abs=1)
    assert [source.passes for source in later.sources] > [10.0] * 3


def test_tokens_that_are_not_known_are_refused() -> None:
    sources = {"a": Ten(10), "b": Ten(None)}
    curve = mtf.WeightCurve([(0, [1, 1]), (100, [1, 0])], unit="tokens")
    with pytest.raises(mtf.ConfigError, match=r"source 'b' doesn't say how many tokens a row holds.*unit='tokens'"):
        mtf.Blend(sources, weight_curve=curve, global_batch_size=2)
    with pytest.raises(mtf.ConfigError, match="tokens can't be planned: source 'b'"):
        mtf.Blend(sources, global_batch_size=2).plan(tokens=5)
    blend = mtf.Blend({"a": Ten(10)}, global_batch_size=2)
    with pytest.raises(mtf.ConfigError, match="either batches or tokens, but they are 3 and 5"):
        blend.plan(3, tokens=5)
    for wrong, message in (
        ([(0, [1, 1]), (1.5, [1, 0])], r"points\[1\]: tokens must be a whole number of at least 0, but are 1.5"),
        ([(0, [1, 1]), (-1, [1, 0])], r"points\[1\]: tokens must be a whole number of at least 0, but are -1"),
        ([(0, [1, 1]), (0, [1, 0])], r"points\[1\] lies less than one sample behind the point before, at 0 tokens"),
        ([(0, [0, 0])], r"points\[0\] must have one weight per source \(2\), none negative and not all zero"),
    ):
        with pytest.raises(mtf.ConfigError, match=message):
            mtf.Blend(
                {"a": Ten(10), "b": Ten(20)},
                weight_curve=mtf.WeightCurve(wrong, unit="tokens"),  # type: ignore[arg-type]
                global_batch_size=2,
            )
    with pytest.raises(mtf.ConfigError, match="can't be used with max_passes"):
        mtf.Blend({"a": Ten(10), "b": Ten(20)}, weight_curve=curve, global_batch_size=2, max_passes={"a": 2})
    capped = mtf.Blend({"a": Ten(10), "b": Ten(20)}, global_batch_size=2, max_passes={"a": 2, "b": 1})
    assert capped.plan(tokens=10**9).num_tokens == 2 * 10 * 10 + 10 * 20
    assert capped.plan(tokens=100).num_batches < 6
    with pytest.raises(mtf.ConfigError, match="unit must be 'batches' in a mixture of batches, but is 'samples'"):
        mtf.Schedule(
            mtf.MultiDataLoaderConfig(
                sampling_strategy="WEIGHTED", weight_curve=mtf.WeightCurve([(0, [1, 1])], unit="samples")
            ),
            [3, 4],
        )
    with pytest.raises(mtf.ConfigError, match="unit"):
        mtf.WeightCurve([(0, [1, 1])], unit="token")  # type: ignore[arg-type]
