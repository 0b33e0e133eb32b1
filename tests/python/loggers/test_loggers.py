"""Loggers: what they write is read back; a logger that fails doesn't stop training."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf
from mtf.config.logging import LOGGERS
from mtf.loggers.base import Logger, RunInfo, SafeLogger
from mtf.loggers.registry import make_logger

PNG = b"\x89PNG\r\n\x1a\n"


def picture() -> Any:
    from matplotlib.figure import Figure

    figure = Figure((2, 1))
    figure.subplots().plot([1, 2])
    return figure


def info(step: int = 0, **state: Any) -> RunInfo:
    return RunInfo("trial", {"seed": 1, "nested": {"rate": 0.1}, "extras": {"my key (1)": 1}}, step, state)


def jsonl_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    make_logger(mtf.LoggingConfig(), info()).log_metrics({"train/loss": 0.123456, "n": 2.0}, 50)
    assert capsys.readouterr().out == "update 50 · train/loss 0.1235 · n 2\n"


ROW = {
    "train/loss": 0.5,
    "train/a/loss": 0.25,
    "train/accuracy": 0.75,
    "lr/optimizer0": 0.001,
    "lr/optimizer1": 0.1,
    "throughput/samples_per_s": 1234.5,
    "throughput/data_wait_share": 0.034,
    "loader_proportions/a_batches": 0.6,
}
VALIDATION = {"val/a/loss": 0.1, "val/a/accuracy": 0.9, "val/accuracy": 0.8, "val/loss": 0.2}


@pytest.mark.parametrize(
    ("fields", "row", "shown"),
    [
        ([], ROW, "update 7 · train/loss 0.5 · lr 0.001 · 1,234 samples/s · 3% waiting for data"),
        ([], VALIDATION, "update 7 · val/loss 0.2 · val/accuracy 0.8 · val/a/loss 0.1 · val/a/accuracy 0.9"),
        (
            [],
            {**VALIDATION, "val/b/loss": 0.3},
            "update 7 · val/loss 0.2 · val/accuracy 0.8 · val/a/loss 0.1 · val/b/loss 0.3",
        ),
        (
            ["train/*", "lr/optimizer1"],
            ROW,
            "update 7 · train/loss 0.5 · train/a/loss 0.25 · train/accuracy 0.75 · lr/optimizer1 0.1",
        ),
        (["*"], {"x": 1.0, "y": 2.0}, "update 7 · x 1 · y 2"),
        # One loader has the values that all have: once is enough.
        (
            [],
            {"val/dl0/loss": 0.2, "val/dl0/f1": 0.5, "val/loss": 0.2, "val/f1": 0.5},
            "update 7 · val/loss 0.2 · val/f1 0.5",
        ),
        (["val/*"], ROW, ""),
    ],
)
def test_a_line_has_four_fields_or_those_that_were_chosen(
    fields: list[str], row: dict[str, float], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_logger(mtf.LoggingConfig(console_fields=fields), info()).log_metrics(row, 7)
    assert capsys.readouterr().out.rstrip("\n") == shown


def test_fields_of_a_console_that_is_not_there_are_refused() -> None:
    with pytest.raises(mtf.ConfigError, match="console_fields needs the logger 'console'"):
        mtf.LoggingConfig(logger_type="jsonl", console_fields=["*"])
    with pytest.raises(mtf.ConfigError, match="console_fields must be a list"):
        mtf.LoggingConfig(console_fields="*")  # type: ignore[arg-type]


class Kept(Logger):
    """A logger of a user's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.num_closed = 0

    def log_metrics(self, row: Any, step: int) -> None:
        self.rows.append((step, dict(row)))

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def own_name() -> Any:
    yield "own"
    LOGGERS.pop("own", None)


class TestOwnLoggers:
    def test_an_object(self) -> None:
        kept = Kept()
        run = trainer(config(logging=mtf.LoggingConfig(logger_type=kept, log_scalars_every_n_steps=1)))
        run.fit({"a": loader(16, 0)}, max_steps=2)
        assert [step for step, _ in kept.rows][:2] == [1, 2]
        assert "train/loss" in kept.rows[0][1]
        run.config.describe()

    def test_a_registered_name_also_among_others(self, own_name: str, tmp_path: Path) -> None:
        made: list[Kept] = []

        def make(settings: mtf.LoggingConfig, run: RunInfo) -> Logger:
            assert (settings.log_dir, run.name) == (str(tmp_path), "trial")
            made.append(Kept())
            return made[-1]

        mtf.register_logger(own_name, make)
        mtf.register_logger(own_name, make)
        with pytest.raises(mtf.ConfigError, match="already a logger called 'own'"):
            mtf.register_logger(own_name, lambda *_: Kept())
        kept = Kept()
        several = mtf.LoggingConfig(
            logger_type="composite", composite_loggers=["jsonl", own_name, kept], log_dir=str(tmp_path)
        )
        make_logger(several, info()).log_metrics({"loss": 1.0}, 3)
        assert made[0].rows == kept.rows == [(3, {"loss": 1.0})]
        assert jsonl_rows(tmp_path / "trial" / "metrics.jsonl") == [{"step": 3, "loss": 1.0}]
        assert mtf.TrainerConfig.from_dict({"logging": {"logger_type": own_name}}).logging.logger_type == own_name

    @pytest.mark.parametrize("wrong", [Kept, 3, None, object()])
    def test_what_is_no_logger_is_refused_at_once(self, wrong: Any) -> None:
        with pytest.raises(mtf.ConfigError, match="must be the name of a logger"):
            mtf.LoggingConfig(logger_type=wrong)

    def test_a_factory_that_returns_something_else(self, own_name: str) -> None:
        mtf.register_logger(own_name, lambda *_: print)  # type: ignore[arg-type, return-value]
        with pytest.raises(mtf.ConfigError, match="the factory of logger 'own' must return"):
            make_logger(mtf.LoggingConfig(logger_type=own_name), info())
        with pytest.raises(mtf.ConfigError, match="factory must be a function"):
            mtf.register_logger("x", 3)  # type: ignore[arg-type]
        with pytest.raises(mtf.ConfigError, match="name must be a string"):
            mtf.register_logger("", lambda *_: Kept())


def test_trackio_and_its_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    code = """
import sqlite3, sys
import mtf
from mtf.loggers.base import RunInfo
from mtf.loggers.registry import make_logger

settings = mtf.LoggingConfig(logger_type="trackio", trackio_project="p")
first = make_logger(settings, RunInfo("trial", {"seed": 1}))
first.log_metrics({"train/loss": 0.5}, 10)
state = first.state_dict()
first.close()
again = make_logger(settings, RunInfo("trial", {"seed": 1}, 10, state))
again.log_metrics({"train/loss": 0.25}, 20)
assert again.state_dict() == state
again.close()
rows = sqlite3.connect(sys.argv[1]).execute("select run_name, step from metrics order by step").fetchall()
assert rows == [(state["run_name"], 10), (state["run_name"], 20)], rows
"""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.db")], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_jsonl_and_its_resume(tmp_path: Path) -> None:
    settings = mtf.LoggingConfig(logger_type="jsonl", log_dir=str(tmp_path))
    path = tmp_path / "trial" / "metrics.jsonl"
    logger = make_logger(settings, info())
    for step in (10, 20, 30):
        logger.log_metrics({"loss": 1.0 / step, "bad": math.nan}, step)
    assert jsonl_rows(path)[0] == {"step": 10, "loss": 0.1, "bad": "nan"}
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    make_logger(settings, info(step=20)).log_metrics({"loss": 9.0}, 30)
    assert [(row["step"], row["loss"]) for row in jsonl_rows(path)] == [(10, 0.1), (20, 0.05), (30, 9.0)]
    make_logger(settings, info()).log_metrics({"loss": 1.0}, 10)
    assert jsonl_rows(path) == [{"step": 10, "loss": 1.0}]


def test_csv_columns_that_turn_up_later(tmp_path: Path) -> None:
    settings = mtf.LoggingConfig(logger_type="csv", log_dir=str(tmp_path))
    path = tmp_path / "trial" / "metrics.csv"
    logger = make_logger(settings, info())
    logger.log_metrics({"a": 1.0}, 10)
    logger.log_metrics({"b": 2.0, "a": 1.5}, 20)
    logger.log_metrics({"b": 3.0}, 30)
    make_logger(settings, info(step=20)).log_metrics({"a": 4.0}, 30)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"step": "10", "a": "1.0", "b": ""},
        {"step": "20", "a": "1.5", "b": "2.0"},
        {"step": "30", "a": "4.0", "b": ""},
    ]


def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    settings = mtf.LoggingConfig(logger_type="tensorboard", tensorboard_log_dir=str(tmp_path / "tb"))
    logger = make_logger(settings, info())
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": 1.0 / step}, step)
    logger.close()
    logger = make_logger(settings, info(step=20))
    logger.log_metrics({"train/loss": 5.0}, 30)
    logger.flush()
    logger.close()
    found = events.EventAccumulator(str(tmp_path / "tb"))
    found.Reload()
    scalars = found.Scalars("train/loss")
    assert [(s.step, s.value) for s in scalars] == [
        (10, pytest.approx(0.1)),
        (20, pytest.approx(0.05)),
        (30, 5.0),
    ]
    assert "config/text_summary" in found.Tags()["tensors"]


def leveldb_records(log: bytes) -> list[bytes]:
    """Records of a LevelDB log, which W&B's files are after a header of 7 bytes."""
    records, record, at = [], b"", 0
    while at + 7 <= len(log):
        if (room := -(at + 7) % 32768) < 7:  # a block's last bytes can't hold a record's header
            at += room
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(record)
            record = b""
    return records


def finished_records(path: Path) -> list[bytes]:
    """Records of a W&B file, which W&B's own process may still be writing for a moment after the run's end."""
    deadline = time.monotonic() + 30
    size = -1
    while time.monotonic() < deadline and (size != path.stat().st_size or size <= 7):
        size = path.stat().st_size
        time.sleep(0.2)
    return leveldb_records(path.read_bytes()[7:])


@pytest.mark.filterwarnings("ignore")  # of wandb and its dependencies
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="an extra")
    from wandb.proto import wandb_internal_pb2

    settings = mtf.LoggingConfig(
        logger_type="wandb", log_dir=str(tmp_path), wandb_project="p", wandb_mode="offline", wandb_tags=["t"]
    )
    logger = make_logger(settings, info())
    logger.log_metrics({"train/loss": 0.25}, 10)
    logger.log_figure("pictures/one", picture(), 10)
    run_id = logger.state_dict()["run_id"]
    logger.close()
    (image,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/files/media/images/pictures/one_10_*.png")
    assert image.read_bytes().startswith(PNG)
    (path,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-*.wandb")
    history: list[dict[str, Any]] = []
    for data in finished_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            history.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        if record.WhichOneof("record_type") == "run":
            assert record.run.project == "p"
            assert list(record.run.tags) == ["t"]
    assert history[0]["train/loss"] == 0.25
    assert history[0]["_step"] == 10
    assert history[0]["pictures/one._type"] == "image-file"
    logger = make_logger(settings, info(step=10, run_id=run_id))
    assert logger.state_dict() == {"run_id": run_id}
    logger.close()


def test_closed_logs_are_opened_again_in_the_same_place(tmp_path: Path) -> None:
    def lines(folder: str, closes: bool) -> list[str]:
        logging = mtf.LoggingConfig(
            logger_type="csv", log_dir=str(tmp_path / folder), log_scalars_every_n_steps=1, progress_bar=False
        )
        made = trainer(config(["a"], logging=logging))
        for steps in (2, 4):
            made.fit([loader(16, 0)], max_steps=steps)
            if closes:
                made.close_logs()
                made.close_logs()
        text = (tmp_path / folder / "mtf" / "metrics.csv").read_text(encoding="utf-8")
        return [line.split(",")[0] for line in text.splitlines()]

    assert lines("closed", True) == lines("open", False) == ["step", "1", "2", "3", "4"]


def test_logs_stay_open_inside_fit() -> None:
    class Closes(mtf.TrainerHooks):
        def on_train_start(self, running: mtf.Trainer) -> None:
            running.close_logs()

    made = trainer(config(["a"]), hooks=[Closes()])
    with pytest.raises(mtf.ConfigError, match="call it after fit"):
        made.fit([loader(16, 0)], max_steps=1)


@pytest.mark.filterwarnings("ignore")  # of mlflow and its dependencies
def test_mlflow_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="an extra")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    settings = mtf.LoggingConfig(logger_type="mlflow", mlflow_tracking_uri=uri, mlflow_experiment="e")
    logger = make_logger(settings, info())
    logger.log_metrics({"train/loss": 0.5, "train/books (old)/loss": 0.75}, 10)
    logger.log_figure("pictures/one", picture(), 10)
    state = logger.state_dict()
    logger.close()
    logger = make_logger(settings, info(step=10, **state))
    logger.log_metrics({"train/loss": 0.25}, 20)
    logger.close()
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(state["run_id"], "train/loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.5), (20, 0.25)]
    run = client.get_run(state["run_id"])
    assert run.data.metrics["train/books _old_/loss"] == 0.75, "MLflow refuses parentheses"
    assert run.data.params["extras.my key _1_"] == "1"
    assert run.data.params["nested.rate"] == "0.1"
    assert run.info.status == "FINISHED"
    assert client.get_experiment_by_name("e") is not None
    (image,) = tmp_path.glob(f"store/*/{state['run_id']}/artifacts/pictures/one/step-00000010.png")
    assert image.read_bytes().startswith(PNG)


def test_composite_gives_each_logger_its_row_and_state(tmp_path: Path) -> None:
    settings = mtf.LoggingConfig(logger_type="composite", composite_loggers=["jsonl", "csv"], log_dir=str(tmp_path))
    logger = make_logger(settings, info())
    logger.log_metrics({"a": 1.0}, 10)
    logger.flush()
    assert logger.state_dict() == {"jsonl": {}, "csv": {}}
    logger.close()
    assert {p.name for p in (tmp_path / "trial").iterdir()} == {"metrics.jsonl", "metrics.csv"}


def test_a_logger_that_raises_warns_once() -> None:
    class Broken(Logger):
        def log_metrics(self, row: Any, step: int) -> None:
            raise OSError("the server is gone")

        def state_dict(self) -> dict[str, Any]:
            raise OSError("still gone")

    logger = SafeLogger(Broken())
    with pytest.warns(UserWarning, match=r"Broken raised OSError.*the server is gone.*training continues"):
        logger.log_metrics({}, 1)
    logger.log_metrics({}, 2)
    assert logger.state_dict() == {}


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_says_how_to_get_it(kind: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(mtf.ConfigError, match=rf"pip install 'mtf-torch\[{kind}\]'"):
        make_logger(mtf.LoggingConfig(logger_type=kind), info())


def test_rows_of_a_run(tmp_path: Path) -> None:
    settings = config(
        ["a", "b"],
        experiment_name="run",
        logging=mtf.LoggingConfig(
            logger_type="jsonl", log_dir=str(tmp_path), log_scalars_every_n_steps=2, progress_bar=False
        ),
    )
    run = trainer(settings)
    run.fit([loader(8, 1), loader(8, 2)], [loader(4, 3)], max_epochs=1)
    first, second, validation = jsonl_rows(tmp_path / "run" / "metrics.jsonl")
    assert [first["step"], second["step"], validation["step"]] == [2, 4, 4]
    assert first["train/loss"] == pytest.approx((first["train/a/loss"] + first["train/b/loss"]) / 2)
    assert {type(value) for value in run.metrics.values()} <= {int, float}
    assert first["lr/optimizer0"] == 0.1
    assert first["loader_proportions/a_batches"] == 0.5
    assert first["loader_proportions/a_divergence"] == 0.0
    assert first["throughput/samples_per_s"] > 0
    assert 0 <= first["throughput/data_wait_share"] <= 1
    assert set(validation) == {"step", "val/loss", "val/dl0/loss"}
    assert run.metrics["val/loss"] == validation["val/loss"]
