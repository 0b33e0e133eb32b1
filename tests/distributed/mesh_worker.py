"""What every rank does in the tests of meshes: data parallel ranks with peers, and ranks that load nothing."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import mtf
from distributed import models

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
SIZE, STEPS = 12, 10


def make_blend() -> mtf.Blend:
    rows = {"a": models.data(90, 1), "b": models.data(31, 2), "c": models.data(5, 3)}
    return mtf.Blend(rows, {"a": 0.6, "b": 0.3, "c": 0.1}, global_batch_size=SIZE)


def make_loaders() -> dict[str, Any]:
    """A blend, a loader, and one batch of every source, which has a mixture of its own inside."""
    loader = mtf.ArrayLoader(models.data(50, 4), global_batch_size=SIZE, shuffle=True, drop_last=True)
    inner = mtf.ArrayLoader(models.data(29, 5), global_batch_size=SIZE, shuffle=True, drop_last=True)
    return {"blend": make_blend(), "loader": loader, "together": mtf.Together({"x": make_blend(), "y": inner})}


def make_loop(**options: Any) -> mtf.MultiLoader:
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy="ROUND_ROBIN", epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=1000
    )
    return mtf.MultiLoader(make_loaders(), config, seed=7, **options)


def ids(batch: Any) -> list[list[int]]:
    """Numbers of the samples, per part."""
    return [part["id"].tolist() for part in ([batch.data] if "id" in batch.data else batch.data.values())]


def read(loader: mtf.MultiLoader, num: int) -> list[list[list[int]]]:
    found = [ids(batch) for batch in islice(loader, num)]
    loader.commit()
    return found


def train(updates: int, **options: Any) -> dict[str, Any]:
    """A trainer that counts its items, so that the scale of an update depends on what ranks it takes for equal."""

    def step(trainer: Any, batch: Any, *where: Any) -> dict[str, Any]:
        seen.append(batch["id"].tolist())
        noise.append(float(torch.rand(())))
        loss = (models.loss(trainer.model, batch, "a") + models.loss(trainer.model, batch, "b")) / 2
        return {"loss": loss, "num_samples": len(batch["id"])}

    seen: list[list[int]] = []
    noise: list[float] = []
    net = models.model()
    config = mtf.TrainerConfig(
        ddp=mtf.DDPConfig(timeout_s=120),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=updates),
        seed=11,
    )
    trainer = mtf.Trainer(config, net, torch.optim.SGD(net.parameters(), lr=0.05), training_step=step, **options)
    trainer.fit(make_blend(), max_steps=updates)
    return {
        "seen": seen,
        "noise": noise,
        "weights": {name: value.flatten().tolist() for name, value in net.state_dict().items()},
        "loss": trainer.metrics["train/loss"],
    }


def torchtitan() -> dict[str, bool]:
    """The example under dp 2 x tp 2: in one go, in two jobs, and continued with dp 4 x tp 1."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import torchtitan_loop as example

    folder = Path(os.environ["SHARED"])
    wide, mesh = example.ParallelDims(tp=1), example.ParallelDims(tp=2)
    whole = example.Trainer(mesh).train(example.STEPS, folder / "whole")
    example.Trainer(mesh).train(4, folder / "parts")
    found = example.Trainer(mesh).train(example.STEPS, folder / "parts", resume=4)
    other = example.Trainer(wide).train(example.STEPS, folder / "whole", resume=example.STEPS)
    on_more = example.Trainer(wide).train(8, folder / "parts", resume=4)
    expected = example.Trainer(mesh).train(8, folder / "whole")
    return {  # rank 0 has the whole weights
        "same bits": all(torch.equal(whole[name], found[name]) for name in whole),
        "same weights loaded": all(torch.equal(whole[name], other[name]) for name in whole),
        "close on other ranks": all(torch.allclose(expected[name], on_more[name], atol=1e-5) for name in expected),
    }


def run() -> dict[str, Any]:
    found: dict[str, Any] = {}
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found["place"] = [mesh["dp"].get_local_rank(), mesh["tp"].get_local_rank()]
    loop = make_loop(process_group=mesh["dp"])
    found["loop"] = read(loop, 5)
    states: list[Any] = [None] * WORLD
    dist.all_gather_object(states, loop.state_dict())
    found["loop"] += read(loop, STEPS - 5)
    loop.close()
    # The state of dp 2 x tp 2 in dp 4 x tp 1.
    wide = make_loop(process_group=init_device_mesh("cpu", (4,), mesh_dim_names=("dp",)))
    wide.load_state_dict(states[3])
    found["wide"] = read(wide, STEPS - 5)
    wide.close()
    # One stage loads; the others have nothing to do with it, and come to the barrier long before.
    stage = dist.new_group([0, 1])
    if RANK < 2:
        loop = make_loop(process_group=stage)
        found["stage"] = read(loop, STEPS)
        loop.close()
    else:
        for wrong in (stage, dist.GroupMember.NON_GROUP_MEMBER):
            try:
                make_loop(process_group=wrong)
            except mtf.ConfigError as error:
                found["refused"] = str(error)
    dist.barrier()
    sampler = make_blend().batch_sampler(consumed_samples=2 * SIZE, process_group=mesh["dp"])
    found["positions"] = list(islice(sampler, 2))
    for name, wrong in (("mesh", mesh), ("kind", "dp")):
        try:
            make_loop(process_group=wrong)
        except mtf.ConfigError as error:
            found[name] = str(error)
    try:
        make_loop(process_group=mesh["dp"], rank=1, world_size=2)
    except mtf.ConfigError as error:
        found["both"] = str(error)
    found["torchtitan"] = torchtitan()
    found["trainer"] = train(6, process_group=mesh["dp"])
    return found


if __name__ == "__main__":
    try:
        result = run()
    except Exception:
        result = {"failed": traceback.format_exc()}
    Path(os.environ["RESULT"]).write_text(json.dumps(result))
