"""The errors mtf raises. Each message names the parameter, the rule, the position and the value."""

from __future__ import annotations


class MtfError(Exception):
    """Base of every error that mtf raises itself."""


class ConfigError(MtfError, ValueError):
    """Input that breaks a rule; raised before any data is read and before anything is changed."""


class UsageError(ConfigError):
    """A call in the wrong order or at the wrong time, such as ``fit`` inside ``fit``; nothing has been changed."""


class StateMismatch(MtfError, ValueError):
    """A saved state that doesn't fit what it is loaded into. What it was loaded into is unchanged."""


class CheckpointError(MtfError, RuntimeError):
    """A checkpoint that is damaged, missing, or can't be written; names the file and the reason."""


class CheckpointIOError(CheckpointError):
    """The system refused to read or write a checkpoint: disk full, no permission, connection lost.

    What was saved before is untouched. A save that isn't required warns of it, and the run continues.
    """


class SourceError(MtfError, RuntimeError):
    """A loader that raised or misbehaved; names the loader, pass, batch and step. The cause is chained."""


class FetchTimeout(SourceError):
    """A loader that gave no batch within ``fetch_timeout_s`` seconds."""


class Closed(MtfError, RuntimeError):
    """A call on an object that was closed, or that a forked child process inherited."""


class RankFailed(MtfError, RuntimeError):
    """Another rank raised, died or doesn't answer any more; names it, and what is known about it."""


def with_note(error: Exception, note: str) -> None:
    """Says below the error's traceback (from Python 3.11 on) what was worked on."""
    method = getattr(error, "add_note", None)
    if method is not None:
        method(note)
