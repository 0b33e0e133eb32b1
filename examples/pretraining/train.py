"""A small decoder on a mixture of text corpora whose samples are mixed inside each batch.

    python examples/pretraining/train.py --steps 300
    torchrun --nproc-per-node 2 examples/pretraining/train.py --steps 600     # continues, on two ranks
    python examples/pretraining/train.py --steps 900                          # and on one again

Stop it as you like, kill -9 included: the next command continues from the last checkpoint with the same batches. The
corpora are tokenised by the first run (corpora.py). Documents are packed or cut into rows, attention stays inside a
document, the last tenth anneals: other weights of the corpora, and a learning rate that falls to zero.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import corpora
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf

LENGTH = 256
MAIN = {"code": 0.6, "packages": 0.2, "help": 0.1, "plays": 0.1}
ANNEALING = {"code": 0.2, "packages": 0.2, "help": 0.5, "plays": 0.1}


class Block(nn.Module):
    """Attention inside each document, and a feed-forward network."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(self.norms[0](hidden)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.feed_forward(self.norms[1](hidden))


class Decoder(nn.Module):
    """Predicts each token from those before it in its document."""

    def __init__(self, vocabulary: int = 4096, width: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Tokens ``[rows, length]`` and their positions to logits ``[rows, length, vocabulary]``."""
        documents = (position_ids == 0).cumsum(1)
        same = documents[:, :, None] == documents[:, None, :]
        mask = (same & torch.ones_like(same[0]).tril())[:, None]
        hidden = self.tokens(input_ids) + self.positions(position_ids)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(hidden) @ self.tokens.weight.T


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy; labels of -100 (ends of documents, padding) aren't counted. The number of the others makes an
    update the mean over all of them, on any number of ranks."""
    logits = trainer.model(batch["input_ids"], batch["position_ids"])
    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    return {"loss": loss, "num_samples": batch["loss_mask"].sum()}


def data(folder: Path, steps: int, batch: int = 16) -> tuple[mtf.Blend, dict[str, mtf.TokenRows]]:
    """The blend of all corpora, and the held-out part of each."""
    training, validation = {}, {}
    for path in sorted(folder.glob("*.train.bin")):
        name = path.name.removesuffix(".train.bin")
        corpus = mtf.TokenCorpus(path, dtype="uint16", eos=0)
        # Help has short articles, which are packed whole; elsewhere documents are long, and rows are cut.
        training[name] = corpus.packed(LENGTH) if name == "help" else corpus.windows(LENGTH)
        held_out = mtf.TokenCorpus(folder / f"{name}.valid.bin", dtype="uint16", eos=0)
        validation[name] = held_out.windows(LENGTH, moving=False, shuffle=False, batch_size=batch)
    curve = [(0, [MAIN[name] for name in training]), (steps - steps // 10, [ANNEALING[name] for name in training])]
    return mtf.Blend(training, weight_curve=mtf.WeightCurve(curve), global_batch_size=batch), validation


def make_trainer(folder: Path, total: int, save_every: int = 25) -> mtf.Trainer:
    """Resumes from the newest checkpoint in ``folder``; the learning rate anneals in the last tenth of ``total``."""
    torch.manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    tenth = max(1, total // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min(1, (update + 1) / 20, max(0, total - update) / tenth)
    )
    config = mtf.TrainerConfig(
        performance=mtf.PerformanceConfig(clip_grad_norm=1.0),
        checkpoint=mtf.CheckpointConfig(root_dir=str(folder / "checkpoints"), save_every_n_steps=save_every),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(log_scalars_every_n_steps=max(1, total // 20), progress_bar=False),
    )
    return mtf.Trainer(config, model, optimizer, {"scheduler": schedule, "interval": "step"}, training_step=step)


def main() -> None:
    """Trains until update ``--steps`` of ``--total``, from where the last command stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="updates since the beginning of training")
    parser.add_argument("--total", type=int, default=900, help="updates of the whole run")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch, all ranks together")
    parser.add_argument("--save-every", type=int, default=25, help="updates between checkpoints")
    parser.add_argument("--folder", type=Path, default=Path("pretraining"))
    arguments = parser.parse_args()
    folder = arguments.folder
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and not (folder / "ready").exists():
        print(corpora.write(folder))
        (folder / "ready").touch()
    while not (folder / "ready").exists():
        time.sleep(0.1)
    trainer = make_trainer(folder, arguments.total, arguments.save_every)
    blend, validation = data(folder, arguments.total, arguments.batch)
    trainer.fit(blend, max_steps=arguments.steps)
    losses = {name: value for name, value in trainer.validate(validation).items() if name.endswith("/loss")}
    trainer.print(f"update {trainer.global_step} on {trainer.world_size} rank(s)", losses)


if __name__ == "__main__":
    main()
