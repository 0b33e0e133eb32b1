"""Blends and one batch of every source in the Trainer: the same global batches and weights on any number of ranks."""

from __future__ import annotations

from typing import Any

import pytest

from distributed import launch

pytestmark = pytest.mark.timeout(300)

Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("blends")
    found = {}
    for world_size, cases in ((1, ["blend", "together", "mixing"]),
                              (2, ["blend", "together", "blend from 1", "together from 1", "mixing", "mixing from 1"]),
                              (3, ["blend", "blend from 2", "together", "together from 2"])):  # fmt: skip
        run = launch.run(world_size, folder / str(world_size), "blend_worker.py", *cases, SHARED=str(folder))
        for result in run.results:
            assert "failed" not in result, result["failed"]
        assert run.codes == [0] * world_size, "\n".join(run.output)
        found[world_size] = run.results
    return found


@pytest.mark.parametrize("kind", ["blend", "together"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batches_and_weights_are_those_of_one_rank(runs: Results, kind: str, world_size: int) -> None:
    one = runs[1][0][kind]
    for result in runs[world_size]:
        if kind == "blend":
            assert result[kind]["batches"] == one["batches"]
        else:  # parts of several loaders in one batch: the ranks' parts of each lie apart
            assert [sorted(batch) for batch in result[kind]["batches"]] == [sorted(b) for b in one["batches"]]
        for name, value in one["weights"].items():
            assert result[kind]["weights"][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("kind", ["blend", "together"])
@pytest.mark.parametrize(("world_size", "before"), [(2, 1), (3, 2)])
def test_a_resume_on_another_number_of_ranks_continues_exactly(
    runs: Results, kind: str, world_size: int, before: int
) -> None:
    whole, resumed = runs[1][0][kind], runs[world_size][0][f"{kind} from {before}"]
    assert [sorted(batch) for batch in resumed["batches"]] == [sorted(batch) for batch in whole["batches"][8:]]
    for name, value in whole["weights"].items():
        assert resumed["weights"][name] == pytest.approx(value, abs=1e-5), name


def test_online_mixing_decides_the_same_on_all_ranks_and_after_a_resume_on_others(runs: Results) -> None:
    one = runs[1][0]["mixing"]
    assert one["shares"]["a"] != pytest.approx(0.6, abs=0.01)
    for result in runs[2]:
        for case in ("mixing", "mixing from 1"):
            assert result[case]["shares"] == one["shares"]
            assert result[case]["batches"] == one["batches"][-len(result[case]["batches"]) :]


def test_ramps_hold_on_ranks(runs: Results) -> None:
    assert [len(batch) for batch in runs[3][0]["blend"]["batches"]] == [12] * 5 + [24] * 7
