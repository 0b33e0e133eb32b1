"""Who may include and import whom, as 'docs/architecture.md' states it, and what the package promises about itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtf

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "src" / "mtf"
PACKAGE = ROOT / "python" / "mtf"

# Area of the core -> areas whose headers it may include. Arrows run one way; a new area is added here on purpose.
NATIVE_LAYERS = {
    "error.hpp": set(),
    "message.hpp": set(),
    "fork_guard.hpp": set(),
    "fork_guard.cpp": {"fork_guard.hpp"},
    "random": {"error.hpp", "message.hpp"},
    "state": {"error.hpp", "message.hpp"},
    "sampling": {"error.hpp", "message.hpp", "random"},
    "schedule": {"error.hpp", "message.hpp", "random", "state"},
    "prefetch": {"error.hpp", "message.hpp", "fork_guard.hpp"},
    "gather": {"error.hpp", "message.hpp", "fork_guard.hpp", "random", "sampling", "prefetch"},
    "blend": {"error.hpp", "random", "sampling", "schedule", "gather", "prefetch"},
    "tokens": {"error.hpp", "message.hpp", "fork_guard.hpp", "random", "sampling", "gather"},
}

# The Python modules that touch the compiled module. Everything else goes through them.
MAY_IMPORT_CORE = {
    "mtf.schedule.core_config",
    "mtf.schedule.schedule",
    "mtf.schedule.plan",
    "mtf.random",
    "mtf.environment",
    "mtf.data.sources.standalone",
    "mtf.data.sources.array",
    "mtf.data.blend.blend",
    "mtf.data.blend.rows",
    "mtf.data.blend.run",
    "mtf.data.blend.sizes",
    "mtf.data.rng.generators",
    "mtf.data.check_source",
    "mtf.data.prefetch.engine",
    "mtf.data.sampling.sample_order",
    "mtf.data.sampling.sampler_replay",
    "mtf.data.rng.owned_generators",
    "mtf.data.sources.sequence",
    "mtf.data.sources.iterator_stream",
    "mtf.data.sources.iterable",
    "mtf.data.source_set",
    "mtf.data.sources.base",
    "mtf.data.sources.stateful",
    "mtf.data.sources.threaded",
    "mtf.data.sources.row_loader",
    "mtf.data.sources.torch_map",
    "mtf.data.workers.worker_states",
    "mtf.data.tokens.rows",
    "mtf.data.tokens.stream",
    "mtf.trainer.rng",
}

# Work without torch: schedules, configurations, plans and the command line start fast and run where it is missing.
TORCH_FREE = [
    "mtf",
    "mtf.errors",
    "mtf.enums",
    "mtf.config",
    "mtf.schedule.schedule",
    "mtf.schedule.plan",
    "mtf.random",
    "mtf.cli",
    "mtf.bench",
    "mtf.environment",
    "mtf.report",
    "mtf.report.pictures.metrics",
    "mtf.report.pictures.schedule",
    "mtf.report.run",
]

# Only these may know the trainer; data, checkpoints and loggers can be used from another training loop.
MAY_IMPORT_TRAINER = ("mtf.trainer", "mtf.cli", "mtf.report")

NOT_FOR_THE_CORE = {
    "Python": r'#include\s*[<"](Python\.h|pybind11)',
    "torch": r'#include\s*[<"](torch|ATen|c10)/',
    # One file maps what users train on, so that threads can copy rows of thousands of files without the GIL.
    "files": r"#include\s*<(fstream|filesystem|cstdio|fcntl\.h)>|\b(fopen|std::getenv|getenv)\s*\(",
    "platform randomness": r"std::random_device|\brand\s*\(\)",
    "locale": r"std::locale(?!::classic)|setlocale",
    "the wall clock": r"system_clock|\btime\s*\(\s*(nullptr|0|NULL)\s*\)",
    "the console": r"std::(cout|cerr|clog)|\bprintf\s*\(",
}


def native_files() -> list[Path]:
    return sorted([*NATIVE.rglob("*.hpp"), *NATIVE.rglob("*.cpp")])


def python_modules() -> dict[str, Path]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """Yields (imported name, whether the import runs when the module is imported), without TYPE_CHECKING blocks."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base, at_import
            yield from ((f"{base}.{alias.name}", at_import) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, at_import)
        else:
            inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("path", native_files(), ids=lambda path: str(path.relative_to(NATIVE)))
def test_core_includes_run_one_way(path: Path) -> None:
    area = path.relative_to(NATIVE).parts[0]
    assert area in NATIVE_LAYERS, f"src/mtf/{area} isn't in the table of layers"
    for header in re.findall(r'#include\s*"([^"]+)"', path.read_text(encoding="utf-8")):
        assert header.startswith("mtf/"), f"{path}: headers of the core are included as mtf/<area>/<file>, not {header}"
        target = header.split("/")[1]
        assert target == area or target in NATIVE_LAYERS[area], f"{area} must not include {header}"


def test_layers_have_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(NATIVE_LAYERS):
        ready = {area for area, below in NATIVE_LAYERS.items() if area not in done and below <= done}
        assert ready, f"a cycle among {set(NATIVE_LAYERS) - done}"
        done |= ready


@pytest.mark.parametrize(("what", "pattern"), NOT_FOR_THE_CORE.items(), ids=NOT_FOR_THE_CORE.keys())
def test_core_knows_nothing_of(what: str, pattern: str) -> None:
    for path in native_files():
        if (what, path.relative_to(NATIVE).as_posix()) == ("files", "tokens/map_cache.cpp"):
            continue
        found = re.search(pattern, path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)} uses {what}: {found.group(0)}"


def test_only_prefetch_reads_a_clock() -> None:
    for path in native_files():
        if path.relative_to(NATIVE).parts[0] != "prefetch":
            assert "steady_clock" not in path.read_text(encoding="utf-8"), path


def test_core_links_threads_only() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    linked = re.findall(r"target_link_libraries\(mtf_core ([^)]*)\)", cmake)
    assert linked == ["PUBLIC Threads::Threads PRIVATE mtf_flags"]


def test_bindings_live_in_csrc_only() -> None:
    for path in (ROOT / "csrc").glob("*.cpp"):
        if path.name != "module.cpp":
            assert path.name.startswith(("bind_", "py_")), f"{path.name}: one bind_<area>.cpp per area"
    module = (ROOT / "csrc" / "module.cpp").read_text(encoding="utf-8")
    for path in (ROOT / "csrc").glob("bind_*.cpp"):
        assert f"{path.stem}(module)" in module, f"{path.name} isn't in the table of contents, module.cpp"


@pytest.mark.parametrize("module", python_modules())
def test_only_named_modules_import_the_core(module: str) -> None:
    names = {name for name, _ in imports_of(python_modules()[module], module)}
    if any(name == "mtf._core" or name.startswith("mtf._core.") for name in names):
        assert module in MAY_IMPORT_CORE


@pytest.mark.parametrize("module", python_modules())
def test_nothing_imports_the_trainer(module: str) -> None:
    if module.startswith(MAY_IMPORT_TRAINER):
        return
    for name, _ in imports_of(python_modules()[module], module):
        assert name != "mtf.trainer", f"{module} imports the trainer"
        assert not name.startswith("mtf.trainer."), f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in python_modules() if not name.startswith("mtf.trainer")])
def test_checkpoints_data_and_loggers_stand_alone(module: str) -> None:
    """Areas below the trainer know each other only downwards: loggers and checkpoints never import the loaders."""
    area = module.split(".")[1] if "." in module else ""
    forbidden = {
        "loggers": ("mtf.data", "mtf.checkpoint"),
        "data": ("mtf.checkpoint", "mtf.loggers"),
        "config": ("mtf.data",),
    }
    for name, _ in imports_of(python_modules()[module], module):
        assert not name.startswith(forbidden.get(area, ("mtf.trainer.never",))), f"{module} imports {name}"


def all_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports anywhere, under ``TYPE_CHECKING`` and inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in modules and name != "mtf"}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What is left when modules without imports that are left are taken away again and again, from both ends."""
    left = {name: set(targets) - {name} for name, targets in graph.items()}
    while True:
        imported = set().union(*left.values())
        leaves = {name for name, targets in left.items() if not targets or name not in imported}
        if not leaves:
            return [sorted(left)] if left else []
        left = {name: targets - leaves for name, targets in left.items() if name not in leaves}


def test_modules_import_in_no_circle() -> None:
    """Imports under ``TYPE_CHECKING`` counted: who reads one module of a circle has to read all of them."""
    modules = python_modules()
    graph = {name: all_imports(path, modules) for name, path in modules.items()}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({name: targets for name, targets in graph.items() if name.startswith("mtf.trainer")}) == []
    assert circles(graph) == []


# Package -> what stands below it.
PACKAGES_BELOW = {
    "config": {"schedule"},
    "schedule": {"config"},
    "distributed": {"config", "schedule"},
    "data": {"config", "schedule", "distributed"},
    "checkpoint": {"config", "schedule", "distributed"},
    "loggers": {"config", "schedule", "distributed"},
    "trainer": {"config", "schedule", "distributed", "data", "checkpoint", "loggers", "report"},
}


# Functions that draw or compare where somebody asks for it, and import what they need for that.
EXCEPTIONS = {
    "mtf.schedule.plan": {"report"},
    "mtf.distributed.consistency": {"checkpoint"},
    "mtf.distributed.failure_detection": {"checkpoint"},
}


@pytest.mark.parametrize("package", PACKAGES_BELOW)
def test_packages_import_one_way(package: str) -> None:
    modules = python_modules()
    packages = {name.split(".")[1] for name in modules if name.count(".") > 1}
    for name, path in modules.items():
        if name.startswith(f"mtf.{package}."):
            targets = {target.split(".")[1] for target in all_imports(path, modules)} & packages
            assert targets - {package} - EXCEPTIONS.get(name, set()) <= PACKAGES_BELOW[package], name


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch(module: str) -> None:
    """Imported in a process where torch can't be imported at all."""
    code = f"import sys; sys.modules['torch'] = None; import importlib; importlib.import_module({module!r})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_light_and_silent() -> None:
    code = "import mtf, sys, json; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "numpy", "matplotlib", "yaml", "tqdm", "safetensors"}


@pytest.mark.parametrize("name", [name for name in mtf.__all__ if name != "__version__"])
def test_public_name_is_documented(name: str) -> None:
    pytest.importorskip("torch")
    value = getattr(mtf, name)
    module = importlib.import_module(mtf._PUBLIC[name])
    assert getattr(module, name) is value
    if inspect.isclass(value) or inspect.isfunction(value):
        doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        assert doc, f"mtf.{name} has no docstring"
        assert not doc.startswith(f"{name}(") or "\n\n" in doc, f"mtf.{name} has only the docstring that dataclass made"
    for attribute, member in vars(value).items() if inspect.isclass(value) else ():
        if inspect.isfunction(member) and not attribute.startswith("_"):
            assert inspect.getdoc(getattr(value, attribute)), f"mtf.{name}.{attribute} has no docstring"


def test_the_trainers_interface_stays_small() -> None:
    """Besides what the guide names. What belongs to a run's parts is found there."""
    pytest.importorskip("torch")
    guide = {"add_dataloader", "config", "fit", "get_state", "load_checkpoint", "model", "multi_loader_config"}
    guide |= {"multi_loader_manager", "optimizers", "save_checkpoint"}
    assigned = set(re.findall(r"self\.([a-z]\w*) = ", inspect.getsource(mtf.Trainer)))
    names = {name for name in dir(mtf.Trainer) if not name.startswith("_")} | assigned
    assert guide <= names
    assert len(names - guide) <= 25, sorted(names - guide)


def test_all_lists_every_public_name_once() -> None:
    assert len(mtf.__all__) == len(set(mtf.__all__))
    assert set(mtf.__all__) == {"__version__", *mtf._PUBLIC}
    assert set(mtf.__all__) <= set(dir(mtf))
    with pytest.raises(AttributeError, match="no attribute 'Scheduler'"):
        mtf.Scheduler  # noqa: B018


def test_version_is_written_once_per_language() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f'version = "{mtf.__version__}"' in pyproject
    assert f"project(mtf VERSION {mtf.__version__} " in cmake


def test_free_threading_is_not_declared() -> None:
    """No free-threaded interpreter has run the thread tests: the module must not claim to need no GIL."""
    for path in (ROOT / "csrc").iterdir():
        assert "gil_not_used" not in path.read_text(encoding="utf-8").lower(), path.name


def test_no_machine_paths() -> None:
    """Nothing in the repository names a folder of the machine it was written on."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    pattern = re.compile(r"(?<![\w.-])/(work|home|root|Users)/\w")
    for name in filter(None, listed):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert found is None, f"{name}: {text[max(0, found.start() - 40) : found.end() + 20]!r}"


def test_every_module_has_its_tests_or_a_line_that_names_them() -> None:
    page = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("")
        if path.name not in ("__init__.py", "__main__.py") and f"test_{path.stem.lstrip('_')}.py" not in files:
            assert f"`{module.as_posix()}`" in page, f"{module}: add it to tests/README.md"
    rows = page.partition("| modules of")[2].splitlines()[2:]
    for module in re.findall(r"`([\w/]+)`", " ".join(row.split("|")[1] for row in rows)):
        assert (PACKAGE / f"{module}.py").is_file(), module
    for name in re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)`", page):
        assert name in files, name


def test_the_ways_on_the_page_are_short_and_name_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for title in ("The way of a batch", "The way of a checkpoint"):
        section = page.split(f"## {title}\n")[1].split("\n## ")[0]
        files = re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)
        assert 5 <= len(files) <= 12, title
        assert [file for file in files if not (PACKAGE / file).is_file()] == []
    table = page.split("## The tree of the package\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE))
    assert named == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_no_warning_counts_frames_by_hand() -> None:
    """``stacklevel=user_level()`` of ``mtf.call_site`` points at the user's line; a number points somewhere in mtf."""
    by_hand = [
        f"{path.name}: {match[0]}"
        for path in PACKAGE.rglob("*.py")
        for match in re.finditer(r"stacklevel=(?!user_level\(\))\S+", path.read_text(encoding="utf-8"))
    ]
    assert by_hand == []
