"""Data parallel ranks inside a larger mesh: peers get the same rows, and no rank waits for one that loads nothing."""

from __future__ import annotations

from typing import Any

import pytest

import mtf
from distributed import launch, mesh_worker
from mtf.distributed.data_group import make_data_group

pytestmark = pytest.mark.timeout(300)

Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """dp 2 x tp 2 over gloo."""
    folder = tmp_path_factory.mktemp("mesh")
    run = launch.run(4, folder, "mesh_worker.py", timeout_s=250, SHARED=str(folder))
    for result in run.results:
        assert "failed" not in result, result["failed"]
    assert run.codes == [0] * 4, "\n".join(run.output)
    return run.results


@pytest.fixture(scope="module")
def alone() -> list[list[list[int]]]:
    """The global batches, as one process has them."""
    return mesh_worker.read(mesh_worker.make_loop(), mesh_worker.STEPS)


def joined(parts: list[Any]) -> list[list[list[int]]]:
    """Global batches of the ranks' parts, in their order."""
    return [
        [[row for part in same for row in part] for same in zip(*batches, strict=True)]
        for batches in zip(*parts, strict=True)
    ]


def test_parts_of_the_data_ranks_laid_end_to_end_are_the_batch(ranks: Results, alone: Any) -> None:
    by_place = {tuple(result["place"]): result["loop"] for result in ranks}
    assert sorted(by_place) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for tensor_rank in (0, 1):
        assert joined([by_place[0, tensor_rank], by_place[1, tensor_rank]]) == alone


def test_peers_get_the_same_rows(ranks: Results) -> None:
    by_place = {tuple(result["place"]): result for result in ranks}
    for data_rank in (0, 1):
        one, other = by_place[data_rank, 0], by_place[data_rank, 1]
        assert one["loop"] == other["loop"]
        assert one["positions"] == other["positions"]
        assert one["trainer"]["seen"] == other["trainer"]["seen"]
        assert one["trainer"]["noise"] == other["trainer"]["noise"]
    assert by_place[0, 0]["trainer"]["noise"] != by_place[1, 0]["trainer"]["noise"]
    assert by_place[0, 0]["positions"] == [list(range(24, 30)), list(range(36, 42))]
    assert by_place[1, 1]["positions"] == [list(range(30, 36)), list(range(42, 48))]


def test_a_resume_with_another_number_of_data_ranks_continues_exactly(ranks: Results, alone: Any) -> None:
    assert joined([result["wide"] for result in ranks]) == alone[5:]


def test_no_rank_waits_for_those_that_load_nothing(ranks: Results, alone: Any) -> None:
    assert joined([ranks[0]["stage"], ranks[1]["stage"]]) == alone
    for rank in (2, 3):
        assert f"process_group doesn't have rank {rank}" in ranks[rank]["refused"]


def test_a_trainer_in_a_mesh_has_the_updates_of_one_rank(ranks: Results) -> None:
    one = mesh_worker.train(6)
    for result in ranks:
        assert result["trainer"]["loss"] == pytest.approx(one["loss"], abs=1e-6)
        for name, value in one["weights"].items():
            assert result["trainer"]["weights"][name] == pytest.approx(value, abs=1e-5), name


def test_the_loop_of_torchtitans_shape_resumes_with_the_same_bits_and_on_another_mesh(ranks: Results) -> None:
    found = ranks[0]["torchtitan"]
    assert found == {"same bits": True, "same weights loaded": True, "close on other ranks": True}


def test_bad_groups_are_refused_with_the_way_out(ranks: Results) -> None:
    for result in ranks:
        assert "must be a mesh of one dimension" in result["mesh"]
        assert "mesh['dp']" in result["mesh"]
        assert "but is a str" in result["kind"]
        assert "give either process_group or rank and world_size (1 of 2)" in result["both"]


def test_without_other_ranks_a_group_is_refused_and_none_is_alone() -> None:
    assert make_data_group(None).world_size == 1
    assert not make_data_group(None, 1, 3).can_ask
    with pytest.raises(mtf.ConfigError, match="started alone"):
        mesh_worker.train(1, process_group="dp")
