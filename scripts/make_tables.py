"""Writes what follows from the rows of src/mtf/schedule/options.def and can't be made by a macro: ``make tables``.

    python scripts/make_tables.py
    python scripts/make_tables.py --check   # fails where a file isn't what the rows say

These are the list of the patterns' headers, and the members of the enums in python/mtf/enums.py. Docstrings and aliases
of the enums stay as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = "src/mtf/schedule/options.def"
HEADERS = "src/mtf/schedule/patterns/all.hpp"
ENUMS = "python/mtf/enums.py"
_ROW = re.compile(r"^MTF_(\w+)\((\w+), (\w+)(?:, (\w+))?\)$", re.MULTILINE)

#: Macro -> enum of Python.
_ENUM_OF = {
    "STRATEGY": "SamplingStrategy",
    "STRATEGY_WITH_ORDERS": "SamplingStrategy",
    "WEIGHTED_ORDER": "WeightedOrder",
    "EPOCH_POLICY": "EpochLengthPolicy",
    "INTERPOLATION": "Interpolation",
}


def make(root: Path) -> dict[str, str]:
    """File -> what it has to contain."""
    rows = _ROW.findall((root / ROWS).read_text(encoding="utf-8"))
    headers = sorted(f'#include "mtf/schedule/patterns/{member}.hpp"\n' for _, member, _, pattern in rows if pattern)
    text = "/// Every pattern that a row of options.def names. `make tables` writes this file.\n#pragma once\n\n"
    enums = (root / ENUMS).read_text(encoding="utf-8")
    for enum in dict.fromkeys(_ENUM_OF.values()):
        members = "".join(f'    {name} = "{name.lower()}"\n' for macro, _, name, _ in rows if _ENUM_OF[macro] == enum)
        body = rf'(class {enum}\(Enum\):\n    """[^"]*"""\n\n)(?:    \w+ = "\w+"\n)*'
        enums, found = re.subn(body, rf"\g<1>{members}", enums)
        if found != 1:
            raise SystemExit(f"{ENUMS}: no class {enum} with a docstring and members")
    return {HEADERS: text + "".join(headers), ENUMS: enums}


def main() -> int:
    """Returns 1 if a file is checked and differs."""
    parser = argparse.ArgumentParser(description="Write the files that follow from the table of options.")
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to work in")
    arguments = parser.parse_args()
    stale = []
    for name, text in make(arguments.root).items():
        path = arguments.root / name
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} isn't what {ROWS} says: run make tables")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
