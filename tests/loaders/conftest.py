"""Two servers that run cells of the matrix in new processes, and what is asked of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


class Server:
    """A process that has imported libraries, and does what it is asked in children of its own."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "cell_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; ``missing`` in it says that a library isn't installed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "missing" in answer:
            if os.environ.get("LOADERS_REQUIRED"):
                pytest.fail(f"not installed: {answer['missing']}")
            pytest.skip(f"not installed: {answer['missing']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()  # it holds nothing but modules
        self._process.wait()


class Cells:
    """What is done with the loaders of the matrix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first, self._second = Server(1), Server(2)
        self._prepared: set[str] = set()

    def uninterrupted(self, name: str, workers: int) -> dict[str, Any]:
        """A run that nothing interrupts: ``hashes``, ``places`` and ``mode``."""
        if name not in self._prepared:
            _require(self._first.ask(action="prepare", **self._request(name, workers)))
            self._prepared.add(name)
        answer = self._first.ask(action="uninterrupted", **self._request(name, workers))
        _require(answer)
        return answer

    def resumed(self, name: str, workers: int, cut: int, until: int, *, from_resumed: bool = False) -> dict[str, Any]:
        """A run in a new process from the state before batch ``cut``, which a resumed run may have saved."""
        request = self._request(name, workers)
        if from_resumed:
            request["states"] = request["new_states"]
        return self._second.ask(action="resumed", cut=cut, until=until, **request)

    def second(self, action: str, name: str, workers: int, **more: Any) -> dict[str, Any]:
        """Anything else, in a new process."""
        return self._second.ask(action=action, **self._request(name, workers), **more)

    def close(self) -> None:
        self._first.close()
        self._second.close()

    def _request(self, name: str, workers: int) -> dict[str, Any]:
        label = str(self._folder / f"{name}-{workers}")
        return {
            "row": name,
            "workers": workers,
            "folder": str(self._folder / name),
            "result": f"{label}.json",
            "states": f"{label}.states",
            "new_states": f"{label}.resumed",
        }


def _require(answer: dict[str, Any]) -> None:
    assert "error" not in answer, answer.get("traceback", answer["error"])


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    made = Cells(tmp_path_factory.mktemp("cells"))
    yield made
    made.close()
