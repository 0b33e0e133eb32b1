"""docs/guarantees.md names tests and code that exist, every promise of the README, and every guard on the list; what
docs/coverage.md names exists, too."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+::[\w:.]+)`", PAGE)))


def guards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_guards", ROOT / "scripts" / "check_guards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # typing.NamedTuple looks its annotations up there
    spec.loader.exec_module(module)
    return module


CHECK_GUARDS = guards()
GUARDS = CHECK_GUARDS.GUARDS


def missing(test: str) -> str | None:
    """Why there is no such test; None if there is."""
    file, name = test.split("::", 1)
    if not (ROOT / file).is_file():
        return f"{file} doesn't exist"
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".cpp"):
        suite, case = name.split(".")
        found = re.search(rf"^TEST(_F|_P)?\({suite}, {case}\)", text, re.MULTILINE)
    elif "::" in name:
        group, case = name.split("::")
        body = re.search(rf"^class {group}\b.*?(?=^\S|\Z)", text.replace("\n\n", "\n"), re.MULTILINE | re.DOTALL)
        found = body and re.search(rf"^    def {case}\(", body[0], re.MULTILINE)
    else:
        found = re.search(rf"^def {name}\(", text, re.MULTILINE)
    return None if found else f"{file} has no {name}"


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 100
    assert [reason for test in NAMED if (reason := missing(test))] == []


@pytest.mark.parametrize(
    "test",
    [
        "tests/python/test_nothing.py::test_a",
        "tests/python/schedule/test_schedule.py::test_pla",
        "tests/python/data/test_multi_loader.py::TestOrder::test_closed",
        "tests/cpp/state/test_codec.cpp::Codec.Nothing",
    ],
)
def test_a_test_that_is_gone_is_noticed(test: str) -> None:
    assert missing(test) is not None


def test_guards_on_the_list_can_be_taken_out() -> None:
    places = CHECK_GUARDS.markers()
    assert set(places) == {guard.name for guard in GUARDS}, "comments 'guard: NAME' in the source, and the list"
    for guard in GUARDS:
        assert len(places[guard.name]) == 1, guard
        path = ROOT / places[guard.name][0]
        text = path.read_text(encoding="utf-8")
        without = CHECK_GUARDS.taken_out(guard, text)
        unmarked = text.replace(f"guard: {guard.name}\n", "\n")
        assert without.replace(" ", "") != unmarked.replace(" ", ""), guard
        if path.suffix == ".py":
            ast.parse(without)
        assert missing(guard.test) is None, guard


def test_a_guard_is_taken_out_with_its_lines() -> None:
    text = "def f(a):\n    # guard: toy\n    if a is None:\n        raise\n    return a\n"
    toy = CHECK_GUARDS.Guard("toy", "", "tests/none.py::test", 2)
    assert CHECK_GUARDS.taken_out(toy, text) == "def f(a):\n    return a\n"
    assert CHECK_GUARDS.taken_out(toy._replace(without="if False:", num_lines=1), text) == (
        "def f(a):\n    if False:\n        raise\n    return a\n"
    )


def test_rows_marked_as_seen_name_the_guards_on_the_list() -> None:
    """By name, so that a renamed file or variable changes the list and not the page."""
    listed = {guard.name: guard for guard in GUARDS}
    assert len(listed) == len(GUARDS)
    shown = set()
    for row in (line for line in PAGE.splitlines() if line.endswith("| yes |")):
        names = set(re.findall(r"`([^`]+)`", row.split(" | ")[-2]))
        tests = re.findall(r"`(tests/[\w/.]+::[\w:.]+)`", row)
        assert names, row
        assert names <= set(listed), row
        assert any(listed[name].test in tests for name in names), row
        shown |= names
    assert shown == set(listed)


def test_files_on_the_page_of_coverage_exist() -> None:
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    named = sorted(set(re.findall(r"`([\w/]+\.(?:py|cpp|hpp))`", page)))
    assert len(named) > 20
    there = [path.as_posix() for area in ("src", "csrc", "python") for path in (ROOT / area).rglob("*")]
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in there)] == []


def test_every_promise_of_the_readme_has_a_row() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## What is promised")[1].split("\n\n")[1]
    promises = [re.split(r" \| ", line.strip("| "))[0] for line in table.splitlines()[2:]]
    assert len(promises) >= 6
    for promise in promises:
        kind = promise.split(" (")[0]
        assert f"\n| {kind} |" in PAGE, f"docs/guarantees.md has no row for {promise!r}"
