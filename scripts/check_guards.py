"""Takes the guards of the promises out, one after the other, and sees the tests that prove the promises fail.

    python scripts/check_guards.py            # all of them: some minutes
    python scripts/check_guards.py --list
    python scripts/check_guards.py seal kill  # those whose names contain one of the words

A guard is found by a comment in the source, `guard: NAME`, on the line above it. Works in a copy of the tree,
`build/guards/tree`; yours isn't touched. The C++ part is built there. A guard that no test misses, or that
isn't found, is a failure: exit code 1. `docs/guarantees.md` shows the same list.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "guards" / "tree"
_MARKER = re.compile(r"^[ ]*(?:#|//) guard: (.+)$", re.MULTILINE)


class Guard(NamedTuple):
    """A piece of code that a promise hangs on. In the source, a comment ``guard: NAME`` stands above it.

    Attributes:
        name: in the comment, on the command line and on the page.
        without: what stands there when it is taken out; its lines are indented as the comment is.
        test: file::test that must then fail; for C++ file::Suite.Name.
        num_lines: lines that are taken out.
    """

    name: str
    without: str
    test: str
    num_lines: int = 1


_DAMAGE = "tests/faults/test_checkpoint_damage.py"
_LOADER_FAULTS = "tests/faults/test_loader_faults.py"
_RANK_FAULTS = "tests/distributed/test_faults.py"
_MANAGER_TESTS = "tests/python/checkpoint/test_checkpoint_manager.py"
_LOADER_TESTS = "tests/python/data/test_multi_loader.py"
_TORCH_TESTS = "tests/python/data/test_torch_map.py"
_GRADIENT_TESTS = "tests/python/trainer/test_trainer_gradients.py"
_ENGINE_TESTS = "tests/cpp/prefetch/test_prefetcher.cpp"

GUARDS = [
    Guard(
        "same schedule on all ranks",
        "pass",
        "tests/distributed/test_exact.py::test_ranks_that_differ_are_named_with_the_field",
    ),
    Guard(
        "chunks of a call",
        "std::ranges::copy(order.first(before_wrap), out.begin());",
        "tests/cpp/schedule/test_rotation.cpp::RoundRobin.ChunksAgreeWithAndWithoutLimits",
    ),
    Guard(
        "order of requests",
        "queues_[task->source].fifo.push_front(task);",
        f"{_ENGINE_TESTS}::WithThreads.GivesEachSourceItsBatchesInOrder",
    ),
    Guard("state of a source", "pass", f"{_LOADER_TESTS}::TestState::test_resume_anywhere_in_three_epochs"),
    Guard(
        "part of a rank",
        "const std::uint64_t begin = rank * share;",
        "tests/cpp/sampling/test_sampler.cpp::Sampler.GlobalOrderDoesNotDependOnTheNumberOfRanks",
    ),
    Guard(
        "position with other loaders",
        "pass",
        "tests/python/trainer/test_trainer_machine.py::test_any_sequence_ends_where_one_run_ends",
    ),
    Guard(
        "state of an optimizer",
        "pass",
        "tests/python/trainer/test_trainer_saving.py::test_resume_from_every_kind_of_boundary",
    ),
    Guard(
        "state from before the first fit",
        "pass",
        "tests/python/trainer/test_trainer_machine.py::test_a_state_from_before_the_first_fit_goes_back_to_the_start",
    ),
    Guard("file digest", "if False:", f"{_DAMAGE}::test_one_flipped_bit_anywhere_is_found"),
    Guard(
        "manifest seal", "if not raw.startswith(_SEAL_PREFIX):", f"{_DAMAGE}::test_one_flipped_bit_anywhere_is_found"
    ),
    Guard("file names", "", "tests/python/checkpoint/test_checkpoint_layout.py::test_names_that_lead_elsewhere"),
    Guard(
        "kill while replacing",
        "os.rename(target, old); shutil.rmtree(old); old.mkdir()",
        "tests/faults/test_checkpoint_kills.py::test_kill_while_one_is_replaced_without_exchange",
    ),
    Guard("fresh start", "if False:", f"{_MANAGER_TESTS}::test_checkpoints_of_which_none_is_valid_are_an_error"),
    Guard("best is kept", "pass", f"{_MANAGER_TESTS}::test_rotation_keeps_the_newest_and_the_best"),
    Guard("directory lock", "pass", f"{_MANAGER_TESTS}::test_two_processes"),
    Guard(
        "save of a bad loss",
        "pass",
        "tests/python/trainer/test_trainer_saving.py::test_a_loss_that_is_not_finite_is_never_saved",
    ),
    Guard("committed positions", "if False:", f"{_LOADER_TESTS}::TestState::test_only_committed_batches_are_state"),
    Guard("fork", "if False:", f"{_LOADER_TESTS}::TestCleanEnds::test_a_forked_child_is_told"),
    Guard("position after a failure", "pass", f"{_LOADER_FAULTS}::test_it_is_named_and_mended_the_run_goes_on"),
    Guard("death of a worker", "if False:", f"{_LOADER_FAULTS}::test_a_workers_death_does_not_tear_an_update_apart"),
    Guard(
        "malformed state",
        "for name, saved in ():",
        "tests/faults/test_hostile_resume.py::test_states_with_a_forged_member_are_refused_whole_or_go_on",
    ),
    Guard(
        "marker",
        "except ZeroDivisionError as error:",
        "tests/faults/test_directory_lost.py::test_a_marker_that_cannot_be_written_does_not_change_how_the_run_leaves",
    ),
    Guard("report of a rank", "pass", f"{_RANK_FAULTS}::test_a_loader_that_raises_on_one_rank_is_named_on_all"),
    Guard(
        "weights of rank 0",
        "pass",
        f"{_RANK_FAULTS}::test_a_rank_that_is_slow_and_began_with_other_weights_changes_nothing",
    ),
    Guard("position of a batch", "if stream is None:", f"{_LOADER_TESTS}::TestOrder::test_it_follows_the_schedule"),
    Guard(
        "global batch",
        "if True:",
        "tests/python/distributed/test_ranks.py::test_another_global_batch_is_refused_with_the_way_out",
    ),
    Guard(
        "trainer that can't resume",
        "pass",
        "tests/python/trainer/test_trainer_requests.py::test_a_checkpoint_of_another_run_is_refused_by_name",
    ),
    Guard(
        "limit in the main thread",
        "if False:",
        f"{_LOADER_FAULTS}::test_a_fetch_in_another_thread_is_not_limited_and_disturbs_nobody",
    ),
    Guard(
        "place of an error", "return kind(text)", f"{_TORCH_TESTS}::test_an_exception_names_loader_pass_batch_and_step"
    ),
    Guard("seed of a batch", "pass", f"{_TORCH_TESTS}::test_workers_change_nothing"),
    Guard("seed of a fetch", "pass", "tests/python/data/test_generators.py::test_a_fetch_in_a_worker_draws_the_same"),
    Guard("generators of the process", "if False:", f"{_TORCH_TESTS}::test_process_wide_generators_are_untouched"),
    Guard(
        "length of a window",
        "return self._weights.get(name, 1.0)",
        f"{_GRADIENT_TESTS}::test_a_window_divides_each_loss_by_its_true_length",
    ),
    Guard("cleared gradients", "pass", f"{_GRADIENT_TESTS}::test_nothing_leaks_between_windows_of_different_loaders"),
    Guard(
        "random numbers of a step",
        "pass",
        "tests/python/trainer/test_trainer_fit.py::test_saved_random_numbers_go_on_and_derived_ones_do_not_care",
    ),
    Guard(
        "mode after validation",
        "pass",
        "tests/python/trainer/test_trainer_validation.py::test_mode_of_every_module_and_random_numbers_come_back",
    ),
    Guard("bad loss", "if False:", "tests/python/trainer/test_trainer_fit.py::test_nonfinite_losses"),
    Guard(
        "second signal",
        "pass",
        "tests/python/trainer/test_preemption.py::test_a_second_signal_exits_at_once",
    ),
    Guard(
        "checksum of a state",
        "if (false) {",
        "tests/cpp/state/test_codec.cpp::Codec.EveryFlippedBitAndEveryTruncationIsFound",
    ),
    Guard("counts in a state", "if (false) {", "tests/cpp/state/test_codec.cpp::Codec.SaysWhatIsWrong"),
    Guard(
        "rounding in EVEN",
        "const std::uint64_t middle = 0;",
        "tests/cpp/schedule/test_weighted_even.cpp::WeightedEven.StaysWithinItsCertificate",
    ),
    Guard(
        "walk into the domain",
        "if (image >= size_) {\n  image = encrypt(image) % size_;",
        "tests/cpp/random/test_permutation.cpp::Permutation.HugeDomainsStayInsideAndInjective",
        2,
    ),
    Guard("rejection", "while (false) {", "tests/cpp/random/test_key.cpp::Stream.BoundedDrawsRejectWhatWouldBeBiased"),
    Guard(
        "one thread per serial source",
        "[[nodiscard]] bool may_begin() const noexcept { return true; }",
        f"{_ENGINE_TESTS}::WithThreads.ServesASerialSourceOneAtATimeInItsOrder",
    ),
    Guard("budget in bytes", "return true;", f"{_ENGINE_TESTS}::WithThreads.HoldsAtMostTheBudgetAndOneBatch"),
    Guard(
        "what is waited for",
        "if (false) {",
        f"{_ENGINE_TESTS}::WithThreads.FetchesABlockingBatchBeyondTheBudgetWhenItIsAskedFor",
    ),
]


def copy_tree() -> None:
    """What git knows or would know, and the module built in place."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, COPY / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    sys.path.insert(0, str(ROOT / "python"))
    from mtf import _core

    module = Path(_core.__file__)
    shutil.copy2(module, COPY / "python" / "mtf" / module.name)
    # An editable installation would lead `import mtf` past PYTHONPATH, back to this tree.
    (COPY / "python" / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildRedirectingFinder']\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-c", "import mtf; print(mtf.__file__)"]
    found = subprocess.run(command, cwd=COPY, env=environment(), check=True, capture_output=True, text=True).stdout
    if not Path(found.strip()).is_relative_to(COPY):
        raise SystemExit(f"mtf is imported from {found.strip()}, not from the copy: uninstall it in this environment")


def environment() -> dict[str, str]:
    """For Python in the copy."""
    return {**os.environ, "PYTHONPATH": str(COPY / "python")}


def run_test(test: str) -> tuple[bool, str]:
    """Whether the test passes in the copy, and its output."""
    file, name = test.split("::", 1)
    if not file.startswith("tests/cpp/"):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
        done = subprocess.run(command, cwd=COPY, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{test} can't be run:\n{done.stdout}{done.stderr}")
        return done.returncode == 0, done.stdout + done.stderr
    target = f"mtf_test_{file.split('/')[2]}"
    for command in (["cmake", "--preset", "dev"], ["cmake", "--build", "--preset", "dev", "--target", target]):
        built = subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=False)
        if built.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{built.stdout}{built.stderr}")
    command = [str(COPY / "build" / "dev" / "tests" / "cpp" / target), f"--gtest_filter={name}:*/{name}/*"]
    try:
        done = subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return False, "no end after 120 s"
    return done.returncode == 0, done.stdout


def markers() -> dict[str, list[Path]]:
    """The files in which each guard's comment stands."""
    found: dict[str, list[Path]] = {}
    for area in ("src", "csrc", "python"):
        for path in sorted((ROOT / area).rglob("*.*")):
            if path.suffix in (".py", ".cpp", ".hpp"):
                for name in _MARKER.findall(path.read_text(encoding="utf-8")):
                    found.setdefault(name, []).append(path.relative_to(ROOT))
    return found


def taken_out(guard: Guard, text: str) -> str:
    """A file's text without the guard."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if (found := _MARKER.fullmatch(line)) and found[1] == guard.name)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    instead = [indent + line for line in guard.without.split("\n") if line]
    return "\n".join([*lines[:at], *instead, *lines[at + 1 + guard.num_lines :]])


def is_missed(guard: Guard) -> bool:
    """Takes the guard out of the copy, runs its test, and puts it back."""
    places = markers().get(guard.name, [])
    if len(places) != 1:
        print(f"{guard.name}: the comment 'guard: {guard.name}' stands {len(places)} times in the source, not once")
        return False
    path = COPY / places[0]
    text = path.read_text(encoding="utf-8")
    start = time.monotonic()
    path.write_text(taken_out(guard, text), encoding="utf-8")
    try:
        passed, _ = run_test(guard.test)
    finally:
        path.write_text(text, encoding="utf-8")
    verdict = "NOT MISSED" if passed else "missed"
    print(f"{guard.name}: {verdict} by {guard.test} ({time.monotonic() - start:.0f} s)", flush=True)
    return not passed


def main() -> int:
    """Returns 1 if a guard isn't missed by its test."""
    parser = argparse.ArgumentParser(description="Take guards out and see their tests fail.")
    parser.add_argument("words", nargs="*", help="only guards whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="only list them")
    arguments = parser.parse_args()
    chosen = [g for g in GUARDS if not arguments.words or any(word in g.name for word in arguments.words)]
    if arguments.list:
        places = markers()
        for guard in chosen:
            print(f"{guard.name}: {', '.join(map(str, places.get(guard.name, [])))}: {guard.test}")
        return 0
    copy_tree()
    results = [is_missed(guard) for guard in chosen]
    print(f"{sum(results)} of {len(results)} guards are missed when they are gone")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
