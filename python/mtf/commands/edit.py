"""`mtf edit`: a checkpoint that continues with another mixture, or leaves data out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

from mtf.commands.common import checkpoint_at, place, positive, print_json
from mtf.errors import ConfigError

TEXT = "Write a new checkpoint that continues with another mixture, or leaves data out; the old one stays."

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", type=place, help="the checkpoint's folder, or its URL")
    text = "new weights of loaders"
    parser.add_argument("--weights", nargs="+", action="extend", default=[], metavar="NAME=WEIGHT", help=text)
    text = "a new loader; batches per pass, else the script's loader says"
    parser.add_argument("--add", action="append", default=[], metavar="NAME[=BATCHES]", help=text)
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="a loader to take out")
    parser.add_argument("--steps", type=positive, metavar="BATCHES", help="steps_per_epoch: batches of an epoch")
    text = "samples of a global batch, of loaders that open at any sample"
    parser.add_argument("--batch-size", nargs="+", action="extend", default=[], metavar="NAME=SAMPLES", help=text)
    text = "leave out the data of this many updates from the checkpoint on, or of updates FIRST to END - 1"
    parser.add_argument("--skip", action="append", default=[], metavar="UPDATES|FIRST:END", help=text)
    parser.add_argument("--out", metavar="FOLDER", help="the new checkpoint (default: NAME-edited beside the old one)")
    parser.add_argument("--show-plan", action="store_true", help="say what would change, and write nothing")


def run(arguments: argparse.Namespace) -> int:
    """Writes the checkpoint, or says what it would be."""
    from mtf.edit import edit_checkpoint

    open_ones = {name: None for name in arguments.add if "=" not in name}
    found = edit_checkpoint(
        checkpoint_at(arguments.checkpoint),
        arguments.out,
        weights=_numbers(arguments.weights, "--weights", float),
        add={**open_ones, **_numbers([text for text in arguments.add if "=" in text], "--add", int)},
        remove=arguments.remove,
        steps=arguments.steps,
        batch_size=_numbers(arguments.batch_size, "--batch-size", int),
        skip=[_updates(text) for text in arguments.skip],
        only_plan=arguments.show_plan,
    )
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found)
    return 0


def _numbers(given: Sequence[str], option: str, kind: Callable[[str], T]) -> dict[str, T]:
    found = {}
    for text in (part for argument in given for part in _split(argument)):
        name, separator, value = text.partition("=")
        try:
            if not separator or not name:
                raise ValueError
            found[name] = kind(value)
        except ValueError:
            raise ConfigError(f"{option} must be NAME=NUMBER, but is {text!r}") from None
    return found


def _split(text: str) -> list[str]:
    """The pairs of ``a=1,b=2``; a comma may be part of a name."""
    parts = text.split(",")
    return parts if all("=" in part for part in parts) else [text]


def _updates(text: str) -> int | tuple[int, int]:
    first, separator, end = text.partition(":")
    try:
        return (int(first), int(end)) if separator else int(first)
    except ValueError:
        raise ConfigError(f"--skip must be a number of updates, or FIRST:END, but is {text!r}") from None
