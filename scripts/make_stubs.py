"""Writes python/mtf/_core.pyi from the compiled module: ``make stubs``.

    python scripts/make_stubs.py
    python scripts/make_stubs.py --check   # fails, with the difference, where the stub isn't what the module gives

pybind11-stubgen reads the signatures that pybind11 writes. Here they become what a person would write: ``int`` where
pybind11 also takes what converts to it, names imported, docstrings on one line where they fit.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120
STUB = ROOT / "python" / "mtf" / "_core.pyi"

#: What pybind11 writes -> what the stub says; in this order.
PLAIN = (
    (r"typing\.SupportsInt \| typing\.SupportsIndex", "int"),
    (r"typing\.SupportsFloat \| typing\.SupportsIndex", "float"),
    (r"typing\.Annotated\[numpy\.typing\.ArrayLike, numpy\.\w+\]", "ArrayLike"),
    (r"typing\.Annotated\[((?:collections\.abc\.Sequence|list)\[int\]), ['\"]FixedSize\(\d+\)['\"]\]", r"\1"),
    (r"numpy\.ndarray\[typing\.Any, numpy\.dtype\[typing\.Any\]\]", "NDArray[Any]"),
    (r"numpy\.ndarray(?!\[)", "NDArray[Any]"),
    (r"numpy\.typing\.NDArray\[numpy\.", "NDArray[np."),
    (r"\b(?:collections\.abc|numpy\.typing|typing|mtf\._core)\.(?=[A-Z\w])", ""),
    (r"\btuple\[Sequence\[int\], int, int, Callable\[\[Any\], Any\]\]", "_ColumnSpec"),
    (r"\btuple\[Sequence\[tuple\[int, Sequence\[float\]\]\], str, int\]", "_GivenCurve"),
)

HEAD = '''"""The compiled core. `make stubs` generates this file from the bindings in csrc/: change it there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

# Shape of one row, DLPack's code and bits, and what makes a tensor of a capsule.
_ColumnSpec: TypeAlias = tuple[Sequence[int], int, int, Callable[[Any], Any]]
# Points (step, weights), interpolation, every how many steps the weights change.
_GivenCurve: TypeAlias = tuple[Sequence[tuple[int, Sequence[float]]], str, int]
'''

#: Draw is made without pybind11, which would slow each draw down (csrc/py_draw.cpp).
DRAW = '''
@final
class Draw(tuple[int, int, str, int, int]):
    """One step of a schedule: which batch of which source."""
    __match_args__: Final = ("step", "source", "name", "pass_", "batch")
    def __new__(cls, items: Iterable[object], /) -> Draw: ...
    @property
    def step(self) -> int:
        """Step in the epoch."""
    @property
    def source(self) -> int:
        """Index of the source."""
    @property
    def name(self) -> str:
        """Name of the source."""
    @property
    def pass_(self) -> int:
        """Which run through the source this is, counted over the whole training."""
    @property
    def batch(self) -> int:
        """Batch of the source in this pass."""
'''


def generate() -> str:
    """What pybind11-stubgen makes of the module that is installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "mtf._core", "-o", folder]
        command += ["--numpy-array-use-type-var", "--exit-code"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pybind11-stubgen failed:\n{done.stdout}{done.stderr}")
        return (Path(folder) / "mtf" / "_core.pyi").read_text(encoding="utf-8")


def tidy_docstring(node: ast.ClassDef | ast.FunctionDef, indent: int) -> None:
    """Wraps the docstring, without the signature that it may begin with, which then is the function's."""
    text = ast.get_docstring(node)
    if text is None:
        return
    if (found := re.match(r"\w+\(.*\)(?: -> .+)?\n\n", text)) is not None:
        text = text[found.end() :]
        if isinstance(node, ast.FunctionDef):
            typed = ast.parse(f"def {found[0].strip()}: ...").body[0]
            assert isinstance(typed, ast.FunctionDef)
            node.args, node.returns = typed.args, typed.returns
            node.args.args[0].annotation = None  # self
    lines, width = [], WIDTH - indent - len('""""""')
    for line in text.split("\n"):
        margin = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, width, subsequent_indent=margin, break_on_hyphens=False) or [""]
    if len(lines) > 1:
        lines = [lines[0], *(" " * indent + line if line else "" for line in lines[1:]), " " * indent]
    node.body[0] = ast.Expr(ast.Constant("\n".join(lines)))


def tidy(text: str) -> str:
    """The stub as a person would write it."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for top in tree.body:
        for node in [top, *(top.body if isinstance(top, ast.ClassDef) else ())]:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                tidy_docstring(node, 4 if node is top else 8)
    text = ast.unparse(tree)
    for native, plain in PLAIN:
        text = re.sub(native, plain, text)
    return HEAD + text + "\n" + DRAW


def formatted(text: str) -> str:
    """As ruff leaves it."""
    name = ["--stdin-filename", str(STUB)]
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        run = ["ruff", *command, "-q", *name, "-"]
        text = subprocess.run(run, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> int:
    """Returns 1 if the stub is checked and differs."""
    parser = argparse.ArgumentParser(description="Write the stub of the compiled module.")
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    text = formatted(tidy(generate()))
    if not arguments.check:
        STUB.write_text(text, encoding="utf-8")
        return 0
    before = STUB.read_text(encoding="utf-8")
    sys.stdout.writelines(
        difflib.unified_diff(before.splitlines(True), text.splitlines(True), str(STUB), "what `make stubs` would write")
    )
    return int(before != text)


if __name__ == "__main__":
    sys.exit(main())
