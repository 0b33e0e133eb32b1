"""Figures of the compiled programs in benchmarks/native: what this machine can do without Python in the way."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

_PROGRAMS = Path(__file__).resolve().parents[1] / "build" / "release" / "benchmarks" / "native"


@cache
def native_figures() -> dict[str, float]:
    """Runs every program once per session.

    Returns:
        Name of the measurement to nanoseconds per item; empty where `make bench` hasn't built the programs.
    """
    figures = {}
    for program in sorted(_PROGRAMS.glob("mtf_bench_*")):
        if program.is_file():
            done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=300)
            for line in done.stdout.splitlines():
                measured = json.loads(line)
                if "ns" in measured:
                    figures[measured["name"]] = float(measured["ns"])
    return figures


def native(name: str) -> float | None:
    """Nanoseconds per item of one native measurement, None if no program measures it here."""
    return native_figures().get(name)


def compiler() -> str:
    """The compiler of the programs, as CMake found it; "" where they aren't built."""
    found = sorted((_PROGRAMS.parents[1] / "CMakeFiles").glob("*/CMakeCXXCompiler.cmake"))
    if not found:
        return ""
    text = found[0].read_text(encoding="utf-8")
    return " ".join(re.findall(r'set\(CMAKE_CXX_COMPILER_(?:ID|VERSION) "([^"]+)"\)', text))
