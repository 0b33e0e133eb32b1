"""The compiled core. `make stubs` generates this file from the bindings in csrc/: change it there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

# Shape of one row, DLPack's code and bits, and what makes a tensor of a capsule.
_ColumnSpec: TypeAlias = tuple[Sequence[int], int, int, Callable[[Any], Any]]
# Points (step, weights), interpolation, every how many steps the weights change.
_GivenCurve: TypeAlias = tuple[Sequence[tuple[int, Sequence[float]]], str, int]

class ArrayRows(RowSource):
    """Rows or windows of arrays."""

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        names: Sequence[str],
        dtypes: Sequence[str],
        *,
        shuffle: bool = True,
        windows: tuple[int, int] | None = None,
    ) -> None:
        """`dtypes` are torch's names; `windows` is (length, stride)."""

class ArraySource(NativeSource):
    """Batches of rows of arrays, gathered without the GIL."""

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        dtypes: Sequence[tuple[int, int]],
        importers: Sequence[Callable[[Any], Any]],
        build: Any,
        *,
        batch_size: int,
        key: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        windows: tuple[int, int] | None = None,
        rest: Sequence[int] | None = None,
    ) -> None:
        """`build(tensors, pass_, batch)` makes the batch from its tensors; None: the batch is its only tensor.
        `rest`: (pass, num_samples, first_sample, first_batch) of a pass that began otherwise.
        """

    def share_is_empty(self, batch: int) -> bool:
        """Whether this rank has no row of its own in the batch."""

    @property
    def num_batches(self) -> int: ...

class BatchSizes:
    """Sizes of global batches, which may change at given batches."""

    def __init__(self, stages: Sequence[tuple[int, int]]) -> None:
        """`stages`: (first batch, samples per batch), from batch 0 on."""

    def batch_of(self, position: int) -> int:
        """The batch that a sample belongs to."""

    def size(self, batch: int) -> int:
        """Samples of a batch."""

    def start(self, batch: int) -> int:
        """Samples before a batch."""

    @property
    def largest(self) -> int:
        """The largest size."""

    @property
    def smallest(self) -> int:
        """The smallest size."""

class BlendSource(NativeSource):
    """Batches whose samples come from several sources, gathered without the GIL."""

    def __init__(
        self,
        schedule: Schedule,
        sizes: Sequence[tuple[int, int]],
        parts: Sequence[tuple[RowSource, int] | None],
        columns: Sequence[Sequence[_ColumnSpec]],
        build: Any,
        *,
        batches_per_pass: int,
        rank: int = 0,
        world_size: int = 1,
        by_source: bool = False,
    ) -> None:
        """`build`: None, the batch is its only tensor; a tuple of names, it is a dict; else `build(tensors, pass_,
        batch)` makes it. With `by_source`: `build(stacks, pass_, batch)`, each stack being (source, its tensors).
        """

    def follow(
        self,
        schedule: Schedule,
        parts: Sequence[tuple[RowSource, int] | None],
        columns: Sequence[Sequence[_ColumnSpec]],
    ) -> None:
        """Draws as `schedule` says from now on; batches fetched before are fetched again when they are taken."""

    def samples(self, positions: Sequence[int]) -> list[tuple[int, list[Any]]]:
        """The stacks of the samples at any positions of the run."""

    @property
    def num_taken(self) -> int:
        """One more than the number of the batch taken last; 0 before the first."""

    @num_taken.setter
    def num_taken(self, arg1: int) -> None: ...
    @property
    def version(self) -> int: ...

class CallableSource(NativeSource):
    """A Python function `fetch(pass_, batch)`, called on the prefetcher's threads."""

    def __init__(
        self, fetch: Callable[[int, int], Any], num_bytes: Callable[[Any], int], *, concurrent: bool = True
    ) -> None:
        """`num_bytes(batch)` is what a batch counts against the budget; `concurrent`: several threads may fetch at
        once.
        """

class DocumentIndex:
    """Where the documents of a corpus begin."""

    def __init__(self, offsets: ArrayLike, corpus: TokenCorpus) -> None: ...
    def document_of(self, token: int) -> int:
        """The document that holds a token, which must be one of the corpus."""

    @property
    def num_nonempty(self) -> int: ...

class GrownRows(RowSource):
    """Rows of a source that has grown while a pass of it was under way."""

    def __init__(self, now: RowSource, then: RowSource, pass_: int) -> None:
        """`then`: the rows that there were when pass `pass_` began."""

class MixtureConfig:
    def __init__(
        self,
        *,
        strategy: str,
        order: str,
        weights: Sequence[float],
        pattern: Sequence[int],
        burst: int,
        policy: str,
        steps_per_epoch: int | None,
        cycle: bool,
        continue_across_epochs: bool | None,
        curve: _GivenCurve | None,
    ) -> None: ...
    @property
    def burst(self) -> int: ...
    @property
    def continue_across_epochs(self) -> bool | None: ...
    @property
    def curve(self) -> tuple[list[tuple[int, list[float]]], str, int] | None: ...
    @property
    def cycle(self) -> bool: ...
    @property
    def order(self) -> str: ...
    @property
    def pattern(self) -> list[int]: ...
    @property
    def policy(self) -> str: ...
    @property
    def steps_per_epoch(self) -> int | None: ...
    @property
    def strategy(self) -> str: ...
    @property
    def useless_options(self) -> list[str]: ...
    @property
    def weights(self) -> list[float]: ...

class NativeSource:
    """What the prefetcher's threads fetch from."""

class PackedRows(TokenRows):
    """Documents packed into rows."""

    def __init__(
        self, corpus: TokenCorpus, documents: DocumentIndex, *, length: int, long: str, pad_token: int, shuffle: bool
    ) -> None: ...
    @property
    def stats(self) -> dict[str, int]: ...

class Permutation:
    """A bijection of [0, n) chosen by a key, for any n up to 2^62, in O(1) memory. `permutation[i]` is the image of
    i.
    """

    def __getitem__(self, index: int) -> int:
        """The image of one index."""

    def __init__(self, n: int, key: int) -> None: ...
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def fill(self, start: int, stop: int) -> NDArray[np.int64]:
        """The images of [start, stop): int64, shape (stop - start,)."""

    def inverse(self, image: int) -> int:
        """The index whose image this is."""

class Prefetcher:
    """Fetches the batches of many sources ahead of their use, under one budget."""

    def __init__(
        self, sources: Sequence[NativeSource], num_threads: int, max_batches: int, max_bytes: int | None = None
    ) -> None: ...
    def add_source(self, source: NativeSource) -> int:
        """Returns the new source's number."""

    def close(self, grace_s: float = 5.0) -> bool:
        """Ends the threads; False if one is still inside a fetch after `grace_s` seconds."""

    def discard(self, source: int) -> int:
        """Forgets a source's requested batches; returns how many."""

    def request(self, sources: ArrayLike, passes: ArrayLike, batches: ArrayLike) -> None:
        """Appends draws in the order in which they will be taken."""

    def reset(self) -> None:
        """Forgets every requested batch."""

    def stats(self) -> dict[str, Any]: ...
    def take(self, source: int, timeout_s: float | None = None) -> Any:
        """The oldest requested batch of a source; raises what its fetch raised."""

class RowBatches(NativeSource):
    """Batches of the rows of one source, gathered without the GIL."""

    def __init__(
        self,
        rows: RowSource,
        columns: Sequence[_ColumnSpec],
        *,
        batch_size: int,
        key: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        rest: Sequence[int] | None = None,
    ) -> None:
        """A batch is a dict of the fields' tensors, and of `cu_seqlens` where a field counts positions. `rest`:
        (pass, num_samples, first_sample, first_batch) of a pass that began with another batch size.
        """

    @property
    def num_batches(self) -> int: ...

class RowSource:
    """Rows that can be written anywhere in a batch."""

    def find_rows(self, key: int, pass_: int, places: ArrayLike) -> NDArray[np.int64]:
        """The numbers of the rows at `places` of a pass: int64, as long as `places`. Reads no data."""

    def places_of(self, key: int, passes: ArrayLike, row: int) -> NDArray[np.int64]:
        """The place of each of `passes` at which a row is given: int64, as long as `passes`."""

    def read(self, key: int, pass_: int, places: ArrayLike, columns: Sequence[_ColumnSpec]) -> list[Any]:
        """The rows at `places` of a pass as tensors, one per field: a row's shape, DLPack's code and bits, and what
        makes a tensor of a capsule are given per field.
        """

    @property
    def fields(self) -> list[tuple[str, str, tuple[int, ...], bool]]:
        """Per array of a batch `(name, dtype, shape of one row, whether it counts positions)`."""

    @property
    def num_rows(self) -> int:
        """Rows of one pass."""

class Sampler:
    """The sample indices of batch b of pass p, as a function of (spec, p, b)."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        key: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        indices: ArrayLike | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`batch_size` counts the samples of all ranks; `indices` are the samples, if not [0, num_samples)."""

    def __len__(self) -> int: ...
    def batch(self, pass_: int, batch: int) -> NDArray[np.int64]:
        """This rank's sample indices, as int64."""

    def batch_size(self, batch: int) -> int:
        """Samples of global batch `batch` on this rank; 0 where there are more ranks than samples."""

    def global_batch_size(self, batch: int) -> int:
        """Samples of global batch `batch`, all ranks together."""

    def order(self, pass_: int, start: int, stop: int) -> NDArray[np.int64]:
        """Places [start, stop) of the pass's global order, as int64."""

    @property
    def num_batches(self) -> int:
        """Global batches of one pass, the same for every rank."""

    @property
    def num_samples(self) -> int:
        """Samples of one pass, all ranks together, before `drop_last`."""

class Schedule:
    @staticmethod
    def pack_state(state: Any) -> bytes:
        """The bytes of what `state_dict` gave, at whatever step it was taken."""

    @overload
    def __init__(
        self,
        config: MixtureConfig,
        names: Sequence[str],
        lengths: Sequence[int | None],
        seed: int,
        caps: Sequence[tuple[int | None, int | None, float]] = [],
        stops_when_spent: bool = False,
    ) -> None: ...
    @overload
    def __init__(self, data: bytes) -> None: ...
    def __iter__(self) -> Iterator[Draw]: ...
    def advance(self, n: int) -> None:
        """Moves the cursor on by `n` steps of its epoch.

        Raises:
            ConfigError: the epoch has fewer steps.
        """

    def append_source(
        self, name: str, length: int | None, weight: float | None, max_passes: int | None = None, per_draw: float = 1.0
    ) -> bool: ...
    def at(self, step: int, epoch: int | None = None) -> Draw:
        """The draw at a step: as quick at any step.

        Raises:
            ConfigError: the epoch has fewer steps.
        """

    def change_config(self, config: MixtureConfig) -> bool: ...
    def change_weight(self, name: str, weight: float, keep_curve: bool = False) -> bool: ...
    def change_weights(self, weights: Sequence[float], keep_curve: bool = False) -> bool: ...
    def counts(self, step: int, epoch: int | None = None) -> NDArray[np.int64]:
        """Draws of each source in steps [0, step) of an epoch: int64, shape (sources,).

        Raises:
            ConfigError: the epoch has fewer steps.
        """

    def draw_lists(self, n: int) -> tuple[list[int], list[int], list[int]]:
        """The same as lists, for a loop in Python: integers of arrays are made slower."""

    def draws(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """The next `n` draws from the cursor, which stays, or as many as the epoch has: sources (int32), passes and
        batches (int64), each of shape (draws,).
        """

    def drop_source(self, name: str) -> bool: ...
    def edit(self, next: Any, rests: Sequence[tuple[int, int]], declared: Any) -> bool:
        """All of another configuration at once; setups are those of a state. `rests`: (source, batches left of its
        pass).
        """

    def end_by(self, step: int, epoch: int | None = None) -> int | None:
        """Number of steps of an epoch, if that is `step` or less."""

    def end_pass(self, source: int, num_batches: int) -> None:
        """The pass in which `source` (an index) stands ended after `num_batches` batches, whatever its length said."""

    def expected_counts(self, step: int, epoch: int | None = None) -> list[float]:
        """As `counts`, with the draws that the weights promise in place of those that were made."""

    def extend_pass(self, source: int, num_batches: int) -> None:
        """The pass in which `source` (an index) stands is longer than its length says: it has `num_batches` batches
        at least.
        """

    def first_step(self, epoch: int | None = None) -> int:
        """Steps drawn in the whole training before an epoch."""

    def iterate(self, num_epochs: int | None = None) -> Iterator[Draw]:
        """Iterates from the cursor, which it moves, to the end of `num_epochs` epochs; None: without end."""

    def known_from(self, epoch: int | None = None) -> int:
        """The first step of an epoch whose draw is known: above 0 only after more edits in the epoch than a state,
        or a long run, keeps.
        """

    def load_bytes(self, data: bytes) -> None:
        """As `load_state_dict`, from the bytes of `to_bytes`."""

    def load_state_dict(self, state: Any) -> None:
        """Puts the state from `state_dict` in place, cursor and log.

        Raises:
            StateMismatch: damaged, newer, or of another seed, configuration, names or lengths; nothing has been
            changed.
        """

    def next_epoch(self) -> None:
        """Opens the next epoch; the cursor must be at the end of its own."""

    def num_steps(self, epoch: int | None = None) -> int | None:
        """Steps (batches) of an epoch; None if it isn't known before its sources end."""

    def opening_places(self, epoch: int | None = None) -> list[tuple[int, int]]:
        """Per source `(pass, batch)` that it would give next when an epoch begins."""

    def places(self, step: int, epoch: int | None = None) -> list[tuple[int, int]]:
        """Per source `(pass, batch)`: it has given `batch` batches of `pass` in the training before `step` of an
        epoch.
        """

    def report(self, epoch: int) -> dict[str, Any]: ...
    def seek(self, epoch: int, step: int) -> None:
        """Moves the cursor.

        Raises:
            ConfigError: an epoch before the last edit or loaded state, or a step beyond the epoch's end.
        """

    def sources(self, epoch: int | None = None, start: int = 0, stop: int | None = None) -> NDArray[np.int32]:
        """Index of the source of each step in [start, stop) of an epoch, cut at its end: int32, shape (steps,).

        Raises:
            ConfigError: `stop` is left out and the epoch's length isn't known yet.
        """

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """The state at the cursor, or at a step of its epoch before it: plain data, as docs/state-format.md
        describes it.
        """

    def steps_of(
        self, source: int, passes: ArrayLike, batches: ArrayLike, stop: int, epoch: int | None = None
    ) -> NDArray[np.int64]:
        """The step in [0, stop) of an epoch that draws each batch of a source (an index), -1 where none does: int64,
        as long as `passes` and `batches`. The inverse of `at`, in microseconds at any step; order RANDOM draws
        again from the start.

        Raises:
            ConfigError: a step before `known_from`.
        """

    def to_bytes(self, step: int | None = None) -> bytes:
        """As `state_dict`, as bytes with a checksum."""

    @property
    def epoch(self) -> int:
        """Epoch of the cursor."""

    @property
    def epoch_done(self) -> bool:
        """Whether the cursor is at the end of its epoch."""

    @property
    def fingerprints(self) -> dict[str, int]: ...
    @property
    def initial_mixture(self) -> MixtureConfig: ...
    @property
    def mixture(self) -> MixtureConfig: ...
    @property
    def seed(self) -> int:
        """The seed."""

    @property
    def source_table(self) -> list[tuple[str, int | None, bool]]: ...
    @property
    def step(self) -> int:
        """Step of the cursor in its epoch, that is the next draw."""

class TokenCorpus:
    """Files of tokens as one stream."""

    def __init__(
        self, parts: Sequence[tuple[str, int, NDArray[Any] | None, int]], dtype: str, max_open_files: int
    ) -> None:
        """Each part is (path, first byte, None, number of tokens) or ('', 0, array, number of tokens)."""

    def read(self, begin: int, count: int) -> NDArray[np.int64]:
        """Tokens [begin, begin + count): int64."""

    def scan_documents(self, end_token: int) -> NDArray[np.int64]:
        """Offsets of the documents that end with a token or with a part: int64. Reads every token."""

    @property
    def num_open_files(self) -> int:
        """Files that are mapped now."""

    @property
    def num_tokens(self) -> int: ...

class TokenRows(RowSource):
    """Rows of a token corpus."""

    def find(self, key: int, pass_: int, begin: int, end: int) -> list[int]:
        """The places of a pass that hold a token of [begin, end) as an input, sorted. Reads no tokens."""

    def trace(self, key: int, pass_: int, place: int) -> list[tuple[int, int]]:
        """The row's inputs, in order: per span (first token of the corpus, number of tokens). Reads no tokens."""

class WindowRows(TokenRows):
    """Windows of a corpus."""

    def __init__(
        self,
        corpus: TokenCorpus,
        documents: DocumentIndex | None,
        *,
        length: int,
        moving: bool,
        boundaries: bool,
        shuffle: bool,
        end_token: int | None,
    ) -> None: ...
    def offset(self, key: int, pass_: int) -> int:
        """The first token of row 0 in a pass."""

def batch_memory_stats() -> dict[str, int]:
    """What the memory pool of all array sources holds."""

def count_windows(num_rows: int, length: int, stride: int) -> int:
    """How many windows of `length` rows, `stride` apart, fit into `num_rows` rows."""

def enum_names() -> dict[str, list[str]]:
    """The members of each enum of options, as the core names them."""

def fold_in(key: int, data: int | str) -> int:
    """A key that depends on every bit of `key` and `data`: an integer (both in [0, 2^64)) or a name."""

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """The four words of Philox4x32-10 at a counter of four words under a key of two."""

def philox_fill(key: int, start: int, stop: int) -> NDArray[np.uint32]:
    """Words [start, stop) of the key's stream, as uint32."""

@final
class Draw(tuple[int, int, str, int, int]):
    """One step of a schedule: which batch of which source."""

    __match_args__: Final = ("step", "source", "name", "pass_", "batch")
    def __new__(cls, items: Iterable[object], /) -> Draw: ...
    @property
    def step(self) -> int:
        """Step in the epoch."""
    @property
    def source(self) -> int:
        """Index of the source."""
    @property
    def name(self) -> str:
        """Name of the source."""
    @property
    def pass_(self) -> int:
        """Which run through the source this is, counted over the whole training."""
    @property
    def batch(self) -> int:
        """Batch of the source in this pass."""
