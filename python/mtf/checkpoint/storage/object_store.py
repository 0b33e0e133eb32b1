"""Checkpoints in an object store, through fsspec: ``s3://``, ``gs://``, ``hf://``, ``memory://``. Imports no torch."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, TypeVar

from mtf.checkpoint.storage.base import Lock
from mtf.checkpoint.storage.object_lock import ObjectLock
from mtf.errors import ConfigError

T = TypeVar("T")

ATTEMPTS = 7
FIRST_PAUSE_S = 0.1
BLOCK_BYTES = 16 << 20
_BLOCKS_AT_ONCE = 4
_ONE_REQUEST_BYTES = 64 << 20
_S3_MAX_PARTS = 10_000
# Asking again would give the same answer.
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}


class FsspecStorage:
    """A folder of an object store; see :class:`mtf.checkpoint.storage.base.Storage`.

    Every request is tried up to ``ATTEMPTS`` times with growing pauses, about six seconds in all. Keys,
    endpoints and other options are read from where fsspec reads them: ``AWS_*`` and ``FSSPEC_*`` variables, its
    configuration files, or ``options``.

    Args:
        url: the folder.
        options: arguments of the fsspec file system.

    Raises:
        ConfigError: fsspec doesn't know the scheme, or its package isn't installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = _file_system(self.url, options)

    def __repr__(self) -> str:
        """The folder."""
        return f"FsspecStorage({self.url!r})"

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """The file ``name``, open for reading and seeking; parts of it are fetched ahead, in memory."""
        path = self._path(name)
        size = int(_retried(lambda: self._fs.info(path))["size"])
        with ThreadPoolExecutor(_BLOCKS_AT_ONCE, "mtf-object-reader") as pool:
            file = _ObjectFile(lambda begin, end: self._fetch(path, begin, end), size, pool)
            try:
                yield file  # type: ignore[misc]  # a RawIOBase is what typing calls a BinaryIO
            finally:
                file.close()

    def _fetch(self, path: str, begin: int, end: int) -> bytes:
        def fetch() -> bytes:
            data: bytes = self._fs.cat_file(path, start=begin, end=end)
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data)} bytes came, {end - begin} were asked for")
            return data

        return _retried(fetch)

    def write_atomic(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes or replaces an object; it appears when its last byte has arrived."""
        path = self._path(name)
        parts = [memoryview(chunk).cast("B") for chunk in chunks if len(chunk)]
        if sum(map(len, parts)) <= _ONE_REQUEST_BYTES:
            content = b"".join(parts)
            _retried(lambda: self._fs.pipe_file(path, content))
        elif hasattr(self._fs, "call_s3"):
            self._upload_to_s3(path, parts)
        else:
            _retried(lambda: self._upload(path, parts))

    def _upload(self, path: str, parts: list[memoryview]) -> None:
        file = self._fs.open(path, "wb", block_size=_ONE_REQUEST_BYTES)
        try:
            for part in parts:
                for begin in range(0, len(part), BLOCK_BYTES):
                    file.write(part[begin : begin + BLOCK_BYTES])
        except BaseException:
            with suppress(Exception):  # the upload has failed already, and says why
                file.discard()
            file.closed = True  # closing would publish what has arrived
            raise
        file.close()

    def _upload_to_s3(self, path: str, parts: list[memoryview]) -> None:
        """A multipart upload: blocks are sent side by side, and a block that fails is sent again alone."""
        bucket, key, _ = self._fs.split_path(path)
        size = sum(map(len, parts))
        call = partial(self._fs.call_s3, Bucket=bucket, Key=key)
        upload = _retried(lambda: call("create_multipart_upload"))["UploadId"]

        def send(number: int, block: list[memoryview]) -> dict[str, Any]:
            content = b"".join(block)
            answer = _retried(lambda: call("upload_part", UploadId=upload, PartNumber=number, Body=content))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            blocks = _in_blocks(parts, max(BLOCK_BYTES, -(-size // _S3_MAX_PARTS)))
            with ThreadPoolExecutor(_BLOCKS_AT_ONCE, "mtf-object-writer") as pool:
                futures = [pool.submit(send, number, block) for number, block in enumerate(blocks, 1)]
                try:
                    sent = [future.result() for future in futures]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            complete = partial(call, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": sent})
            try:
                _retried(complete)
            except FileNotFoundError:
                # The store has forgotten the upload, because an attempt whose answer got lost has completed it.
                if _retried(lambda: self._fs.info(path))["size"] != size:
                    raise
        except BaseException:
            with suppress(Exception):  # the upload has failed already, and says why
                call("abort_multipart_upload", UploadId=upload)
            raise

    def list(self, folder: str = "") -> list[str]:
        """Names directly in ``folder``, as far as the store lists them already; those of folders end with ``/``."""
        path = self._path(folder) if folder else self._root

        def look() -> list[str]:
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
            names = {e["name"].rstrip("/").rpartition("/")[2] + "/" * (e["type"] == "directory") for e in entries}
            return sorted(name for name in names if name.strip("/") and name != path.rpartition("/")[2])

        return _retried(look)

    def delete(self, name: str) -> None:
        """Deletes an object; nothing where it is missing."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        _retried(delete)

    def written_s(self, name: str) -> float | None:
        """When a file was written, in seconds since the epoch; None where the store doesn't say."""
        try:
            moment = _retried(lambda: self._fs.modified(self._path(name)))
        except (NotImplementedError, FileNotFoundError):
            return None
        return float(moment.timestamp())

    def lock(self) -> Lock:
        """The claim of a run on the folder: an object with a heartbeat."""
        return ObjectLock(self)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _in_blocks(parts: list[memoryview], size: int) -> Iterator[list[memoryview]]:
    """The bytes of ``parts`` in blocks of ``size``, without copying."""
    block: list[memoryview] = []
    missing = size
    for part in parts:
        while len(part):
            block.append(part[:missing])
            missing -= len(block[-1])
            part = part[len(block[-1]) :]
            if not missing:
                yield block
                block, missing = [], size
    if block:
        yield block


class _ObjectFile(io.RawIOBase):
    """An object that is fetched in blocks, some of them ahead of where it is read."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, pool: ThreadPoolExecutor) -> None:
        self._fetch = fetch
        self._size = size
        self._pool = pool
        self._position = 0
        self._block = memoryview(b"")
        self._block_at = 0
        self._ahead: deque[tuple[int, Future[bytes]]] = deque()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        if not self._block_at <= self._position < self._block_at + len(self._block):
            self._block, self._block_at = self._next(), self._position
        begin = self._position - self._block_at
        piece = self._block[begin : begin + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _next(self) -> memoryview:
        """The block that begins at the position."""
        if not self._ahead or self._ahead[0][0] != self._position:
            self._drop()
        at = self._ahead[-1][0] + BLOCK_BYTES if self._ahead else self._position
        while at < self._size and len(self._ahead) < _BLOCKS_AT_ONCE:
            self._ahead.append((at, self._pool.submit(self._fetch, at, min(at + BLOCK_BYTES, self._size))))
            at += BLOCK_BYTES
        return memoryview(self._ahead.popleft()[1].result())

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def close(self) -> None:
        self._drop()
        super().close()


# File systems by process, bucket and options: making a client takes a tenth of a second.
_made: dict[Any, Any] = {}


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(f"{url}: object stores need fsspec: pip install 'mtf-torch[{_extra(scheme)}]'") from None
    if scheme in ("s3", "s3a"):  # what is retried here isn't retried below as well
        options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, **options}
    key = (os.getpid(), scheme, url.partition("://")[2].partition("/")[0], repr(options))
    try:
        if key not in _made:
            _made[key] = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)[0]
    except ImportError as error:
        raise ConfigError(f"{url}: {error}: pip install 'mtf-torch[{_extra(scheme)}]'") from None
    except ValueError as error:
        raise ConfigError(
            f"{url}: {error}; a storage of your own is made known by mtf.checkpoint.register_storage"
        ) from None
    fs = _made[key]
    if hasattr(fs, "retries"):
        fs.retries = 1
    return fs, str(fs._strip_protocol(url)).rstrip("/")


def _extra(scheme: str) -> str:
    return _EXTRAS.get(scheme, "fsspec")


def _retried(request: Callable[[], T]) -> T:
    """What ``request`` gives at one of several attempts.

    Raises:
        OSError: none of them succeeded, or asking again is of no use.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except _FINAL:
            raise
        except Exception as error:  # clients of object stores raise errors of many kinds
            if attempt == ATTEMPTS:
                if isinstance(error, OSError):
                    raise
                raise OSError(f"{type(error).__name__}: {error}") from error
        time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError
