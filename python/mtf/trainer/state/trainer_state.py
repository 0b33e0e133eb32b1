"""The trainer's state as a value: comparable bit by bit, independent of the run it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtf.checkpoint.compare import first_differences
from mtf.checkpoint.format.codec import copy_tree, split


class TrainerState:
    """Everything that decides how training continues, as a tree without times, paths, run ids or save history.

    ``a == b`` is exact: types, dtypes, shapes and every bit of every float and tensor, also of NaN. Aliasing and memory
    formats don't count. The tensors are copies in host memory; treat them as read-only.
    """

    __slots__ = ("_tree",)
    __hash__ = None  # type: ignore[assignment]  # compares by content, which can be large

    def __init__(self, tree: Mapping[str, Any]) -> None:
        """
        Args:
            tree: see :mod:`mtf.checkpoint.format.codec`; it is copied.

        Raises:
            CheckpointError: a value that no checkpoint holds; names its path.
        """
        self._tree: dict[str, Any] = copy_tree(dict(tree))

    @property
    def tree(self) -> dict[str, Any]:
        """The state's parts by name. Not a copy."""
        return self._tree

    def __getitem__(self, name: str) -> Any:
        return self._tree[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tree

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrainerState):
            return NotImplemented
        return not first_differences(self._tree, other._tree, limit=1)

    def diff(self, other: TrainerState, limit: int = 20) -> list[str]:
        """The first differences, each as ``state['optimizers'][0]['lr']: 0.1 against 0.2``; empty when equal.

        Args:
            other: the state to compare with; its values come second.
            limit: at most so many lines.
        """
        return [str(difference) for difference in first_differences(self._tree, other._tree, limit)]

    def __repr__(self) -> str:
        _, tensors = split(self._tree)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        numbers = [f"{name}={value!r}" for name, value in self._tree.items() if type(value) in (int, float)]
        parts = ", ".join(name for name, value in self._tree.items() if not _is_number_or_empty(value))
        return f"TrainerState({', '.join([*numbers, f'{len(tensors)} tensors', f'{num_bytes} bytes'])}; parts: {parts})"


def _is_number_or_empty(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, (dict, list, tuple)) and not value)
