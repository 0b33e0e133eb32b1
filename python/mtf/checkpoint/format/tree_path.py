"""Places in a tree of state, for messages."""

from __future__ import annotations

from typing import Any

# What the tree is called, then the keys and indices that lead from its root to a value.
TreePath = tuple[Any, ...]


def format_path(path: TreePath) -> str:
    """``('state', 'optimizers', 0, 'lr')`` as ``state['optimizers'][0]['lr']``."""
    return "".join([str(path[0]), *(f"[{key!r}]" for key in path[1:])]) if path else "tree"
