"""Figures behind docs/scaling.md: what grows with the number of sources, parameters and ranks, on one machine.

python scripts/measure_ranks.py [--ranks 2 4] [--sharded 16]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mtf
from mtf.trainer.hooks.base import TrainerHooks


def best_ms(call: Callable[[], Any], times: int = 5) -> float:
    """Shortest of several runs, in milliseconds."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds) * 1e3


def make_schedule(num_sources: int) -> mtf.Schedule:
    """Weighted, with a length for each source."""
    names = [f"source{i}" for i in range(num_sources)]
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=mtf.WeightedOrder.EVEN,
        dataloader_weights=[1.0 + i % 7 for i in range(num_sources)],
        dataloader_names=names,
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=1_000_000_000,
    )
    return mtf.Schedule(config, [1000 + i for i in range(num_sources)])


def schedules() -> None:
    """Build, fingerprint and state of a schedule."""
    for num_sources in (4, 64, 1024, 10_000):
        schedule = make_schedule(num_sources)
        schedule.advance(123_456_789)
        build = best_ms(partial(make_schedule, num_sources), 3)
        fingerprint = best_ms(schedule.fingerprint)
        draws = best_ms(partial(schedule.draws, 512))
        num_bytes = len(schedule.to_bytes())
        text = len(json.dumps(schedule.state_dict()))
        print(
            f"{num_sources:6d} sources: build {build:.2f} ms, fingerprint {fingerprint:.2f} ms, next 512 draws "
            f"{draws:.2f} ms, state {num_bytes} bytes ({text} as JSON) at step 123456789"
        )


def worker(rank: int, world_size: int, port: int) -> None:
    """Agreement, decisions and reductions between real processes."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    from mtf.data.agreed_lengths import agree_on_lengths, check_same_schedule
    from mtf.distributed.ranks import make_ranks

    ranks = make_ranks(mtf.DDPConfig(), "cpu")
    look = best_ms(lambda: ranks.all_reduce_max([0, 0, 0]), 50)
    lines = [f"{world_size} ranks: one look (3 integers) {look:.2f} ms"]
    for num_sources in (4, 1024, 10_000):
        schedule = make_schedule(num_sources)
        names, lengths = list(schedule.names), list(schedule.lengths)
        agree = best_ms(partial(agree_on_lengths, names, lengths, True, rank, world_size), 3)
        check = best_ms(partial(check_same_schedule, schedule, world_size), 3)
        lines.append(f"  {num_sources:6d} sources: lengths {agree:.2f} ms, schedule compared {check:.2f} ms")
    if rank == 0:
        print("\n".join(lines))


def sharded(rank: int, world_size: int, port: int, root: str, began: float) -> None:
    """A run of FSDP2 over gloo: its start, its memory, one agreement and its checkpoints."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 768))
    optimizer = torch.optim.AdamW(model.parameters())
    config = mtf.TrainerConfig(
        ddp=mtf.DDPConfig(strategy="fsdp"),
        checkpoint=mtf.CheckpointConfig(root_dir=root, save_every_n_steps=2),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )

    def step(trainer: mtf.Trainer, batch: Any, index: int, loader: int, name: str) -> dict[str, Any]:
        return {"loss": trainer.model(batch["x"]).square().mean()}

    moments: list[float] = []

    class Moments(TrainerHooks):
        def on_train_batch_start(self, *_: Any) -> None:
            moments.append(time.time())

    trainer = mtf.Trainer(config, model, [optimizer], training_step=step)
    trainer.add_hook(Moments())
    data = mtf.ArrayLoader({"x": torch.zeros(640, 512)}, global_batch_size=64)
    trainer.fit({"a": data}, max_steps=7)
    steps = [after - before for before, after in itertools.pairwise(moments)]
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))
    if rank == 0:
        parameters = sum(p.numel() for p in model.parameters())
        saving, plain = sorted(steps[1::2])[len(steps[1::2]) // 2], sorted(steps[::2])[len(steps[::2]) // 2]
        print(
            f"{world_size} ranks, FSDP2, {parameters / 1e6:.1f} million parameters: first update after "
            f"{moments[0] - began:.0f} s, {resident:.0f} MB a rank, an update {plain * 1e3:.0f} ms, "
            f"with a sharded checkpoint {saving * 1e3:.0f} ms"
        )


def launch(target: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Runs ``target`` on as many processes, and waits."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(r, world_size, port, *arguments)) for r in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    if any(process.exitcode != 0 for process in processes):
        raise SystemExit(f"{target.__name__}: a process of {world_size} failed or took longer than 300 s")


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="processes that agree with each other")
    parser.add_argument("--sharded", type=int, nargs="*", default=[], help="processes that train with FSDP2 and save")
    arguments = parser.parse_args()
    schedules()
    for world_size in arguments.ranks:
        launch(worker, world_size)
    for world_size in arguments.sharded:
        with tempfile.TemporaryDirectory() as root:
            launch(sharded, world_size, root, time.time())


if __name__ == "__main__":
    main()
