"""Hosts and a Slurm for the tests of this folder, which `make cluster` runs in namespaces of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import hosts
from cluster.hosts import Host
from cluster.slurm import Slurm

FORM = os.environ.get("MTF_CLUSTER", "")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nightly: takes minutes, or waits for a time limit; `make cluster FORM=long`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(600))
        if not FORM:
            item.add_marker(pytest.mark.skip(reason="needs hosts of its own: make cluster"))
        elif FORM == "short" and item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="long: make cluster FORM=long"))


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Two fresh machines."""
    with hosts.hosts(2, tmp_path) as made:
        yield made


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes, which no job of an earlier test is left on."""
    folder = tmp_path_factory.mktemp("slurm")
    with hosts.hosts(2, folder) as machines:
        made = Slurm(machines, folder / "slurm")
        try:
            made.start()
            yield made
        finally:
            made.stop()
