"""Several ranks train exactly what one process would: real processes over gloo on loopback."""

from __future__ import annotations

from typing import Any

import pytest

from distributed import launch
from mtf.edit import edit_checkpoint

pytestmark = pytest.mark.timeout(400)  # several processes each import torch; every launch has a limit of its own

EXACT = ["ddp", "ddp window", "ddp optimizers", "fsdp", "fsdp window", "fsdp groups window", "fsdp optimizers"]
ITEMS = ["items ddp", "items left out ddp", "items none ddp", "items fsdp", "items left out fsdp"]
SAVES = ["saves ddp", "saves fsdp", "saves fsdp async"]
FREEZING = ["freezing ddp", "freezing fsdp"]
RESUMES = ["resumes ddp", "resumes fsdp", "resumes ddp as fsdp", "resumes fsdp as ddp",
           "resumes edited fsdp"]  # fmt: skip
VALIDATION = ["validation ddp", "validation fsdp"]
REST = ["differing config", "lengths", "decisions", "nonfinite raise", "nonfinite skip", "step noise", "compiled",
        "saved noise", "added loader", "settings"]  # fmt: skip
TOLERANCE = 2e-7  # another order of summation over 22 updates; the rates of Adam make errors no smaller


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Results of all cases, on 2 ranks; of some on 1, 3 and 4, which resume what the 2 have saved."""
    folder = tmp_path_factory.mktemp("ranks")
    two = launch.run(2, folder / "2", "worker.py", *EXACT, *ITEMS, *SAVES, *VALIDATION, *FREEZING, "manual", *REST)
    source = {"FROM_DDP": str(folder / "2/ckpt-ddp-False/step-00000006")}
    source["FROM_FSDP"] = str(folder / "2/ckpt-fsdp-False/step-00000006")
    # A limit that isn't reached here: the updates are the same, the checkpoint is another.
    edited = edit_checkpoint(source["FROM_FSDP"], folder / "edited", steps=1000)
    assert edited.path is not None
    source["FROM_EDITED"] = edited.path
    found = {2: two}
    for world_size in (1, 3, 4):
        found[world_size] = launch.run(world_size, folder / str(world_size), "worker.py", "ddp", "fsdp",
                                       *VALIDATION, *FREEZING, *RESUMES, **source)  # fmt: skip
    for run in found.values():
        for rank, result in enumerate(run.results):
            for name, case in result.items():
                assert "failed" not in case, f"rank {rank}, {name}: {case['failed']}"
        assert run.codes == [0] * len(run.codes), "\n".join(run.output)
    return {world_size: run.results for world_size, run in found.items()}


Runs = dict[int, list[dict[str, Any]]]


@pytest.mark.parametrize("case", ITEMS)
def test_an_update_is_the_mean_over_the_items_of_all_ranks(runs: Runs, case: str) -> None:
    for result in runs[2]:
        assert result[case]["distance"] < 1e-6


@pytest.mark.parametrize("case", EXACT)
def test_weights_are_those_of_a_loop_by_hand(runs: Runs, case: str) -> None:
    for result in runs[2]:
        assert result[case]["distance"] < TOLERANCE


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_any_number_of_ranks_trains_the_same(runs: Runs, case: str, world_size: int) -> None:
    here, there = runs[world_size][0][case], runs[2][0][case]
    assert here["batches"] == there["batches"]
    assert here["distance"] < TOLERANCE
    assert here["train_loss"] == pytest.approx(there["train_loss"], abs=1e-6)


def test_the_norm_of_sharded_gradients_is_logged(runs: Runs) -> None:
    """A metric that is sharded over the ranks counts as a whole."""
    for result in runs[2]:
        assert result["fsdp"]["norm"] == pytest.approx(result["ddp"]["norm"], rel=1e-5)


@pytest.mark.parametrize("case", VALIDATION)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_validation_counts_every_sample_once(runs: Runs, case: str, world_size: int) -> None:
    for result in runs[world_size]:
        found = result[case]
        for name, value in found["expected"].items():
            assert found["row"][name] == pytest.approx(value, abs=1e-6), name
        assert found["row"] == runs[world_size][0][case]["row"]
        # A sharded model runs some batches again that don't count.
        samples = found["samples"] if case == "validation ddp" else sorted(set(found["samples"]))
        assert samples == list(range(7000, 7029))


@pytest.mark.parametrize("case", SAVES)
def test_a_checkpoint_goes_on_exactly(runs: Runs, case: str) -> None:
    for result in runs[2]:
        assert result[case]["diff"] == []
        assert result[case]["same batches"]
    files = runs[2][0][case]["files"]
    assert ("rank-00001.safetensors" in files) == ("fsdp" in case)


@pytest.mark.parametrize("case", RESUMES)
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_another_number_of_ranks_goes_on_with_the_same_batches(runs: Runs, case: str, world_size: int) -> None:
    whole, here = runs[2][0]["saves ddp"], runs[world_size][0][case]
    assert here["tail"] == whole["tail"]
    for name, value in whole["weights"].items():
        assert here["weights"][name] == pytest.approx(value, abs=TOLERANCE)


@pytest.mark.parametrize("case", FREEZING)
def test_a_part_that_is_trained_later_is_the_same_on_any_number_of_ranks(runs: Runs, case: str) -> None:
    expected = runs[1][0][case]["weights"]
    for result in (*runs[2], *runs[3]):
        assert result[case]["kept"]
        assert result[case]["changed"]
        for name, value in expected.items():
            assert result[case]["weights"][name] == pytest.approx(value, abs=TOLERANCE), name


def test_manual_optimization_averages_over_the_ranks(runs: Runs) -> None:
    for result in runs[2]:
        found = result["manual"]
        assert found["distance"] < TOLERANCE
        assert "needs the whole model on each rank" in found["sharded"]
        assert "ddp.sync_batch_norm needs GPUs" in found["sync_batch_norm"]


def test_ranks_that_differ_are_named_with_the_field(runs: Runs) -> None:
    for result in runs[2]:
        found = result["differing config"]
        assert 'seed: "0" on rank 0, "1" on rank 1' in found["seed"]
        assert "gradient_accumulation_steps: 1 on rank 0, 2 on rank 1" in found["window"]
        assert "limits.max_steps: 3 on rank 0, 4 on rank 1" in found["limit"]
        assert 'names: ["a", "b"] on rank 0, ["a", "c"] on rank 1' in found["names"]


def test_lengths_are_cut_to_the_shortest_and_samplers_of_the_user_left_alone(runs: Runs) -> None:
    for result in runs[2]:
        assert result["lengths"]["agreed"] == [4, 3]
        assert result["lengths"]["left alone"]


def test_a_stop_asked_for_on_one_rank_stops_all_at_the_next_look(runs: Runs) -> None:
    for result in runs[2]:
        found = result["decisions"]
        assert found["stopped at"] == 8
        assert found["only"] == 3.0
        assert found["union"] == ["a", "r0", "r1"]
        assert found["again"]


def test_a_loss_of_one_rank_that_is_not_finite_changes_no_weight(runs: Runs) -> None:
    for rank, result in enumerate(runs[2]):
        raised = result["nonfinite raise"]
        assert raised["updates"] == 3
        assert raised["finite"]
        assert ("another rank" in raised["error"]) == (rank == 0)
        skipped = result["nonfinite skip"]
        assert skipped == {"error": "no error", "updates": 6, "finite": True}


def test_noise_differs_between_ranks(runs: Runs) -> None:
    first, second = runs[2][0]["step noise"]["drawn"]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_a_compiled_model_is_wrapped_as_well(runs: Runs) -> None:
    assert all(value < TOLERANCE for value in runs[2][0]["compiled"].values())


def test_generators_of_every_rank_are_saved(runs: Runs) -> None:
    assert [result["saved noise"] for result in runs[2]] == [{"diff": [], "ranks": 2}] * 2


def test_a_loader_that_comes_later_finds_its_part_of_the_model_wrapped(runs: Runs) -> None:
    assert [result["added loader"] for result in runs[2]] == [{"names": ["a", "b"], "equal": True}] * 2


def test_every_setting_changes_something(runs: Runs) -> None:
    found = runs[2][0]["settings"]
    assert found["find_unused_parameters"] == [True, False]
    assert found["bucket_cap_mb"] == [25 * 2**20, 2**20]
    assert found["gradient_as_bucket_view"] is True
    assert found["broadcast_buffers"] == [True, False]
    assert found["fsdp_param_dtype"] == "torch.bfloat16"
    assert found["fsdp_reduce_dtype"] == "torch.float32"
    assert 0 < found["bf16 error"] < 0.03
    assert found["weights stay fp32"] == "torch.float32"
    assert found["fsdp_wrap"] == [4, 2, 1]
    assert "ddp.fsdp_wrap matches no module: ['Conv2d']" in found["no match"]
    assert found["backend"] == "gloo"
