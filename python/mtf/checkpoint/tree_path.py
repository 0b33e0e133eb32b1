"""Places in a tree of state, for messages."""

from __future__ import annotations

from typing import Any

# The keys and indices that lead from the root to a value.
TreePath = tuple[Any, ...]


def format_path(path: TreePath, root: str = "state") -> str:
    """``('optimizers', 0, 'lr')`` as ``state['optimizers'][0]['lr']``."""
    return root + "".join(f"[{key!r}]" for key in path)
