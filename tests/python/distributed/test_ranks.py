"""The parts of training on several ranks that need no second process."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import mtf
from mtf.distributed.consistency import describe_differences, fingerprint, require_equal
from mtf.distributed.failure_detection import RankMonitor
from mtf.distributed.forward_wrapper import run_as_forward
from mtf.distributed.launch import Launch, find_launch, first_host, gpu_index
from mtf.errors import ConfigError
from mtf.trainer.optimization.nonfinite import propagate_nonfinite, require_finite_on_all_ranks


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[03-06,9],login1", "gpu03"),
        ("a-b-[1,3]", "a-b-1"),
        ("n[001-128].site.org", "n001.site.org"),
        ("x1,x2", "x1"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_first_host_refuses_nonsense() -> None:
    with pytest.raises(mtf.ConfigError, match="MASTER_ADDR"):
        first_host("")


def test_alone() -> None:
    assert find_launch({}) is None
    # A batch script that starts python without srun, and an interactive shell.
    assert find_launch({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None
    assert find_launch({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "1"}) is None


def test_torchrun_beats_slurm() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "5"}
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
    assert find_launch({**env, **slurm}) == Launch(1, 2, 1, "h", 5)


def test_slurm() -> None:
    env = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "1000",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": "n[1-2]",
    }
    found = find_launch(env)
    assert found == Launch(3, 4, 1, "n1", 20000 + 31002 % 12000)
    assert find_launch({**env, "SLURM_PROCID": "0"}).master_port == found.master_port  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"RANK": "x"}, "RANK"), ({"RANK": "2"}, "rank 2 of 2"), ({"MASTER_PORT": None}, "MASTER_PORT")],
)
def test_bad_variables(change: dict[str, Any], word: str) -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "5", **change}
    with pytest.raises(mtf.ConfigError, match=word):
        find_launch({k: v for k, v in env.items() if v is not None})


class DictStore:
    """A key-value store in this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


def roll_calls(number: int) -> tuple[DictStore, list[RankMonitor]]:
    store = DictStore()
    calls = [RankMonitor(store, rank, number, 0.2) for rank in range(number)]
    for call in calls:
        call.register()
    return store, calls


def test_roll_call_names_who_reported() -> None:
    _, calls = roll_calls(3)
    calls[2].report(ValueError("bad sample"), "after 7 updates")
    assert calls[0].find_failure() == "rank 2 failed after 7 updates: ValueError: bad sample"


def test_roll_call_names_who_is_silent() -> None:
    store, calls = roll_calls(3)
    store.set("answer/1", "here")
    found = calls[0].find_failure()
    assert found is not None
    assert found.startswith("rank 2 (process")
    assert "doesn't answer" in found


def test_roll_call_names_the_dead_at_once() -> None:
    store, calls = roll_calls(2)
    place = json.loads(store.values["place/1"])
    store.set("place/1", json.dumps({**place, "pid": 2**22 + 1}))
    found = calls[0].find_failure()
    assert found is not None
    assert "was killed or exited" in found


def test_roll_call_of_the_living_and_the_absent() -> None:
    store, calls = roll_calls(2)
    store.set("answer/1", "here")
    assert calls[0].find_failure() is None
    assert RankMonitor(store, 0, 4, 0.1).absent() == [2, 3]


def test_differences_name_field_and_ranks() -> None:
    fields = [{"seed": "0", "x": "1"}, {"seed": "0", "x": "1"}, {"seed": "7", "x": "1"}]
    assert describe_differences(fields) == ["seed: 0 on ranks 0, 1, 7 on rank 2"]
    assert describe_differences([{"a": "1"}, {}]) == ["a: 1 on rank 0, missing on rank 1"]


def test_equal_fields_cost_one_reduction() -> None:
    calls: list[Any] = []

    def all_reduce_max(numbers: Any) -> list[int]:
        calls.append(numbers)
        return list(numbers)

    def gather(value: Any) -> list[Any]:
        raise AssertionError("nothing differs")

    require_equal("the run", {"a": {"b": 1}}, all_reduce_max, gather)
    assert len(calls) == 1
    assert 0 <= calls[0][0] < 2**63
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def test_poison_changes_nothing_that_is_finite() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    loss = x * x
    propagate_nonfinite(loss, loss.detach()).backward()
    assert x.grad == 6.0
    require_finite_on_all_ranks([x], 1)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -float("inf")])
def test_poison_marks_gradients_of_a_bad_loss(bad: float) -> None:
    x = torch.tensor(3.0, requires_grad=True)
    loss = x + bad  # its own gradient is 1
    propagate_nonfinite(loss, loss.detach()).backward()
    with pytest.raises(mtf.NonFiniteLoss, match="another rank"):
        require_finite_on_all_ranks([x], 4)


def test_redirection_is_for_one_call_and_survives_errors() -> None:
    model = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    seen = run_as_forward(model, model, lambda a: (model(a), model(2 * a)), (x,))
    assert torch.equal(seen[1], model(2 * x))

    def fails(a: Any) -> None:
        raise KeyError("step")

    with pytest.raises(KeyError):
        run_as_forward(model, model, fails, (x,))
    assert "forward" not in model.__dict__
    assert model(x).shape == (1, 2)


@pytest.mark.parametrize(
    "wrong", [{"strategy": "dp"}, {"timeout_s": 0.0}, {"bucket_cap_mb": -1.0}, {"fsdp_param_dtype": "int8"}]
)
def test_configuration_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(mtf.ConfigError, match=next(iter(wrong))):
        mtf.DDPConfig(**wrong)


def test_another_global_batch_is_refused_with_the_way_out() -> None:
    with mtf.MultiLoader({"a": mtf.ArrayLoader(torch.arange(48), global_batch_size=12)}) as saved:
        state = saved.state_dict()
    loader = mtf.ArrayLoader(torch.arange(48), 4)
    with (
        mtf.MultiLoader({"a": loader}, rank=0, world_size=2) as here,
        pytest.raises(mtf.StateMismatch, match=r"batches of 8 samples here \(2 ranks\), but 12 .*: batch_size=6"),
    ):
        here.load_state_dict(state)


def test_a_state_of_its_own_does_not_move_to_another_number_of_ranks() -> None:
    model = nn.Linear(1, 1)
    trainer = mtf.Trainer(model=model, optimizers=torch.optim.SGD(model.parameters(), 0.1))
    tree = dict(trainer.get_state().tree)
    snapshot = {"pass": 0, "batch": 1, "state": {}, "ended": False}
    tree["multi"] = {"sources": {"text": snapshot}, "last_batches": {}}
    tree["other_ranks"] = [{"rng": {}, "sources": {"text": snapshot}, "last_batches": {}, "metric_table": {"sums": []}}]
    with pytest.raises(mtf.StateMismatch, match="saved by 2 ranks, here are 1: loader 'text'"):
        trainer.load_state(mtf.TrainerState(tree))


def test_the_first_cause_is_the_one_that_all_ranks_give() -> None:
    _, calls = roll_calls(3)
    calls[2].report(ValueError("bad sample"), "after 7 updates")
    calls[1].publish("rank 0 is gone")
    assert calls[0].find_failure() == calls[1].find_failure() == "rank 2 failed after 7 updates: ValueError: bad sample"


def test_a_cause_is_read_before_the_store_ends_with_its_rank() -> None:
    store, calls = roll_calls(2)
    calls[1].watch()
    calls[0].report(ValueError("bad sample"), "after 7 updates")
    assert store.values["read"] == "1"  # rank 0 has waited for it
    store.values = {}  # a broken connection raises; here the keys are gone
    assert calls[1].find_failure() == "rank 0 failed after 7 updates: ValueError: bad sample"
    calls[1].stop()


def test_a_silent_rank_whose_process_lives_is_told_from_one_that_is_gone() -> None:
    store, calls = roll_calls(2)
    store.set("alive/1", "")
    assert "its process is alive" in str(calls[0].find_failure())


@pytest.mark.parametrize(
    ("local_rank", "visible", "shown", "index"),
    [(0, 4, None, 0), (3, 4, None, 3), (3, 1, "5", 0), (1, 4, "0,1,2,3", 1)],
)
def test_the_gpu_of_a_rank(local_rank: int, visible: int, shown: str | None, index: int) -> None:
    launch = Launch(rank=5, world_size=8, local_rank=local_rank, master_addr="a", master_port=1)
    assert gpu_index(launch, visible, {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}) == index


def test_more_ranks_than_gpus_is_an_error() -> None:
    launch = Launch(rank=5, world_size=8, local_rank=1, master_addr="a", master_port=1)
    with pytest.raises(ConfigError, match="rank 5 is number 1 on its machine, which has 1 GPUs"):
        gpu_index(launch, 1, {})
