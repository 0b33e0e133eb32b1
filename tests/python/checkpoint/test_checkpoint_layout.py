"""The checkpoint directory: what is written comes back, others can open the weights, nothing unverified is used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mtf.checkpoint import sharded
from mtf.checkpoint.compare import first_differences
from mtf.checkpoint.diff import diff_checkpoints
from mtf.checkpoint.format import layout, manifest
from mtf.checkpoint.inspect import inspect_checkpoint
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.checkpoint.storage.registry import open_storage
from mtf.checkpoint.storage.root import begin
from mtf.checkpoint.storage.transaction import Transaction
from mtf.errors import CheckpointError


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.conv = torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        self.narrow = torch.nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("nothing", torch.empty(0, 3))


STATE: dict[str, Any] = {"a": [1, (2.5, math.nan)], 3: torch.arange(4), "t": b"\x00\xff"}


def save(path: Path, *, model: Any = None, step: int = 7, schedule: bytes = b"schedule", **fields: Any) -> Path:
    model = Tied().state_dict() if model is None else model
    return layout.write(path, model=model, state_tree=STATE, schedule=schedule, manifest={"step": step, **fields})


def test_round_trip(tmp_path: Path) -> None:
    model = Tied()
    path = save(tmp_path / "c", model=model.state_dict(), metrics={"loss": math.inf}, config={"lr": (1, 2)})
    back = layout.read(path)
    assert first_differences(dict(model.state_dict()), back.model) == []
    assert first_differences(STATE, back.state) == []
    assert back.schedule == b"schedule"
    assert back.manifest["step"] == 7
    assert back.manifest["metrics"] == {"loss": math.inf}
    assert back.manifest["config"] == {"lr": (1, 2)}
    assert back.model["head.weight"].data_ptr() == back.model["embedding.weight"].data_ptr()
    assert sorted(os.listdir(path)) == [
        "manifest.json",
        "model.safetensors",
        "schedule.mtf",
        "state.json",
        "state.safetensors",
    ]
    assert os.listdir(tmp_path) == ["c"]


def test_weights_are_plain_safetensors(tmp_path: Path) -> None:
    model = Tied()
    path = save(tmp_path / "c", model=model.state_dict())
    plain = safetensors.torch.load_file(path / "model.safetensors")
    assert torch.equal(plain["conv.weight"], model.conv.weight)
    assert plain["narrow"].dtype == torch.bfloat16
    # Tied weights are stored once, in the way that the library's own load_model undoes.
    assert ("head.weight" in plain) != ("embedding.weight" in plain)

    class Sub(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

    source, target = Sub(), Sub()
    path = save(tmp_path / "d", model=source.state_dict())
    safetensors.torch.load_model(target, path / "model.safetensors")
    assert torch.equal(target.head.weight, source.head.weight)


def test_state_dict_entries_that_are_no_tensors_are_kept(tmp_path: Path) -> None:
    model = {"w": torch.ones(2), "block._extra_state": {"scale": 0.5}}
    assert layout.read(save(tmp_path / "c", model=model)).model["block._extra_state"] == {"scale": 0.5}


@pytest.mark.parametrize("name", ["pt", "format", "__metadata__", "sha256"])
def test_a_weight_may_have_any_name(tmp_path: Path, name: str) -> None:
    shared = torch.ones(2)
    model = {name: torch.arange(3.0), "one": shared, "two": shared}
    assert first_differences(model, layout.read(save(tmp_path / "c", model=model)).model) == []


def test_saving_twice_replaces(tmp_path: Path) -> None:
    save(tmp_path / "c", step=1)
    save(tmp_path / "c", step=2)
    assert layout.read(tmp_path / "c").manifest["step"] == 2
    assert os.listdir(tmp_path) == ["c"]


def test_saving_twice_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "exchange", lambda a, b: False)
    save(tmp_path / "c", step=1)
    save(tmp_path / "c", step=2)
    assert layout.read(tmp_path / "c").manifest["step"] == 2
    assert os.listdir(tmp_path) == ["c"]


def test_a_copy_set_aside_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c", step=1)
    monkeypatch.setattr(local, "exchange", lambda a, b: False)
    real = os.rename
    calls: list[str] = []

    def rename(a: Any, b: Any) -> None:
        calls.append(str(b))
        if len(calls) == 2:
            raise KeyboardInterrupt  # as good as a kill: nothing of ours runs between the two renames
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "c", step=2)
    monkeypatch.undo()
    assert not (tmp_path / "c").exists()
    with pytest.warns(local.CheckpointWarning, match="killed while it replaced"):
        assert layout.read(tmp_path / "c").manifest["step"] == 1
    save(tmp_path / "c", step=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layout.read(tmp_path / "c").manifest["step"] == 3


@pytest.mark.parametrize("kind", ["file", "link", "other"])
def test_only_checkpoints_are_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "c"
    if kind == "file":
        target.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not replaced"):
        save(target)
    assert [n for n in os.listdir(tmp_path) if n.startswith(".")] == []


def test_an_empty_directory_may_become_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    save(tmp_path / "c")
    assert layout.read(tmp_path / "c").manifest["step"] == 7


def test_a_value_that_cannot_be_saved_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path / "c", step=1)
    with pytest.raises(CheckpointError, match=r"state\['hook'\]"):
        layout.write(tmp_path / "c", model={}, state_tree={"hook": object()}, schedule=b"", manifest={"step": 2})
    assert layout.read(tmp_path / "c").manifest["step"] == 1
    assert os.listdir(tmp_path) == ["c"]


def test_snapshots_are_independent_of_the_run(tmp_path: Path) -> None:
    model, state = {"w": torch.zeros(3)}, {"t": torch.zeros(3)}
    payload = layout.CheckpointPayload.take(model, state, b"", copy=True)
    model["w"] += 1
    state["t"] += 1
    back = layout.read(layout.write_payload(tmp_path / "c", payload, {"step": 0}))
    assert back.model["w"].sum() == 0
    assert back.state["t"].sum() == 0
    assert payload.num_bytes == 24


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used is what was hashed: nothing is opened again after it was verified."""
    path = save(tmp_path / "c", schedule=b"x")
    opened: list[str] = []
    real = LocalStorage.read

    def read(storage: LocalStorage, name: str) -> Any:
        opened.append(name)
        return real(storage, name)

    monkeypatch.setattr(LocalStorage, "read", read)
    layout.read(path)
    assert sorted(opened) == sorted(os.listdir(path))


def test_tensors_outlive_the_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "c", model={"w": torch.arange(100_000)})
    back = layout.read(path)
    with open(path / "model.safetensors", "r+b") as file:
        file.truncate(0)
    assert torch.equal(back.model["w"], torch.arange(100_000))


# What isn't a checkpoint of ours


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        layout.read(path)
    assert str(path) in str(caught.value)


class Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (66,)


def test_files_of_other_tools(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "there is no checkpoint")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "pickle", "is a pickle")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    refused(tmp_path / "zip", "zip archive")
    (tmp_path / "text").write_text("x")
    refused(tmp_path / "text", "is a file")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "dcp", "torch.distributed.checkpoint")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "manifest.json is missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"kind": "something else"}')
    refused(tmp_path / "other", "is not the manifest of an mtf checkpoint")


def forge(path: Path, change: Any) -> None:
    """Rewrites the manifest by ``change(dict)`` and seals it again, as an attacker would."""
    file = path / "manifest.json"
    body = json.loads(file.read_bytes())
    change(body)
    body["sha256"] = "0" * 64
    raw = json.dumps(body, indent=1).encode() + b"\n"
    file.write_bytes(raw[:14] + manifest.hashlib.sha256(raw).hexdigest().encode() + raw[78:])


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    forge(save(tmp_path / "c"), lambda body: body.update(format=manifest.FORMAT + 1))
    refused(tmp_path / "c", f"format version {manifest.FORMAT + 1}.*reads up to {manifest.FORMAT}")


@pytest.mark.parametrize("format_", [0, -1, 1.5, "1", None, True])
def test_formats_that_are_none(tmp_path: Path, format_: Any) -> None:
    forge(save(tmp_path / "c"), lambda body: body.update(format=format_))
    refused(tmp_path / "c", "format version .* is not valid")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "..", ".", "", ".hidden", "a//b", "x\x00y", "a/b/c/d/e",
             "manifest.json", "-rf", "a\nb", "ü"],
)  # fmt: skip
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("secret")
    path = save(tmp_path / "c")
    forge(path, lambda body: body["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    refused(path, "not allowed in a checkpoint")
    with Transaction(tmp_path / "d") as transaction, pytest.raises(CheckpointError, match="not allowed"):
        transaction.add(name, [b"x"])


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "model.safetensors"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "c")
    (path / name).rename(tmp_path / "moved")
    (path / name).symlink_to(tmp_path / "moved")
    refused(path, "symbolic link")


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("x")
    path = save(tmp_path / "c")
    (path / "shards").symlink_to(tmp_path / "secret")
    forge(path, lambda body: body["files"].update({"shards/key": {"size": 1, "sha256": "0" * 64}}))
    refused(path, "symbolic link")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
@pytest.mark.timeout(20)
def test_files_that_are_no_files(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "c")
    (path / "state.json").unlink()
    if kind == "directory":
        (path / "state.json").mkdir()
    else:
        os.mkfifo(path / "state.json")
    refused(path, "not a regular file")


def test_every_file_is_required(tmp_path: Path) -> None:
    for name in ("model.safetensors", "state.safetensors", "state.json", "schedule.mtf"):
        path = save(tmp_path / f"missing-{name}")
        (path / name).unlink()
        refused(path, f"{name}: the file is missing")
        path = save(tmp_path / f"unlisted-{name}")
        forge(path, lambda body, name=name: body["files"].pop(name))
        refused(path, f"{name}: the manifest doesn't list")


def replace_file(path: Path, name: str, content: bytes) -> None:
    """Puts other content into a checkpoint together with its true checksum: only the content can be refused."""
    (path / name).write_bytes(content)
    entry = {"size": len(content), "sha256": manifest.hashlib.sha256(content).hexdigest()}
    forge(path, lambda body: body["files"].update({name: entry}))


HOSTILE_JSON = {
    "pickle": pickle.dumps(Bomb()),
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "many values": b'{"tree":[' + b"[]," * 5_000_000 + b'[]],"tensors":[]}',
    "large": b'{"tree":"' + b"x" * (65 << 20) + b'","tensors":[]}',
    "huge number": b'{"tree":' + b"9" * 1_000_000 + b',"tensors":[]}',
    "nan": b'{"tree":NaN,"tensors":[]}',
    "twice": b'{"tree":1,"tree":2,"tensors":[]}',
    "invalid utf-8": b'{"tree":"\xff","tensors":[]}',
    "truncated": b'{"tree":',
    "empty": b"",
    "other shape": b"[]",
    "deep tree": b'{"tree":' + b"[" * 150 + b"]" * 150 + b',"tensors":[]}',
    "huge tensor": b'{"tree":{"$tensor":0},"tensors":[{"data":"x","dtype":"float64","shape":[4611686018427387904]}]}',
    "no such tensor": b'{"tree":{"$tensor":3},"tensors":[]}',
    "code": b'{"tree":{"$object":"os.system"},"tensors":[]}',
    "not the parts": b'{"tree":{"state":1},"tensors":[]}',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "c")
    replace_file(path, "state.json", HOSTILE_JSON[name])
    refused(path, "state.json")


@pytest.mark.parametrize("name", ["nested", "many values", "large", "pickle", "truncated", "empty", "huge number"])
def test_hostile_manifests(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "c")
    (path / "manifest.json").write_bytes(HOSTILE_JSON[name])
    refused(path, "manifest.json")


def test_a_json_bomb_costs_bounded_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "c")
    replace_file(path, "state.json", b'{"tree":[' + b'{"a":[]},' * 7_000_000 + b'0],"tensors":[]}')
    script = f"""
import resource, sys
from mtf.checkpoint.format import layout
from mtf.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    layout.read({str(path)!r})
except CheckpointError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000  # KiB; parsing it would take more than 1.5 GB


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, (2**62).to_bytes(8, "little"), (16).to_bytes(8, "little") + b"x" * 16, pickle.dumps(Bomb()),
     (100).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[10000],"data_offsets":[0,4]}}' + b" " * 42 + b"abc"],
)  # fmt: skip
def test_hostile_tensor_files(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path / "c")
    replace_file(path, "model.safetensors", content)
    refused(path, "model.safetensors: is not a valid safetensors file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_reads_is_no_damage(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch turns what a handler raises inside a conversion into a ValueError."""
    path = save(tmp_path / "c")

    def convert(elements: Any) -> memoryview:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None
        return memoryview(elements)

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtf.checkpoint.format.safetensors_io.memoryview", convert, raising=False)
    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            layout.read(path)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_inspect_needs_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "c", schedule=b"", metrics={"val/loss": 1 / 3, "num": 3})
    script = f"""
import sys
from mtf.checkpoint.inspect import inspect_checkpoint
found = inspect_checkpoint({str(path)!r})
assert "torch" not in sys.modules
assert found.manifest["step"] == 7 and found.verified
print(found.text())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "conv.weight  F32 [2, 3, 3, 3]" in done.stdout
    assert "\nmetrics\n  val/loss: 0.333333\n  num: 3\n" in done.stdout
    found = inspect_checkpoint(path)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    assert found.num_parameters == sum(weight.numel() for weight in weights.values())
    json.dumps(found.to_dict())


def test_diff(tmp_path: Path) -> None:
    model = Tied().state_dict()
    first = save(tmp_path / "a", model=model, metrics={"loss": math.nan, "throughput/samples_per_s": 10.0})
    second = save(tmp_path / "b", model=model, metrics={"loss": math.nan, "throughput/samples_per_s": 20.0})
    assert diff_checkpoints(first, second).equal  # what a clock measured isn't a difference
    changed = {name: value.clone() for name, value in model.items()}
    changed["conv.bias"][1] = 3.0
    third = save(tmp_path / "c", model=changed, step=8, schedule=b"x")
    found = diff_checkpoints(first, third)
    assert [entry.part for entry in found.entries] == ["manifest", "manifest", "model", "schedule"]
    assert "model['conv.bias']: 1 of 2 elements differ, first at [1]" in found.text()
    assert not diff_checkpoints(first, third, limit=1).complete


@pytest.mark.parametrize("is_damaged", [False, True])
def test_pieces_are_verified_while_they_are_copied(tmp_path: Path, is_damaged: bool) -> None:
    data, name = bytes(range(256)) * 5000, sharded.file_name(0)
    piece = tmp_path / "old" / name
    piece.parent.mkdir(parents=True)
    piece.write_bytes(data[:-1] + b"\0" if is_damaged else data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def copy() -> None:
        with begin(tmp_path / "new") as transaction:
            sharded.copy_pieces(open_storage(tmp_path / "old"), {"files": {name: entry}}, transaction)
            transaction.commit({"step": 1})

    if is_damaged:
        with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: is damaged"):
            copy()
        assert not (tmp_path / "new").exists()
    else:
        copy()
        assert (tmp_path / "new" / name).read_bytes() == data
