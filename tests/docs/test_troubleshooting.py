"""docs/troubleshooting.md quotes messages: each is raised or warned of where the page says, and stands on the page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mtf

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

x = torch.randn(40, 4)
data = TensorDataset(x, x.sum(1, keepdim=True))
quiet = mtf.LoggingConfig(logger_type="none", progress_bar=False)
mixture = mtf.MultiDataLoaderConfig


def loaders(size: int = 8) -> dict[str, DataLoader[Any]]:
    return {"a": DataLoader(data, batch_size=size, shuffle=True), "b": DataLoader(data, batch_size=8)}


def step(trainer: Any, batch: Any, *place: Any) -> Any:
    return {"loss": F.mse_loss(trainer.model(batch[0]), batch[1])}


def trainer(step: Any = step, model: nn.Module | None = None, **settings: Any) -> mtf.Trainer:
    model = model or nn.Linear(4, 1)
    config = mtf.TrainerConfig(logging=quiet, **settings)
    return mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=0.01), training_step=step)


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.zeros(8, 4))


class Callback(mtf.TrainerHooks):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """A name of another tool."""


class Broken(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        raise KeyError("label")


class Odd(mtf.TrainerHooks):
    def state_dict(self) -> dict[str, Any]:
        return {"f": object()}

    def load_state_dict(self, state: Any) -> None:
        """Nothing to load."""


def live() -> None:
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    next(iter(loader))
    trainer().fit({"a": loader}, max_steps=1)


def finished() -> None:
    made = trainer()
    made.fit(loaders(), max_steps=2)
    made.fit(loaders(), max_steps=2)


def two_optimizers() -> None:
    model = nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)]
    mtf.Trainer(mtf.TrainerConfig(logging=quiet), model, optimizers, training_step=step).fit(loaders(), max_steps=1)


def replayed() -> None:
    config = mixture(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=8)
    with mtf.MultiLoader({"s": DataLoader(Stream())}, config) as batches:
        next(iter(batches))
        state = batches.state_dict()
    with mtf.MultiLoader({"s": DataLoader(Stream())}, config) as batches:
        batches.load_state_dict(state)
        next(iter(batches))


def resumed(name: str = "saved", given: Any = None, **settings: Any) -> None:
    first = trainer()
    first.fit(loaders(), max_steps=3)
    first.save_checkpoint("saved")
    torch.save({}, "old.pt")
    made = trainer(**settings)
    made.load_checkpoint(name)
    made.fit(given or loaders(), max_steps=5)


def odd() -> None:
    made = trainer()
    made.add_hook(Odd())
    made.fit(loaders(), max_steps=1)
    made.save_checkpoint("odd")


best = mtf.CheckpointConfig(root_dir="best", save_best=True, monitor_metric="val_loss")
shuffled = {n: DataLoader(loader.dataset, loader.batch_size, shuffle=True) for n, loader in loaders().items()}
CASES: list[tuple[str, Callable[[], object]]] = [
    ("needs the length of dataloader", lambda: trainer().fit({"a": loaders()["a"], "s": DataLoader(Stream())})),
    (
        "steps_per_epoch must be set with",
        lambda: trainer(multi=mixture(epoch_length_policy="FIXED_NUM_STEPS")).fit(loaders()),
    ),
    ("has no effect with", lambda: trainer(multi=mixture(dataloader_weights=[1, 2])).fit(loaders(), max_steps=1)),
    (
        "has no field ... did you mean",
        lambda: mtf.TrainerConfig.from_dict({"multi": {"dataloader_weigths": [1]}}),
    ),
    (
        "aren't among the dataloader_names",
        lambda: trainer(multi=mixture(dataloader_names=["a"])).fit(loaders(), max_steps=1),
    ),
    ("is empty: it must have at least one batch", lambda: mtf.Schedule(None, [0])),
    ("has a live iterator", live),
    ("whose samples would be taken for batches", lambda: trainer().fit({"a": data}, max_steps=1)),
    ("training_step is called with ... but takes", lambda: trainer(lambda batch, batch_idx: None)),
    (
        "there is no optimizer",
        lambda: mtf.Trainer(None, nn.Linear(4, 1), training_step=step).fit(loaders(), max_steps=0),
    ),
    ("is no event; did you mean", lambda: trainer().add_hook(Callback())),
    (
        "the validation gives no ... did you mean",
        lambda: trainer(checkpoint=best).fit(loaders(), loaders(), max_epochs=1),
    ),
    ("save_best has no effect without validation", lambda: trainer(checkpoint=best).fit(loaders(), max_steps=1)),
    ("nothing to do", finished),
    ("returned a loss without a graph", lambda: trainer(lambda *a: torch.tensor(1.0)).fit(loaders(), max_steps=1)),
    ("must return a loss tensor or a dict with 'loss'", lambda: trainer(lambda *a: {}).fit(loaders(), max_steps=1)),
    (
        "on_nonfinite='warn' or 'skip' continues",
        lambda: trainer(lambda t, b, *a: t.model(b[0]).sum() / 0).fit(loaders(), max_steps=1),
    ),
    (
        "gave None instead of a batch",
        lambda: trainer().fit({"a": DataLoader(data, batch_size=8, collate_fn=lambda samples: None)}, max_steps=1),
    ),
    ("pass 0, batch ... (epoch 0, step ... KeyError", lambda: trainer().fit({"a": DataLoader(Broken(x))}, max_steps=1)),
    ("belongs to optimizers 0 and 1 ... declare with per_loader_optimizers", two_optimizers),
    ("can't be opened at a position ... produced again and dropped", replayed),
    ("there is no checkpoint in", lambda: trainer().fit(loaders(), resume_from="latest")),
    (
        "the state belongs to another schedule ... burst_size: 1 in the state, 2 here",
        lambda: resumed(multi=mixture(burst_size=2)),
    ),
    ("the state doesn't fit this trainer ... seed: 1 here, 0 in the state", lambda: resumed(seed=1)),
    ("the state doesn't fit this trainer ... 'weight' has shape", lambda: resumed(model=nn.Linear(4, 2))),
    ("has global batches of ... batch_size=8 continues with it", lambda: resumed(given=loaders(4))),
    ("gives its samples ... shuffled here, but ... in order ... in the state", lambda: resumed(given=shuffled)),
    ("the state has a source ... but here are only", lambda: resumed(given={"a": loaders()["a"]})),
    ("an mtf checkpoint is a directory", lambda: resumed("old.pt")),
    ("which no checkpoint holds; turn it into", odd),
]


@pytest.mark.parametrize(("text", "action"), CASES, ids=[text for text, _ in CASES])
def test_the_message_is_what_the_page_quotes(
    text: str, action: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            action()
        except Exception as error:
            seen.append(error)  # type: ignore[arg-type]
    said = [str(getattr(one, "message", one)) for one in seen]
    pieces = text.split(" ... ")
    assert any(all(piece in message for piece in pieces) for message in said), said
    shown = re.sub(r"[*`\\]", "", PAGE)
    assert all(piece in shown for piece in pieces), f"the page doesn't quote {text!r}"
