"""What objects look like: every public class has a line that is true and short, and tables in notebooks are HTML."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, step, trainer

import mtf
import mtf.checkpoint
from mtf.checkpoint.diff import diff_checkpoints
from mtf.checkpoint.inspect import inspect_checkpoint
from mtf.formatting import html_table, outline, plain_repr

MIXTURE = mtf.MultiDataLoaderConfig(sampling_strategy=mtf.SamplingStrategy.WEIGHTED, dataloader_weights=[3, 1])


def schedule() -> mtf.Schedule:
    return mtf.Schedule(MIXTURE, lengths={"<a>": 3, "b": 4}, seed=5)


class OwnSource(mtf.Source):
    """Rows that are counted."""

    def __init__(self) -> None:
        self.rows = 12

    def num_batches(self) -> int:
        return 4

    def open(self, pass_: int, batch: int, key: int, snapshot: Any = None) -> mtf.Stream:
        return OwnStream()


class OwnStream(mtf.Stream):
    """Nothing."""

    def __next__(self) -> Any:
        raise StopIteration


class OwnRows(mtf.RowSource):
    """Three rows of one number."""

    num_rows = 3

    def __init__(self) -> None:
        self.name = "three"

    def row(self, index: int) -> Any:
        return torch.tensor(index)


class OwnLogger(mtf.Logger):
    """Writes nowhere."""

    def __init__(self) -> None:
        self.path = "nowhere"

    def log_metrics(self, row: Any, step: int) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def trained() -> mtf.Trainer:
    """Two updates of two loaders."""
    trained = trainer(config(["a", "b"]))
    trained.fit([loader(8, 0), loader(8, 1)], max_steps=2)
    return trained


@pytest.fixture(scope="module")
def saved(trained: mtf.Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "one"
    trained.save_checkpoint(str(path))
    return path


# Class -> an object and how it looks; None where Python's own representation of enums and exceptions is right.
EXAMPLES: dict[str, tuple[Callable[[], Any], str] | None] = {
    "Source": (OwnSource, "OwnSource(4 batches per pass, addressed by position, rows=12)"),
    "Stream": (OwnStream, "OwnStream()"),
    "Snapshot": (lambda: mtf.Snapshot(1, 3, torch.ones(9)), "Snapshot(pass_=1, batch=3, ended=False, is_global=False)"),
    "Permutation": (lambda: mtf.Permutation(5, key=3), "Permutation(n=5)"),
    "ArrayLoader": (
        lambda: mtf.ArrayLoader(torch.ones(9, 2), 4, shuffle=True),
        "ArrayLoader(9 rows in 3 batches of 4, shuffled)",
    ),
    "ThreadLoader": (
        lambda: mtf.ThreadLoader(torch.arange(9), 4),
        "ThreadLoader(3 batches per pass, addressed by position, seed_each_batch=True, filter=None)",
    ),
    "MultiLoader": (
        lambda: mtf.MultiLoader({"a": loader(8, 0), "b": loader(8, 1)}, seed=3),
        "MultiLoader(ROUND_ROBIN, [a, b], seed=3, epoch=0, step=0)",
    ),
    "Batch": (
        lambda: mtf.Batch({"x": torch.ones(4, 2), "y": [1, 2]}, 0, "a", 7, 1, 2, 3, 0),
        "Batch('a', epoch=0, step=7, pass_=1, batch=2, data={'x': float32[4, 2], 'y': [1, 2]})",
    ),
    "Config": (lambda: mtf.TrainerConfig(seed=4), "TrainerConfig(seed=4)"),
    "MultiDataLoaderConfig": (
        lambda: mtf.MultiDataLoaderConfig(sampling_strategy=mtf.SamplingStrategy.SEQUENTIAL, burst_size=2),
        "MultiDataLoaderConfig(sampling_strategy=SamplingStrategy.SEQUENTIAL, burst_size=2)",
    ),
    "WeightCurve": (lambda: mtf.WeightCurve([(0, [1.0])]), "WeightCurve(points=[(0, [1.0])])"),
    "Schedule": (lambda: schedule(), "Schedule(WEIGHTED, [<a>, b], seed=5, epoch=0, step=0)"),
    "Draw": (
        lambda: mtf.Schedule(lengths={"a": 3}).at(2),
        "mtf.Draw(step=2, source=0, name='a', pass_=0, batch=2)",
    ),
    "TrainerConfig": (
        lambda: mtf.TrainerConfig(performance=mtf.PerformanceConfig(precision="bf16"), extras={"a": 1}),
        "TrainerConfig(performance=PerformanceConfig(precision='bf16'), extras={'a': 1})",
    ),
    "PerformanceConfig": (mtf.PerformanceConfig, "PerformanceConfig()"),
    "ValidationConfig": (
        lambda: mtf.ValidationConfig(aggregation_fn=dict),
        "ValidationConfig(aggregation_fn=<function dict>)",
    ),
    "CheckpointConfig": (
        lambda: mtf.CheckpointConfig(save_every_n_steps=5),
        "CheckpointConfig(save_every_n_steps=5)",
    ),
    "FaultToleranceConfig": (
        lambda: mtf.FaultToleranceConfig(auto_resume=True),
        "FaultToleranceConfig(auto_resume=True)",
    ),
    "PreemptionConfig": (
        lambda: mtf.PreemptionConfig(signals=("SIGUSR1",)),
        "PreemptionConfig(signals=('SIGUSR1',))",
    ),
    "LoggingConfig": (lambda: mtf.LoggingConfig(logger_type="csv"), "LoggingConfig(logger_type='csv')"),
    "DDPConfig": (lambda: mtf.DDPConfig(strategy="fsdp"), "DDPConfig(strategy='fsdp')"),
    "TrainerState": (lambda: trainer().get_state(), "TrainerState("),
    "Preempted": (
        lambda: mtf.Preempted(75, signal.SIGTERM, Path("there")),
        "Preempted(75)",
    ),
    "PreemptionGuard": (
        lambda: mtf.PreemptionGuard(("SIGTERM",)),
        "PreemptionGuard(SIGTERM, SIGINT; requested=None)",
    ),
    "Trainer": (
        lambda: trainer(),
        "Trainer(Sequential with 26 parameters, [SGD(lr=0.1)], cpu, epoch=0, global_step=0)",
    ),
    "GenericTrainer": (
        lambda: mtf.GenericTrainer(None, nn.Linear(2, 1), training_step=step),
        "Trainer(Linear with 3 parameters, [], cpu, epoch=0, global_step=0)",
    ),
    "TrainerHooks": (mtf.TrainerHooks, "TrainerHooks()"),
    "EarlyStopping": (
        lambda: mtf.EarlyStopping("val/loss", patience=2),
        "EarlyStopping(monitor='val/loss', patience=2, num_bad=0)",
    ),
    "GradientMonitor": (mtf.GradientMonitor, "GradientMonitor(every_n_updates=1, warn_above=None)"),
    "LearningRateMonitor": (mtf.LearningRateMonitor, "LearningRateMonitor()"),
    "BestCheckpoint": (lambda: mtf.BestCheckpoint("best"), "BestCheckpoint(path='best', monitor='val/loss')"),
    "ThroughputMonitor": (mtf.ThroughputMonitor, "ThroughputMonitor(max_wait_share=0.3)"),
    "OnlineMixing": (
        lambda: mtf.OnlineMixing(lambda found: None),
        "OnlineMixing(every=16, floor=0.01, metric='loss', blend=None)",
    ),
    "MixingRound": (
        lambda: mtf.MixingRound(0, 16, {"a": 0.5}, {"a": 8}, {"a": 1.0}),
        "MixingRound(number=0, update=16, means={'a': 0.5}, counts={'a': 8}, weights={'a': 1.0}, memory={})",
    ),
    "Curriculum": (lambda: mtf.Curriculum({0: [1.0, 2.0]}), "Curriculum("),
    "FreezeSchedule": (
        lambda: mtf.FreezeSchedule({0: ["head"], 2: "*"}),
        "FreezeSchedule(by='epoch', optimizer_idx=0, eval_frozen=False, start=None)",
    ),
    "Profiler": (lambda: mtf.Profiler(), "Profiler("),
    "SpikeGuard": (lambda: mtf.SpikeGuard(), "SpikeGuard("),
    "LossSpike": (lambda: mtf.LossSpike("update 7: loss of 'a' is 3"), "LossSpike("),
    "AveragedWeights": (
        lambda: mtf.AveragedWeights("swa"),
        "AveragedWeights(kind='swa', decay=0.999, every_n_updates=1, start=0, num_averaged=0)",
    ),
    "Blend": (
        lambda: mtf.Blend({"a": torch.ones(8, 2), "b": torch.ones(9, 2)}, global_batch_size=4),
        "Blend(rows {a: 8, b: 9}, SHUFFLED, global_batch_size=4)",
    ),
    "Together": (
        lambda: mtf.Together({"a": mtf.ArrayLoader(torch.ones(8, 2), 4)}),
        "Together([a], 2 batches per pass)",
    ),
    "Windows": (lambda: mtf.Windows(torch.arange(20), 4), "Windows(length=4, stride=4)"),
    "RowSource": (OwnRows, "OwnRows(name='three')"),
    "RowSources": (lambda: mtf.RowSources(torch.tensor([0, 1, 1]), ("a", "b"), (1, 2)), "RowSources(a: 1, b: 2)"),
    "SourceMeans": (
        lambda: mtf.SourceMeans(("a", "b"), torch.ones(2), (1, 2)),
        "SourceMeans(a: 1 rows, b: 2 rows)",
    ),
    "SampleTable": (
        lambda: mtf.Blend({"a": torch.ones(8, 2)}, global_batch_size=4).samples(0),
        "SampleTable(4 samples of a)",
    ),
    "TokenCorpus": (
        lambda: mtf.TokenCorpus(torch.arange(100, dtype=torch.int32)),
        "TokenCorpus(100 int32 tokens in 1 files)",
    ),
    "TokenRows": (
        lambda: mtf.TokenCorpus(torch.arange(100, dtype=torch.int32)).windows(8),
        "WindowRows(11 rows of 8 tokens, moving, shuffled)",
    ),
    "TokenOrigin": (
        lambda: mtf.TokenOrigin("web.bin", 0, 8, 3, 4),
        "TokenOrigin(file='web.bin', begin=0, end=8, document=3, offset=4)",
    ),
    "SamplePlace": (
        lambda: mtf.SamplePlace(7, 5, 1, 1, "web", 0, 40),
        "SamplePlace(step=7, place=5, rank=1, rank_row=1, source='web', pass_=0, row=40)",
    ),
    "DrawnSample": (
        lambda: mtf.DrawnSample(0, 7, mtf.SamplePlace(7, 5, 1, 1, "web", 0, 40)),
        "DrawnSample(epoch=0, step=7, sample=SamplePlace(step=7, place=5, rank=1, rank_row=1, source='web', pass_=0, "
        "row=40))",
    ),
    "BatchTrace": (
        lambda: mtf.Blend({"a": torch.ones(8, 2)}, global_batch_size=4).trace(3, world_size=2),
        "BatchTrace(step=3, 4 samples, world_size=2)",
    ),
    "RunInfo": (
        lambda: mtf.RunInfo("trial", {"seed": 1}),
        "RunInfo(name='trial', config={'seed': 1}, step=0, state={})",
    ),
    "Logger": (OwnLogger, "OwnLogger(path='nowhere')"),
    "GenericTrainerConfig": (mtf.GenericTrainerConfig, "TrainerConfig()"),
    **dict.fromkeys(
        ["ResumeMode", "SamplingStrategy", "WeightedOrder", "EpochLengthPolicy", "Interpolation", "ValAggregation"]
    ),
    **dict.fromkeys(["ValidationFrequency", "MtfError", "ConfigError", "StateMismatch", "CheckpointError"]),
    **dict.fromkeys(
        ["SourceError", "FetchTimeout", "Closed", "RankFailed", "NonFiniteLoss", "CheckpointIOError", "UsageError"]
    ),
}


def check_line(text: str) -> None:
    """One line that dumps no tensor and names no address."""
    assert "\n" not in text
    assert " at 0x" not in text
    assert "tensor(" not in text
    assert len(text) < 300


@pytest.mark.parametrize("name", [name for name in mtf._PUBLIC if inspect.isclass(getattr(mtf, name))])
def test_every_public_class_has_a_line_of_its_own(name: str) -> None:
    cls = getattr(mtf, name)
    example = EXAMPLES[name]
    if example is None:
        assert cls.__repr__ is not object.__repr__
        return
    make, expected = example
    thing = make()
    assert isinstance(thing, cls)
    assert type(thing).__repr__ is not object.__repr__
    check_line(repr(thing))
    assert repr(thing).startswith(expected), repr(thing)
    if not expected.endswith("("):
        assert repr(thing) == expected
    getattr(thing, "close", lambda: None)()


def test_every_class_of_checkpoints_has_a_line(saved: Path, tmp_path: Path) -> None:
    with mtf.checkpoint.Transaction(tmp_path / "new") as transaction:
        things = {
            "Checkpoint": mtf.checkpoint.read(saved),
            "CheckpointManager": mtf.checkpoint.CheckpointManager(mtf.CheckpointConfig(save_every_n_steps=3)),
            "CheckpointWarning": mtf.checkpoint.CheckpointWarning("x"),
            "FsspecStorage": mtf.checkpoint.FsspecStorage("memory://run"),
            "ObjectLock": mtf.checkpoint.ObjectLock(mtf.checkpoint.FsspecStorage("memory://run")),
            "SavePolicy": mtf.checkpoint.SavePolicy(every_n_minutes=5),
            "Transaction": transaction,
        }
        classes = {name for name in mtf.checkpoint.__all__ if inspect.isclass(getattr(mtf.checkpoint, name))}
        assert classes == {*things, "Storage"}  # a protocol
        for thing in [*things.values(), inspect_checkpoint(saved), diff_checkpoints(saved, saved)]:
            assert type(thing).__repr__ is not object.__repr__
            check_line(
                repr(thing).replace(str(saved.parent), "").replace(str(tmp_path), "").replace(str(Path.cwd()), "")
            )
    assert repr(things["SavePolicy"]) == "SavePolicy(every 5 minutes)"
    assert repr(things["Checkpoint"]).endswith("step=2, epoch=0, 4 entries of the model)")


def test_lines_follow_the_position(trained: mtf.Trainer) -> None:
    assert repr(trained).endswith("cpu, epoch=0, global_step=2)")
    assert repr(trained.multi_loader_manager) == "MultiLoader(ROUND_ROBIN, [a, b], seed=0, epoch=0, step=2)"
    assert repr(trained.multi_loader_manager.schedule.plan(2)) == (
        "Plan(ROUND_ROBIN, 2 epochs, 8 steps; print it for the table)"
    )
    with mtf.MultiLoader([loader(8, 0)]) as batches:
        pass
    assert repr(batches) == "MultiLoader(ROUND_ROBIN, [dl0], seed=0, closed)"


def test_objects_whose_constructor_raised_can_be_shown() -> None:
    for cls in (mtf.Trainer, mtf.MultiLoader, mtf.Schedule):
        assert repr(cls.__new__(cls)) == f"{cls.__name__}(not constructed)"


class Tables(HTMLParser):
    """Checks that tags match; collects cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def cells(thing: Any) -> list[str]:
    parser = Tables()
    parser.feed(thing._repr_html_())
    parser.close()
    assert parser.open == []
    return parser.cells


def test_notebooks_show_tables(trained: mtf.Trainer, saved: Path) -> None:
    assert {"<a>", "b", "3.0"} <= set(cells(schedule()))
    assert {"<a>", "75.00 %"} <= set(cells(schedule().plan()))
    assert {"a", "TorchSource", "SEEK", "2", "1"} <= set(cells(trained.multi_loader_manager))
    assert {"SGD(lr=0.1)", "Sequential with 26 parameters", "train/loss"} <= set(cells(trained))
    assert {"step", "weights", "4 tensors, 26 elements", "compared"} <= set(cells(inspect_checkpoint(saved)))
    shown = cells(mtf.TrainerConfig(performance=mtf.PerformanceConfig(precision="bf16")))
    assert shown[3:6] == ["performance.precision", "'bf16'", "'fp32'"]
    assert "multi.sampling_strategy" in shown
    assert cells(mtf.WeightCurve([(0, [1.0])]))[3:6] == ["points", "[(0, [1.0])]", "required"]


def test_outlines_are_bounded() -> None:
    deep = {"a": [{"b": ({"c": torch.ones(2)},)}]}
    assert outline(deep) == "{'a': [{'b': ...}]}"
    assert outline(list(range(9))) == "[0, 1, 2, 3, 5 more]"
    assert outline((torch.ones(3, dtype=torch.bool), "x" * 90)) == f"(bool[3], '{'x' * 27}...{'x' * 27}')"
    assert outline(object()) == "<object>"


def test_helpers_escape_and_leave_out() -> None:
    class Thing:
        def __init__(self) -> None:
            self.a, self._b, self.c = 1, 2, torch.ones(2)

    assert plain_repr(Thing(), "first") == "Thing(first, a=1)"
    assert html_table("<t>", (), [("&", None)]) == (
        "<p><b>&lt;t&gt;</b></p><table><tbody><tr><td>&amp;</td><td></td></tr></tbody></table>"
    )
