"""Checkpoints of several ranks in an object store: a real S3 server on loopback, shards written by every rank."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import Proxy, s3_server

import mtf
from distributed import launch
from mtf import checkpoint
from mtf.checkpoint.storage import object_store

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
TOLERANCE = 1e-5  # another number of ranks sums in another order


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        found = Proxy(port)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": found.url}.items():
            patch.setenv(name, value)
        patch.setattr(object_store, "_made", {})
        yield found
        found.close()


def train(world_size: int, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = launch.run(world_size, folder, "store_worker.py", *arguments)
    assert done.codes == [0] * world_size, "\n".join(done.output)
    return done.results


@pytest.fixture(scope="module")
def whole(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, on a local disk."""
    folder = tmp_path_factory.mktemp("whole")
    return train(2, folder, str(folder / "ckpt"), "12", "fsdp", "no")[0]


@pytest.mark.parametrize("asynchronous", ["no", "yes"])
def test_shards_resume_on_as_many_ranks_and_on_another_number(
    proxy: Proxy, whole: dict[str, Any], asynchronous: str, tmp_path: Path
) -> None:
    url = f"s3://bucket/ranks-{asynchronous}/run"
    train(2, tmp_path / "first", url, "6", "fsdp", asynchronous)
    files = checkpoint.inspect_checkpoint(f"{url}/latest").files
    assert {"sharded/rank-00000.safetensors", "sharded/rank-00001.safetensors"} <= set(files)
    again = train(2, tmp_path / "again", url, "9", "fsdp", asynchronous)[0]
    assert (again["first"], again["batches"]) == (6, whole["batches"][6:9])
    # Two are kept, and both are whole.
    assert [checkpoint.verify(f"{url}/step-{step:08}")["step"] for step in (6, 9)] == [6, 9]
    with pytest.raises(mtf.CheckpointError):
        checkpoint.verify(f"{url}/step-00000003")
    alone = train(1, tmp_path / "alone", url, "12", "ddp", asynchronous)[0]
    assert (alone["first"], alone["batches"]) == (9, whole["batches"][9:])
    for name, value in whole["weights"].items():
        assert alone["weights"][name] == pytest.approx(value, abs=TOLERANCE)


@pytest.mark.parametrize("at", [1, 4])
def test_ranks_killed_while_shards_are_uploaded_resume_from_the_last_whole_checkpoint(
    proxy: Proxy, whole: dict[str, Any], at: int, tmp_path: Path
) -> None:
    url = f"s3://bucket/killed-{at}/run"
    train(2, tmp_path / "first", url, "3", "fsdp", "yes")
    ranks = launch.start(2, tmp_path / "killed", "store_worker.py", url, "12", "fsdp", "yes")
    changes: list[str] = []

    def rule(number: int, method: str, path: str) -> Any:
        if method == "PUT" and "step-00000006" in path:
            changes.append(path)
        if len(changes) < at:
            return None
        for process in ranks.processes:
            process.send_signal(signal.SIGKILL)
        return "cut"

    proxy.rule = rule
    assert ranks.wait(120).codes == [-signal.SIGKILL] * 2
    proxy.rule = lambda number, method, path: None
    assert len(changes) >= at
    assert checkpoint.verify(f"{url}/latest")["step"] == 3
    again = train(2, tmp_path / "again", url, "12", "fsdp", "yes")[0]
    assert (again["first"], again["batches"]) == (3, whole["batches"][3:])
    assert again["weights"] == whole["weights"]
