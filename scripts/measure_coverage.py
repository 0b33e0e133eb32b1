"""Measures what the tests run: lines of the core and the bindings by gcov, lines of the package by coverage.

    python scripts/measure_coverage.py            # builds, runs all tests, prints the tables: many minutes
    python scripts/measure_coverage.py --report   # prints them again from what was measured last
    python scripts/measure_coverage.py --holes    # and the lines that nothing ran

Everything lands in build/coverage; `coverage html` there shows the package's lines.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "coverage"
NATIVE = OUT / "native"
PACKAGE = OUT / "package"
_TESTS = ["tests/python", "tests/faults", "tests/distributed"]


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command in the tree, with variables added to the environment."""
    subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, check=True)


def measure() -> None:
    """Builds the core with counters, runs the C++ tests, then the Python tests over that module."""
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    python = f"-DPython_EXECUTABLE={sys.executable}"
    run("cmake", "--preset", "coverage", "-B", NATIVE, "-DMTF_BUILD_PYTHON=ON", python, *launcher)
    run("cmake", "--build", NATIVE)
    for old in [*NATIVE.rglob("*.gcda"), *(OUT / "python").glob("*")]:
        old.unlink()
    run("ctest", "--test-dir", NATIVE, "--output-on-failure", "-j", "2")
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "python", PACKAGE, ignore=shutil.ignore_patterns("_core*.so", "__pycache__"))
    (module,) = (NATIVE / "csrc").glob("_core*.so")
    shutil.copy(module, PACKAGE / "mtf")
    # An editable installation would lead `import mtf` past PYTHONPATH.
    (PACKAGE / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildRedirectingFinder']\n",
        encoding="utf-8",
    )
    (OUT / "python").mkdir(exist_ok=True)
    tests = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--timeout",
        "600",
        *_TESTS,
    ]
    command = [sys.executable, "-m", "coverage", "run", *tests]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    # Tests of signals and abrupt ends don't all pass under measurement; what ran has been counted.
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with status {done.returncode}: nothing was measured")


def native_lines() -> dict[str, dict[int, bool]]:
    """Per source file: which lines hold code, and whether any test ran them."""
    lines: dict[str, dict[int, bool]] = defaultdict(dict)
    for counts in sorted(NATIVE.rglob("*.gcda")):
        work = OUT / "gcov"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        subprocess.run(["gcov", "--json-format", str(counts)], cwd=work, check=True, capture_output=True)
        for archive in work.glob("*.json.gz"):
            found: dict[str, Any] = json.loads(gzip.decompress(archive.read_bytes()))
            for file in found["files"]:
                path = Path(found["current_working_directory"], file["file"]).resolve()
                if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in ("src", "csrc"):
                    continue
                of_file = lines[str(path.relative_to(ROOT))]
                for line in file["lines"]:
                    number = line["line_number"]
                    of_file[number] = of_file.get(number, False) or line["count"] > 0
    return lines


def ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] as "1-3 7"."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return " ".join(f"{first}-{last}" if first != last else str(first) for first, last in out)


def table(rows: dict[str, tuple[int, int]]) -> None:
    """Area, share, lines and holes as Markdown."""
    print("| area | covered | lines | not run |\n| --- | --- | --- | --- |")
    total = (sum(run for run, _ in rows.values()), sum(num for _, num in rows.values()))
    for area, (covered, num) in [*sorted(rows.items()), ("all", total)]:
        print(f"| `{area}` | {100 * covered / max(1, num):.1f} % | {num} | {num - covered} |")


def report_native(show_holes: bool) -> None:
    """The core and the bindings, by area."""
    areas: dict[str, tuple[int, int]] = {}
    holes = []
    for file, lines in sorted(native_lines().items()):
        area = str(Path(file).parent)
        covered, num = areas.get(area, (0, 0))
        areas[area] = covered + sum(lines.values()), num + len(lines)
        missed = sorted(number for number, was_run in lines.items() if not was_run)
        if missed:
            holes.append(f"{file}: {ranges(missed)}")
    table(areas)
    if show_holes:
        print(*holes, sep="\n")


def report_python(show_holes: bool) -> None:
    """The package, by area."""
    coverage = [sys.executable, "-m", "coverage"]
    if any((OUT / "python").glob("data.*")):
        subprocess.run([*coverage, "combine", "-q", "--append"], cwd=ROOT, check=True)
    target = OUT / "python.json"
    subprocess.run([*coverage, "json", "-q", "-i", "-o", str(target)], cwd=ROOT, check=True)
    areas: dict[str, tuple[int, int]] = {}
    holes = []
    for file, entry in sorted(json.loads(target.read_text(encoding="utf-8"))["files"].items()):
        parts = Path(file).parts
        inside = Path(*parts[parts.index("mtf") :])
        area = str(inside.parent)
        covered, num = areas.get(area, (0, 0))
        areas[area] = covered + entry["summary"]["covered_lines"], num + entry["summary"]["num_statements"]
        if entry["missing_lines"]:
            holes.append(f"{inside}: {ranges(entry['missing_lines'])}")
    table(areas)
    if show_holes:
        print(*holes, sep="\n")


def main() -> None:
    """Measures unless told not to, and prints."""
    parser = argparse.ArgumentParser(description="What the tests run.")
    parser.add_argument("--report", action="store_true", help="only print what was measured last")
    parser.add_argument("--holes", action="store_true", help="list the lines that nothing ran")
    arguments = parser.parse_args()
    if not arguments.report:
        measure()
    report_native(arguments.holes)
    report_python(arguments.holes)


if __name__ == "__main__":
    main()
