"""Writes the golden schedule states of this version. Files of released versions are never written again.

Run as ``python tests/golden/make_schedules.py``; a file that exists is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.schedule.schedule import Schedule

VERSION = 2
NUM_DRAWS = 60


def make_schedules() -> dict[str, Schedule]:
    """One schedule per feature of the format, each with its cursor in the middle of things."""
    fixed = EpochLengthPolicy.FIXED_NUM_STEPS
    plain = Schedule(MultiDataLoaderConfig(burst_size=2), [3, 5, 4], seed=1)
    plain.seek(2, 5)

    unknown = Schedule(MultiDataLoaderConfig(cycle_short_loaders=False), [None, 9, None], seed=2)
    unknown.advance(3)
    unknown.end_pass(0, 1)
    unknown.advance(2)

    edited = Schedule(
        MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.5, 0.3, 0.2],
            weighted_order=WeightedOrder.EVEN,
            epoch_length_policy=fixed,
            steps_per_epoch=50,
            dataloader_names=["a", "b", "c"],
        ),
        [30, 7, 11],
        seed=2**64 - 1,
    )
    edited.seek(1, 10)
    edited.add_source("d", length=6, weight=0.4)
    edited.advance(10)
    edited.remove_source("b")
    edited.advance(5)
    edited.set_weight("a", 0.1)
    edited.advance(3)

    drifting = Schedule(
        MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.5, 0.3, 0.2],
            weighted_order=WeightedOrder.SHUFFLED,
            epoch_length_policy=fixed,
            steps_per_epoch=500,
        ),
        [30, 7, 11],
        seed=8,
    )
    for step in range(20):  # more edits than a state keeps
        drifting.update_weights([0.5, 0.3, 0.2 + step / 50])
        drifting.advance(5)

    schedules = {"plain": plain, "unknown": unknown, "edited": edited, "drifting": drifting}
    for order in WeightedOrder:
        curve = WeightCurve([(0, [0.7, 0.2, 0.1]), (90, [0.2, 0.2, 0.6])], Interpolation.LINEAR, every=20)
        curved = Schedule(
            MultiDataLoaderConfig(
                sampling_strategy=SamplingStrategy.WEIGHTED,
                weight_curve=curve,
                weighted_order=order,
                epoch_length_policy=fixed,
                steps_per_epoch=70,
            ),
            [20, 30, 40],
            seed=5,
        )
        curved.seek(1, 17)
        schedules[f"curve_{order.value}"] = curved
    return schedules


def next_draws(schedule: Schedule) -> list[list[int]]:
    """The next draws as ``[epoch, step, source, pass, batch]``, as far as the sources' ends are known."""
    out: list[list[int]] = []
    while len(out) < NUM_DRAWS:
        epoch, step = schedule.position
        drawn = schedule.draws(NUM_DRAWS - len(out))
        for t, (source, pass_, batch) in enumerate(zip(*(column.tolist() for column in drawn), strict=True)):
            out.append([epoch, step + t, source, pass_, batch])
        schedule.advance(len(drawn[0]))
        if schedule.num_steps() is None:
            break
        if schedule.epoch_done:
            schedule.next_epoch()
    return out


def main() -> None:
    """Writes what is missing."""
    folder = Path(__file__).parent
    for name, schedule in make_schedules().items():
        stem = folder / f"schedule_v{VERSION}_{name}"
        if stem.with_suffix(".bin").exists():
            continue
        stem.with_suffix(".bin").write_bytes(schedule.to_bytes())
        content = {"state": schedule.state_dict(), "names": schedule.names, "next": next_draws(schedule)}
        stem.with_suffix(".json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
