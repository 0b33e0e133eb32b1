"""What every rank does in the tests of sharded checkpoints in an object store: it resumes and trains to an update."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import mtf
from distributed import models
from distributed.worker import WORLD, gathered_steps, trainer


def main(url: str, updates: str, strategy: str, asynchronous: str) -> None:
    t = trainer(
        strategy,
        checkpoint=mtf.CheckpointConfig(
            root_dir=url, save_every_n_steps=3, asynchronous=asynchronous == "yes", max_checkpoints=2
        ),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
    )
    recorder = models.Recorder()
    t.add_hook(recorder)
    first: list[int] = []

    class First(mtf.TrainerHooks):
        def on_train_batch_start(self, tr: mtf.Trainer, *_: object) -> None:
            first.append(tr.global_step)

    t.add_hook(First())
    t.fit(models.loaders(WORLD), max_steps=int(updates))
    found = {
        "first": first[0] if first else int(updates),
        "batches": gathered_steps(recorder),
        "weights": {name: value.flatten().tolist() for name, value in models.whole_weights(t.model).items()},
    }
    Path(os.environ["RESULT"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
