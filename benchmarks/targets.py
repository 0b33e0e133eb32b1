"""The targets: the greatest value allowed for each figure of ours, and what is in the way where it is missed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tables import Group, Measurement


@dataclass(frozen=True)
class Limit:
    """A rule for the greatest value allowed.

    Attributes:
        text: The rule in words.
        of: Gives the greatest value for a group of measurements, None where what it refers to wasn't measured.
        absolute: Whether the words hold the value.
    """

    text: str
    of: Callable[[Group], float | None]
    absolute: bool = False


@dataclass(frozen=True)
class Target:
    """A limit for one tool of ours.

    Attributes:
        row: Letter of the group.
        work: A regular expression for the whole of `Measurement.work`.
        tool: One of ours, as a regular expression for the whole name.
        limit: The rule.
        size: A regular expression for the whole of `Measurement.size`.
        in_the_way: What keeps the figure from the target: shown where it is missed.
    """

    row: str
    work: str
    tool: str
    limit: Limit
    size: str = ".*"
    in_the_way: str = ""


@dataclass(frozen=True)
class Verdict:
    """One target beside one measurement; `met` is None where what the target refers to wasn't measured."""

    target: Target
    group: Group
    measurement: Measurement
    met: bool | None


def judge(groups: Iterable[Group]) -> list[Verdict]:
    """Every target with every measurement that it is about, in the order of the targets."""
    known = list(groups)
    found = []
    for target in TARGETS:
        for group in known:
            if group.row != target.row or not re.fullmatch(target.work, group.work):
                continue
            if not re.fullmatch(target.size, group.size):
                continue
            for m in group.members:
                if m.ours and re.fullmatch(target.tool, m.tool):
                    allowed = target.limit.of(group)
                    found.append(Verdict(target, group, m, None if allowed is None else m.value <= allowed))
    return found


def unmeasured(groups: Iterable[Group]) -> list[Target]:
    """Targets for which a run has no figure."""
    seen = {id(verdict.target) for verdict in judge(groups)}
    return [target for target in TARGETS if id(target) not in seen]


def at_most(value: float, text: str) -> Limit:
    """A figure that doesn't depend on the others of the run."""
    return Limit(f"at most {text}", lambda group: value, absolute=True)


def bound_times(times: float) -> Limit:
    """So many times the bound's time or memory."""
    return Limit(f"at most {times:g} x the bound", lambda group: None if group.bound is None else group.bound * times)


def bound_rate(share: float) -> Limit:
    """At least so much of the bound's rate."""
    return Limit(f"at least {share:g} x the bound", lambda group: None if group.bound is None else group.bound / share)


def beats_peers(times: float, among: str = ".*") -> Limit:
    """At least so many times as fast as the best peer whose name matches."""

    def of(group: Group) -> float | None:
        best = min((m.value for m in group.members if m.is_peer and re.fullmatch(among, m.tool)), default=None)
        return None if best is None else best / times

    named = "the best peer" if among == ".*" else among.replace(".*", " loop")
    return Limit(f"at least {times:g} x {named}", of)


def rate_of(tool: str, share: float) -> Limit:
    """At least so much of the rate of another tool of the run."""

    def of(group: Group) -> float | None:
        other = group.tool(tool)
        return None if other is None else other.value / share

    return Limit(f"at least {share:g} x {tool}", of)


def over(tool: str, extra_ns: float, text: str) -> Limit:
    """Another tool of the run and so many nanoseconds more."""

    def of(group: Group) -> float | None:
        other = group.tool(tool)
        return None if other is None else other.value + extra_ns

    return Limit(f"at most {tool} {text}".strip(), of)


_US, _MS = 1e3, 1e6
_RANDOM_ARRAY, _EVEN_ARRAY = r"weighted random, array of 10\^\d", r"weighted even, array of 10\^5"
_RAW = "raw loop"

# What is in the way where a target is missed. Instructions are callgrind's, with 64 sources and CPython 3.11: unlike
# times, they are the same on every run.
_BLOCKS_COST = (
    "Of 657 instructions per draw, 101 draw, 241 make Python integers of source, pass and batch, and 315 are the "
    "loop that takes them; a call into an empty binding is 1,618."
)
_NEXT_COST = (
    "A next() is 1,187 instructions, less than the 1,618 of a call into an empty binding: what differs are the caches."
)
_SHUFFLED_COST = "A draw deals up to 64 entries of its block's order, and goes down EVEN's tree and up again."
_SMALL_BATCH_COST = "The copy alone is the bound; what is left is a tensor object per batch and the Batch around it."
_COPY_IN_CALLER = (
    "A batch of 256 KiB is copied by the thread that takes it, and what the row of 64 B costs comes on top: its draw, "
    "its tensor and the Batch around it."
)
_BANDWIDTH = "A batch of 4.7 MiB is bound by memory, which other processes of the machine use as well."
_HAND_OVER = (
    "A batch that a thread made has to come from that thread's core, and two threads on two cores leave none idle."
)
_TIMER = "A sleep of 5 ms takes 5.06 ms or more by the kernel's timer slack, and longer where the cores are busy."
_TWO_CORES = (
    "Two threads that compute need both cores; the loop, collation and everything else on the machine need them too."
)
_STEP_COST = (
    "What is left is Python: the draw, the batch's record, sums of losses, hooks and the checks of a step; "
    "nothing of it reads the device or the clock more than it must."
)
_IMPORT_COST = (
    "mtf's own modules, safetensors and numpy.random take 26 ms after torch; the rest is a full garbage collection "
    "among torch's objects, which falls due meanwhile."
)
_MIXING_COST = (
    "Each sample is drawn from the schedule and dealt out among the others, 3 to 5 ns beside 6 to 8 for finding and "
    "copying a row of 64 B; a whole batch of one source is one draw. Each batch also keeps where its rows come from."
)
_CLOCK = "A limit in nanoseconds: the same code took 2.0 ns in a run in which the bound beside it took 0.62 ns."
_STATES = "mtf asks for the loader's state before every batch, because a save or a signal may follow any of them."
_TOKENS_BY_HAND = "by hand, unfold + index_select + long"
_MORE_BYTES = (
    "Positions and mask are 5 bytes a token beside the 16 of inputs and labels, and three tensors more a batch."
)

_PIECES = (
    "A packed row is made of pieces of documents, each looked up and copied apart, and has the positions and mask of "
    "windows with boundaries, which take 1.6 times as long as plain ones themselves."
)

TARGETS = (
    # A. Scheduling.
    Target("A", _RANDOM_ARRAY, "mtf, portable .*", at_most(2.5, "2.5 ns"), r"n=(4|64|1024)", in_the_way=_CLOCK),
    Target("A", _RANDOM_ARRAY, "mtf", at_most(1.6, "1.6 ns"), r"n=(4|64|1024)"),
    Target("A", _EVEN_ARRAY, "mtf", beats_peers(4, "greedy.*"), "n=4"),
    Target("A", _EVEN_ARRAY, "mtf", beats_peers(6, "greedy.*"), "n=64"),
    Target("A", _EVEN_ARRAY, "mtf", beats_peers(40, "greedy.*"), "n=1024"),
    Target("A", "largest distance from the weights.*", "mtf.*", bound_times(1)),
    Target("A", "(round_robin|alternating|sequential), array.*", "mtf", at_most(1.5, "1.5 ns")),
    Target("A", "one random access", "mtf (EVEN|ROUND_ROBIN)", at_most(400, "400 ns"), r"n=(4|64|1024)"),
    Target("A", "one random access", "mtf SHUFFLED", at_most(400, "400 ns"), r"n=(4|64|1024)", _SHUFFLED_COST),
    Target("A", "one random access", "mtf RANDOM", at_most(200 * _US, "200 us"), r"n=(4|64|1024)"),
    Target("A", r"one next\(\)", "mtf", bound_times(1.3), r"n=(4|64)", _NEXT_COST),
    Target("A", r"one next\(\)", "mtf, blocks", at_most(40, "40 ns"), r"n=(4|64)", _BLOCKS_COST),
    Target("A", "memory of a schedule over 64 sources", "mtf.*", at_most(64 * 2**10, "1 KiB per source")),
    Target("A", "memory of 10.6 decisions", "mtf", at_most(1024 * 2**10, "1 KiB per source"), "n=1024"),
    # B. Shuffling.
    Target("B", "first batch of 256", "mtf", at_most(100 * _US, "100 us"), r"of 10\^[78]"),
    Target("B", "memory of the first batch.*", "mtf", at_most(2**20, "1 MiB")),
    Target("B", "whole permutation, per index", "mtf", beats_peers(5, "torch"), r"of 10\^[78]"),
    Target("B", "one index", "mtf", at_most(200, "200 ns")),
    Target("B", "indices not given exactly once", "mtf", at_most(0, "0")),
    # C. Delivery.
    Target("C", "batches from 4 arrays", "mtf, 1 thread", beats_peers(5), "rows of 64 B.*", _SMALL_BATCH_COST),
    Target("C", "batches from 4 arrays", "mtf, 1 thread", beats_peers(4), "rows of 1 KiB.*", _HAND_OVER),
    Target(
        "C",
        "batches from 4 arrays",
        "mtf, no threads",
        rate_of("by hand, index_select", 0.8),
        "rows of 1 KiB.*",
        _COPY_IN_CALLER,
    ),
    Target(
        "C",
        "batches from 4 arrays",
        "mtf, 2 threads",
        rate_of("by hand, index_select", 1.1),
        "rows of 1 KiB.*",
        _HAND_OVER,
    ),
    Target(
        "C",
        "batches from 4 arrays",
        "mtf, 1 thread",
        rate_of("by hand, index_select", 0.9),
        "rows of 150 KiB.*",
        _BANDWIDTH,
    ),
    Target("C", "batches from 4 arrays", "mtf, 1 thread", rate_of("mtf, no threads", 0.9), in_the_way=_HAND_OVER),
    Target("C", "samples that wait.*", "mtf", bound_rate(0.95), in_the_way=_TIMER),
    Target("C", "samples computed outside the GIL", "mtf", rate_of("plain loop", 1.85), in_the_way=_TWO_CORES),
    Target(
        "C",
        "samples computed in Python",
        "mtf, DataLoader.*",
        rate_of("torch DataLoader, 2 workers", 0.95),
        in_the_way=_TWO_CORES,
    ),
    Target("C", "bytes held ahead.*", "mtf.*", bound_times(1)),
    Target(
        "C",
        "samples of five sources.*",
        "mtf Blend",
        rate_of("mtf, one source per batch", 0.9),
        in_the_way=_MIXING_COST,
    ),
    Target("C", "samples of five sources.*", "mtf Blend", beats_peers(4)),
    *(
        Target("C", "memory of a blend.*", "mtf Blend", at_most(n * 8 * 2**10, "8 KiB per source"), f"n={n}")
        for n in (4, 64, 1024)
    ),
    Target("D", r"first batch of a blend at sample 10\^9", "mtf Blend", at_most(1 * _MS, "1 ms")),
    Target("C", "a batch sampler of one's own", "mtf", over("torch DataLoader", 30 * _US, "and 30 us")),
    Target(
        "C",
        "map-style data in a StatefulDataLoader",
        "mtf",
        rate_of("torchdata StatefulDataLoader", 0.9),
        in_the_way=_STATES,
    ),
    # D. Overhead of the trainer.
    Target("D", "one training step.*", "mtf, minimal", over(_RAW, 15 * _US, "+ 15 us"), in_the_way=_STEP_COST),
    Target("D", "one training step.*", "mtf, seeded", over(_RAW, 45 * _US, "+ 45 us"), in_the_way=_STEP_COST),
    Target(
        "D", "one training step.*", "mtf, logs and progress", over(_RAW, 30 * _US, "+ 30 us"), in_the_way=_STEP_COST
    ),
    Target("D", "one training step.*", "mtf, ArrayLoader", over(_RAW, 0, "")),
    # E. Resume.
    Target("E", "resume to the first batch", "mtf, (Array|Thread|Data)Loader", at_most(5 * _MS, "5 ms")),
    # F. Start.
    Target(
        "F",
        "start of a training run",
        "mtf, with torch",
        over("import torch", 60 * _MS, "+ 60 ms"),
        in_the_way=_IMPORT_COST,
    ),
    Target(
        "F",
        "start of a mixture",
        "mtf, schedules only",
        at_most(150 * _MS, "150 ms"),
        in_the_way="numpy's import is most of it.",
    ),
    # G. Token corpora.
    Target("G", "int64 tokens.*", "mtf windows, 1 thread", rate_of(_TOKENS_BY_HAND, 1.3), in_the_way=_BANDWIDTH),
    Target("G", "int64 tokens.*", "mtf windows, 1 thread", beats_peers(1)),
    Target(
        "G",
        "int64 tokens.*",
        "mtf windows with boundaries by .*, no threads",
        rate_of("mtf windows, no threads", 1 / 1.3),
        in_the_way=_MORE_BYTES,
    ),
    Target(
        "G", "int64 tokens.*", "mtf packed, no threads", rate_of("mtf windows, no threads", 0.5), in_the_way=_PIECES
    ),
    Target("G", "table of a packing", "mtf", at_most(200 * _MS, "0.2 s"), r"10\^[567] documents.*"),
    Target("G", "documents of a packed row.*", "mtf", at_most(10 * _US, "10 us")),
    Target("G", "first batch of a corpus in files", "mtf", at_most(1000 * _MS, "1 s")),
    Target("G", "(trace|find) among 10.9 rows", "mtf", at_most(10 * _US, "10 us")),
)

# What isn't run here, and why.
NOT_RUN = {
    "mosaicml-streaming and litdata where they aren't installed": "both ask for a torchvision that would bring another "
    "torch; `make .venv/.loaders` installs them without it, and then their rows are measured",
    "the original model-training-framework": "it isn't published",
    "Megatron-LM": "its blending algorithm is measured as a C++ loop of our own, `greedy (C++)`",
    "a permutation of 10^9 by torch or numpy": "it needs 8 GB and more",
}
