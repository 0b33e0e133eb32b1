"""How this process was started: alone, by torchrun, or by srun. Reads the environment; imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mtf.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: its number in ``[0, world_size)``.
        world_size: number of processes.
        local_rank: its number on its own machine, which picks its GPU.
        master_addr: machine on which rank 0 (or torchrun's agent) listens.
        master_port: port there.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def find_launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """What the launcher said; None for a process that was started alone.

    torchrun's ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` come first. Inside a step
    of ``srun`` with more than one task, Slurm's variables say the same: rank 0 runs on the first node of the step,
    and the port follows from the job's number unless ``MASTER_ADDR`` and ``MASTER_PORT`` are set.

    Raises:
        ConfigError: a variable is missing or is no number.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in env:
                raise ConfigError(f"RANK and WORLD_SIZE are set, but {name} isn't: start the script with torchrun")
        return _checked(
            Launch(
                rank=_number(env, "RANK"),
                world_size=_number(env, "WORLD_SIZE"),
                local_rank=_number(env, "LOCAL_RANK", "0"),
                master_addr=env["MASTER_ADDR"],
                master_port=_number(env, "MASTER_PORT"),
            )
        )
    # SLURM_NTASKS is also set where nothing was started by srun (a batch script, a shell); a step's variables aren't.
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env and _number(env, "SLURM_STEP_NUM_TASKS") > 1:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
        job, step = _number(env, "SLURM_JOB_ID", "0"), _number(env, "SLURM_STEP_ID", "0")
        return _checked(
            Launch(
                rank=_number(env, "SLURM_PROCID"),
                world_size=_number(env, "SLURM_STEP_NUM_TASKS"),
                local_rank=_number(env, "SLURM_LOCALID", "0"),
                master_addr=env.get("MASTER_ADDR") or first_host(nodes),
                master_port=_number(env, "MASTER_PORT", str(20000 + (31 * job + step) % 12000)),
            )
        )
    return None


def gpu_index(launch: Launch, num_visible: int, environment: Mapping[str, str] | None = None) -> int:
    """Which of the GPUs that this process sees is its own.

    A launcher may show each process only its own GPU (``srun --gpus-per-task=1``, Ray Train), which then is number 0
    for all of them.

    Args:
        launch: this process among its launch.
        num_visible: GPUs that it sees.
        environment: None: this process's.

    Raises:
        ConfigError: more processes on the machine than it has GPUs.
    """
    env = os.environ if environment is None else environment
    if launch.local_rank < num_visible:
        return launch.local_rank
    shown = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if num_visible == 1 and len(shown) == 1:
        return 0
    raise ConfigError(
        f"rank {launch.rank} is number {launch.local_rank} on its machine, which has {num_visible} GPUs: start at most "
        f"{num_visible} processes there (--nproc-per-node {num_visible}), or pass device='cpu' to the trainer"
    )


def first_host(nodes: str) -> str:
    """First machine of a Slurm node list such as ``gpu[03-06,9],login1``.

    Raises:
        ConfigError: the list is empty or malformed.
    """
    found = re.match(r"^([^\[\],\s]+)(?:\[(\d+)[^\]]*\]([^\[\],\s]*))?(?:,|$)", nodes)
    if found is None:
        raise ConfigError(f"SLURM_STEP_NODELIST names no machine: {nodes!r}; set MASTER_ADDR")
    return found[1] + (found[2] or "") + (found[3] or "")


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name, default)
    if text is None or not text.strip().isdigit():
        raise ConfigError(f"the environment variable {name} must be a number of at least 0, it is {text!r}")
    return int(text)


def _checked(launch: Launch) -> Launch:
    if not 0 <= launch.rank < launch.world_size:
        raise ConfigError(f"the launcher said rank {launch.rank} of {launch.world_size}: ranks count from 0")
    return launch
