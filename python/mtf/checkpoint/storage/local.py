"""The file-system operations a save is made of: durable writes, exchange of two directories, deletion out of sight.

Every step that must survive a power loss goes through here, so that fault tests can stop the process at each of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtf.errors import CheckpointError

_CHUNK_BYTES = 4 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

# `.<name>.mtf-<role>-<host>-<pid>-<token>`: hidden siblings of a checkpoint that only a save in progress needs.
ROLE_TEMP = "tmp"
ROLE_OLD = "old"
ROLE_TRASH = "trash"


class CheckpointWarning(UserWarning):
    """Something about saved state that a person must see, though the run continues."""


def host_name() -> str:
    """This machine's name, reduced to letters, digits, dots and underscores."""
    return "".join(c if c.isalnum() or c in "._" else "_" for c in socket.gethostname()) or "localhost"


def hidden_sibling(path: Path, role: str) -> Path:
    """A fresh hidden name beside ``path``: same directory, hence the same file system."""
    return path.parent / f".{path.name}.mtf-{role}-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"


def parse_hidden_sibling(name: str) -> tuple[str, str, str, int] | None:
    """``(checkpoint name, role, host, pid)`` of a name made by :func:`hidden_sibling`, else None."""
    if not name.startswith("."):
        return None
    head, found, tail = name[1:].rpartition(".mtf-")
    parts = tail.split("-")
    if (
        not found
        or not head
        or len(parts) < 4
        or parts[0] not in (ROLE_TEMP, ROLE_OLD, ROLE_TRASH)
        or not parts[-2].isdigit()
    ):
        return None
    return head, parts[0], "-".join(parts[1:-2]), int(parts[-2])


_own_hidden: set[str] = set()


def claim_hidden(path: Path) -> None:
    """Notes a hidden directory as being written by this process right now."""
    _own_hidden.add(str(path))


def release_hidden(path: Path) -> None:
    """The opposite of :func:`claim_hidden`."""
    _own_hidden.discard(str(path))


def is_stale(path: Path, *, locked: bool) -> bool:
    """Whether the writer of a hidden directory is gone.

    Args:
        path: a name made by :func:`hidden_sibling`.
        locked: the caller holds the lock of the directory it lies in, so that no writer on another machine lives.
    """
    parsed = parse_hidden_sibling(path.name)
    if parsed is None:
        return False
    _, _, host, pid = parsed
    if host != host_name():
        return locked
    # After a restart in a container the dead writer may have had our own process id.
    return not process_alive(pid) or (pid == os.getpid() and str(path) not in _own_hidden)


def sync_directory(path: Path) -> None:
    """Makes the names inside ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: Path) -> None:
    """Creates ``path`` and its missing parents, each durable in its own parent."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_directory(path.parent)


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Creates ``path`` with the given content and fsyncs it.

    Returns:
        Size in bytes and SHA-256 of what was handed over (not of what can be read back), so that a later check compares
        with the intention.
    """
    digest = hashlib.sha256()
    size = 0
    with open(path, "xb", buffering=1 << 20) as file:
        for chunk in chunks:
            view = memoryview(chunk).cast("B") if len(chunk) else memoryview(b"")
            for begin in range(0, len(view), _CHUNK_BYTES):
                part = view[begin : begin + _CHUNK_BYTES]
                file.write(part)
                digest.update(part)
            size += len(view)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Replaces a file atomically and durably."""
    temporary = hidden_sibling(path, ROLE_TEMP)
    try:
        write_file(temporary, [content] if isinstance(content, bytes) else content)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


@functools.cache
def _renameat2() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        function.restype = ctypes.c_int
    return function


def exchange(a: Path, b: Path) -> bool:
    """Swaps two existing names in one atomic step.

    Returns:
        False where the system or the file system has no such operation; nothing has happened then.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


def publish(temporary: Path, target: Path) -> None:
    """Gives the complete directory ``temporary`` its final name, replacing a checkpoint of that name.

    At every instant either ``target`` or a hidden ``old`` sibling of it is a complete checkpoint.
    """
    if not target.exists():
        os.rename(temporary, target)
        sync_directory(target.parent)
        return
    if exchange(temporary, target):
        sync_directory(target.parent)
        remove(temporary)
        return
    old = hidden_sibling(target, ROLE_OLD)
    # guard: kill while replacing
    os.rename(target, old)
    os.rename(temporary, target)
    sync_directory(target.parent)
    remove(old)


def remove(path: Path) -> None:
    """Deletes a checkpoint directory: its name disappears durably before the first of its files does."""
    parsed = parse_hidden_sibling(path.name)
    if parsed is None:
        trash = hidden_sibling(path, ROLE_TRASH)
        os.rename(path, trash)
        sync_directory(path.parent)
        path = trash
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
    else:
        shutil.rmtree(path)


def set_aside(path: Path) -> list[Path]:
    """Copies of ``path`` that a save moved aside and never put back or deleted, oldest name first."""
    found = []
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(path.parent)):
            parsed = parse_hidden_sibling(entry)
            if parsed is not None and parsed[0] == path.name and parsed[1] == ROLE_OLD:
                found.append(path.parent / entry)
    return found


def process_alive(pid: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def open_inside(directory: Path, name: str) -> Iterator[int]:
    """A descriptor of the regular file ``name`` inside ``directory``; no link is followed on the way.

    Raises:
        CheckpointError: the file is missing, is a link, or is no regular file.
    """
    fds: list[int] = []
    try:
        try:
            fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
            *folders, last = name.split("/")
            for folder in folders:
                fds.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
            # O_NONBLOCK: a named pipe in place of a file must not make the reader wait for a writer.
            fds.append(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fds[-1]))
        except FileNotFoundError:
            raise CheckpointError(f"{directory / name}: the file is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise CheckpointError(
                    f"{directory / name}: is a symbolic link or lies behind one, which is never followed"
                ) from None
            raise CheckpointError(f"{directory / name}: can't be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fds[-1]).st_mode):
            raise CheckpointError(f"{directory / name}: is not a regular file")
        yield fds[-1]
    finally:
        for fd in reversed(fds):
            os.close(fd)


def hash_open_file(fd: int) -> tuple[int, str]:
    """Size in bytes and SHA-256 of an open file, in constant memory."""
    digest = hashlib.sha256()
    size = 0
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    while count := os.readv(fd, [buffer]):
        digest.update(view[:count])
        size += count
    return size, digest.hexdigest()
