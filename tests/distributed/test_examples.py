"""The examples give the same on any number of ranks."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import time
from pathlib import Path

import pytest

from distributed import launch

pytestmark = pytest.mark.timeout(400)  # several processes each import torch; every launch has a limit of its own


def test_domain_adaptation_gives_the_gradients_of_a_loop_by_hand(tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "example_worker.py", "ddp", "fsdp")
    assert run.codes == [0, 0], run.output
    for result in run.results:
        for strategy in ("ddp", "fsdp"):
            assert result[strategy]["updates"] == 18
            assert result[strategy]["difference"] < 1e-6


def test_several_ranks_goes_on_with_other_ranks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = str(launch.ROOT / "examples" / "several_ranks.py")
    found = {}
    for name, parts in (("whole", [(1, 40)]), ("parts", [(2, 20), (3, 40)])):
        for world_size, steps in parts:
            arguments = ("--steps", str(steps), "--folder", str(tmp_path / name))
            run = launch.run(world_size, tmp_path / f"{name}-{world_size}", script, *arguments)
            assert run.codes == [0] * world_size, run.output
        said = re.search(r"(\d) rank\(s\), update 40: accuracy ([\d.]+), norm of the weights ([\d.]+)", run.output[0])
        assert said, run.output
        assert int(said[1]) == world_size
        found[name] = (float(said[2]), float(said[3]))
    assert found["parts"] == pytest.approx(found["whole"], abs=1e-4)


def losses_of(run: launch.Run, world_size: int) -> dict[str, float]:
    """What the example of pretraining prints at its end."""
    assert run.codes == [0] * world_size, run.output
    said = re.search(rf"update \d+ on {world_size} rank\(s\) (\{{.*\}})", run.output[0])
    assert said, run.output
    return ast.literal_eval(said[1])


def wait_for_a_checkpoint(folder: Path) -> None:
    """Of the example of pretraining."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(folder.glob("checkpoints/*/manifest.json"))


def test_pretraining_continues_after_kills_and_on_another_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.syspath_prepend(str(launch.ROOT / "examples" / "pretraining"))
    corpora = importlib.import_module("corpora")
    for name in ("whole", "parts"):
        sizes = corpora.write(tmp_path / name, max_bytes=40_000, vocabulary=400)
        (tmp_path / name / "ready").touch()
    assert {"code", "packages", "help"} <= set(sizes)
    script = str(launch.ROOT / "examples" / "pretraining" / "train.py")

    def arguments(name: str, steps: int) -> tuple[str, ...]:
        settings = {"steps": steps, "total": 10, "batch": 4, "save-every": 2, "folder": tmp_path / name}
        return tuple(text for key, value in settings.items() for text in (f"--{key}", str(value)))

    whole = losses_of(launch.run(1, tmp_path / "logs-whole", script, *arguments("whole", 10)), 1)

    killed = launch.start(1, tmp_path / "logs-killed", script, *arguments("parts", 10))
    wait_for_a_checkpoint(tmp_path / "parts")
    killed.processes[0].kill()
    killed.wait(30)
    assert losses_of(launch.run(1, tmp_path / "logs-resumed", script, *arguments("parts", 10)), 1) == whole

    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    on_two = losses_of(launch.run(2, tmp_path / "logs-two", script, *arguments("parts", 10)), 2)
    assert on_two == pytest.approx(whole, abs=0.001)  # sums in another order

    # Two ranks, killed, and resumed on one.
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    ranks = launch.start(2, tmp_path / "logs-killed-on-two", script, *arguments("parts", 10))
    wait_for_a_checkpoint(tmp_path / "parts")
    for process in ranks.processes:
        process.kill()
    ranks.wait(30)
    on_one = losses_of(launch.run(1, tmp_path / "logs-on-one", script, *arguments("parts", 10)), 1)
    assert on_one == pytest.approx(whole, abs=0.001)


def test_the_demonstration_ends_with_the_same_weights_on_1_2_and_4_ranks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    found = []
    for world_size in (1, 2, 4):
        run = launch.run(world_size, tmp_path / str(world_size), "example_worker.py", "demo")
        assert run.codes == [0] * world_size, run.output
        found.append(run.results[0]["demo"])
    one, *others = found
    for other in others:
        assert (other["num"], other["batches"]) == (60, one["batches"])
        for name, value in one["weights"].items():
            assert other["weights"][name] == pytest.approx(value, abs=1e-5), name
