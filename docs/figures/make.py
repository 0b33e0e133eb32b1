"""Draws the pictures of the documentation from real schedules: python docs/figures/make.py

They are committed beside this file; a test draws them again and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from svg import COLOURS, Canvas

import mtf

HERE = Path(__file__).resolve().parent
WEIGHTS = {"web": 5, "code": 3, "books": 2}
NAMES = list(WEIGHTS)

#: The six ways of drawing, as settings of the same three sources.
STRATEGIES: dict[str, dict[str, object]] = {
    "round_robin": {"sampling_strategy": "ROUND_ROBIN"},
    "alternating": {"sampling_strategy": "ALTERNATING", "alternating_pattern": [0, 0, 1, 2]},
    "sequential": {"sampling_strategy": "SEQUENTIAL"},
    "weighted_even": {"sampling_strategy": "WEIGHTED", "weighted_order": "EVEN"},
    "weighted_shuffled": {"sampling_strategy": "WEIGHTED", "weighted_order": "SHUFFLED"},
    "weighted_random": {"sampling_strategy": "WEIGHTED", "weighted_order": "RANDOM"},
}


def schedule(strategy: str, lengths: tuple[int, ...] = (24, 18, 12), **settings: object) -> mtf.Schedule:
    """The schedule that a picture shows: three sources, epochs of 600 steps unless ``settings`` say more."""
    chosen = dict(STRATEGIES[strategy])
    if chosen["sampling_strategy"] == "WEIGHTED":
        chosen["dataloader_weights"] = list(WEIGHTS.values())
    if strategy != "sequential":
        chosen |= {"epoch_length_policy": "FIXED_NUM_STEPS", "steps_per_epoch": 600}
    chosen |= settings
    return mtf.Schedule(mtf.MultiDataLoaderConfig(dataloader_names=NAMES, **chosen), lengths=lengths, seed=0)  # type: ignore[arg-type]


def lanes(canvas: Canvas, y: float, drawn: np.ndarray, title: str, step: float = 12) -> None:
    """One row per source, one mark per step."""
    canvas.text(70, y - 8, title, 12, "muted")
    for source, name in enumerate(NAMES):
        top = y + 20 * source
        canvas.text(62, top + 13, name, 13, "ink", "end")
        canvas.line([(70, top + 18), (70 + step * len(drawn), top + 18)])
        for k in np.flatnonzero(drawn == source):
            canvas.box(70 + step * float(k), top + 2, step - 1.5, 15, COLOURS[source])
    for k in range(0, len(drawn) + 1, 10):
        canvas.text(70 + step * k, y + 74, str(k), 11, "muted", "middle")
    canvas.text(70 + step * len(drawn) + 14, y + 74, "step", 11, "muted")


def drift(canvas: Canvas, y: float, plan: mtf.Schedule, num_steps: int = 600, top: float = 20.0) -> None:
    """Draws of each source minus its share, after every step."""
    shares = np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())
    drawn = plan.sources(start=0, stop=num_steps)
    height, width = 110.0, 720.0
    middle = y + height / 2
    canvas.text(70, y - 8, f"draws of each source minus its share, over {num_steps} steps", 12, "muted")
    for level in (-top, 0.0, top):
        at = middle - level / top * height / 2
        canvas.line([(70, at), (70 + width, at)], dashed=level != 0)
        canvas.text(62, at + 4, f"{level:+.0f}" if level else "0", 11, "muted", "end")
    for source in range(len(NAMES)):
        behind = np.cumsum(drawn == source) - shares[source] * np.arange(1, num_steps + 1)
        points = [
            (round(70 + width * (k + 1) / num_steps, 1), round(middle - float(behind[k]) / top * height / 2, 1))
            for k in range(0, num_steps, 2)
        ]
        canvas.line([(70, middle), *points], COLOURS[source], 1.6)


def draw_strategy(strategy: str) -> Canvas:
    """Lanes of the first 60 steps, and what shows the strategy best below."""
    title = strategy.replace("_", " ")
    if strategy.startswith("weighted"):
        canvas = Canvas(850, 260, f"{title}: which source each step draws, and how far the draws are from the weights")
        plan = schedule(strategy)
        lanes(canvas, 24, plan.sources(start=0, stop=60), "weights 5 : 3 : 2")
        drift(canvas, 134, plan)
        return canvas
    canvas = Canvas(850, 228, f"{title}: which source each step draws")
    if strategy == "sequential":
        lanes(canvas, 24, schedule(strategy).sources(stop=54), "lengths 24, 18, 12; the epoch is their sum, 54 steps")
        fixed = schedule(strategy, epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=60)
        lanes(canvas, 142, fixed.sources(stop=60), "FIXED_NUM_STEPS, 60 steps: the first source starts its next pass")
        return canvas
    rule = "pattern [0, 0, 1, 2], " if strategy == "alternating" else ""
    lanes(canvas, 24, schedule(strategy).sources(stop=60), f"{rule}burst_size=1")
    lanes(canvas, 142, schedule(strategy, burst_size=3).sources(stop=60), f"{rule}burst_size=3")
    return canvas


def draw_overview() -> Canvas:
    """The first 60 steps of all six, one strip each."""
    canvas = Canvas(850, 214, "the first 60 steps of the six strategies, one colour per source")
    for row, strategy in enumerate(STRATEGIES):
        y = 8 + 29 * row
        canvas.text(132, y + 15, strategy.replace("_", " "), 13, "ink", "end")
        drawn = schedule(strategy).sources(stop=54 if strategy == "sequential" else 60)
        for k, source in enumerate(drawn):
            canvas.box(142 + 11.5 * k, y, 10.3, 21, COLOURS[source])
    for source, name in enumerate(NAMES):
        canvas.box(142 + 90 * source, 190, 12, 12, COLOURS[source])
        canvas.text(160 + 90 * source, 201, name)
    return canvas


def draw_pipeline() -> Canvas:
    """From one integer to data."""
    canvas = Canvas(850, 112, "position, schedule, source and pass and batch, sampler, sample indices, data")
    parts = [
        ("position", "(epoch 3, step 141)", 120),
        ("source, pass, batch", "(code, pass 7, batch 12)", 170),
        ("sample indices", "[3301, 88, 1290, ...]", 150),
        ("data", "a tensor", 90),
    ]
    arrows = ["schedule", "sampler", "loader"]
    x = 10.0
    for i, (word, example, width) in enumerate(parts):
        canvas.box(x, 26, width, 58, "none", 6)
        canvas.text(x + width / 2, 51, word, 14, "ink", "middle", bold=True)
        canvas.text(x + width / 2, 71, example, 11.5, "muted", "middle")
        if i < len(arrows):
            canvas.arrow(x + width + 6, 55, x + width + 90, 55)
            canvas.text(x + width + 47, 46, arrows[i], 12.5, COLOURS[0], "middle", bold=True)
        x += width + 96
    canvas.text(
        10,
        104,
        "Each arrow is a function that can be evaluated anywhere, without evaluating it everywhere before.",
        12,
        "muted",
    )
    return canvas


def draw_words() -> Canvas:
    """Sources, passes, steps, windows, updates and epochs of one small mixture."""
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy="ALTERNATING",  # type: ignore[arg-type]
        alternating_pattern=[0, 0, 1],
        dataloader_names=["web", "code"],
        epoch_length_policy="FIXED_NUM_STEPS",  # type: ignore[arg-type]
        steps_per_epoch=12,
    )
    lengths = (5, 3)
    plan = mtf.Schedule(config, lengths=lengths, seed=0)
    draws = [plan.at(k) for k in range(12)]
    canvas = Canvas(
        850, 344, "two sources with their passes; the steps that the schedule draws from them; windows and updates"
    )
    left, size = 110, 44
    for source, name in enumerate(("web", "code")):
        y = 44 + 66 * source
        canvas.text(left - 14, y + 26, name, 14, "ink", "end", bold=True)
        taken = [d for d in draws if d.source == source]
        passes = max(d.pass_ for d in taken) + 1
        for pass_ in range(passes):
            begin = left + pass_ * (lengths[source] * 36 + 14)
            for batch in range(lengths[source]):
                given = any(d.pass_ == pass_ and d.batch == batch for d in taken)
                canvas.box(begin + 36 * batch, y, 34, 34, COLOURS[source], 4, 1 if given else 0.3)
                canvas.text(
                    begin + 36 * batch + 17,
                    y + 22,
                    f"{pass_}.{batch}",
                    13,
                    "#ffffff" if given else "ink",
                    "middle",
                    bold=given,
                )
            canvas.brace(begin, begin + lengths[source] * 36, y - 3, f"pass {pass_}", below=False)
    canvas.text(10, 20, "sources", 12, "muted")
    y = 220
    canvas.text(10, y - 32, "the schedule: one epoch of 12 steps, pattern web, web, code", 12, "muted")
    canvas.text(left - 14, y + 25, "steps", 14, "ink", "end", bold=True)
    for k, d in enumerate(draws):
        canvas.text(left + size * k + 20, y - 6, str(k), 11, "muted", "middle")
        canvas.box(left + size * k, y, size - 3, 38, COLOURS[d.source], 4)
        canvas.text(left + size * k + 20.5, y + 24, f"{d.pass_}.{d.batch}", 13, "#ffffff", "middle", bold=True)
    for window in range(6):
        begin = left + 2 * size * window
        canvas.brace(begin, begin + 2 * size - 3, y + 42, "window", size=11)
        canvas.text(begin + size - 1.5, y + 78, f"update {window + 1}", 12, "ink", "middle", bold=True)
    canvas.text(
        left,
        y + 108,
        "a number such as 1.0 is pass 1, batch 0; gradient_accumulation_steps=2 makes windows of two steps",
        12,
        "muted",
    )
    return canvas


def draw_segments() -> Canvas:
    """An edit opens a segment; a resume replays the log."""
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy="WEIGHTED",  # type: ignore[arg-type]
        weighted_order="EVEN",  # type: ignore[arg-type]
        dataloader_weights=[5, 3, 2],
        dataloader_names=NAMES,
        epoch_length_policy="FIXED_NUM_STEPS",  # type: ignore[arg-type]
        steps_per_epoch=48,
    )
    plan = mtf.Schedule(config, lengths=(24, 18, 12), seed=0)
    plan.seek(0, 22)
    plan.update_weights([1, 1, 8])
    drawn = plan.sources(start=0, stop=48)
    canvas = Canvas(850, 164, "a change of weights in the middle of an epoch opens a second segment")
    left, step = 42, 16
    for k, source in enumerate(drawn):
        canvas.box(left + step * k, 44, step - 2, 30, COLOURS[source])
    cut = left + step * 22 - 1
    canvas.line([(cut, 26), (cut, 92)], "ink", 1.5)
    canvas.text(cut, 18, "update_weights([1, 1, 8]) at step 22", 12.5, "ink", "middle", bold=True)
    canvas.brace(left, cut - 2, 80, "segment 0: weights 5 : 3 : 2, from step 0")
    canvas.brace(cut + 3, left + step * 48, 80, "segment 1: weights 1 : 1 : 8, from step 22")
    counts = plan.counts(22)
    canvas.text(
        left,
        132,
        f"the log: 5 : 3 : 2 from step 0; 1 : 1 : 8 from step 22, after {counts[0]}, {counts[1]} and {counts[2]} draws",
        12.5,
    )
    canvas.text(
        left,
        152,
        "The log is the state. A resume reads it, and never calls the code that made the change.",
        12,
        "muted",
    )
    return canvas


def draw_resume() -> Canvas:
    """What is saved and what is dropped."""
    canvas = Canvas(850, 190, "committed steps are state; fetched and half-done ones are dropped and made again")
    drawn = schedule("weighted_even").sources(stop=18)
    left, step = 24, 44
    for k, source in enumerate(drawn):
        opacity = 1 if k < 10 else 0.55 if k < 11 else 0.25
        canvas.box(left + step * k, 46, step - 4, 34, COLOURS[source], 4, opacity)
        canvas.text(left + step * k + 20, 68, str(k), 12, "#ffffff" if k < 11 else "ink", "middle", bold=True)
    canvas.brace(left, left + step * 10 - 3, 86, "committed: five windows of two steps, five updates")
    canvas.brace(left + step * 10, left + step * 12 - 3, 86, "open window")
    canvas.brace(left + step * 11, left + step * 16 - 3, 40, "fetched ahead", below=False)
    canvas.line([(left + step * 10 - 2, 8), (left + step * 10 - 2, 82)], "ink", 1.5)
    canvas.text(left + step * 10 - 8, 18, "the state says: step 10", 12.5, "ink", "end", bold=True)
    canvas.text(left, 142, "An interruption anywhere in the open window leaves the state at its beginning.", 12.5)
    canvas.text(
        left,
        160,
        "A resume computes step 10 and what follows again, from the position: nothing is lost, nothing comes twice.",
        12.5,
    )
    canvas.text(
        left,
        178,
        "Windows are whole or not there at all; batches that were fetched ahead are never part of a state.",
        12,
        "muted",
    )
    return canvas


def draw_epochs() -> Canvas:
    """Where an epoch ends: L = (3, 5), round robin, each policy with and without cycling."""
    rows = [
        (f"{policy}{'' if policy == 'MIN_LENGTH' else ', cycling' if cycle else ', not cycling'}", policy, cycle)
        for policy in ("MIN_LENGTH", "SUM_OF_LENGTHS", "MAX_LENGTH", "FIXED_NUM_STEPS")
        for cycle in ((True,) if policy == "MIN_LENGTH" else (True, False))
    ]
    canvas = Canvas(
        850, 44 + 30 * len(rows) + 26, "where an epoch of two sources of 3 and 5 batches ends, for each policy"
    )
    canvas.text(262, 22, "round robin over A (3 batches) and B (5 batches)", 12, "muted")
    for row, (label, policy, cycle) in enumerate(rows):
        y = 36 + 30 * row
        options: dict[str, object] = {"steps_per_epoch": 12} if policy == "FIXED_NUM_STEPS" else {}
        config = mtf.MultiDataLoaderConfig(epoch_length_policy=policy, cycle_short_loaders=cycle, **options)  # type: ignore[arg-type]
        plan = mtf.Schedule(config, lengths=(3, 5), seed=0)
        canvas.text(250, y + 18, label.replace("FIXED_NUM_STEPS", "FIXED_NUM_STEPS (12)"), 12.5, "ink", "end")
        for k in range(plan.num_steps() or 0):
            draw = plan.at(k)
            canvas.cell(262 + 28 * k, y, draw.source, "AB"[draw.source], 28, 1 if draw.pass_ == 0 else 0.6)
        canvas.text(268 + 28 * (plan.num_steps() or 0), y + 18, f"{plan.num_steps()} steps", 12, "muted")
    canvas.text(262, 36 + 30 * len(rows) + 16, "paler: the second pass of a source", 12, "muted")
    return canvas


def draw_mixing() -> Canvas:
    """Mixtures of batches, of samples, and of one batch of every source."""
    canvas = Canvas(
        850, 300, "what a step gets from a mixture of batches, of samples, and from one batch of every source"
    )
    num_steps, rows, left, width = 20, 10, 190, 30
    batches = schedule("weighted_shuffled").sources(start=0, stop=num_steps)
    samples = schedule("weighted_shuffled").sources(start=0, stop=num_steps * rows).reshape(num_steps, rows)
    for number, (title, text) in enumerate(
        (("batches", "MultiLoader, Trainer"), ("samples", "Blend"), ("every loader", "Together"))
    ):
        y = 34 + 86 * number
        canvas.text(left - 16, y + 28, title, 14, "ink", "end", bold=True)
        canvas.text(left - 16, y + 46, text, 12, "muted", "end")
        for k in range(num_steps):
            for row in range(rows):
                source = (batches[k], samples[k, row], (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)[row])[number]
                gap = 3 * (source if number == 2 else 0)
                canvas.box(left + width * k, y + 6.4 * row + gap, width - 5, 5.6, COLOURS[source], 1)
    for k in range(0, num_steps + 1, 5):
        canvas.text(left + width * k, 292, str(k), 11, "muted", "middle")
    canvas.text(left + width * num_steps + 14, 292, "step", 11, "muted")
    for source, name in enumerate(NAMES):
        canvas.box(left + 90 * source, 10, 11, 11, COLOURS[source])
        canvas.text(left + 90 * source + 17, 20, name, 12, "ink")
    canvas.text(left + 290, 20, "one column: the rows that one step gets; weights 5 : 3 : 2", 12, "muted")
    return canvas


PICTURES: dict[str, Callable[[], Canvas]] = {
    "pipeline": draw_pipeline,
    "words": draw_words,
    "segments": draw_segments,
    "resume": draw_resume,
    "epochs": draw_epochs,
    "strategies": draw_overview,
    "mixing": draw_mixing,
    **{strategy: lambda strategy=strategy: draw_strategy(strategy) for strategy in STRATEGIES},  # type: ignore[misc]
}


def main() -> None:
    """Writes every picture."""
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
