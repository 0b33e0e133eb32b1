"""Seeding for the length of a fetch: a function of the key, and nothing of it stays."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import mtf
from mtf.data.rng import generators
from mtf.data.rng.generators import BatchSeed, GeneratorSnapshot, discard_rng_changes, seed_generators, seeded


def draw() -> tuple[float, ...]:
    return torch.rand(()).item(), float(np.random.randn()), random.random(), random.gauss(0, 1)


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state(legacy=False)), random.getstate()


@pytest.mark.parametrize("copies_memory", [True, False])
@pytest.mark.parametrize("num_gaussians", [0, 1, 2])
def test_the_generators_come_back(monkeypatch: pytest.MonkeyPatch, copies_memory: bool, num_gaussians: int) -> None:
    monkeypatch.setattr(generators._python, "copies_memory", copies_memory and generators._python.copies_memory)
    seed = BatchSeed()
    for _ in range(3):
        draw()
        np.random.randn(num_gaussians)  # an odd number leaves half of a pair behind
        for _ in range(num_gaussians):
            random.gauss(0, 1)
        before = states()
        seed.enter(2**64 - 3)
        draw()
        np.random.rand(2000)
        seed.exit()
        assert states() == before


def test_draws_depend_on_every_word_of_the_key() -> None:
    drawn = []
    for key in (5, 5 + 2**40, 6):
        with seeded(key):
            drawn.append(draw())
    with seeded(5):
        assert draw() == drawn[0]
    assert drawn[0][0] == drawn[1][0] != drawn[2][0]  # torch's generator uses the low word
    assert drawn[0][1] == drawn[2][1] != drawn[1][1]  # numpy's the high one
    assert len({values[2] for values in drawn}) == 3


def test_a_fetch_in_a_worker_draws_the_same() -> None:
    with seeded(77):
        here = draw()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_generators(77)
    assert draw() == here
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])
    random.setstate(before[2])


def test_a_fetch_runs_on_one_thread() -> None:
    before = torch.get_num_threads()
    with seeded(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", [None, np.random.PCG64])
@pytest.mark.parametrize("gauss", [False, True])
def test_generators_go_back_to_a_moment(kind: Any, gauss: bool) -> None:
    before = np.random.mtrand.get_bit_generator()
    if kind is not None:
        np.random.mtrand.set_bit_generator(kind(3))
    try:
        for _ in range(3):
            torch.rand(1), random.random(), np.random.rand()
            if gauss:
                np.random.randn(), random.gauss(0, 1)
            moment = GeneratorSnapshot()
            one = (torch.rand(3).tolist(), [random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist())
            random.seed(1), np.random.rand(1000), torch.manual_seed(2)
            moment.go_back()
            two = (torch.rand(3).tolist(), [random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist())
            assert one == two
    finally:
        np.random.mtrand.set_bit_generator(before)


def test_a_fetch_puts_back_what_was_seeded_and_drawn_since_the_one_before() -> None:
    for num_gaussians in (0, 1, 2):
        for key in (5, 2**63 + 7):
            seed_generators(key)
            expected = draw()
            np.random.randn(num_gaussians)
            with seeded(3):
                pass
            seed_generators(key)
            with seeded(4):
                draw()
            assert draw() == expected


def test_python_is_seeded_as_by_its_own_function() -> None:
    for key in (0, 1, 2**64 - 1):
        random.gauss(0, 1)
        seed_generators(key)
        state = random.getstate()
        random.seed(key)
        assert random.getstate() == state


def test_disposable_generators_are_not_put_back() -> None:
    """The batch is the same; what the generators hold afterwards is nobody's concern, until the block ends."""

    def drawn() -> tuple[float, float]:
        with seeded(7):
            inside = torch.rand(()).item()
        return inside, torch.rand(()).item()

    torch.manual_seed(3)
    expected, after = drawn()
    torch.manual_seed(3)
    with discard_rng_changes():
        assert drawn()[0] == expected
        assert torch.rand(()).item() != after
    torch.manual_seed(3)
    assert drawn() == (expected, after)


def test_a_moment_sees_generators_that_came_back_to_the_same_position() -> None:
    """624 words later the position is the same and every word another."""
    for _ in range(2):
        seed_generators(11)
        GeneratorSnapshot()
        np.random.random_sample(312), [random.random() for _ in range(312)]
        before = states()
        moment = GeneratorSnapshot()
        draw()
        moment.go_back()
        assert states() == before


def test_half_of_a_pair_of_gaussians_is_kept_wherever_the_generator_was_put() -> None:
    with mtf.MultiLoader({"a": [1, 2, 3, 4]}) as mixture:
        batches = iter(mixture)
        np.random.seed(0)
        np.random.normal()
        moment, expected = GeneratorSnapshot(), np.random.normal()
        next(batches)  # looks at the generator: the same words, and no half
        moment.go_back()
        next(batches)
        assert np.random.normal() == expected


@pytest.mark.parametrize("seed", [0, 42, 2**32, 2**64 - 1])
def test_seed_everything(seed: int) -> None:
    drawn = []
    for _ in range(2):
        mtf.seed_everything(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert torch.manual_seed(seed).initial_seed() == seed
    assert drawn[0][0] == torch.rand(()).item()
    mtf.seed_everything(seed ^ 2**40)
    assert all(a != b for a, b in zip(drawn[0][1:], draw()[1:], strict=True)), "torch's takes its low 32 bits only"


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None, True])
def test_seed_everything_refuses_other_seeds(seed: Any) -> None:
    with pytest.raises(mtf.ConfigError, match="seed must be an integer in"):
        mtf.seed_everything(seed)


def test_ctrl_c_keeps_no_generator_from_being_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before, seed = states(), BatchSeed()
    seed.enter(1)
    draw()
    with monkeypatch.context() as patch:
        patch.setattr(generators, "end_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            seed.exit()
    assert states() == before
    own = np.random.mtrand.get_bit_generator()
    BatchSeed().enter(2)  # Ctrl-C where its exit would begin
    with seeded(3):
        draw()
    assert np.random.mtrand.get_bit_generator() is own
