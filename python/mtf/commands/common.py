"""What the commands share: messages, numbers among the arguments, results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mtf.errors import CheckpointError


def say(text: str) -> None:
    """One line on standard error, whatever the text."""
    print("mtf:", " ".join(text.split()), file=sys.stderr)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def place(text: str) -> Path | str:
    """A folder, or a URL such as ``s3://bucket/run``."""
    return text if "://" in text else Path(text)


def print_json(value: object) -> None:
    """Prints a result for programs."""
    print(json.dumps(value, indent=2, default=str))


def checkpoint_at(path: Path | str) -> Path | str:
    """The path or URL, unless it is a run's folder, which holds checkpoints and is none."""
    from mtf.checkpoint.format.manifest import MANIFEST_NAME

    if isinstance(path, str):
        return path
    if path.is_dir() and not (path / MANIFEST_NAME).exists():
        inside = sorted(found.parent.name for found in path.glob(f"*/{MANIFEST_NAME}"))
        if inside:
            raise CheckpointError(
                f"{path} is no checkpoint but holds some ({', '.join(inside)}): try {path / inside[-1]}"
            )
    return path
