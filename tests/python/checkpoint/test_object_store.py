"""Checkpoints where there is no rename: nothing is lost at any request, listings may lag, errors pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_stores import DictStorage, KillAt, Killed
from trainer_tools import config, loader, trainer

import mtf
from mtf import checkpoint
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage import object_lock, registry

FIELDS = {"max_checkpoints": 2, "monitor_metric": "val/loss"}


def manager(storage: DictStorage, **fields: Any) -> CheckpointManager:
    return CheckpointManager(mtf.CheckpointConfig(**{**FIELDS, **fields}), storage=storage)


def save(m: CheckpointManager, step: int, value: float | None = None, **options: Any) -> Any:
    weights = {"w": torch.full((40,), float(step if value is None else value))}
    return m.save(step=step, epoch=0, model=weights, state_tree={"step": step}, schedule=b"x" * step, **options)


def load(storage: DictStorage) -> Any:
    found = manager(storage).load_latest()
    assert found is not None
    assert found.state["step"] == found.manifest["step"] == len(found.schedule)
    return found


def checkpoints(files: dict[str, bytes]) -> list[str]:
    return sorted(name.partition("/")[0] for name in files if name.endswith("/manifest.json"))


def test_a_checkpoint_counts_by_its_manifest_and_parts_are_named_by_content() -> None:
    files: dict[str, bytes] = {}
    writes: list[str] = []
    storage = DictStorage("dict://run", files, after=lambda kind, name: writes.append(name))
    m = manager(storage)
    assert save(m, 3) == "dict://run/step-00000003"
    written = [name for name in writes if name.startswith("step-")]
    assert written[-1] == "step-00000003/manifest.json"
    assert files["latest"] == b"step-00000003"
    entries = checkpoint.read_manifest(registry.folder_of(storage, "step-00000003"))["files"]
    for name, entry in entries.items():
        stem, _, suffix = name.rpartition(".")
        assert entry["object"] == f"{stem}-{entry['sha256'][:32]}.{suffix}"
        assert len(files[f"step-00000003/{entry['object']}"]) == entry["size"]
    m.close()


def test_rotation_best_and_latest() -> None:
    files: dict[str, bytes] = {}
    m = manager(DictStorage("dict://run", files))
    for step, loss in enumerate([3.0, 1.0, 2.0, 5.0], start=1):
        save(m, step, metrics={"val/loss": loss})
    m.close()
    assert checkpoints(files) == ["step-00000002", "step-00000004"]
    assert {name.partition("/")[0] for name in files} == {"step-00000002", "step-00000004", "best", "latest"}
    assert (files["best"], files["latest"]) == (b"step-00000002", b"step-00000004")
    assert m.best() == "dict://run/step-00000002"
    assert m.latest() == "dict://run/step-00000004"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("same_name", [False, True])
def test_a_kill_at_any_request_loses_nothing(moment: str, same_name: bool) -> None:
    """A save that follows two others, also one that replaces a checkpoint of the same name."""
    step = 2 if same_name else 3
    for number in itertools.count():
        files: dict[str, bytes] = {}
        m = manager(DictStorage("dict://run", files))
        for earlier in (1, 2):
            save(m, earlier)
        m.close()
        kill = KillAt(number)
        storage = DictStorage("dict://run", files, **{moment: kill})
        m = manager(storage)
        try:
            save(m, step, value=7.0)
        except Killed:
            is_killed = True
        else:
            is_killed = False
        object_lock._held.clear()  # the process is gone
        left = dict(files)
        found = load(DictStorage("dict://run", left))
        is_new = float(found.model["w"][0]) == 7.0
        assert found.manifest["step"] == (step if is_new else 2)
        assert is_new or is_killed
        # The next run takes over, cleans up and saves.
        after = manager(DictStorage("dict://run", left))
        save(after, 4)
        after.close()
        assert load(DictStorage("dict://run", left)).manifest["step"] == 4
        for name in {n.partition("/")[0] for n in left if "/" in n}:
            assert f"{name}/manifest.json" in left, "what a killed save left is removed"
        if not is_killed:
            assert number >= 6
            break


@pytest.mark.parametrize("lag", [1, 3, 20])
def test_listings_that_lag_behind(lag: int) -> None:
    files: dict[str, bytes] = {}
    storage = DictStorage("dict://run", files, list_lag=lag)
    m = manager(storage)
    for step in range(1, 7):
        save(m, step, metrics={"val/loss": abs(step - 2.0)})
        assert load(storage).manifest["step"] == step
    m.close()
    assert m.best() == "dict://run/step-00000002"
    fresh = DictStorage("dict://run", files)
    assert load(fresh).manifest["step"] == 6
    assert {"step-00000002", "step-00000006"} <= set(checkpoints(files))
    m = manager(fresh)
    save(m, 7)
    m.close()
    assert checkpoints(files) == ["step-00000002", "step-00000007"], "what a late listing left is removed later"


def test_a_store_that_does_not_answer_is_no_damage() -> None:
    """Going back to an older checkpoint would lose updates, silently but for a warning."""
    files: dict[str, bytes] = {}
    m = manager(DictStorage("dict://run", files))
    for step in (1, 2):
        save(m, step)
    m.close()

    def refuse(kind: str, name: str) -> None:
        if kind == "read" and name.startswith("step-00000002/model"):
            raise ConnectionError("reset by peer")

    with pytest.raises(mtf.CheckpointIOError, match=r"step-00000002/model.*reset by peer"):
        load(DictStorage("dict://run", files, before=refuse))
    files[next(name for name in files if name.startswith("step-00000002/model"))] = b"damaged"
    with pytest.warns(UserWarning, match=r"step-00000002/model\.safetensors: is damaged"):
        assert load(DictStorage("dict://run", files)).manifest["step"] == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refused_write_is_a_warning_and_the_run_continues(asynchronous: bool) -> None:
    files: dict[str, bytes] = {}
    refused: list[str] = []

    def refuse(kind: str, name: str) -> None:
        if kind == "write" and name.startswith("step-00000002"):
            refused.append(name)
            raise TimeoutError("no answer")

    m = manager(DictStorage("dict://run", files, before=refuse), asynchronous=asynchronous)
    save(m, 1)

    def save_and_wait() -> None:
        save(m, 2)
        m.wait()

    with pytest.warns(checkpoint.CheckpointWarning, match=r"step-00000002.*no answer.*The run continues"):
        save_and_wait()
    save(m, 3)
    with pytest.raises(mtf.CheckpointIOError):
        save(m, 2, required=True)
    m.close()
    assert refused
    assert checkpoints(files) == ["step-00000001", "step-00000003"]


def test_two_runs_in_one_folder() -> None:
    files: dict[str, bytes] = {}
    m = manager(DictStorage("dict://run", files))
    save(m, 1)
    with pytest.raises(mtf.CheckpointError, match="another trainer in this process"):
        save(manager(DictStorage("dict://run", files)), 2)
    object_lock._held.clear()
    other = files[".mtf-lock"].replace(b'"namespace": "', b'"namespace": "elsewhere')
    files[".mtf-lock"] = other
    with pytest.raises(mtf.CheckpointError, match=r"process \d+ on host .* writes its checkpoints here.*wait 120 s"):
        save(manager(DictStorage("dict://run", files)), 2)
    files[".mtf-lock"] = other.replace(b'"time_s": 1', b'"time_s": 0')  # a heartbeat of long ago
    taken = manager(DictStorage("dict://run", files))
    save(taken, 2)
    m.close()
    assert ".mtf-lock" in files, "a claim that was taken over isn't given back by the one before"
    taken.close()
    assert ".mtf-lock" not in files


def test_what_is_no_checkpoint_is_not_replaced() -> None:
    files = {"step-00000001/notes.txt": b"mine"}
    with pytest.raises(mtf.CheckpointError, match="has other content"):
        save(manager(DictStorage("dict://run", files)), 1)
    assert files["step-00000001/notes.txt"] == b"mine"


# The trainer, on a storage from outside and on fsspec's


def make(root: str, **saving: Any) -> mtf.Trainer:
    return trainer(config(["a"], checkpoint=mtf.CheckpointConfig(root_dir=root, **saving)))


@pytest.fixture
def run_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "dict":
        files: dict[str, bytes] = {}
        monkeypatch.setattr(registry, "_registered", {})
        checkpoint.register_storage("dict", lambda url: DictStorage(url, files) if url == "dict://b/run" else at(url))

        def at(url: str) -> Any:
            return registry.folder_of(DictStorage("dict://b/run", files), url.removeprefix("dict://b/run/"))

        yield "dict://b/run"
    else:
        fsspec = pytest.importorskip("fsspec")
        yield "memory://b/run"
        fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("run_url", ["dict", "memory"], indirect=True)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_trainer_saves_rotates_resumes_and_is_inspected_there(
    run_url: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [loader(20, 1, shuffle=True)]
    whole = make("whole")
    whole.fit(data, max_steps=9)
    make(run_url, save_every_n_steps=2, max_checkpoints=2, asynchronous=asynchronous).fit(data, max_steps=7)
    again = make(run_url, save_every_n_steps=2)
    again.fit(data, max_steps=9, resume_from="latest")
    assert again.get_state().diff(whole.get_state()) == []
    named = make(run_url, save_every_n_steps=2)
    named.load_checkpoint(f"{run_url}/latest")
    assert named.global_step == 8
    named.save_checkpoint(f"{run_url}/by-hand")
    named.save_checkpoint(f"{run_url}/by-hand")
    found = checkpoint.inspect_checkpoint(f"{run_url}/step-00000008")
    assert (found.verified, found.manifest["step"]) == (True, 8)
    assert checkpoint.diff_checkpoints(f"{run_url}/step-00000008", f"{run_url}/by-hand").equal
    assert checkpoint.verify(f"{run_url}/by-hand")["step"] == 8
    assert list(tmp_path.iterdir()) == [], "nothing is written to a local folder"


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(mtf.ConfigError, match=r"nowhere://x.*register_storage"):
        make("nowhere://x").fit([loader(8, 1)], resume_from="latest")
    with pytest.raises(mtf.ConfigError, match="without '://'"):
        checkpoint.register_storage("s3://", lambda url: DictStorage(url, {}))
