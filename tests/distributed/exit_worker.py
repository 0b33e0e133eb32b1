"""Ends right after a collective, as short scripts do."""

from __future__ import annotations

import mtf
from distributed import models

trainer = mtf.Trainer(
    models.config(ddp=mtf.DDPConfig(strategy="fsdp")),
    net := models.model(),
    models.make_optimizers(net, 1),
    training_step=models.step,
)
trainer.fit(models.loaders(trainer.world_size), max_steps=2)
models.whole_weights(net)
