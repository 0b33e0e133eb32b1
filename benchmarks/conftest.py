"""The `measure` fixture, the --quick option and the table at the end. How to add a benchmark: benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from native_bounds import native, native_figures
from tables import Measurement, from_run, text

_PEERS = ("mtf", "torch", "numpy", "torchdata", "grain", "lightning", "accelerate", "datasets", "transformers", "spdl")

_HANDED_ON = pytest.StashKey[list[Measurement]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller sizes, fewer rounds: the whole suite in minutes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether the short form was asked for."""
    return bool(request.config.getoption("--quick"))


Measure = Callable[..., float]


@pytest.fixture
def measure(benchmark: Any, quick: bool) -> Measure:
    """Times one tool at one piece of work; see `tables.Measurement` for the words."""

    def run_it(
        run: Callable[[], object],
        *,
        row: str,
        work: str,
        tool: str,
        size: str = "",
        items: int = 1,
        rounds: int = 5,
        warmup: int = 1,
        bound: str | float | None = None,
        per_second: bool = False,
        setup: Callable[[], Any] | None = None,
    ) -> float:
        """Returns nanoseconds per item of the best round.

        Args:
            run: Does the work once.
            row: Letter of the group.
            work: What is done.
            tool: Who does it.
            size: What the figure varies with.
            items: Items in one call of `run`.
            rounds: Calls timed (at most 3 in the short form).
            warmup: Calls before those.
            bound: Name of a native measurement, or nanoseconds per item measured in this process.
            per_second: Show items per second.
            setup: Called before each round, not timed.
        """
        bound_ns = native(bound) if isinstance(bound, str) else bound
        benchmark.extra_info.update(
            row=row, work=work, size=size, tool=tool, items=items, bound_ns=bound_ns, per_second=per_second
        )
        benchmark.group = f"{row}: {work} {size}".strip()
        rounds = min(rounds, 3) if quick else rounds
        benchmark.pedantic(run, setup=setup, rounds=rounds, iterations=1, warmup_rounds=warmup)
        return float(benchmark.stats.stats.min) * 1e9 / items

    return run_it


@pytest.fixture
def hand_on(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Puts a figure that a native program measured by itself into the tables: `hand_on(Measurement(...))`."""

    def keep(measurement: Measurement) -> None:
        request.config.stash.setdefault(_HANDED_ON, []).append(measurement)

    return keep


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["handed_on"] = [asdict(measurement) for measurement in config.stash.get(_HANDED_ON, [])]
    output_json["native"] = native_figures()
    output_json["versions"] = {}
    for package in _PEERS:
        try:
            output_json["versions"][package] = version(package)
        except PackageNotFoundError:
            output_json["versions"][package] = "not installed"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    done = (
        [entry for entry in session.benchmarks if "row" in entry.extra_info and entry.stats.rounds] if session else []
    )
    if done:
        run = {
            "benchmarks": [{"extra_info": entry.extra_info, "stats": {"min": entry.stats.min}} for entry in done],
            "handed_on": [asdict(measurement) for measurement in config.stash.get(_HANDED_ON, [])],
        }
        terminalreporter.section("mtf against bounds and peers (times: smaller is better)")
        terminalreporter.write_line(text(from_run(run)))
