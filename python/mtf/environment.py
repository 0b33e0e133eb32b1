"""What a report of a mistake needs to say about the machine: versions, platform, and what is installed."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import mtf

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tqdm",
    "pyyaml",
    "matplotlib",
    "tensorboard",
    "wandb",
    "mlflow-skinny",
    "torchdata",
    "torchmetrics",
)


def collect() -> dict[str, str]:
    """Look at this process and its environment.

    Returns:
        Name of the fact to its value as text, in the order in which a person reads them. Packages are looked up,
        not imported, except torch, which alone knows its devices.
    """
    facts = {
        "mtf": mtf.__version__,
        "mtf._core": _core(),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})",
        "platform": platform.platform(),
        "cpus": f"{_usable_cpus()} usable of {os.cpu_count()}",
    }
    facts.update({package: _version(package) for package in _PACKAGES})
    facts["devices"] = _devices()
    facts["process groups"] = _process_groups()
    return facts


def _core() -> str:
    try:
        from mtf import _core
    except ImportError as error:
        return f"missing: {error}"
    return str(_core.__version__)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _process_groups() -> str:
    try:
        from torch import distributed
    except ImportError:
        return "unknown without torch"
    if not distributed.is_available():
        return "none"
    here = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    return ", ".join(name for name, is_here in here.items() if is_here) or "none"


def _devices() -> str:
    try:
        import torch
    except ImportError:
        return "unknown without torch"
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return ", ".join(devices)
