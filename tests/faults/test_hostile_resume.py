"""A run told to go on from a file that isn't what it was: one clear error, nothing executed, nothing half-loaded."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_tools as tools

import mtf
from mtf.checkpoint.format import layout, manifest
from mtf.errors import CheckpointError, MtfError, StateMismatch

FILES = ("manifest.json", "model.safetensors", "state.safetensors", "state.json", "schedule.mtf")


def make() -> mtf.Trainer:
    net = tools.model()
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return tools.trainer(tools.config(["a", "b"]), model=net, optimizers=optimizer, schedulers=scheduler)


def loaders() -> list[Any]:
    return [tools.loader(8, 1, shuffle=True), tools.loader(12, 2)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainer = make()
    trainer.fit(loaders(), max_steps=3)
    path = tmp_path_factory.mktemp("good") / "checkpoint"
    trainer.save_checkpoint(str(path))
    return path


@pytest.fixture
def path(good: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def refused(path: Path, words: str = "") -> None:
    """By ``fit`` in a new run and by ``load_checkpoint`` in one that has trained; neither has changed."""
    fresh, trained = make(), make()
    trained.fit(loaders(), max_steps=1)
    for trainer, call in (
        (fresh, lambda: fresh.fit(loaders(), max_steps=5, resume_from=str(path))),
        (trained, lambda: trained.load_checkpoint(str(path))),
    ):
        before = trainer.get_state()
        with pytest.raises(MtfError, match=words) as caught:
            call()
        assert isinstance(caught.value, (CheckpointError, StateMismatch))
        assert trainer.get_state().diff(before) == []
    trained.fit(loaders(), max_steps=2)


class Bomb:
    """Leaves a file if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))


def as_torch_file(path: Path) -> None:
    torch.save({"bomb": Bomb(path.with_name("executed"))}, path)


def as_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(200 << 20))


def as_foreign_directory(path: Path) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))


@pytest.mark.parametrize("replace", [as_pickle, as_torch_file, as_zip_bomb, as_foreign_directory])
def test_something_else_in_its_place(path: Path, replace: Callable[[Path], None]) -> None:
    shutil.rmtree(path)
    replace(path)
    refused(path, str(path))
    assert not path.with_name("executed").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied", "pickled", "a directory", "a link", "gone"])
def test_each_file_spoilt(path: Path, name: str, how: str) -> None:
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if how == "flipped":
        at = random.Random(name).randrange(len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif how in ("truncated", "emptied"):
        file.write_bytes(content[: len(content) // 2] if how == "truncated" else b"")
    elif how == "pickled":
        file.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))
    elif how == "a directory":
        file.mkdir()
    elif how == "a link":
        path.with_name("elsewhere").write_bytes(content)
        file.symlink_to(path.with_name("elsewhere"))
    refused(path, name)
    assert not path.with_name("executed").exists()


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the manifest and seals it again, as an attacker would."""
    body = json.loads((path / "manifest.json").read_bytes())
    change(body)
    body["sha256"] = "0" * 64
    raw = json.dumps(body, indent=1).encode() + b"\n"
    (path / "manifest.json").write_bytes(raw[:14] + manifest.hashlib.sha256(raw).hexdigest().encode() + raw[78:])


def put(path: Path, name: str, content: bytes) -> None:
    """Other content with its true checksum."""
    (path / name).write_bytes(content)
    entry = {"size": len(content), "sha256": manifest.hashlib.sha256(content).hexdigest()}
    forge(path, lambda body: body["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body.update(format=manifest.FORMAT + 1), "format version"),
        (lambda body: body.update(format=0), "format version"),
        (lambda body: body.update(step=-1), "step"),
        (lambda body: body["files"].update({"../../etc/passwd": body["files"]["state.json"]}), "not allowed"),
        (lambda body: body["files"].update({"state.json": {"size": 10**30, "sha256": "0" * 64}}), "damaged"),
        (lambda body: body.update(kind="mtf"), "not the manifest"),
        (lambda body: body.pop("files"), "files"),
    ],
)
def test_forged_manifests(path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    forge(path, change)
    refused(path, words)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every member of a nested state."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(tree: Any, at: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy of ``tree`` with ``change(container, key)`` done at a place."""
    tree = copy.deepcopy(tree)
    node = tree
    for key in at[:-1]:
        node = node[key]
    change(node, at[-1])
    return tree


def removed(node: Any, key: Any) -> None:
    del node[key]


def set_to(value: Any) -> Callable[[Any, Any], None]:
    def change(node: Any, key: Any) -> None:
        node[key] = value

    return change


CHANGES = {
    "removed": removed,
    "none": set_to(None),
    "text": set_to("x"),
    "negative": set_to(-1),
    "huge": set_to(2**62),
    "list": set_to([]),
    "tensor": set_to(torch.zeros(3)),
    "nan": set_to(float("nan")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_states_with_a_forged_member_are_refused_whole_or_go_on(good: Path, what: str) -> None:
    """Every checksum is right, and a member of the state is missing or makes no sense: never half of it is loaded."""
    state = layout.read(good)
    trainer = make()
    trainer.fit(loaders(), max_steps=1)
    before = trainer.get_state()
    tree = {**state.state["trainer"], "model": state.model}
    num_refused = 0
    for at in places(tree):
        try:
            forged = changed(tree, at, CHANGES[what])
        except TypeError:  # inside a tuple
            continue
        try:
            trainer.load_state(mtf.TrainerState(forged))
        except MtfError:
            num_refused += 1
            assert trainer.get_state().diff(before) == [], at
        else:
            trainer.load_state(before)
    assert num_refused > 20


def test_bombs_cost_bounded_memory(path: Path) -> None:
    """JSON that would take gigabytes, numbers of a million digits, nesting without end, tensors of petabytes."""
    nested = b"[" * 1_000_000 + b"]" * 1_000_000
    bombs = {
        "state.json": [
            b'{"tree":' + nested + b',"tensors":[]}',
            b'{"tree":' + b"9" * 5_000_000 + b',"tensors":[]}',
            b'{"tree":[' + b'{"a":[]},' * 3_000_000 + b'0],"tensors":[]}',
        ],
        "manifest.json": [nested, b'{"a":' * 1_000_000],
        "model.safetensors": [(2**62).to_bytes(8, "little") + b"{}", (100).to_bytes(8, "little") + nested[:100]],
    }
    script = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import test_hostile_resume as here
trainer = here.make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        trainer.load_checkpoint(str(path))
    except here.CheckpointError:
        continue
    raise SystemExit(f"{path} was loaded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    folder = path.with_name("bombs")
    for name, contents in bombs.items():
        for number, content in enumerate(contents):
            bomb = Path(shutil.copytree(path, folder / f"{name}-{number}"))
            if name == "manifest.json":
                (bomb / name).write_bytes(content)
            else:
                put(bomb, name, content)
    command = [sys.executable, "-c", script, str(folder), *filter(None, sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) < 300_000  # KiB
