"""The `mtf` command: look at a schedule before training, at a checkpoint after it, and at the machine.

Every command prints a result on standard output (`--json`: for programs) and, when something is wrong, one line on
standard error. Exit codes: 0 done (`diff`: equal; `check-source`: exact), 1 a difference or a failed check,
2 a mistake in the command or the configuration, 3 a checkpoint or state that can't be used.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mtf
from mtf.errors import CheckpointError, ConfigError, MtfError, StateMismatch

OK, DIFFERENT, USAGE, DAMAGED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; those of the process when left out.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (CheckpointError, StateMismatch) as error:
        return _fail(error, DAMAGED)
    except (MtfError, OSError) as error:
        return _fail(error, USAGE)
    except ImportError as error:
        return _fail(f"{error} (pip install 'mtf[all]' brings every optional package)", USAGE)


def _fail(error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"mtf: {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mtf", description="Schedules, checkpoints and loaders of mtf, from a shell.")
    parser.add_argument("--version", action="version", version=f"mtf {mtf.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    plan = command("plan", _plan, "Show what a configuration will draw: shares, passes, unused tails, warnings.")
    plan.add_argument("config", type=Path, help="YAML or JSON file: a run's configuration, or the mixture alone")
    plan.add_argument("--lengths", help="batches per pass, e.g. 120,30 or main=120,aux=30; '?' where unknown")
    plan.add_argument("--epochs", type=_positive, default=1, help="how many epochs to plan (default 1)")
    plan.add_argument("--seed", type=int, help="seed of the schedule (default: the file's, else 0)")
    plan.add_argument("--plot", type=Path, metavar="FILE", help="also draw the plan into a PNG, SVG or PDF file")

    bench = command("bench", _bench, "Measure scheduling on this machine against numpy and pure Python.")
    bench.add_argument("--sources", type=_positive, nargs="+", default=[4, 64, 1024], help="numbers of sources to try")

    command("env", _env, "Print versions and what is available here (for a report of a mistake).")

    inspection = command("inspect", _inspect, "Show a checkpoint: what it holds, where its schedule stands.")
    inspection.add_argument("checkpoint", type=Path)

    diff = command("diff", _diff, "Show what differs between two checkpoints.")
    diff.add_argument("left", type=Path)
    diff.add_argument("right", type=Path)

    check = command("check-source", _check_source, "Check that a loader gives the same batches again after a resume.")
    check.add_argument("loader", help="module:name of a loader, or of a function without arguments that makes one")
    check.add_argument("--batches", type=_positive, default=6, help="batches to read of each pass (default 6)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


def _read_mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} isn't JSON: {error}") from None
    else:
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} isn't YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, but holds {type(data).__name__}")
    return data


def _parse_lengths(text: str) -> list[int | None] | dict[str, int | None]:
    def number(part: str) -> int | None:
        try:
            return None if part.strip() == "?" else int(part)
        except ValueError:
            raise ConfigError(f"--lengths must be numbers or '?', but has {part.strip()!r}") from None

    parts = [part for part in text.split(",") if part.strip()]
    if all("=" in part for part in parts):
        pairs = (part.split("=", 1) for part in parts)
        return {name.strip(): number(value) for name, value in pairs}
    return [number(part) for part in parts]


def _plan(arguments: argparse.Namespace) -> int:
    from mtf.config.multi import MultiDataLoaderConfig
    from mtf.schedule import Schedule

    data = _read_mapping(arguments.config)
    lengths = _parse_lengths(arguments.lengths) if arguments.lengths else data.get("lengths")
    if lengths is None:
        raise ConfigError(f"lengths are missing: give --lengths, or 'lengths' in {arguments.config}")
    multi = data.get("multi", data.get("train_loader_config"))
    if multi is None:
        multi = {key: value for key, value in data.items() if key not in ("lengths", "seed")}
    if not isinstance(multi, Mapping):
        raise ConfigError(f"'multi' in {arguments.config} must be a mapping, but is {type(multi).__name__}")
    seed = arguments.seed if arguments.seed is not None else int(data.get("seed", 0))
    plan = Schedule(MultiDataLoaderConfig.from_dict(multi), lengths=lengths, seed=seed).plan(epochs=arguments.epochs)
    if arguments.json:
        _print_json(plan.to_dict())
    else:
        print(plan)
    if arguments.plot:
        plan.plot(arguments.plot)
        print(f"plot: {arguments.plot}", file=sys.stderr)
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from mtf import speed

    rows = speed.measure(arguments.sources)
    if arguments.json:
        _print_json([row.to_dict() for row in rows])
    else:
        print(speed.table(rows))
    return OK


def _env(arguments: argparse.Namespace) -> int:
    from mtf import environment

    facts = environment.collect()
    if arguments.json:
        _print_json(facts)
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    from mtf.checkpoint.inspect import inspect_checkpoint

    found = inspect_checkpoint(arguments.checkpoint)
    if arguments.json:
        _print_json(found.to_dict())
    else:
        print(found.text())
    return OK


def _diff(arguments: argparse.Namespace) -> int:
    from mtf.checkpoint.diff import diff_checkpoints

    found = diff_checkpoints(arguments.left, arguments.right)
    if arguments.json:
        _print_json(
            {"equal": found.equal, "complete": found.complete, "differences": [asdict(e) for e in found.entries]}
        )
    else:
        print(found.text())
    return OK if found.equal else DIFFERENT


def _check_source(arguments: argparse.Namespace) -> int:
    from mtf.data.check import check_source

    report = check_source(_find_loader(arguments.loader), num_batches=arguments.batches)
    if arguments.json:
        _print_json(report.to_dict())
    else:
        print(report)
    return OK if report.ok else DIFFERENT


def _find_loader(place: str) -> Any:
    module_name, separator, name = place.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"the loader must be given as module:name, but is {place!r}")
    # As `python -m` does it: modules of the current folder can be named.
    sys.path.insert(0, "")
    module = importlib.import_module(module_name)
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ConfigError(f"module {module_name!r} has no {name!r}") from None
    return found() if inspect.isfunction(found) else found
