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
