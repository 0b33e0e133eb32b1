"""Every Python example in the README and in docs/ runs as it can be read; pages added later are covered as they come.

The blocks of a page run in order and share their names, in an empty folder; on the pages in `ALONE` each section runs
on its own after the page's setup. Nothing is hidden: a reader who pastes the blocks one after the other has what the
test has. Setup that would distract stands in a `<details>` of the page. Comments in a page's source may only leave
something out: `<!-- not run: reason -->` the block that follows, `<!-- needs: package -->` the one that follows where
that package is missing (warnings of such blocks are ignored, because they aren't ours). A `text` block after
`<!-- prints -->` is what the code above it prints. A block whose first line is `# file: NAME` is written to that file
and not run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtf

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("migration.md", "recipes.md")  # each section runs with the page's setup alone
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

_PART = re.compile(
    r"<!-- prints -->\s*```text\n(?P<printed>.*?)^```"
    r"|(?P<skip><!-- not run: [^>]+-->\s*)?(?:<!-- needs: (?P<needs>\w+) -->\s*)?"
    r"^```(?P<language>python|yaml)[^\n]*\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_ALLOWED = re.compile(r" (not run: \S.*|needs: \w+|prints|sources: [\w/., -]+) ")
_FILE = re.compile(r"# file: (\S+)\n")


def parts(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (language, code, line number of the first line of code)."""
    for found in _PART.finditer(text):
        if found["printed"] is not None:
            yield "printed", found["printed"], text.count("\n", 0, found.start("printed")) + 1
        elif found["skip"] is None:
            language = found["language"] if found["needs"] is None else f"needs {found['needs']}"
            yield language, found["code"], text.count("\n", 0, found.start("code")) + 1


def pages_with_code() -> list[Path]:
    return [page for page in PAGES if "_build" not in page.parts and any(parts(page.read_text(encoding="utf-8")))]


def sections(page: Path) -> dict[str, str]:
    """The page in pieces that run on their own: setup before the first heading, then one section. Else the whole page.

    Other text is replaced by blank lines, so that lines keep their numbers.
    """
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.startswith("## ")] if page.name in ALONE else []
    if not starts:
        return {"": "".join(lines)}
    ends = [*starts[1:], len(lines)]
    setup = lines[: starts[0]]
    return {
        lines[start][3:].strip(): "".join([*setup, *"\n" * (start - len(setup)), *lines[start:end]])
        for start, end in zip(starts, ends, strict=True)
    }


EXAMPLES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}{heading and f': {heading}'}")
    for page in pages_with_code()
    for heading, text in sections(page).items()
    if any(parts(text))
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A module of its own, so that classes in examples can be found by worker processes and dataclasses.
    module = types.ModuleType("docs_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = io.StringIO()
    for language, code, line in parts(text):
        named = _FILE.match(code)
        code_at_line = "\n" * (line - 1) + code  # tracebacks with the page's own line numbers
        if language == "printed":
            assert printed.getvalue() == code, f"line {line} shows what isn't printed"
            printed = io.StringIO()
        elif named:
            Path(named[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile(code_at_line, "page", "exec", dont_inherit=True), module.__dict__)
        elif language.startswith("needs ") and importlib.util.find_spec(language.split()[1]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(code_at_line, "page", "exec", dont_inherit=True), module.__dict__)


@pytest.mark.timeout(300)
def test_the_first_run_of_the_quickstart_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    """As a reader would do it: the page's own file, interrupted once, ends with the same figures."""
    pytest.importorskip("sklearn")
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    code = next(code for _, code, _ in parts(page) if _FILE.match(code)).replace("max_epochs=100", "max_epochs=6")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}

    def run(folder: str, interrupt_at: str | None = None) -> tuple[str, str]:
        """Output and errors of the page's file, in a folder of its own."""
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "train.py").write_text(code, encoding="utf-8")
        command = [sys.executable, "train.py"]
        with subprocess.Popen(
            command, cwd=tmp_path / folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                if interrupt_at is not None:
                    next(line for line in process.stderr if line.startswith(interrupt_at))
                    process.send_signal(signal.SIGINT)
                return process.communicate(timeout=90)
            finally:
                process.kill()

    whole, _ = run("whole")
    assert "val/cells/loss" in whole
    _, errors = run("parts", interrupt_at="epoch 1: ")
    assert re.search(r"KeyboardInterrupt: stopped by Ctrl-C, saved to .*step-\d+", errors)
    assert run("parts")[0] == whole


def test_parts_are_found() -> None:
    text = (
        "<details>\n<summary>Setup</summary>\n\n```python\nshown = 1\n```\n\n</details>\n\n```python\nshown = 2\n```\n"
        "<!-- not run: needs two machines -->\n```python\nboom\n```\n"
        "<!-- needs: lightning -->\n```python\ntheirs\n```\n"
        "```yaml\n# file: a.yaml\nx: 1\n```\n```bash\nls\n```\n"
        "<!-- prints -->\n```text\n2\n```\n```text\nnever looked at\n```\n"
    )
    assert list(parts(text)) == [
        ("python", "shown = 1\n", 5),
        ("python", "shown = 2\n", 11),
        ("needs lightning", "theirs\n", 19),
        ("yaml", "# file: a.yaml\nx: 1\n", 22),
        ("printed", "2\n", 30),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_hidden_from_the_reader(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for comment in _COMMENT.findall(text):
        assert _ALLOWED.fullmatch(comment), f"{page.name} hides {comment!r}"


def test_the_diff_of_the_readme_is_the_code_below_it() -> None:
    """What the reader is told to change is what the whole example has."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    after, _, rest = text.partition("```diff\n")[2].partition("```")
    code = next(code for language, code, _ in parts(rest) if language == "python")
    changed = [line[1:] for line in after.splitlines() if line[0] in "+ "]
    assert len(changed) > 5
    assert [line for line in code.splitlines() if line in changed] == changed
    assert not any(line[1:] in code.splitlines() for line in after.splitlines() if line.startswith("-"))


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        if "_build" in page.parts:
            continue
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", prose):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_public_name_is_in_the_reference_once() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md")]
    groups = re.findall(r"\.\. mtf-names::\n((?:   .+\n)+)", "".join(pages))
    assert sorted(" ".join(groups).split()) == sorted(mtf.__all__)


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for page in ("index.md", "strategies.md", "api.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for table in re.findall(r"^```{toctree}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            listed |= {line for line in table.splitlines() if line and not line.startswith(":")}
    found = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in PAGES if p.is_relative_to(ROOT / "docs")}
    pages = {page for page in found if not page.startswith(("_build/", "decisions/")) and page != "index"}
    assert listed - {"decisions/README"} == pages


def test_pictures_are_those_of_real_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = ROOT / "docs" / "figures"
    monkeypatch.syspath_prepend(str(figures))
    drawn = importlib.import_module("make").PICTURES
    assert sorted(drawn) == sorted(path.stem for path in figures.glob("*.svg"))
    for name, draw in drawn.items():
        committed = (figures / f"{name}.svg").read_text(encoding="utf-8")
        assert draw().svg() == committed, f"{name}.svg is old: run python docs/figures/make.py"
