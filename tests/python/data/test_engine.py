"""The prefetch engine from Python: its order, its budget, and that it ends cleanly whatever happens."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mtf import _core
from mtf.data.prefetch.engine import Engine
from mtf.errors import Closed, ConfigError, FetchTimeout

pytestmark = pytest.mark.timeout(60)


def source(fetch: Callable[[int, int], Any], num_bytes: int = 0, *, concurrent: bool = True) -> _core.CallableSource:
    return _core.CallableSource(fetch, lambda _: num_bytes, concurrent=concurrent)


def request(engine: Engine, draws: list[tuple[int, int]], pass_: int = 0) -> None:
    engine.request([number for number, _ in draws], [pass_] * len(draws), [batch for _, batch in draws])


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def num_threads_alive() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = num_threads_alive()
    yield
    wait_until(lambda: num_threads_alive() <= before)


# Order, budget, exceptions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_each_source_gives_its_batches_in_order(num_threads: int) -> None:
    order = np.random.default_rng(num_threads).integers(0, 3, size=300).tolist()
    counts = [0, 0, 0]
    draws = []
    for number in order:
        draws.append((number, counts[number]))
        counts[number] += 1

    def fetch_of(number: int) -> Callable[[int, int], Any]:
        def fetch(pass_: int, batch: int) -> Any:
            if batch % 7 == number:
                time.sleep(0.001)
            return number, pass_, batch

        return fetch

    natives = [source(fetch_of(number), concurrent=number != 1) for number in range(3)]
    with Engine(natives, num_threads, max_batches=5) as engine:
        for start in range(0, 300, 60):
            request(engine, draws[start : start + 60], pass_=4)
            for number, batch in draws[start : start + 60]:
                assert engine.take(number) == (number, 4, batch)
        stats = engine.stats()
    assert stats["num_taken"] == sum(stats["source_num_taken"]) == 300
    assert stats["peak_batches_held"] <= 6
    if num_threads == 0:
        assert stats["num_in_caller"] == 300


@pytest.mark.parametrize("num_threads", [1, 6])
def test_at_most_the_budget_and_one_batch_are_held(num_threads: int) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Data:
        pass

    def fetch(pass_: int, batch: int) -> Any:
        nonlocal most
        data = Data()
        alive.add(data)
        most = max(most, len(alive))
        return data

    with Engine([source(fetch, 100) for _ in range(8)], num_threads, max_batches=50, max_bytes=1000) as engine:
        draws = [(number, batch) for batch in range(40) for number in range(8)]
        request(engine, draws)
        wait_until(lambda: engine.stats()["bytes_held"] == 1000)
        for number, _ in draws:
            engine.take(number)
        stats = engine.stats()
    assert 1000 <= stats["peak_bytes_held"] <= 1100
    assert stats["peak_batches_held"] <= 11
    # A batch just taken is still alive while the next one is taken; each thread may be about to hand over one.
    assert most <= 12 + num_threads


def test_a_batch_beyond_the_budget_comes_when_it_is_asked_for() -> None:
    fetched: list[int] = []

    def fetch(pass_: int, batch: int) -> int:
        fetched.append(batch)
        return batch

    with Engine([source(fetch, 700)], 2, max_batches=8, max_bytes=500) as engine:
        request(engine, [(0, batch) for batch in range(6)])
        assert [engine.take(0) for _ in range(2)] == [0, 1]
        time.sleep(0.05)
        assert len(fetched) <= 3
        assert [engine.take(0) for _ in range(4)] == [2, 3, 4, 5]


class Odd(BaseException):
    """No Exception."""


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Odd])
def test_exceptions_come_at_their_step_with_their_traceback(num_threads: int, kind: type[BaseException]) -> None:
    def deep_inside() -> None:
        raise kind("row 3 is bad")

    def fetch(pass_: int, batch: int) -> int:
        if batch == 3:
            deep_inside()
        return batch

    with Engine([source(fetch)], num_threads, max_batches=8) as engine:
        request(engine, [(0, batch) for batch in range(6)])
        assert [engine.take(0) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(kind, match="row 3 is bad") as raised:
            engine.take(0)
        assert "deep_inside" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert [engine.take(0) for _ in range(2)] == [4, 5]


def test_what_is_forgotten_is_released() -> None:
    class Data:
        pass

    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def fetch(pass_: int, batch: int) -> Any:
        if batch % 3 == 2:
            raise ValueError(batch)
        data = Data()
        alive.add(data)
        return data

    with Engine([source(fetch), source(fetch)], 2, max_batches=6) as engine:
        for forget in (lambda: engine.discard(0), engine.reset, engine.close):
            request(engine, [(0, 0), (0, 1), (0, 2), (0, 3)])
            wait_until(lambda: engine.stats()["num_ready"] == 4)
            assert len(alive) == 3
            forget()
            gc.collect()
            assert len(alive) == 0


def test_engine_and_sources_are_released_without_close() -> None:
    class Fetch:
        def __call__(self, pass_: int, batch: int) -> int:
            return batch

    fetch = Fetch()
    released = weakref.ref(fetch)
    engine = Engine([source(fetch)], 2)
    request(engine, [(0, batch) for batch in range(5)])
    engine.take(0)
    del engine, fetch
    gc.collect()
    assert released() is None


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_batches"):
        Engine([], 1, max_batches=0)
    with Engine([source(lambda pass_, batch: batch)], 1) as engine:
        with pytest.raises(ConfigError, match="no batch of source 0 is requested"):
            engine.take(0)
        with pytest.raises(ConfigError, match="equally long"):
            engine.request([0, 0], [0], [0])
        with pytest.raises(ConfigError, match="position 1 must name a source"):
            request(engine, [(0, 0), (1, 0)])
        assert engine.stats()["num_queued"] == 0
    with pytest.raises(Closed):
        request(engine, [(0, 0)])


# Waiting --------------------------------------------------------------------------------------------------------------


def test_other_threads_run_while_the_consumer_waits() -> None:
    go = threading.Event()
    with Engine([source(lambda pass_, batch: go.wait(20))], 1) as engine:
        request(engine, [(0, 0)])
        threading.Timer(0.05, go.set).start()
        assert engine.take(0) is True


def test_a_wait_can_be_limited_and_goes_on() -> None:
    go = threading.Event()
    with Engine([source(lambda pass_, batch: go.wait(20))], 1) as engine:
        request(engine, [(0, 0)])
        with pytest.raises(FetchTimeout, match="source 0"):
            engine.take(0, timeout_s=0.02)
        go.set()
        assert engine.take(0, timeout_s=20) is True


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.12])
def test_ctrl_c_ends_the_wait(after_s: float) -> None:
    go = threading.Event()
    with Engine([source(lambda pass_, batch: go.wait(20))], 2) as engine:
        request(engine, [(0, 0), (0, 1)])
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal may come before the wait begins
            threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)).start()
            engine.take(0)
        assert time.monotonic() - begin < 15  # the fetch would take 20
        go.set()
        assert engine.take(0) is True  # nothing is lost by it


@pytest.mark.parametrize("num_threads", [1, 3])
def test_close_wakes_a_blocked_consumer(num_threads: int) -> None:
    go = threading.Event()
    engine = Engine([source(lambda pass_, batch: go.wait(20))], num_threads)
    request(engine, [(0, 0), (0, 1)])

    def close() -> None:
        go.set()
        engine.close()

    def close_late() -> None:
        time.sleep(0.05)
        engine._core.close(0.0)  # while the fetch still runs

    closer = threading.Thread(target=close_late)
    closer.start()
    with pytest.raises(Closed):
        engine.take(0)
    closer.join()
    close()
    engine.close()


def test_close_gives_up_a_fetch_that_never_ends() -> None:
    go = threading.Event()
    engine = Engine([source(lambda pass_, batch: go.wait(20))], 1)
    request(engine, [(0, 0)])
    wait_until(lambda: engine.stats()["num_running"] == 1)
    assert not engine._core.close(0.05)
    go.set()
    assert engine._core.close(10.0)


def test_iterators_left_behind_leave_no_thread() -> None:
    mtf = pytest.importorskip("mtf")
    torch = pytest.importorskip("torch")
    loader = mtf.ArrayLoader(torch.arange(1000), 4, shuffle=True, num_threads=2)
    before = num_threads_alive()
    for _ in range(100):
        iterator = iter(loader)
        next(iterator)
        del iterator
    wait_until(lambda: num_threads_alive() <= before + 2)


# Fork and the end of the interpreter ----------------------------------------------------------------------------------


def run_script(code: str, *, first: str = "", timeout: float = 30) -> subprocess.CompletedProcess[str]:
    prelude = """
        import os, sys, threading, time
        from mtf import _core
        from mtf.data.prefetch.engine import Engine
        from mtf.errors import Closed

        def busy(pass_, batch):
            if batch % 3 == 0:
                time.sleep(0.002)
            return bytes(1000)

        def make(fetch=busy, num_threads=3):
            engine = Engine([_core.CallableSource(fetch, len) for _ in range(2)], num_threads, max_batches=6)
            engine.request([0, 1] * 200, [0] * 400, [k // 2 for k in range(400)])
            return engine
    """
    code = textwrap.dedent(first) + textwrap.dedent(prelude) + textwrap.dedent(code)
    # From Python 3.12 on a fork among threads is a warning.
    return subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_system_that_gave_no_threads_is_asked_again() -> None:
    done = run_script("""
        import resource
        engine = Engine([_core.CallableSource(busy, len)], 3, max_batches=6)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as pages:
            held = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 20), limits[1]))  # too little for the stack of a thread
        try:
            engine.request([0], [0], [0])
        except RuntimeError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        engine.request([0, 0], [0, 0], [1, 2])
        engine.take(0, timeout_s=20)
        engine.take(0, timeout_s=20)
        print(engine.stats()["num_queued"])
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Resource temporarily unavailable\n0\n", "")


def test_fork_with_a_busy_engine_150_times() -> None:
    done = run_script("""
        engine = make()
        for k in range(150):
            engine.take(k % 2)
            child = os.fork()
            if child == 0:
                code = 1
                for use in (lambda: engine.take(0), lambda: engine.request([0], [0], [0]), engine.stats, engine.reset):
                    try:
                        use()
                        os._exit(2)
                    except Closed as error:
                        code = 7 if "after the fork" in str(error) else 3
                engine.close()
                with make() as own:  # a new one works
                    own.take(0)
                del engine
                os._exit(code)
            assert os.waitpid(child, 0)[1] == 7 << 8, k
        engine.take(0)
        engine.close()
        print("done")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_forked_child_ends_by_itself() -> None:
    done = run_script("""
        engine = make()
        engine.take(0)
        child = os.fork()
        if child == 0:
            sys.exit(9)  # atexit handlers run
        assert os.waitpid(child, 0)[1] == 9 << 8
    """)
    assert (done.returncode, done.stderr) == (0, "")


ENDS: dict[str, tuple[str, int, str]] = {
    "end of the script": ("pass", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "uncaught exception": ("raise ValueError('uncaught')", 1, "ValueError: uncaught"),
    "os._exit": ("os._exit(4)", 4, ""),
    "a thread that still iterates": (
        "threading.Thread(target=lambda: [engine.take(0) for _ in range(150)], daemon=True).start()",
        0,
        "",
    ),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kept", ["global", "cycle", "closed twice"])
def test_the_interpreter_ends_with_live_workers(end: str, kept: str) -> None:
    code, returncode, message = ENDS[end]
    keep = {"global": "", "cycle": "box = [engine]; box.append(box)", "closed twice": "engine.close(); engine.close()"}
    if kept == "closed twice" and "thread" in end:
        pytest.skip("there is nothing to take")
    done = run_script(f"""
        engine = make()
        engine.take(0)
        {keep[kept]}
        {code}
    """)
    assert done.returncode == returncode, done.stderr
    assert (message in done.stderr) if message else (done.stderr == "" or "a thread" in end), done.stderr
    assert "Fatal" not in done.stderr
    assert "terminate" not in done.stderr


@pytest.mark.parametrize("sleep_s", [5.05, 60.0])
def test_the_interpreter_ends_with_a_worker_that_does_not(sleep_s: float) -> None:
    done = run_script(f"""
        engine = make(lambda pass_, batch: time.sleep({sleep_s}))
        time.sleep(0.05)
    """)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("end", ["raise ValueError('late')", "return b'late'"])
def test_the_interpreter_ends_while_fetches_end(end: str) -> None:
    # The first to be registered runs last, when nobody waits for the threads any more.
    done = run_script(
        f"""
        def fetch(pass_, batch):
            while not is_ending:
                time.sleep(0.001)
            {end}

        threads = 200
        engine = Engine([_core.CallableSource(fetch, len)], threads, max_batches=threads)
        engine.request([0] * threads, [0] * threads, list(range(threads)))
        while engine.stats()["num_running"] < threads:
            time.sleep(0.01)
    """,
        first="""
        import atexit, time
        is_ending = False
        def end_all():
            global is_ending
            is_ending = True
            time.sleep(0.001)
        atexit.register(end_all)
    """,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "work",
    [
        "_core.Permutation(10**9, 5).fill(0, 300_000)",
        "schedule.sources()",
        "inline.request([0] * 9, [0] * 9, range(9)); [inline.take(0) for _ in range(9)]",
    ],
)
def test_the_interpreter_ends_while_a_daemon_thread_works_natively(work: str) -> None:
    for _ in range(3):
        done = run_script(f"""
            import mtf
            settings = dict(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=1_000_000)
            schedule = mtf.Schedule(mtf.MultiDataLoaderConfig(sampling_strategy="WEIGHTED", **settings), [5, 9])
            inline = Engine([_core.CallableSource(busy, len)], num_threads=0)

            def forever():
                while True:
                    try:
                        {work}
                    except Closed:
                        return

            threading.Thread(target=forever, daemon=True).start()
            time.sleep(0.02)
        """)
        assert (done.returncode, done.stderr) == (0, "")
