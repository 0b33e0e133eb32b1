"""The language model of language_mixture.py on the same corpora, mixed inside every batch and one corpus per batch.

    python examples/mixed_inside_batches.py --steps 200

Both runs have the same model, optimizer, number of windows and weights. A batch of one corpus has the gradient of that
corpus, so the updates pull to and fro between corpora; a blended batch has the gradient of the mixture.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import language_mixture as shared
import numpy as np
import torch

import mtf

WEIGHTS = {"code": 0.5, "reference": 0.2, "prose": 0.3}
LENGTH = shared.LENGTH + 1


def make_sources(corpora: dict[str, np.ndarray], batch_size: int, steps: int, *, is_mixed: bool) -> dict[str, Any]:
    """What the trainer is given: one blend, or one loader per corpus and how they take turns."""
    if is_mixed:
        rows = {name: mtf.Windows(corpus, LENGTH) for name, corpus in corpora.items()}
        return {"mixed": mtf.Blend(rows, WEIGHTS, global_batch_size=batch_size, batches_per_pass=steps)}
    return {
        name: mtf.ArrayLoader.windows(corpus, LENGTH, batch_size=batch_size, shuffle=True)
        for name, corpus in corpora.items()
    }


def train(steps: int, folder: Path, *, is_mixed: bool, batch_size: int = 16, max_bytes: int = 2_000_000) -> float:
    """Trains for ``steps`` updates; returns bits per byte of held-out text, the corpora in their shares."""
    corpora = shared.write_corpora(folder, max_bytes)
    cuts = {name: len(corpus) * 9 // 10 for name, corpus in corpora.items()}
    training = make_sources({n: c[: cuts[n]] for n, c in corpora.items()}, batch_size, steps, is_mixed=is_mixed)
    validation = {
        name: mtf.ArrayLoader.windows(corpus[cuts[name] : cuts[name] + 64 * LENGTH], LENGTH, batch_size=32)
        for name, corpus in corpora.items()
    }
    mixture = mtf.MultiDataLoaderConfig()
    if not is_mixed:
        mixture = mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            weighted_order=mtf.WeightedOrder.SHUFFLED,
            dataloader_weights=[WEIGHTS[name] for name in training],
            dataloader_names=list(training),
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=steps,
        )
    config = mtf.TrainerConfig(
        multi=mixture,
        performance=mtf.PerformanceConfig(clip_grad_norm=1.0),
        logging=mtf.LoggingConfig(log_scalars_every_n_steps=max(1, steps // 10)),
    )
    torch.manual_seed(0)
    model = shared.Transformer()
    trainer = mtf.Trainer(config, model, torch.optim.AdamW(model.parameters(), lr=2e-3), training_step=shared.step)
    trainer.fit(training, validation, max_steps=steps)
    return sum(weight * trainer.metrics[f"val/{name}/bits_per_byte"] for name, weight in WEIGHTS.items())


def main() -> None:
    """Trains both ways and prints the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    for is_mixed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found = train(steps, Path(folder), is_mixed=is_mixed)
        print(f"{'mixed inside every batch' if is_mixed else 'one corpus per batch':26} {found:.3f} bits per byte")


if __name__ == "__main__":
    main()
