"""Runs cells of the matrix, each in a child process that has imported libraries and done nothing else.

A request is one line of JSON on standard input: what to do, the row, the workers, folders. The answer is one line on
standard output. Two servers with different ``PYTHONHASHSEED`` stand for the run that saves and the one that resumes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import json
import os
import pickle
import signal
import sys
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

TIMEOUT_S = 120


def serve() -> None:
    """Answers requests until standard input ends."""
    channel = os.dup(1)
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        request = json.loads(line)
        answer = _run(request)
        os.write(channel, (json.dumps(answer) + "\n").encode())


def _run(request: dict[str, Any]) -> dict[str, Any]:
    error = prepare_imports(request["row"])
    if error:
        return {"missing": error}
    path = Path(request["result"])
    path.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _child(request, path)
    deadline = time.monotonic() + TIMEOUT_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"error": f"took longer than {TIMEOUT_S} s"}
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # worker processes that a library left
    return json.loads(path.read_text()) if path.exists() else {"error": "the process died"}


def prepare_imports(name: str) -> str:
    """Imports what a row needs; why that can't be done, in words."""
    import cells
    import matrix

    row = matrix.BY_NAME[name]
    for needed in (cells.__name__, *row.needs, row.module):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _import(needed)
        except Exception as error:  # ImportError, or what a library raises where another one that it uses is too new
            return f"{needed}: {type(error).__name__}: {error}"
    return ""


def _import(name: str) -> None:
    if name == "streaming" and name not in sys.modules:
        _stand_in_for_torchvision()
    importlib.import_module(name)


def _stand_in_for_torchvision() -> None:
    """MosaicML Streaming imports torchvision for its image classes, and torchvision would bring another torch."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
            sys.modules[name] = module


def _child(request: dict[str, Any], path: Path) -> None:
    code = 1
    try:
        import cells

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                answer = cells.ACTIONS[request["action"]](request)
            except BaseException as error:
                text = "".join(traceback.format_exception(error))
                answer = {"error": f"{type(error).__name__}: {error}", "traceback": text[-4000:]}
        answer["said"] = sorted({str(one.message) for one in said})
        path.write_text(json.dumps(answer))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def read_states(path: str) -> Any:
    """What ``cells`` has written."""
    return pickle.loads(Path(path).read_bytes())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
