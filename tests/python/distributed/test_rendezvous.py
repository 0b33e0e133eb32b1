"""Ranks meet in a store that may hold what earlier ranks left, and compare what they are about to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mtf.distributed import rendezvous
from mtf.distributed.rendezvous import Meeting, meet
from mtf.errors import ConfigError, RankFailed


class DictStore:
    """A store in this process."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self.values[key] = str(int(self.values.get(key, "0")) + amount)
            return int(self.values[key])

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


def everyone(world_size: int, call: Callable[[int], Any]) -> list[Any]:
    def guarded(rank: int) -> Any:
        try:
            return call(rank)
        except (ConfigError, RankFailed) as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(guarded, range(world_size)))


def come(store: DictStore, rank: int, size: int, timeout_s: float = 20, **settings: Any) -> Meeting:
    place = {"host": f"node{rank // 2}", "pid": rank, "address": f"10.0.0.{rank // 2}"}
    return meet(store, rank, size, place, {"ddp.strategy": "ddp", **settings}, timeout_s)


def test_all_ranks_get_one_token_that_no_meeting_before_had() -> None:
    store = DictStore()
    tokens = []
    for size in (4, 2, 4):  # an agent's store outlives its ranks, and their number may change
        found = everyone(size, lambda rank, size=size: come(store, rank, size))
        assert len({meeting.token for meeting in found}) == 1
        assert found[0].first == {"host": "node0", "pid": 0, "address": "10.0.0.0"}
        assert found[0].num_hosts == size // 2
        assert found[0].peer == ("10.0.0.1" if size > 2 else "")
        tokens.append(found[0].token)
    assert len(set(tokens)) == 3


def test_a_rank_that_came_before_and_died_is_waited_for_again() -> None:
    store = DictStore()
    found = everyone(3, lambda rank: come(store, rank, 4, timeout_s=0.5) if rank else come(store, 0, 4, timeout_s=0.5))
    assert all("ranks [3] never came" in str(error) for error in found), found
    assert all(isinstance(meeting, Meeting) for meeting in everyone(4, lambda rank: come(store, rank, 4)))


def test_settings_that_differ_are_named_on_all_ranks_with_their_hosts() -> None:
    store = DictStore()
    found = everyone(4, lambda rank: come(store, rank, 4, **({"ddp.strategy": "fsdp"} if rank == 3 else {})))
    words = 'ddp.strategy: "ddp" on ranks 0 (node0), 1 (node0), 2 (node1), "fsdp" on rank 3 (node1)'
    assert all(isinstance(error, ConfigError) and words in str(error) for error in found), found


def test_a_rank_whose_first_rank_never_comes_says_so() -> None:
    with pytest.raises(RankFailed, match=r"ranks \[0\] never came"):
        come(DictStore(), 1, 2, timeout_s=0.1)


def test_the_interface_is_found_by_its_address() -> None:
    assert rendezvous.interface_of("127.0.0.1") == "lo"
    assert rendezvous.interface_of("203.0.113.9") is None


def test_gloo_is_told_an_interface_only_where_its_own_choice_would_be_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(rendezvous, "own_name_is_loopback", lambda: True)
    monkeypatch.setattr(rendezvous, "route_address", lambda host, port: "" if host == "me" else "127.0.0.1")
    alone, together = Meeting("t", {}, 1, ""), Meeting("t", {}, 2, "other")
    rendezvous.choose_gloo_interface(alone, "other", 1)
    assert "GLOO_SOCKET_IFNAME" not in rendezvous.os.environ
    rendezvous.choose_gloo_interface(together, "me", 1)  # by way of a peer, as the master is this machine itself
    assert rendezvous.os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    rendezvous.choose_gloo_interface(together, "other", 1)
    assert rendezvous.os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
