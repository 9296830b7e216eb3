"""Files that are written all at once: as they were before, or complete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file all at once, or into a pipe or a device."""
    path = Path(os.fsdecode(path)).resolve()
    if path.exists():
        # Raises where the file, or a directory, is not to be written.
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
    """Write `temporary`, flush it to the disk, and let it take the place of `path`.

    Whatever happens, the machine's own failure included, `path` is as it was or complete.
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
    """Let the new name of a file outlive a failure of the machine, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
