"""What each ``checkpoint_v<format>`` holds, and how it was made: ``python tests/golden/make_checkpoint.py DIRECTORY``.

A directory is written once, by the release that introduces its format, and every later release must load it. Never
write one anew: a new format gets a directory of its own.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import torch

import mtf
from mtf.checkpoint.format import layout


def model() -> dict[str, Any]:
    """A state_dict with a tied weight, several dtypes, and an entry that is no tensor."""
    embedding = torch.arange(12.0).reshape(4, 3) / 7
    return {
        "embedding.weight": embedding,
        "conv.weight": (torch.arange(54.0).reshape(2, 3, 3, 3) / 3).to(memory_format=torch.channels_last),
        "norm.num_batches_tracked": torch.tensor(5),
        "scale": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "phase": torch.tensor([1 + 2j], dtype=torch.complex64),
        "empty": torch.empty(0, 3),
        "head.weight": embedding,
        "head._extra_state": {"amax": 2.5},
    }


def state() -> dict[str, Any]:
    """One of everything that a state tree keeps."""
    base = torch.arange(6, dtype=torch.float32)
    return {
        "global_step": 1234,
        "flags": [True, False, None],
        "floats": [0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324],
        "large": [2**53, 2**53 + 1, -(2**100)],
        "complex": 1 - 2.5j,
        "text": "ä\u2028\x00\ud800",
        "bytes": [b"", b"\x00\xff", bytes(range(256)) * 20],
        "tuple": (1, (2, [3])),
        "sets": [{1, 2}, frozenset({"a"})],
        "keys": {0: "int", (1, "a"): "tuple", None: "none", "$x": "dollar"},
        "counter": Counter({5: 2, 3: 1}),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "default": defaultdict(list, {"k": [1]}),
        "numpy": [np.float32(0.1), np.arange(6, dtype=np.int16).reshape(2, 3).T, np.array(3.0)],
        "tensors": [
            torch.tensor([True, False]),
            torch.tensor([1, 2], dtype=torch.uint16),
            torch.tensor([0.5, 448.0], dtype=torch.float8_e4m3fn),
            torch.tensor(3 + 4j, dtype=torch.complex128),
            torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
            torch.tensor(7, dtype=torch.int64),
            torch.empty(2, 0),
        ],
        "views": {"base": base, "tail": base[2:], "same": base},
    }


def manifest() -> dict[str, Any]:
    """The caller's members."""
    return {
        "step": 1234,
        "epoch": 2,
        "sequence": 7,
        "metrics": {"val/loss": 0.25, "train/loss": math.nan},
        "config": {"betas": (0.9, 0.999), "name": "golden"},
    }


def schedule() -> mtf.Schedule:
    """A schedule some steps into its second epoch."""
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[0.6, 0.4],
        dataloader_names=["a", "b"],
    )
    result = mtf.Schedule(config, lengths=[30, 50], seed=11)
    result.seek(1, 17)
    return result


if __name__ == "__main__":
    layout.write(sys.argv[1], model=model(), state_tree=state(), schedule=schedule().to_bytes(), manifest=manifest())
