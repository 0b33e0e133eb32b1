"""A loop of torchtitan's shape: a mesh, parallel plans, a dataloader with a state, DCP checkpoints, exact resume.

    python examples/torchtitan_loop.py
    torchrun --nproc-per-node 4 examples/torchtitan_loop.py --tp 2

Rows of two corpora are mixed inside every batch. The data parallel ranks divide it, tensor parallel peers get the same
rows, and the data's state is the same on all ranks, so that a run may continue with other numbers of both.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mtf

BATCH, LENGTH, VOCABULARY, STEPS = 12, 16, 64, 10


@dataclass
class ParallelDims:
    """Sizes of the mesh's dimensions."""

    tp: int = 1

    def build_mesh(self) -> DeviceMesh:
        """Data parallel times tensor parallel."""
        return init_device_mesh("cpu", (dist.get_world_size() // self.tp, self.tp), mesh_dim_names=("dp", "tp"))


class Decoder(nn.Module):
    """One block: causal attention and a feed-forward part, which tensor parallelism divides."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, dim), nn.Linear(dim, VOCABULARY)
        self.qkv, self.up, self.down = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, 64), nn.Linear(64, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of rows of tokens, int64 ``[batch, length + 1]``."""
        x = self.embedding(tokens[:, :-1])
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(query, key, value, is_causal=True)
        logits = self.head(x + self.down(self.up(x).relu()))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def build_dataloader(mesh: DeviceMesh) -> mtf.MultiLoader:
    """The blend, divided over the data parallel ranks. What torchtitan calls a dataloader iterates and has a state."""
    generator = torch.Generator().manual_seed(0)
    prose, code = (torch.randint(0, VOCABULARY, (tokens,), generator=generator) for tokens in (40_000, 3_000))
    rows = {name: mtf.Windows(corpus, LENGTH + 1) for name, corpus in (("prose", prose), ("code", code))}
    blend = mtf.Blend(rows, {"prose": 0.7, "code": 0.3}, global_batch_size=BATCH, batches_per_pass=STEPS)
    return mtf.MultiLoader(blend, seed=1, process_group=mesh["dp"])


class Trainer:
    """torchtitan's: everything is built by the constructor, from the sizes of the mesh."""

    def __init__(self, dims: ParallelDims) -> None:
        mesh = dims.build_mesh()
        torch.manual_seed(0)
        self.model = Decoder()
        parallelize_module(self.model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(self.model, mesh=mesh["dp"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, foreach=False)
        self.dataloader = build_dataloader(mesh)
        self.step = 0

    def train_step(self, tokens: Tensor) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        self.model(tokens).backward()
        self.optimizer.step()

    def train(self, until: int, folder: Path, *, resume: int | None = None) -> dict[str, Any]:
        """Trains up to step ``until``, from the checkpoint of step ``resume`` on, and saves; returns the weights."""
        if resume is not None:
            self.load(folder / f"step-{resume}")
        batches = iter(self.dataloader)
        while self.step < until:
            self.train_step(next(batches).data)
            self.dataloader.commit()
            self.step += 1
        dcp.save(self.state(), checkpoint_id=folder / f"step-{until}")
        self.dataloader.close()
        return dcp_state.get_model_state_dict(self.model, options=dcp_state.StateDictOptions(full_state_dict=True))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. The data's state is bytes, as torchtitan's is: it isn't divided among ranks."""
        model, optimizer = dcp_state.get_state_dict(self.model, self.optimizer)
        data = pickle.dumps(self.dataloader.state_dict())
        return {"model": model, "optimizer": optimizer, "dataloader": data, "step": self.step}

    def load(self, folder: Path) -> None:
        """Continues after the step of a checkpoint, also of one with other numbers of ranks."""
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        dcp_state.set_state_dict(self.model, self.optimizer, **parts)
        self.dataloader.load_state_dict(pickle.loads(state["dataloader"]))
        self.step = state["step"]


def join() -> None:
    """The launcher's process group, or one of this process alone."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def main() -> None:
    """Compares the weights of a run in one go and of one in two jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=1)
    dims = ParallelDims(tp=parser.parse_args().tp)
    join()
    folders: list[Any] = [tempfile.mkdtemp(), tempfile.mkdtemp()]
    dist.broadcast_object_list(folders, src=0)
    whole, parts = map(Path, folders)
    expected = Trainer(dims).train(STEPS, whole)
    Trainer(dims).train(4, parts)
    found = Trainer(dims).train(STEPS, parts, resume=4)
    if dist.get_rank() == 0:
        print("the same bits:", all(torch.equal(expected[name], found[name]) for name in expected))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
