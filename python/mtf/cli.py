"""The `mtf` command: look at a schedule before training, at a checkpoint after it, and at the machine.

Every command prints a result on standard output (`--json`: for programs) and, when something is wrong, one line on
standard error. Exit codes are in `EXIT_CODES`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import mtf
from mtf.commands import edit as edit_command
from mtf.commands import trace as trace_command
from mtf.commands.common import checkpoint_at, count, place, positive, print_json, say
from mtf.config.checks import nearest
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import SamplingStrategy, WeightedOrder
from mtf.errors import CheckpointError, ConfigError, MtfError, StateMismatch

if TYPE_CHECKING:
    from mtf.bench import Mixture

_STRATEGIES = [strategy.value for strategy in SamplingStrategy]
_ORDERS = [order.value for order in WeightedOrder]

OK, DIFFERENT, USAGE, DAMAGED, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = {
    OK: "done; diff: equal; check-source: exact",
    DIFFERENT: "diff: different; check-source: something doesn't hold",
    USAGE: "an error in the command, the configuration or the loader",
    DAMAGED: "a checkpoint or state that can't be used",
    INTERRUPTED: "interrupted by Ctrl-C",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; those of the process when left out.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args(argv)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        code = _run(arguments)
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        say(f"warning: {text}")
    return code


def _run(arguments: argparse.Namespace) -> int:
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except (CheckpointError, StateMismatch) as error:
        return _fail(error, DAMAGED)
    except BrokenPipeError:
        # `mtf plan ... | head` has seen enough. What the interpreter flushes at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, USAGE)
    except MtfError as error:
        return _fail(error, USAGE)
    except ImportError as error:
        return _fail(f"{error} (pip install 'mtf-torch[all]' brings every optional package)", USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _fail(error: object, code: int) -> int:
    say(str(error))
    return code


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the usage that `--help` shows."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice is not None and choice[1] in ("run", "train", "fit", "launch"):
            message = (
                f"there is no {choice[1]!r}: a run is a script of yours (python train.py, torchrun train.py), which "
                "reads its settings with TrainerConfig.from_cli()"
            )
        elif choice is not None:
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2])).removesuffix("?")
        self.exit(USAGE, f"mtf: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command's arguments; the page docs/cli.md is compared with them."""
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="mtf",
        description="Schedules, checkpoints and loaders of mtf, from a shell.",
        epilog=f"Exit codes: {codes}.",
    )
    parser.add_argument("--version", action="version", version=f"mtf {mtf.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    plan = command("plan", _plan, "Show what a configuration will draw: shares, passes, unused tails, warnings.")
    plan.add_argument("config", type=Path, help="YAML or JSON file: a run's configuration, or the mixture alone")
    plan.add_argument("--lengths", help="batches per pass, e.g. 120,30 or main=120,aux=30; '?' where unknown")
    plan.add_argument("--epochs", type=positive, default=1, help="how many epochs to plan (default 1)")
    plan.add_argument("--seed", type=int, help="seed of the schedule (default: the file's, else 0)")
    plan.add_argument("--plot", type=Path, metavar="FILE", help="also draw the plan into a PNG, SVG or PDF file")

    bench = command("bench", _bench, "Measure on this machine how fast a mixture is drawn, and its batches delivered.")
    text = "a mixture of your own, as for `plan`; else examples of the sizes and weights given"
    bench.add_argument("config", type=Path, nargs="?", help=text)
    bench.add_argument("--lengths", help="with a configuration: batches per pass, as for `plan`")
    bench.add_argument("--sources", type=positive, nargs="+", help="numbers of sources to try (default 4 64 1024)")
    bench.add_argument("--weights", help="one weight per source, e.g. 0.7,0.2,0.1 (default 1, 1/2, 1/3 ...)")
    bench.add_argument("--strategy", choices=_STRATEGIES, default="weighted", help="how sources take turns")
    text = "orders of a weighted strategy to try (default all)"
    bench.add_argument("--order", choices=_ORDERS, nargs="+", default=list(_ORDERS), help=text)
    bench.add_argument("--threads", type=count, nargs="+", default=[0, 1], help="prefetch threads to try (default 0 1)")
    bench.add_argument("--row-bytes", type=positive, default=1024, help="bytes of a row (default 1024)")
    bench.add_argument("--batch-size", type=positive, default=256, help="rows of a batch (default 256)")

    command("env", _env, "Print versions and what is available here (for a report of a mistake).")

    inspection = command("inspect", _inspect, "Show a checkpoint: what it holds, where its schedule stands.")
    inspection.add_argument("checkpoint", type=place, help="the checkpoint's folder or URL")

    trace_command.add_arguments(command("trace", trace_command.run, trace_command.TEXT))

    report = command("report", _report, "Write what a run did, with pictures, as one HTML page.")
    text = "folder of a run's logs or checkpoints, one above both, or the URL of checkpoints; several are compared"
    report.add_argument("folders", type=place, nargs="+", metavar="folder", help=text)
    text = "the page (default: report.html in the run's folder, or comparison.html here; with --json only where given)"
    report.add_argument("--out", type=Path, metavar="FILE", help=text)

    edit_command.add_arguments(command("edit", edit_command.run, edit_command.TEXT))

    diff = command("diff", _diff, "Show what differs between two checkpoints.")
    diff.add_argument("left", type=place, help="a checkpoint's folder or URL")
    diff.add_argument("right", type=place, help="the other one's")

    check = command("check-source", _check_source, "Check that a loader gives the same batches again after a resume.")
    check.add_argument("loader", help="module:name of a loader, or of a function without arguments that makes one")
    check.add_argument("--batches", type=positive, default=6, help="batches to read of each pass (default 6)")
    return parser


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} must be a YAML or JSON file in UTF-8, but isn't text") from None
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


def _read_mixture(arguments: argparse.Namespace) -> tuple[MultiDataLoaderConfig, Any, Any]:
    """The mixture's configuration, lengths and seed, from the file and the options."""
    data = _read_mapping(arguments.config)
    lengths = _parse_lengths(arguments.lengths) if arguments.lengths else data.get("lengths")
    if lengths is None:
        raise ConfigError(
            f"lengths are missing: give --lengths (such as --lengths 120,30), or 'lengths' in {arguments.config}"
        )
    if isinstance(lengths, str) or not isinstance(lengths, (Mapping, Sequence)):
        raise ConfigError(f"'lengths' in {arguments.config} must be a list or a mapping, but is {lengths!r}")
    if isinstance(data.get("trainer"), Mapping):
        data = data["trainer"]  # a file of the user's own, with the trainer's configuration as a part
    multi = data.get("multi", data.get("train_loader_config"))
    if multi is None:
        multi = {key: value for key, value in data.items() if key not in ("lengths", "seed")}
    if not isinstance(multi, Mapping):
        raise ConfigError(f"'multi' in {arguments.config} must be a mapping, but is {type(multi).__name__}")
    return MultiDataLoaderConfig.from_dict(multi), lengths, data.get("seed", 0)


def _plan(arguments: argparse.Namespace) -> int:
    from mtf.schedule.schedule import Schedule

    config, lengths, seed = _read_mixture(arguments)
    seed = seed if arguments.seed is None else arguments.seed
    plan = Schedule(config, lengths=lengths, seed=seed).plan(epochs=arguments.epochs)
    if arguments.json:
        print_json(plan.to_dict())
    else:
        print(plan)
    if arguments.plot:
        plan.plot(arguments.plot)
        print(f"plot: {arguments.plot}", file=sys.stderr)
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from mtf import bench

    mixtures = _mixtures(arguments)
    rows = [row for mixture in mixtures for row in bench.measure_schedule(mixture)]
    try:
        # How the next source is chosen is nothing beside a batch: one order of each size is enough.
        for mixture in {len(mixture.lengths): mixture for mixture in mixtures}.values():
            rows += bench.measure_delivery(mixture, arguments.threads, arguments.row_bytes, arguments.batch_size)
    except ImportError as error:
        say(f"no batches are delivered: {error}")
    if arguments.json:
        print_json([row.to_dict() for row in rows])
    else:
        print(bench.table(rows))
    return OK


def _mixtures(arguments: argparse.Namespace) -> list[Mixture]:
    """What `bench` measures: the file's mixture, or examples."""
    from mtf import bench

    if arguments.config:
        if arguments.weights or arguments.sources:
            raise ConfigError("--sources and --weights are for mixtures without a file, which has its own")
        return [bench.Mixture(str(arguments.config), *_read_mixture(arguments))]
    if arguments.lengths:
        raise ConfigError("--lengths belongs to a configuration: name its file")
    weights = None
    if arguments.weights:
        try:
            weights = [float(part) for part in arguments.weights.split(",")]
        except ValueError:
            raise ConfigError(f"--weights must be numbers such as 0.7,0.2,0.1, but is {arguments.weights!r}") from None
        if arguments.strategy != "weighted":
            raise ConfigError(f"--weights belongs to the strategy 'weighted', not to {arguments.strategy!r}")
        if arguments.sources and arguments.sources != [len(weights)]:
            raise ConfigError(f"--weights has {len(weights)} numbers: leave --sources out, or give {len(weights)}")
    sizes = [len(weights)] if weights else arguments.sources or [4, 64, 1024]
    strategy = SamplingStrategy(arguments.strategy)
    orders = arguments.order if strategy is SamplingStrategy.WEIGHTED else ["random"]
    return [bench.mixture_of(n, strategy, WeightedOrder(order), weights) for n in sizes for order in orders]


def _env(arguments: argparse.Namespace) -> int:
    from mtf import environment

    facts = environment.collect()
    if arguments.json:
        print_json(facts)
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    from mtf.checkpoint.inspect import inspect_checkpoint

    found = inspect_checkpoint(checkpoint_at(arguments.checkpoint))
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found.text())
    return OK


def _report(arguments: argparse.Namespace) -> int:
    from mtf.report import compare_runs, read_run

    if len(arguments.folders) > 1:
        found: Any = compare_runs(arguments.folders)
        usual = Path("comparison.html")
    else:
        found = read_run(arguments.folders[0])
        usual = Path("report.html") if isinstance(found.root, str) else found.root / "report.html"
    page = arguments.out if arguments.json else arguments.out or usual
    if page is not None:
        found.save(page)
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found)
        print(f"report: {page}")
    return OK


def _diff(arguments: argparse.Namespace) -> int:
    from mtf.checkpoint.diff import diff_checkpoints

    found = diff_checkpoints(checkpoint_at(arguments.left), checkpoint_at(arguments.right))
    if arguments.json:
        print_json(
            {"equal": found.equal, "complete": found.complete, "differences": [asdict(e) for e in found.entries]}
        )
    else:
        print(found.text())
    return OK if found.equal else DIFFERENT


def _check_source(arguments: argparse.Namespace) -> int:
    from mtf.data.check_source import check_source

    loader = _find_loader(arguments.loader)
    try:
        report = check_source(loader, num_batches=arguments.batches)
    except MtfError:
        raise
    except Exception as error:  # whatever the user's loader raises
        raise ConfigError(f"{arguments.loader}: reading raised {type(error).__name__}: {error}") from error
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report)
    return OK if report.ok else DIFFERENT


def _find_loader(place: str) -> Any:
    module_name, separator, name = place.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"the loader must be given as module:name, but is {place!r}")
    # As `python -m` does it: modules of the current folder can be named.
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"there is no module {error.name!r} in this folder or environment") from None
        raise ConfigError(
            f"importing {module_name} raised {type(error).__name__}: {error}; "
            f"python -c 'import {module_name}' shows where"
        ) from error
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ConfigError(f"module {module_name!r} has no {name!r}{nearest(name, vars(module))}") from None
    if not inspect.isfunction(found):
        return found
    try:
        return found()
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"{place} was called and raised {type(error).__name__}: {error}") from error
