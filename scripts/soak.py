"""A long run over 64 sources: memory, threads and file descriptors stay flat, and held bytes stay within the budget.

    python scripts/soak.py --steps 1000000
    python scripts/soak.py --steps 4000 --workers 1     # 64 DataLoaders with a worker process each

Prints one line per tenth of the run and exits with 1 when anything grew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import mtf

ROW_BYTES = 4096
BATCH_SIZE = 8
BATCH_BYTES = ROW_BYTES * BATCH_SIZE


def make_loaders(num_sources: int, num_workers: int) -> dict[str, Any]:
    """Sources of different lengths: arrays, or DataLoaders with worker processes."""
    loaders: dict[str, Any] = {}
    for i in range(num_sources):
        rows = torch.zeros(40 + 8 * i, ROW_BYTES, dtype=torch.uint8)
        if num_workers:
            loaders[f"source{i}"] = DataLoader(
                TensorDataset(rows), BATCH_SIZE, shuffle=True, num_workers=num_workers, persistent_workers=True
            )
        else:
            loaders[f"source{i}"] = mtf.ArrayLoader(rows, BATCH_SIZE, shuffle=True)
    return loaders


def usage() -> dict[str, int]:
    """Resident bytes, threads and open files of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "num_threads": int(status["Threads"]),
        "num_files": len(os.listdir("/proc/self/fd")),
    }


def soak(num_steps: int, num_sources: int, num_workers: int, budget_bytes: int) -> list[dict[str, int]]:
    """Runs, and returns what was used after each tenth; ``held_bytes`` is the most that was held ahead."""
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[1.0 + i % 7 for i in range(num_sources)],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=max(1, num_steps // 20),
        prefetch_bytes=budget_bytes,
    )
    rows: list[dict[str, int]] = []
    done, held, started = 0, 0, time.monotonic()
    with mtf.MultiLoader(make_loaders(num_sources, num_workers), config, seed=0) as batches:
        while done < num_steps:
            for _ in batches:
                done += 1
                if done % 16 == 0:
                    stats = batches.stats()
                    in_workers = sum(stats["in_flight"].values()) * BATCH_BYTES if num_workers else 0
                    held = max(held, in_workers, (stats["engine"] or {}).get("bytes_held", 0))
                if done % (num_steps // 10) == 0:
                    rows.append({"step": done, "held_bytes": held, **usage()})
                    print(f"{time.monotonic() - started:8.1f} s  {rows[-1]}")
                    batches.commit()
    return rows


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--sources", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--budget-bytes", type=int, default=1 << 20)
    arguments = parser.parse_args()
    rows = soak(arguments.steps, arguments.sources, arguments.workers, arguments.budget_bytes)
    early, last = rows[2], rows[-1]  # the first tenths open sources and fill pools
    grown = [name for name in ("num_threads", "num_files") if last[name] > early[name]]
    if last["rss_bytes"] > early["rss_bytes"] * 1.02 + (8 << 20):
        grown.append("rss_bytes")
    if last["held_bytes"] > arguments.budget_bytes + BATCH_BYTES:
        grown.append("held_bytes")
    print("flat" if not grown else f"grew: {grown}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
