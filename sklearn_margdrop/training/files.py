"""Atomic writes: a file is either unchanged or complete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically, or write to a pipe or a device."""
    path = Path(os.fsdecode(path)).resolve()
    if path.exists():
        # Raises if the path cannot be written or is a directory.
        with path.open("r+b") as file:
            if not path.is_file():  # a pipe or a device
                file.write(content)
                return
    try:
        replace_file(path, path.with_name(f".{uuid.uuid4().hex}"), content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def replace_file(path: Path, temporary: Path, *parts: bytes | memoryview) -> None:
    """Write `temporary`, flush it to the disk, and replace `path` with it.

    Even if the machine fails, `path` is either unchanged or complete.
    """
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Flush the new name of a file to the disk, on systems where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
