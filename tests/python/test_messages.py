"""What mtf says: a log that stays silent until a program wants it, warnings with a way out, nothing at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtf

PACKAGE = Path(mtf.__file__).parent
# `mtf` prints results; the progress bar and the console logger exist to print.
MAY_PRINT = {
    "cli.py",
    "commands/common.py",
    "commands/edit.py",
    "commands/trace.py",
    "config/command_line.py",
    "trainer/reporting/progress_bar.py",
    "loggers/console.py",
    "trainer/run_view.py",
}


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of ``name`` (dotted) in the package, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield str(path.relative_to(PACKAGE)), node


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)


def test_import_says_nothing_and_leaves_logging_alone() -> None:
    done = run(
        "import logging; import mtf, mtf.schedule.schedule, mtf.schedule.plan, mtf.cli\n"
        "assert [type(h) for h in logging.getLogger('mtf').handlers] == [logging.NullHandler]\n"
        "assert logging.getLogger('mtf').level == logging.NOTSET and logging.getLogger('mtf').propagate\n"
        "assert logging.getLogger().handlers == []"
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_every_public_name_says_nothing() -> None:
    pytest.importorskip("torch")
    done = run("import mtf\nfor name in mtf.__all__: getattr(mtf, name)")
    assert (done.stdout, done.stderr) == ("", "")


def test_the_log_is_silent_until_a_program_wants_it() -> None:
    code = (
        "import logging, mtf\n{}\n"
        "config = mtf.MultiDataLoaderConfig(sampling_strategy='WEIGHTED', dataloader_weights=[1, 0])\n"
        "mtf.Schedule(config, lengths=[3, 3])"
    )
    assert run(code.format("")).stderr == ""
    wanted = run(code.format("logging.basicConfig(level='INFO')")).stderr
    assert wanted == "INFO:mtf.schedule:never drawn, since their weight is 0: dl1\n"


def test_loggers_are_named_after_the_package() -> None:
    names = [ast.literal_eval(call.args[0]) for _, call in calls("logging.getLogger")]
    assert len(names) >= 3
    assert all(name == "mtf" or name.startswith("mtf.") for name in names)


def test_only_what_is_for_people_prints() -> None:
    assert {file for file, _ in calls("print")} <= MAY_PRINT
    assert not list(calls("logging.basicConfig"))


def test_the_log_is_no_place_for_what_a_user_must_act_on() -> None:
    """Nobody may have asked for the log; warnings are seen."""
    for level in ("warning", "error", "exception", "critical"):
        for name in ("_log", "_logger", "logging"):
            assert not list(calls(f"{name}.{level}")), f"{name}.{level}: warn or raise instead"


# Words by which a warning says what to do, or what mtf does about it.
WAYS_OUT = re.compile(
    r"\b(use|call|set|give|pass|add|name|keep|read|correct|divide|remove|look|compile|wrap|close|needs?|must|should|"
    r"continues|go on|stays|saves|did you mean|instead|no effect|nothing to do|so |is lost|is kept|"
    r"unless|was taken|taken)\b"
)


def test_warnings_point_to_the_caller_and_say_what_to_do() -> None:
    found = list(calls("warnings.warn"))
    assert len(found) > 20
    for file, call in found:
        keywords = {keyword.arg for keyword in call.keywords}
        assert "stacklevel" in keywords, f"{file}:{call.lineno}: without stacklevel the warning points into mtf"
        text = ast.unparse(call.args[0])
        if isinstance(call.args[0], (ast.Constant, ast.JoinedStr)):
            assert WAYS_OUT.search(text), f"{file}:{call.lineno}: what should be done? {text}"
