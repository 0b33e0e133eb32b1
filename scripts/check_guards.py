"""Takes the guards of the promises out, one after the other, and sees the tests that prove the promises fail.

    python scripts/check_guards.py            # all of them: some minutes
    python scripts/check_guards.py --list
    python scripts/check_guards.py seal kill  # those whose names contain one of the words

Works in a copy of the tree, `build/guards/tree`; yours isn't touched. The C++ part is built there. A guard that nothing
misses, or whose text isn't in its file any more, is a failure: exit code 1. `docs/guarantees.md` shows the same list.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "guards" / "tree"


class Guard(NamedTuple):
    """A piece of code that a promise hangs on.

    Attributes:
        name: for the command line.
        file: where it is.
        text: the guard, exactly once in the file; the page shows the name.
        without: what stands there when it is taken out.
        test: file::test that must then fail; for C++ file::Suite.Name.
    """

    name: str
    file: str
    text: str
    without: str
    test: str


_MANIFEST = "python/mtf/checkpoint/format/manifest.py"
_SOURCE_SET = "python/mtf/data/source_set.py"
_ENGINE = "src/mtf/prefetch/engine.cpp"
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
        "python/mtf/data/agreed_lengths.py",
        'require_equal("the schedule", fields, collectives.largest, collectives.gather)',
        "pass",
        "tests/distributed/test_exact.py::test_ranks_that_differ_are_named_with_the_field",
    ),
    Guard(
        "chunks of a call",
        "src/mtf/schedule/patterns/rotation.cpp",
        "order.subspan(position.rank, before_wrap)",
        "order.first(before_wrap)",
        "tests/cpp/schedule/test_rotation.cpp::RoundRobin.ChunksAgreeWithAndWithoutLimits",
    ),
    Guard(
        "order of requests",
        _ENGINE,
        "queues_[task->source].fifo.push_back(task);",
        "queues_[task->source].fifo.push_front(task);",
        f"{_ENGINE_TESTS}::WithThreads.GivesEachSourceItsBatchesInOrder",
    ),
    Guard(
        "state of a source",
        _SOURCE_SET,
        "reader.snapshot = prepared.snapshots.get(name)",
        "pass",
        f"{_LOADER_TESTS}::TestState::test_resume_anywhere_in_three_epochs",
    ),
    Guard(
        "part of a rank",
        "src/mtf/sampling/shard.hpp",
        "const std::uint64_t begin = rank * share + std::min(rank, num_greater);",
        "const std::uint64_t begin = rank * share;",
        "tests/cpp/sampling/test_sampler.cpp::Sampler.GlobalOrderDoesNotDependOnTheNumberOfRanks",
    ),
    Guard(
        "position with other loaders",
        "python/mtf/trainer/data_setup.py",
        "self.multi = self._make(new)\n            self.multi.load_state_dict(state)",
        "self.multi = self._make(new)",
        "tests/python/trainer/test_trainer_machine.py::test_any_sequence_ends_where_one_run_ends",
    ),
    Guard(
        "state of an optimizer",
        "python/mtf/trainer/state/components.py",
        '_load_optimizer(optimizer, self._placed(optimizer, entry["state"]))',
        "pass",
        "tests/python/trainer/test_trainer_saving.py::test_resume_from_every_kind_of_boundary",
    ),
    Guard(
        "state from before the first fit",
        "python/mtf/trainer/data_setup.py",
        "self.drop()",
        "pass",
        "tests/python/trainer/test_trainer_machine.py::test_a_state_from_before_the_first_fit_goes_back_to_the_start",
    ),
    Guard(
        "file digest",
        "python/mtf/checkpoint/format/hashing.py",
        'if self._digest.hexdigest() != expected["sha256"]:',
        "if False:",
        f"{_DAMAGE}::test_one_flipped_bit_anywhere_is_found",
    ),
    Guard(
        "manifest seal",
        _MANIFEST,
        "or stated != actual:",
        "or False:",
        f"{_DAMAGE}::test_one_flipped_bit_anywhere_is_found",
    ),
    Guard(
        "file names",
        _MANIFEST,
        "or not all(_COMPONENT.fullmatch(part) for part in parts)",
        "",
        "tests/python/checkpoint/test_checkpoint_layout.py::test_names_that_lead_elsewhere",
    ),
    Guard(
        "kill while replacing",
        "python/mtf/checkpoint/storage/local.py",
        "os.rename(target, old)",
        "os.rename(target, old); shutil.rmtree(old); old.mkdir()",
        "tests/faults/test_checkpoint_kills.py::test_kill_while_one_is_replaced_without_exchange",
    ),
    Guard(
        "fresh start",
        "python/mtf/checkpoint/discovery.py",
        "if result is None and candidates:",
        "if False:",
        f"{_MANAGER_TESTS}::test_checkpoints_of_which_none_is_valid_are_an_error",
    ),
    Guard(
        "best is kept",
        "python/mtf/checkpoint/manager.py",
        "kept.add(best_one.name)",
        "pass",
        f"{_MANAGER_TESTS}::test_rotation_keeps_the_newest_and_the_best",
    ),
    Guard(
        "directory lock",
        "python/mtf/checkpoint/storage/lock.py",
        "self._refuse_if_taken(owner)",
        "pass",
        f"{_MANAGER_TESTS}::test_two_processes",
    ),
    Guard(
        "save of a bad loss",
        "python/mtf/trainer/parts.py",
        "self.nonfinite.window_is_finite()  # a loss that isn't finite is never saved",
        "pass",
        "tests/python/trainer/test_trainer_saving.py::test_a_loss_that_is_not_finite_is_never_saved",
    ),
    Guard(
        "committed positions",
        _SOURCE_SET,
        "if is_committed:\n            snapshots: ",
        "if False:\n            snapshots: ",
        f"{_LOADER_TESTS}::TestState::test_only_committed_batches_are_state",
    ),
    Guard(
        "fork",
        "python/mtf/data/delivery.py",
        "if os.getpid() != self._pid:",
        "if False:",
        f"{_LOADER_TESTS}::TestCleanEnds::test_a_forked_child_is_told",
    ),
    Guard(
        "position after a failure",
        "python/mtf/data/prefetch/source_reader.py",
        "self.close()  # nobody knows where the loader stands, or whether its workers live",
        "self.discard()",
        f"{_LOADER_FAULTS}::test_it_is_named_and_mended_the_run_goes_on",
    ),
    Guard(
        "death of a worker",
        "python/mtf/data/workers/supervision.py",
        "if iterator._worker_pids_set:",
        "if False:",
        f"{_LOADER_FAULTS}::test_a_workers_death_does_not_tear_an_update_apart",
    ),
    Guard(
        "malformed state",
        "python/mtf/trainer/state/registry.py",
        "for name, saved in before.items():",
        "for name, saved in ():",
        "tests/faults/test_hostile_resume.py::test_states_with_a_forged_member_are_refused_whole_or_go_on",
    ),
    Guard(
        "marker",
        "python/mtf/trainer/preemption.py",
        "except OSError as error:  # not the run's end",
        "except ZeroDivisionError as error:",
        "tests/faults/test_directory_lost.py::test_a_marker_that_cannot_be_written_does_not_change_how_the_run_leaves",
    ),
    Guard(
        "report of a rank",
        "python/mtf/distributed/ranks.py",
        "if is_own:\n            group.monitor.report(error, where())",
        "if is_own:",
        f"{_RANK_FAULTS}::test_a_loader_that_raises_on_one_rank_is_named_on_all",
    ),
    Guard(
        "weights of rank 0",
        "python/mtf/distributed/fsdp.py",
        "dist.broadcast(tensor.data, src=0)",
        "pass",
        f"{_RANK_FAULTS}::test_a_rank_that_is_slow_and_began_with_other_weights_changes_nothing",
    ),
    Guard(
        "position of a batch",
        "python/mtf/data/prefetch/source_reader.py",
        "if stream is None or batch != self._batch or pass_ != self._pass:",
        "if stream is None:",
        f"{_LOADER_TESTS}::TestOrder::test_it_follows_the_schedule",
    ),
    Guard(
        "global batch",
        _SOURCE_SET,
        "if here is None or there is None or here == there:",
        "if True:",
        "tests/python/distributed/test_ranks.py::test_another_global_batch_is_refused_with_the_way_out",
    ),
    Guard(
        "trainer that can't resume",
        "python/mtf/trainer/fitting.py",
        "            data.undo_open()\n        raise",
        "            pass\n        raise",
        "tests/python/trainer/test_trainer_requests.py::test_a_checkpoint_of_another_run_is_refused_by_name",
    ),
    Guard(
        "limit in the main thread",
        "python/mtf/data/workers/fetch_timeout.py",
        "if threading.get_ident() != threading.main_thread().ident:",
        "if False:",
        f"{_LOADER_FAULTS}::test_a_fetch_in_another_thread_is_not_limited_and_disturbs_nobody",
    ),
    Guard(
        "place of an error",
        "python/mtf/data/batch.py",
        'return kind(f"{place}: {text}")',
        "return kind(text)",
        f"{_TORCH_TESTS}::test_an_exception_names_loader_pass_batch_and_step",
    ),
    Guard(
        "seed of a batch",
        "python/mtf/data/rng/generators.py",
        "seed_generators(key)",
        "pass",
        f"{_TORCH_TESTS}::test_workers_change_nothing",
    ),
    Guard(
        "generators of the process",
        "python/mtf/data/rng/generators.py",
        "if self._restores:\n                self._put_back()",
        "if False:\n                self._put_back()",
        f"{_TORCH_TESTS}::test_process_wide_generators_are_untouched",
    ),
    Guard(
        "length of a window",
        "python/mtf/trainer/step.py",
        "return self._weights.get(name, 1.0) / length",
        "return self._weights.get(name, 1.0)",
        f"{_GRADIENT_TESTS}::test_a_window_divides_each_loss_by_its_true_length",
    ),
    Guard(
        "cleared gradients",
        "python/mtf/trainer/step.py",
        "self.optimizers.clear()\n        self.schedulers.after_update",
        "self.schedulers.after_update",
        f"{_GRADIENT_TESTS}::test_nothing_leaks_between_windows_of_different_loaders",
    ),
    Guard(
        "random numbers of a step",
        "python/mtf/trainer/rng.py",
        "self._seed(_core.fold_in(key, self._rank) if self._rank else key)",
        "pass",
        "tests/python/trainer/test_trainer_fit.py::test_saved_random_numbers_go_on_and_derived_ones_do_not_care",
    ),
    Guard(
        "mode after validation",
        "python/mtf/trainer/evaluation/validator.py",
        "module.training = mode",
        "pass",
        "tests/python/trainer/test_trainer_validation.py::test_mode_of_every_module_and_random_numbers_come_back",
    ),
    Guard(
        "bad loss",
        "python/mtf/trainer/optimization/nonfinite.py",
        'if self.policy == "raise":',
        "if False:",
        "tests/python/trainer/test_trainer_fit.py::test_nonfinite_losses",
    ),
    Guard(
        "second signal",
        "python/mtf/trainer/preemption.py",
        "            self._exit_at_once(received)",
        "            pass",
        "tests/python/trainer/test_preemption.py::test_a_second_signal_exits_at_once",
    ),
    Guard(
        "checksum of a state",
        "src/mtf/state/codec.cpp",
        "if (Reader(bytes.last(kChecksumBytes)).fixed(4) != crc32c(summed)) {",
        "if (false) {",
        "tests/cpp/state/test_codec.cpp::Codec.EveryFlippedBitAndEveryTruncationIsFound",
    ),
    Guard(
        "counts in a state",
        "src/mtf/state/codec.cpp",
        "if (value > left() / bytes_each) {",
        "if (false) {",
        "tests/cpp/state/test_codec.cpp::Codec.SaysWhatIsWrong",
    ),
    Guard(
        "rounding in EVEN",
        "src/mtf/schedule/patterns/even_build.cpp",
        "const std::uint64_t middle = (weight - 1) / 2;",
        "const std::uint64_t middle = 0;",
        "tests/cpp/schedule/test_weighted_even.cpp::WeightedEven.StaysWithinItsCertificate",
    ),
    Guard(
        "walk into the domain",
        "src/mtf/random/permutation.cpp",
        "while (image >= size_) {\n    image = encrypt(image);",
        "if (image >= size_) {\n    image = encrypt(image) % size_;",
        "tests/cpp/random/test_permutation.cpp::Permutation.HugeDomainsStayInsideAndInjective",
    ),
    Guard(
        "rejection",
        "src/mtf/random/key.hpp",
        "while (static_cast<std::uint64_t>(product) < threshold) {",
        "while (false) {",
        "tests/cpp/random/test_key.cpp::Stream.BoundedDrawsRejectWhatWouldBeBiased",
    ),
    Guard(
        "one thread per serial source",
        "src/mtf/prefetch/task_queue.hpp",
        "return num_running == 0 || source->is_concurrent();",
        "return true;",
        f"{_ENGINE_TESTS}::WithThreads.ServesASerialSourceOneAtATimeInItsOrder",
    ),
    Guard(
        "budget in bytes",
        "src/mtf/prefetch/budget.cpp",
        "return bytes_held_ + expected_bytes(queue) <= max_bytes_;",
        "return true;",
        f"{_ENGINE_TESTS}::WithThreads.HoldsAtMostTheBudgetAndOneBatch",
    ),
    Guard(
        "what is waited for",
        _ENGINE,
        "if (urgent_ != nullptr && queues_[urgent_->source].may_begin()) {",
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


def is_missed(guard: Guard) -> bool:
    """Takes the guard out of the copy, runs its test, and puts it back."""
    path = COPY / guard.file
    text = path.read_text(encoding="utf-8")
    if text.count(guard.text) != 1:
        print(f"{guard.name}: {guard.file} has {guard.text!r} {text.count(guard.text)} times, not once")
        return False
    start = time.monotonic()
    path.write_text(text.replace(guard.text, guard.without), encoding="utf-8")
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
        for guard in chosen:
            print(f"{guard.name}: {guard.file}: {guard.test}")
        return 0
    copy_tree()
    results = [is_missed(guard) for guard in chosen]
    print(f"{sum(results)} of {len(results)} guards are missed when they are gone")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
