"""Files on this machine or at an address that fsspec opens; every file is written atomically."""

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from supple.errors import is_written_for_users


def read(files: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All of a file.

    Raises:
        ValueError: for a pipe or a device, on which a reader would wait forever.
    """
    if isinstance(files, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a regular file")
    content: bytes = files.cat_file(path)
    return content


def write(files: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even if this process is killed.

    Raises:
        ValueError: when the path is not a regular file but a folder, a device or a socket.
    """
    if isinstance(files, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"expected a file to write, got {path}, which is something else: choose another name")
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{socket.gethostname()}.{os.getpid()}"
    try:
        files.pipe_file(partial, content)
        files.mv(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            files.rm_file(partial)
        if isinstance(error, OSError) and not error.filename:
            error.filename = path  # for a full disk, Python names no file
        raise


def check_writable(root: str) -> None:
    """Check that other processes can read what is written there, with a probe file that is removed again.

    Raises:
        ValueError: when they can't.
    """
    try:
        if not root:
            raise ValueError("the name is empty")
        files, folder = files_at(root)
        if isinstance(files, LocalFileSystem):
            existing = Path(folder)
            while not existing.exists():
                existing = existing.parent
            with tempfile.TemporaryFile(dir=existing):
                pass
        elif isinstance(files, MemoryFileSystem):
            raise ValueError("other processes cannot read this one's memory")
        else:
            probe = f"{folder}/.{socket.gethostname()}.{os.getpid()}"
            files.pipe_file(probe, b"")
            files.rm_file(probe)
    except Exception as error:  # each file system raises its own exceptions
        if is_written_for_users(error):
            raise
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected a folder or an address to write to, got {root!r} ({why}): choose another"
        ) from error


def files_at(root: str) -> tuple[Any, str]:
    """The file system and the folder of an address; nothing is cached, so other processes' files are seen at once."""
    if not root:
        raise ValueError("expected a folder or an address, got an empty name: give one, such as `runs`")
    try:
        files, folder = fsspec.url_to_fs(root, use_listings_cache=False)
    except (ImportError, ValueError) as error:  # a package is missing, or no file system has this name
        raise ValueError(
            f"expected a folder or an address that fsspec opens, got {root!r} ({error}): choose another"
        ) from error
    return files, folder
