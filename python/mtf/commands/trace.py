"""`mtf trace`: what an update trained on, and which updates train on a row or document."""

from __future__ import annotations

import argparse

from mtf.commands.common import checkpoint_at, count, place, positive, print_json, say
from mtf.errors import ConfigError

TEXT = "Show what an update trained on, or which updates train on a row or document, from a checkpoint alone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", type=place, help="the checkpoint's folder or URL, of the same epoch")
    text = "an update, counted from 1 as in logs and names of checkpoints: all batches of its accumulation window"
    parser.add_argument("--step", type=positive, metavar="UPDATE", help=text)
    parser.add_argument("--batch", type=count, help="instead a batch of the run, counted from 0")
    parser.add_argument("--rank", type=count, help="only the samples of this rank")
    parser.add_argument("--row", type=count, help="only this row of a rank's batch; with --find a row of the source")
    parser.add_argument("--find", metavar="SOURCE", help="the updates that train on a row or document of a source")
    parser.add_argument("--document", type=count, help="with --find: a document, counted in the corpus")
    text = "where the files of a source's corpus are now; may be given several times"
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=FILES", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for."""
    from mtf.trace import RunTrace, found_text, text_of

    corpora = dict(_pair(text, "--corpus") for text in arguments.corpus)
    asked = [name for name in ("step", "batch", "find") if getattr(arguments, name) is not None]
    if len(asked) != 1:
        raise ConfigError("give one of --step, --batch and --find" + (f", not {' and '.join(asked)}" if asked else ""))
    if arguments.document is not None and arguments.find is None:
        raise ConfigError("--document belongs to --find")
    traced = RunTrace(checkpoint_at(arguments.checkpoint), corpora)
    if arguments.find is not None:
        found = traced.find(arguments.find, arguments.row, arguments.document)
        found = [one for one in found if arguments.rank in (None, one.drawn.sample.rank)]
        if arguments.json:
            print_json([one.to_dict() for one in found])
        else:
            print(found_text(found))
        return 0
    places = traced.batches_of(arguments.step) if arguments.step is not None else [traced.batch(arguments.batch)]
    batches = [traced.trace(epoch, step, arguments.rank, arguments.row) for epoch, step in places]
    if arguments.json:
        print_json([batch.to_dict() for batch in batches])
    else:
        print("\n".join(map(text_of, batches)))
    for note in traced.notes.values():
        say(note)
    return 0


def _pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise ConfigError(f"{option} must be NAME=FILES, but is {text!r}")
    return name, value
