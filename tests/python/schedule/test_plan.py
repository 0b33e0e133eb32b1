"""Plans: what a schedule will draw, counted by hand, as table, HTML, data and plot, and what they warn of."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtf import cli
from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError
from mtf.schedule.plan import Plan
from mtf.schedule.schedule import Schedule

FIXED = EpochLengthPolicy.FIXED_NUM_STEPS
WEIGHTED = SamplingStrategy.WEIGHTED


def make(lengths: Any, seed: int = 0, **options: Any) -> Schedule:
    return Schedule(MultiDataLoaderConfig(**options), lengths, seed)


def weighted(order: WeightedOrder, **options: Any) -> Schedule:
    return make(
        [30, 50, 7],
        sampling_strategy=WEIGHTED,
        dataloader_weights=[5, 3, 2],
        weighted_order=order,
        epoch_length_policy=FIXED,
        steps_per_epoch=500,
        **options,
    )


def test_counts_shares_passes_and_tails() -> None:
    plan = make([3, 5], dataloader_names=["a", "b"]).plan(2)
    first, second = plan.epochs
    assert (first.epoch, first.num_steps, first.deviation_bound) == (0, 8, None)
    a, b = first.sources
    assert (a.name, a.length, a.num_steps, a.share, a.passes, a.unused_tail) == ("a", 3, 4, 0.5, 4 / 3, 2)
    assert (b.name, b.length, b.num_steps, b.share, b.passes, b.unused_tail) == ("b", 5, 4, 0.5, 0.8, 1)
    assert (a.expected_share, a.max_deviation, a.first_pass) == (None, None, 0)
    assert [s.first_pass for s in second.sources] == [2, 1]
    assert first.warnings == ["'b' is never finished: 1 of its 5 batches stay unread"]
    assert plan.warnings[1] == "epoch 1: 'b' is never finished: 1 of its 5 batches stay unread"


def test_a_source_that_goes_on_leaves_no_tail() -> None:
    plan = make([3, 5], continue_across_epochs=True).plan(2)
    assert [s.unused_tail for e in plan.epochs for s in e.sources] == [0] * 4
    assert plan.warnings == []
    assert [s.first_pass for s in plan.epochs[1].sources] == [1, 0]


def test_starved_sources_are_warned_of() -> None:
    plan = make([3, 5, 9], sampling_strategy=WEIGHTED, dataloader_weights=[1, 1, 0], cycle_short_loaders=False).plan()
    assert plan.warnings == ["epoch 0: 'dl2' is starved: it gives no batch"]
    assert plan.epochs[0].sources[2].share == 0.0
    assert plan.epochs[0].sources[2].expected_share == 0.0


@pytest.mark.parametrize("order", list(WeightedOrder))
def test_deviation_is_the_largest_at_any_step(order: WeightedOrder) -> None:
    schedule = weighted(order)
    drawn = np.cumsum(np.eye(3)[schedule.sources()], axis=0)
    promised = np.arange(1, 501)[:, None] * np.array([0.5, 0.3, 0.2])
    deviations = np.abs(drawn - promised).max(axis=0)
    epoch = schedule.plan().epochs[0]
    assert [s.max_deviation for s in epoch.sources] == pytest.approx(deviations.tolist())
    assert [s.expected_share for s in epoch.sources] == pytest.approx([0.5, 0.3, 0.2])
    assert [s.num_steps for s in epoch.sources] == drawn[-1].tolist()


def test_the_certificate_holds_and_is_shown() -> None:
    plan = weighted(WeightedOrder.EVEN).plan(3)
    for epoch in plan.epochs:
        assert epoch.deviation_bound is not None
        assert all(s.max_deviation is not None and s.max_deviation <= epoch.deviation_bound for s in epoch.sources)
        assert f"deviation at most {epoch.deviation_bound:.2f}" in str(plan)
    assert weighted(WeightedOrder.RANDOM).plan().epochs[0].deviation_bound is None
    leaving = weighted(WeightedOrder.EVEN, cycle_short_loaders=False).plan()
    assert leaving.epochs[0].deviation_bound is None, "it doesn't hold once a source leaves"


def test_the_certificate_holds_over_several_sets_of_weights() -> None:
    curve = WeightCurve(
        [(0, [1, 0, 0]), (300, [0.4, 0.4, 0.2]), (600, [0.1, 0.2, 0.7])], Interpolation.LINEAR, every=20
    )
    settings = MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.WEIGHTED,
        weighted_order=WeightedOrder.EVEN,
        weight_curve=curve,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=600,
    )
    (epoch,) = Schedule(settings, lengths=[24, 12, 6]).plan().epochs
    assert epoch.deviation_bound is not None
    assert max(s.max_deviation or 0.0 for s in epoch.sources) <= epoch.deviation_bound < 2


def test_a_curve_promises_its_average() -> None:
    curve = WeightCurve([(0, [1, 0]), (100, [0, 1])], Interpolation.STEP)
    schedule = make(
        [30, 50], sampling_strategy=WEIGHTED, weight_curve=curve, epoch_length_policy=FIXED, steps_per_epoch=400
    )
    first, second = schedule.plan(2).epochs
    assert [s.expected_share for s in first.sources] == [0.25, 0.75]
    assert [s.max_deviation for s in first.sources] == [0.0, 0.0]
    assert [s.expected_share for s in second.sources] == [0.0, 1.0]


def test_plans_follow_edits_and_move_nothing() -> None:
    schedule = make([4, 4], dataloader_names=["a", "b"])
    schedule.advance(3)
    schedule.remove_source("a")
    schedule.add_source("c", 2)
    before = schedule.to_bytes()
    plan = schedule.plan(2)
    assert schedule.to_bytes() == before
    assert [(s.name, s.num_steps) for s in plan.epochs[0].sources] == [("a", 2), ("b", 4), ("c", 2)]
    assert [(s.name, s.num_steps) for s in plan.epochs[1].sources] == [("b", 3), ("c", 3)]
    schedule.seek(1, 2)
    assert schedule.plan().epochs == plan.epochs[1:]


def test_an_unknown_end_ends_the_plan() -> None:
    plan = make([None, 4], cycle_short_loaders=False).plan(3)
    assert [e.num_steps for e in plan.epochs] == [None]
    assert plan.warnings == ["epoch 0: how many steps it has shows when its sources end"]
    assert str(plan).splitlines()[0] == "epoch 0: ROUND_ROBIN, unknown length"
    assert "unknown length" in plan._repr_html_()
    unknown_but_cycled = make([None, 4], epoch_length_policy=FIXED, steps_per_epoch=6).plan()
    source = unknown_but_cycled.epochs[0].sources[0]
    assert (source.length, source.passes, source.unused_tail) == (None, None, 0)


def test_table() -> None:
    plan = make([3, 5], sampling_strategy=SamplingStrategy.SEQUENTIAL, dataloader_names=["short", "b"]).plan()
    assert str(plan).splitlines() == [
        "epoch 0: SEQUENTIAL, 8 steps",
        "  source  length  steps    share  weight  deviation  passes  unused tail",
        "  short        3      3  37.50 %       -          -    1.00            0",
        "  b            5      5  62.50 %       -          -    1.00            0",
    ]


def test_html_escapes_names() -> None:
    html = make([3, 5], dataloader_names=["<b>", "a&b"]).plan()._repr_html_()
    assert "<td>&lt;b&gt;</td>" in html
    assert "a&amp;b" in html
    assert "<b>'" not in html
    assert "<li>&#x27;a&amp;b&#x27; is never finished" in html
    assert html.count("<tr>") == 3


def test_data_is_json_and_complete() -> None:
    plan = weighted(WeightedOrder.EVEN).plan(2)
    data = json.loads(json.dumps(plan.to_dict()))
    assert set(data) == {"strategy", "epochs"}
    assert data["strategy"] == "WEIGHTED"
    assert set(data["epochs"][1]) == {"epoch", "num_steps", "deviation_bound", "sources", "warnings"}
    assert set(data["epochs"][1]["sources"][2]) == {
        *("name", "length", "num_steps", "share", "expected_share"),
        *("max_deviation", "first_pass", "passes", "unused_tail"),
    }


def test_json_of_the_command_is_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixture.json"
    options = {"sampling_strategy": "WEIGHTED", "dataloader_weights": [3, 1], "weighted_order": "EVEN"}
    path.write_text(json.dumps(options), encoding="utf-8")
    assert cli.main(["plan", str(path), "--lengths", "40,20", "--epochs", "2", "--seed", "9", "--json"]) == cli.OK
    expected = Schedule(MultiDataLoaderConfig.from_dict(options), [40, 20], seed=9).plan(2)
    assert json.loads(capsys.readouterr().out) == expected.to_dict()


@pytest.mark.parametrize(
    "plan",
    [
        weighted(WeightedOrder.EVEN).plan(2),
        make([3, 5]).plan(3),
        make([1]).plan(),
        make([None, 4], epoch_length_policy=FIXED, steps_per_epoch=6).plan(),
        make([700, 900]).plan(),
    ],
    ids=["weighted", "round_robin", "one step", "unknown", "more steps than bins"],
)
def test_plot(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for suffix in ("png", "svg"):
        path = tmp_path / f"plan.{suffix}"
        plan.plot(path)
        assert path.stat().st_size > 1000
    shown = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert shown.startswith("<?xml")
    assert len(plan.plot().axes) == 3  # which a notebook shows


def test_nothing_to_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="nothing to plot"):
        make([None, 4], cycle_short_loaders=False).plan().plot(tmp_path / "none.png")


def test_plotting_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ConfigError, match=r"pip install 'mtf-torch\[plot\]'"):
        make([3, 5]).plan().plot(tmp_path / "plan.png")


@pytest.mark.parametrize("epochs", [0, -1])
def test_at_least_one_epoch(epochs: int) -> None:
    with pytest.raises(ConfigError, match=f"epochs must be at least 1, got {epochs}"):
        make([3, 5]).plan(epochs)
