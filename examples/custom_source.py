"""A source of your own that opens anywhere: padded lines of similar length, with random bytes hidden.

    python examples/custom_source.py

Lines of Python's own reference are sorted by length and cut into batches of about the same number of bytes, which no
ordinary loader does. The order of a pass is a keyed permutation and the hidden bytes are drawn from the batch's own
key, so nothing has to be read or remembered to get to batch 57 of pass 3. ``check_source`` sees whether that is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf

HIDDEN, PADDING = 0, 1  # bytes that no text has


class LineSource(mtf.Source):
    """Batches ``{"text": uint8[lines, width], "hidden": bool[lines, width], "plain": ...}``.

    Args:
        lines: the data set.
        batch_bytes: most bytes in a batch, padding included.
    """

    resume_mode = mtf.ResumeMode.SEEK

    def __init__(self, lines: list[bytes], batch_bytes: int = 4096) -> None:
        self.lines = sorted(lines, key=len)
        self.bounds = [0]
        for end, line in enumerate(self.lines, 1):
            if (end - self.bounds[-1]) * len(line) > batch_bytes:
                self.bounds.append(end - 1)
        self.bounds.append(len(self.lines))

    def num_batches(self) -> int:
        """Batches of a pass."""
        return len(self.bounds) - 1

    def open(self, pass_: int, batch: int, key: int, snapshot: mtf.Snapshot | None = None) -> mtf.Stream:
        """Pass ``pass_`` from ``batch`` on."""
        return LineStream(self, pass_, batch, key)

    def read(self, pass_: int, batch: int, key: int) -> dict[str, Tensor]:
        """One batch, a function of its position and the key."""
        pass_key = mtf.fold_in(key, pass_)
        place = mtf.Permutation(self.num_batches(), pass_key)[batch]
        lines = self.lines[self.bounds[place] : self.bounds[place + 1]]
        plain = np.full((len(lines), len(lines[-1])), PADDING, dtype=np.uint8)
        for row, line in zip(plain, lines, strict=True):
            row[: len(line)] = np.frombuffer(line, dtype=np.uint8)
        rng = np.random.default_rng(mtf.fold_in(pass_key, batch))
        hidden = (rng.random(plain.shape) < 0.15) & (plain != PADDING)
        text = np.where(hidden, np.uint8(HIDDEN), plain)
        return {name: torch.from_numpy(array) for name, array in (("text", text), ("hidden", hidden), ("plain", plain))}


class LineStream(mtf.Stream):
    """A pass from some batch on."""

    def __init__(self, source: LineSource, pass_: int, batch: int, key: int) -> None:
        self.batches: Iterator[Any] = (source.read(pass_, at, key) for at in range(batch, source.num_batches()))

    def __next__(self) -> Any:
        return next(self.batches)


class Fill(nn.Module):
    """Guesses each byte from its neighbourhood."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 48)
        self.layers = nn.Sequential(nn.Conv1d(48, 96, 9, padding=4), nn.ReLU(), nn.Conv1d(96, 256, 1))

    def forward(self, text: Tensor) -> Tensor:
        """Bytes ``[lines, width]`` to logits ``[lines, width, 256]``."""
        return self.layers(self.bytes(text.long()).transpose(1, 2)).transpose(1, 2)


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy over the hidden bytes, and how many of them were guessed."""
    logits, targets = trainer.model(batch["text"])[batch["hidden"]], batch["plain"][batch["hidden"]].long()
    return {"loss": F.cross_entropy(logits, targets), "guessed": (logits.argmax(1) == targets).float().mean()}


def make_sources() -> dict[str, LineSource]:
    """Lines of prose and lines of code or grammar."""
    lines = [line.encode() for text in topics.values() for line in text.splitlines() if len(line) > 8]
    return {
        "prose": LineSource([line for line in lines if not line.startswith(b"   ")]),
        "code": LineSource([line.strip() for line in lines if line.startswith(b"   ")]),
    }


def train(steps: int) -> mtf.Trainer:
    """Two sources in turns."""
    torch.manual_seed(0)
    model = Fill()
    config = mtf.TrainerConfig(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False), seed=3)
    trainer = mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=3e-3), training_step=step)
    trainer.fit(make_sources(), max_steps=steps)
    return trainer


def main() -> None:
    """Checks a source, trains, and shows what a batch looks like."""
    source = make_sources()["prose"]
    print(mtf.check_source(source))
    trainer = train(300)
    row = trainer.validate(make_sources())
    print({name: round(value, 3) for name, value in row.items() if name.endswith("/guessed")})
    batch = source.read(pass_=3, batch=57, key=0)
    print(bytes(batch["text"][0].tolist()).replace(b"\0", b"_").decode(errors="replace"))


if __name__ == "__main__":
    main()
