"""Steered runs on several ranks: every rank decides alike, and the run is that of one rank."""

from __future__ import annotations

from typing import Any

import pytest

from distributed import launch

pytestmark = pytest.mark.timeout(300)

Results = dict[int, list[dict[str, Any]]]
ROLLBACKS = ["rollback", "rollback fsdp", "rollback async", "rollback fsdp async"]
CASES = ["skip_update", *ROLLBACKS, "skip", "edit"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("steering")
    found = {}
    for world_size, cases in ((1, CASES), (2, [*CASES, "differing"])):
        run = launch.run(world_size, folder / str(world_size), "steering_worker.py", *cases, SHARED=str(folder))
        for result in run.results:
            assert "failed" not in result, result["failed"]
        assert run.codes == [0] * world_size, "\n".join(run.output)
        found[world_size] = run.results
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(runs: Results, case: str) -> None:
    one = runs[1][0][case]
    for result in runs[2]:
        assert result[case]["rows"] == one["rows"]
        assert result[case]["updates"] == one["updates"]
        for name, value in one["weights"].items():
            assert result[case]["weights"][name] == pytest.approx(value, abs=1e-5), name


def test_a_spike_on_one_rank_alone_is_one_on_all(runs: Results) -> None:
    for result in (*runs[1], *runs[2]):
        assert result["skip_update"]["guard"]["num_skipped"] == 2
        for case in ROLLBACKS:
            assert result[case]["guard"]["num_rollbacks"] == 2
            assert result[case]["rows"] == result["rollback"]["rows"]
    for case in ROLLBACKS:
        assert runs[2][0][case]["guard"] == runs[2][1][case]["guard"]


def test_an_edit_is_the_same_on_all_ranks_and_loses_nothing(runs: Results) -> None:
    assert runs[2][0]["edit"]["edits"] == runs[2][1]["edit"]["edits"] == runs[1][0]["edit"]["edits"]
    seen = [row for batch in runs[2][0]["edit"]["rows"] for row in batch]
    assert sorted(seen[:70]) == list(range(70))
    assert sorted(seen[70:158]) == list(range(88))


def test_ranks_that_leave_out_other_updates_are_refused(runs: Results) -> None:
    for result in runs[2]:
        assert "the updates to skip" in result["differing"]["error"]
