"""Ends a run in a given way while it reads a loader of a given kind. Started once: each case is a fork of this process,
which goes on as a script of its own, to the end of its interpreter.

Reads lines of ``kind ending directory`` and answers each with ``pid``, then with the status of that process (of
``waitpid``) once it has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mtf

try:
    from torchdata import nodes
    from torchdata.stateful_dataloader import StatefulDataLoader
except ImportError:
    nodes = StatefulDataLoader = None
try:
    from torch_geometric.data import Data
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import BaseSampler, SamplerOutput
except ImportError:
    NodeLoader = None

ROWS = 4000
fetch_s = 0.001


class Rows(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(fetch_s)
        return torch.full((4,), float(index))


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(Rows()[index] for index in range(ROWS))


class Logged(DataLoader[Any]):
    """Iterates by itself, so that torch's iterator is hidden in a generator."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


class Around:
    """A loader of another library over a mixture: it closes nothing."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            yield batch.data


class Chain:
    """Starts its second loader, and with it more processes, in the middle of a pass."""

    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(Rows(), 2, sampler=range(4))
        yield from Logged(Rows(), 2, num_workers=2, persistent_workers=True)


def make(kind: str) -> Any:
    if kind == "workers":
        return DataLoader(Rows(), 2, shuffle=True, num_workers=2)
    if kind == "persistent":
        return DataLoader(Rows(), 2, num_workers=2, persistent_workers=True)
    if kind == "own_iter":
        return Logged(Rows(), 2, num_workers=2)
    if kind == "own_iter_persistent":
        return Logged(Rows(), 2, num_workers=2, persistent_workers=True)
    if kind == "own_iter_stream":
        return Logged(Stream(), 2, num_workers=2)
    if kind == "stream":
        return DataLoader(Stream(), 2, num_workers=2)
    if kind == "stream_persistent":
        return DataLoader(Stream(), 2, num_workers=2, persistent_workers=True)
    if kind == "stateful":
        return StatefulDataLoader(Rows(), 2, num_workers=2)
    if kind == "stateful_stream":
        return StatefulDataLoader(Stream(), 2, num_workers=2)
    if kind == "nodes":
        rows = nodes.ParallelMapper(nodes.IterableWrapper(range(ROWS)), Rows().__getitem__, 2, method="process")
        return nodes.Loader(nodes.Batcher(rows, 2))
    if kind == "node_threads":
        rows = nodes.ParallelMapper(nodes.IterableWrapper(range(ROWS)), Rows().__getitem__, 2, method="thread")
        return nodes.Loader(nodes.Prefetcher(nodes.Batcher(rows, 2), 4))
    if kind == "late":
        return Chain()
    if kind == "pyg":
        return pyg()
    if kind == "threads":
        return mtf.ThreadLoader(Rows(), 2, num_threads=3)
    if kind == "nested":
        return Around(mtf.MultiLoader({"a": make("workers"), "b": make("own_iter")}))
    raise AssertionError(kind)


def pyg() -> Any:
    """PyG's NodeLoader with a sampler in place of the native one, which is a package that has to be built."""

    class Itself(BaseSampler):
        def sample_from_nodes(self, index: Any, **_: Any) -> Any:
            time.sleep(2 * fetch_s)
            none = torch.empty(0, dtype=torch.long)
            return SamplerOutput(node=index.node, row=none, col=none, edge=none, metadata=(index.input_id, index.time))

        def sample_from_edges(self, index: Any, **_: Any) -> Any:
            raise NotImplementedError

    nodes_ = torch.arange(ROWS)
    data = Data(x=torch.ones(ROWS, 4), edge_index=torch.stack([nodes_[:-1], nodes_[1:]]))
    return NodeLoader(data, Itself(), batch_size=2, num_workers=2)


def mixture(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind == "shared":
        return {"a": make("workers"), "b": make("workers")}, {"shared_workers": 2}
    return {"a": make(kind), "b": mtf.ArrayLoader(torch.ones(200, 4), 2)}, {}


class End(mtf.TrainerHooks):
    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            if self.how == "error":
                raise ValueError("wanted")
            if self.how in ("term", "int"):
                os.kill(os.getpid(), signal.SIGTERM if self.how == "term" else signal.SIGINT)
            elif self.how in ("group_term", "group_int"):
                # As from a terminal, or from Slurm: every process of the group gets it, here while a batch is awaited.
                number = signal.SIGTERM if self.how == "group_term" else signal.SIGINT
                threading.Timer(0.3, os.killpg, (0, number)).start()


def rows_of(batch: Any) -> torch.Tensor:
    batch = getattr(batch, "x", batch)
    return torch.stack(batch) if isinstance(batch, list) else batch


def run(kind: str, how: str, directory: str) -> None:
    global fetch_s
    fetch_s = 0.03 if how.startswith("group") else 0.001
    loaders, options = mixture(kind)
    options.update(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=1000)
    config = mtf.MultiDataLoaderConfig(**options)
    if how == "left":
        batches = iter(mtf.MultiLoader(loaders, config))
        for _ in range(5):
            next(batches)
        return
    net = torch.nn.Linear(4, 1)
    step = lambda trainer, batch, *_: net(rows_of(batch).float()).mean()  # noqa: E731
    trainer = mtf.Trainer(
        mtf.TrainerConfig(
            multi=config,
            logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
            checkpoint=mtf.CheckpointConfig(root_dir=directory),
        ),
        net,
        torch.optim.SGD(net.parameters(), 0.01),
        training_step=step,
        hooks=[End(how)],
    )
    trainer.fit(loaders, max_steps=10 if how == "max" else 100)


def main() -> None:
    print("can", "pyg" if NodeLoader else "", "torchdata" if nodes else "", flush=True)
    for line in sys.stdin:
        kind, how, directory = line.split()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(0)
            os.dup2(os.open(os.path.join(directory, "errors"), os.O_WRONLY | os.O_CREAT), 2)
            run(kind, how, directory)
            return
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


main()
