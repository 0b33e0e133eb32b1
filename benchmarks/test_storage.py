"""Row H: checkpoints to an object store and back, against s3fs alone; and how long training waits for a save."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HandOn, Measure
from tables import Measurement

import mtf

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from s3_server import s3_server  # noqa: E402

_KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A real S3 server (moto's) on loopback, which the environment names."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{port}"
        for name, value in {**_KEYS, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield url


def trainer_of(mib: int, root: str, **saving: Any) -> mtf.Trainer:
    """A trainer whose model has ``mib`` MiB of weights, without optimizer state."""
    model = torch.nn.Linear(1024, mib * 256, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(dataloader_names=["a"]),
        checkpoint=mtf.CheckpointConfig(root_dir=root, **saving),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    step: Callable[..., Any] = lambda t, batch, *_: {"loss": t.model(batch).sum()}  # noqa: E731
    return mtf.Trainer(config, model, [optimizer], training_step=step)


@pytest.mark.parametrize("tool", ["mtf", "s3fs alone"])
def test_upload(measure: Measure, pick: Any, endpoint: str, tool: str) -> None:
    mib = pick(256, 64, 1)
    trainer = trainer_of(mib, "s3://bucket/upload")
    weight = trainer.model.weight.detach().numpy()
    files = s3fs.S3FileSystem(endpoint_url=endpoint)
    numbers = iter(range(100))

    def save() -> None:
        trainer.save_checkpoint(f"s3://bucket/upload/save-{next(numbers)}")

    def put() -> None:
        files.pipe_file(f"bucket/upload/alone-{next(numbers)}", weight.tobytes())

    run = save if tool == "mtf" else put
    measure(run, row="H", work="weights to S3, MiB", size=f"{mib} MiB", tool=tool, items=mib, per_second=True)


@pytest.mark.parametrize("tool", ["mtf", "s3fs alone"])
def test_download(measure: Measure, pick: Any, endpoint: str, tool: str) -> None:
    mib = pick(256, 64, 1)
    trainer = trainer_of(mib, "s3://bucket/download")
    trainer.save_checkpoint("s3://bucket/download/save")
    files = s3fs.S3FileSystem(endpoint_url=endpoint)
    files.pipe_file("bucket/download/alone", trainer.model.weight.detach().numpy().tobytes())

    def load() -> None:
        trainer.load_checkpoint("s3://bucket/download/save")

    def get() -> None:
        files.cat_file("bucket/download/alone")

    run = load if tool == "mtf" else get
    measure(run, row="H", work="weights from S3, MiB", size=f"{mib} MiB", tool=tool, items=mib, per_second=True)


@pytest.mark.parametrize("place", ["disk", "S3"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["waiting", "asynchronous"])
def test_pause(hand_on: HandOn, pick: Any, endpoint: str, tmp_path: Path, place: str, asynchronous: bool) -> None:
    mib = pick(256, 64, 1)
    pauses: list[float] = []

    class Clock(mtf.TrainerHooks):
        def on_train_batch_end(self, *_: Any) -> None:
            self.ended = time.perf_counter()

        def on_train_batch_start(self, t: mtf.Trainer, *_: Any) -> None:
            if t.global_step:
                pauses.append(time.perf_counter() - self.ended)

    for attempt in range(pick(5, 3, 1)):
        folder = f"{'asynchronous' if asynchronous else 'waiting'}-{attempt}"
        root = str(tmp_path / folder) if place == "disk" else f"s3://bucket/{folder}"
        trainer = trainer_of(mib, root, save_every_n_steps=1, asynchronous=asynchronous)
        trainer.add_hook(Clock())
        # One pause a run: a second save would wait for the first one to be written.
        trainer.fit([[torch.zeros(1, 1024)] * 2], max_steps=2)
    value = sorted(pauses)[len(pauses) // 2] * 1e9
    tool = "mtf, asynchronous" if asynchronous else "mtf"
    hand_on(Measurement("H", f"training waits for a save to {place}", f"{mib} MiB", tool, value))
