"""What is in a checkpoint, for people and scripts (``mtf inspect``). Imports no torch and loads no weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtf.checkpoint.format.hashing import bounded, open_part, read_verified
from mtf.checkpoint.format.json_io import MAX_JSON_BYTES, load_json
from mtf.checkpoint.format.manifest import MODEL_FILE, SCHEDULE_FILE, STATE_FILE, read_manifest, verify
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.registry import open_checkpoint
from mtf.errors import CheckpointError
from mtf.formatting import html_table

_MAX_HEADER_BYTES = 100 << 20
_OWN_MEMBERS = ("sha256", "kind", "files")


@dataclass(frozen=True)
class Weight:
    """One stored tensor of the model."""

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What :func:`inspect_checkpoint` found.

    Attributes:
        path: the directory.
        manifest: its members, without the files and the checksum.
        files: size in bytes by name.
        verified: every file was compared with its checksum.
        weights: the model's tensors in the file's order; tied ones once.
        state_parts: names of the state's parts.
        schedule: position and sources of the saved schedule; None where it can't be read.
        edits: in words, what resumes with another mixture and ``mtf edit`` have changed, and data that are left out.
    """

    path: str
    manifest: dict[str, Any]
    files: dict[str, int]
    verified: bool
    weights: list[Weight]
    state_parts: list[str]
    schedule: dict[str, Any] | None
    edits: list[str] = field(default_factory=list)

    @property
    def num_parameters(self) -> int:
        """Elements of all stored weights."""
        return sum(math.prod(weight.shape) for weight in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON-able data."""
        return dataclasses.asdict(self) | {"num_parameters": self.num_parameters}

    def __repr__(self) -> str:
        """Path, position and size."""
        step, epoch = self.manifest.get("step"), self.manifest.get("epoch")
        size = f"{len(self.weights)} tensors with {self.num_parameters:,} elements, {sum(self.files.values()):,} bytes"
        return f"Inspection({self.path!r}, step={step}, epoch={epoch}, {size})"

    def _repr_html_(self) -> str:
        rows = [(name, _short(value)) for name, value in self.manifest.items()]
        rows.append(("files", ", ".join(f"{name} ({size:,} bytes)" for name, size in self.files.items())))
        rows.append(("checksums", "compared" if self.verified else "not compared"))
        rows.append(("weights", f"{len(self.weights)} tensors, {self.num_parameters:,} elements"))
        rows += [(f"schedule: {name}", _short(value)) for name, value in (self.schedule or {}).items()]
        return html_table(f"Checkpoint {self.path}", (), rows)

    def text(self) -> str:
        """A page for people."""
        checked = "every file has the checksum its manifest states" if self.verified else "checksums not compared"
        lines = [f"checkpoint {self.path}", f"  {checked}", ""]
        lines += [f"  {name}: {_short(value)}" for name, value in self.manifest.items() if name != "metrics"]
        metrics = self.manifest.get("metrics") or {}
        lines += ["", "metrics", *(f"  {name}: {_number(value)}" for name, value in metrics.items())] if metrics else []
        lines += ["", "files"]
        lines += [f"  {size:>14,} bytes  {name}" for name, size in self.files.items()]
        lines += ["", f"weights: {len(self.weights)} tensors, {self.num_parameters:,} elements"]
        lines += [f"  {weight.name}  {weight.dtype} {weight.shape}" for weight in self.weights[:50]]
        if len(self.weights) > 50:
            lines.append(f"  ... and {len(self.weights) - 50} more")
        lines += ["", f"state: {', '.join(self.state_parts) or 'empty'}"]
        if self.schedule is not None:
            lines += ["", "schedule"]
            lines += [f"  {name}: {_short(value)}" for name, value in self.schedule.items()]
        if self.edits:
            lines += ["", "edits", *(f"  {edit}" for edit in self.edits)]
        return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _short(value)


def inspect_checkpoint(path: str | Path, *, verify_files: bool = True) -> Inspection:
    """Looks into a checkpoint without loading it.

    Args:
        path: the directory, or its URL.
        verify_files: compare every file with its checksum first.

    Raises:
        CheckpointError: it is damaged, of a newer format, or no checkpoint; names the file and the reason.
    """
    folder = open_checkpoint(path)
    manifest = verify(folder) if verify_files else read_manifest(folder)
    files = manifest["files"]
    sizes = {name: entry["size"] for name, entry in files.items()}
    state = _state(folder, files[STATE_FILE]) if STATE_FILE in sizes else {}
    return Inspection(
        path=folder.url,
        manifest={name: value for name, value in manifest.items() if name not in _OWN_MEMBERS},
        files=sizes,
        verified=verify_files,
        weights=read_weight_table(folder, files[MODEL_FILE].get("object", MODEL_FILE)) if MODEL_FILE in sizes else [],
        state_parts=list(state),
        schedule=_schedule(folder, files[SCHEDULE_FILE]) if sizes.get(SCHEDULE_FILE) else None,
        edits=_edits(state),
    )


def read_weight_table(folder: Storage, name: str) -> list[Weight]:
    """Names, dtypes and shapes from the header of a safetensors file."""
    path = f"{folder.url}/{name}"
    with open_part(folder, name) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: is not a valid safetensors file: a header of {length} bytes")
        header = load_json(file.read(length), path)
    try:
        return [
            Weight(name, str(entry["dtype"]), [int(size) for size in entry["shape"]])
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a valid safetensors file: {error!r}") from None


def _state(folder: Storage, expected: dict[str, Any]) -> dict[str, Any]:
    """The parts of the state, as they are encoded."""
    label = f"{folder.url}/{STATE_FILE}"
    encoded = load_json(read_verified(folder, STATE_FILE, expected, bounded(MAX_JSON_BYTES)), label)
    try:
        state = encoded["tree"]["state"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{label}: expected an object with 'tree' and in it 'state'") from None
    return state if isinstance(state, dict) and not any(key.startswith("$") for key in state) else {}


def _edits(state: dict[str, Any]) -> list[str]:
    trainer = state.get("trainer")
    if not isinstance(trainer, dict):
        return []
    multi, skips = trainer.get("multi"), trainer.get("skips")
    records = multi.get("edits", []) if isinstance(multi, dict) else []
    lines = [
        f"before batch {record['step']} of epoch {record['epoch']}: {change}"
        for record in records
        for change in record["changes"]
    ]
    ranges = skips.get("ranges", []) if isinstance(skips, dict) else []
    return lines + [f"the data of updates {begin} to {end - 1} are left out" for begin, end in ranges]


def _schedule(folder: Storage, expected: dict[str, Any]) -> dict[str, Any] | None:
    try:
        from mtf.schedule.schedule import Schedule
    except ImportError:  # a package without its compiled part can still show the rest
        return None
    schedule = Schedule.from_bytes(read_verified(folder, SCHEDULE_FILE, expected, bounded(MAX_JSON_BYTES)))
    return {
        "epoch": schedule.epoch,
        "step": schedule.step,
        "seed": schedule.seed,
        "steps in this epoch": schedule.num_steps(schedule.epoch),
        "sources": dict(zip(schedule.names, schedule.lengths, strict=True)),
        "drawn in this epoch": dict(
            zip(schedule.names, (int(n) for n in schedule.counts(schedule.step, schedule.epoch)), strict=True)
        ),
    }


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 400 else text[:397] + "..."
