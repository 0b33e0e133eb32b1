"""Checkpoints on S3, against a real server on loopback: errors, delays and kills at any request."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import Proxy, s3_server
from trainer_tools import config, loader, trainer

import mtf
from mtf import checkpoint
from mtf.checkpoint.storage import object_store
from mtf.cli import main
from mtf.report import read_run

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    found = Proxy(server)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": found.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_made", {})
    yield found
    found.close()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name.replace('[', '-').replace(']', '')}/run"


def make(root: str, **saving: Any) -> mtf.Trainer:
    return trainer(config(["a"], checkpoint=mtf.CheckpointConfig(root_dir=root, save_every_n_steps=2, **saving)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_save_rotate_resume_and_look(
    proxy: Proxy, url: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [loader(20, 1, shuffle=True)]
    whole = make(f"memory://whole-{asynchronous}")
    whole.fit(data, max_steps=9)
    make(url, max_checkpoints=2, asynchronous=asynchronous).fit(data, max_steps=7)
    again = make(url, max_checkpoints=2, asynchronous=asynchronous)
    again.fit(data, max_steps=9, resume_from="latest")
    assert again.get_state().diff(whole.get_state()) == []
    again.save_checkpoint(f"{url}/by-hand")
    other = make(url)
    other.load_checkpoint(f"{url}/by-hand")
    assert other.get_state().diff(whole.get_state()) == []
    found = checkpoint.inspect_checkpoint(f"{url}/latest")
    assert found.manifest["step"] == 8
    found = checkpoint.diff_checkpoints(f"{url}/step-00000006", f"{url}/step-00000008")
    assert not found.equal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fate", ["503", "cut", "lose", 0.05])
def test_errors_and_delays_pass(proxy: Proxy, url: str, fate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
    data = [loader(20, 1, shuffle=True)]
    proxy.rule = lambda number, method, path: fate if number % 3 == 1 else None
    run = make(url)
    run.fit(data, max_steps=4)
    again = make(url)
    again.load_checkpoint(f"{url}/latest")
    assert again.get_state().diff(run.get_state()) == []
    assert len(proxy.requests) > 20


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are those above 1 kB. S3 itself takes no part below 5 MiB but the last; this server does."""
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(object_store, "_ONE_REQUEST_BYTES", 1000)
    monkeypatch.setattr(object_store, "BLOCK_BYTES", 5000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("fate", [None, "503", "cut", "lose"])
def test_a_large_file_arrives_whatever_happens_to_one_request(proxy: Proxy, url: str, fate: Any) -> None:
    """Create, three parts, complete: each of the five requests fails once; a part is sent again alone."""
    content = random.Random(0).randbytes(11_001)
    store = object_store.FsspecStorage(url)
    for failing in range(5):
        proxy.requests.clear()
        proxy.rule = lambda number, method, path, at=failing: fate if number == at else None
        name = f"large-{failing}"
        store.write_atomic(name, [content[:7], memoryview(content)[7:6_000], b"", content[6_000:]])
        uploads = [request for request in proxy.requests if request.startswith(("POST", "PUT"))]
        assert len(uploads) == 5 + (fate is not None)
        assert sum("partNumber" in request for request in uploads) == 3 + (fate is not None and 1 <= failing <= 3)
        with store.read(name) as file:
            assert file.read() == content


@pytest.mark.usefixtures("small_blocks")
def test_a_large_file_that_fails_leaves_nothing_behind(proxy: Proxy, url: str) -> None:
    store = object_store.FsspecStorage(url)
    proxy.rule = lambda number, method, path: "503" if "partNumber=2" in path else None
    with pytest.raises(OSError, match="Unavailable"):
        store.write_atomic("large", [bytes(11_001)])
    proxy.rule = lambda number, method, path: None
    assert store.list() == []
    prefix = url.removeprefix("s3://bucket/")
    assert "Uploads" not in store._fs.call_s3("list_multipart_uploads", Bucket="bucket", Prefix=prefix)


def test_a_store_that_is_gone_is_a_warning_within_a_bound(
    proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
    data = [loader(20, 1, shuffle=True)]
    make(url).fit(data, max_steps=2)

    class Goes(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            proxy.rule = lambda number, method, path: "cut"

    run = make(url)
    run.add_hook(Goes())
    with pytest.warns(checkpoint.CheckpointWarning, match="The run continues"):
        run.fit(data, max_steps=4, resume_from="latest")
    assert run.global_step == 4
    with pytest.raises(mtf.CheckpointIOError, match=rf"{url}"):
        make(url).fit(data, max_steps=4, resume_from="latest")
    proxy.rule = lambda number, method, path: None
    found = make(url)
    found.load_checkpoint(f"{url}/latest")
    assert found.global_step == 2


def test_a_kill_at_any_request_that_changes_something(proxy: Proxy, url: str) -> None:
    """Requests that only read are killed on a store in memory, in test_object_store.py."""
    script = [sys.executable, str(ROOT / "tests" / "faults" / "save_once.py"), url]
    for step in ("1", "2"):
        subprocess.run([*script, step], check=True, env=os.environ)
    kills = 0
    for number in range(60):
        changes: list[str] = []
        saving = subprocess.Popen([*script, "3"], stdout=subprocess.PIPE, text=True, env=os.environ)

        def rule(
            count: int, method: str, path: str, at: int = number, pid: int = saving.pid, seen: list[str] = changes
        ) -> Any:
            if method not in ("GET", "HEAD"):
                seen.append(f"{method} {path}")
            if len(seen) <= at:
                return None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return "lose"  # the server does the work, and the answer reaches nobody

        proxy.rule = rule
        said = saving.communicate(timeout=60)[0]
        proxy.rule = lambda count, method, path: None
        assert checkpoint.verify(f"{url}/latest")["step"] in (2, 3)
        if saving.returncode == 0:
            assert said == "saved\n"
            break
        kills += 1
    assert kills >= 6
    assert checkpoint.CheckpointManager(mtf.CheckpointConfig(root_dir=url)).latest() == f"{url}/step-00000003"


def test_the_command_line_reads_checkpoints_there(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = mtf.LoggingConfig(logger_type="jsonl", log_dir=str(tmp_path / "logs"), log_scalars_every_n_steps=1)
    saving = mtf.CheckpointConfig(root_dir=url, save_every_n_steps=4)
    run = trainer(config(["a"], checkpoint=saving, logging=logs))
    run.fit([loader(20, 1, shuffle=True)], max_steps=8)
    assert main(["inspect", f"{url}/latest"]) == 0
    assert "step-00000008" in capsys.readouterr().out
    assert main(["diff", f"{url}/step-00000004", f"{url}/step-00000008"]) == 1
    capsys.readouterr()
    assert main(["report", url]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    there, here = read_run(url), read_run(tmp_path / "logs")
    for report in (there, here):
        assert [(found.update, found.links, found.error) for found in report.checkpoints] == [
            (4, [], None),
            (8, ["latest"], None),
        ]
        assert report.update == 8
        assert report.sources[0].num_batches == 8
    assert here.metrics.series["train/loss"].num_values == 8
    with pytest.raises(mtf.ConfigError, match="no checkpoint lies there"):
        read_run(f"{url}-of-nobody")
