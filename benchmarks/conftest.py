"""The fixtures of every benchmark, --quick and --smoke, and the table at the end. How to add one: README.md here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeVar

import pytest
from native_bounds import compiler, native, native_figures
from tables import Measurement, from_run, text

import mtf

_PEERS = (
    *("torch", "numpy", "torchdata", "grain", "lightning", "accelerate", "datasets", "transformers", "spdl"),
    *("mosaicml-streaming", "litdata"),
)
# Imports of seconds, for what isn't ours: left out of the smoke form.
_LIBRARIES = re.compile(
    r"(\[.*|_)(lightning|fabric|accelerate|transformers|hf trainer|datasets|grain|spdl|torchdata|stateful"
    r"|mosaicml|litdata)",
    re.IGNORECASE,
)

_HANDED_ON = pytest.StashKey[list[Measurement]]()

Form = Literal["full", "quick", "smoke"]
Measure = Callable[..., float]
HandOn = Callable[[Measurement], None]
T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller sizes, fewer rounds: the whole suite in minutes")
    parser.addoption("--smoke", action="store_true", help="the smallest sizes, once each: does everything still run?")


def _form(config: pytest.Config) -> Form:
    return "smoke" if config.getoption("--smoke") else "quick" if config.getoption("--quick") else "full"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        item.add_marker(pytest.mark.timeout(300))
        if _form(config) == "smoke" and _LIBRARIES.search(item.nodeid):
            item.add_marker(pytest.mark.skip(reason="slow to import"))


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Form:
    """Which form was asked for: "full", "quick" or "smoke"."""
    return _form(request.config)


@pytest.fixture
def pick(form: Form) -> Callable[[T, T, T], T]:
    """`pick(full, quick, smoke)` gives the value for the form that was asked for."""

    def choose(full: T, quick: T, smoke: T) -> T:
        return {"full": full, "quick": quick, "smoke": smoke}[form]

    return choose


@pytest.fixture
def native_ns(form: Form) -> Callable[[str], float | None]:
    """Nanoseconds per item of a native measurement by name; None where the programs aren't built, or to save time."""
    return (lambda name: None) if form == "smoke" else native


@pytest.fixture
def measure(benchmark: Any, form: Form, native_ns: Callable[[str], float | None]) -> Measure:
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
        """Returns nanoseconds per item, the median of the rounds.

        Args:
            run: Does the work once.
            row: Letter of the group.
            work: What is done.
            tool: Who does it.
            size: What the figure varies with.
            items: Items in one call of `run`.
            rounds: Calls timed (at most 3 in the quick form, 1 in the smoke form).
            warmup: Calls before those.
            bound: Name of a native measurement, or nanoseconds per item measured in this process.
            per_second: Show items per second.
            setup: Called before each round, not timed.
        """
        bound_ns = native_ns(bound) if isinstance(bound, str) else bound
        benchmark.extra_info.update(
            row=row, work=work, size=size, tool=tool, items=items, bound=bound_ns, per_second=per_second
        )
        benchmark.group = f"{row}: {work} {size}".strip()
        rounds = {"full": rounds, "quick": min(rounds, 3), "smoke": 1}[form]
        warmup = 0 if form == "smoke" else warmup
        benchmark.pedantic(run, setup=setup, rounds=rounds, iterations=1, warmup_rounds=warmup)
        return float(benchmark.stats.stats.median) * 1e9 / items

    return run_it


@pytest.fixture
def hand_on(request: pytest.FixtureRequest) -> HandOn:
    """Puts a figure that wasn't timed by `measure` into the tables: `hand_on(Measurement(...))`."""

    def keep(measurement: Measurement) -> None:
        request.config.stash.setdefault(_HANDED_ON, []).append(measurement)

    return keep


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["form"] = _form(config)
    output_json["handed_on"] = [asdict(measurement) for measurement in config.stash.get(_HANDED_ON, [])]
    output_json["native"] = {} if _form(config) == "smoke" else native_figures()
    output_json["compiler"] = compiler()
    output_json["versions"] = {"mtf": mtf.__version__}
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
        kept = ("median", "iqr", "rounds")
        run = {
            "benchmarks": [
                {"extra_info": entry.extra_info, "stats": {name: getattr(entry.stats, name) for name in kept}}
                for entry in done
            ],
            "handed_on": [asdict(measurement) for measurement in config.stash.get(_HANDED_ON, [])],
        }
        terminalreporter.section("mtf against bounds and peers (smaller is better)")
        terminalreporter.write_line(text(from_run(run)))
