"""Devices: the choice of one, arrays and tensors on it, and its memory."""

from __future__ import annotations

import multiprocessing
import os
import re

import numpy as np
import torch


def _compute_on_one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    # The threads of torch's operations do not survive a fork: a process that was forked after
    # torch had used several would wait for them for ever.
    os.register_at_fork(after_in_child=_compute_on_one_thread)


def check_device(device: str | torch.device) -> torch.device:
    """The torch device that the parameter `device` names; "auto" is CUDA where there is any.

    The worker processes of a search take several GPUs in turn.
    """
    if isinstance(device, str) and device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        worker, n_devices = _worker_number(), torch.cuda.device_count()
        return torch.device("cuda", worker % n_devices) if worker else torch.device("cuda")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r} is not a device that torch knows; use 'auto', 'cpu', 'cuda', "
            "'cuda:0', 'mps', ..."
        ) from error
    if resolved.type == "cuda":  # without starting it, which takes memory there
        is_available = torch.cuda.device_count() > (resolved.index or 0)
    else:
        is_available = _can_allocate(resolved)
    if not is_available:
        raise ValueError(
            f"device={device!r} is not available on this machine; use 'auto' or 'cpu'."
        )
    return resolved


def release_memory() -> None:
    """Let other processes have the memory of a GPU that a fit in a worker no longer needs."""
    if torch.cuda.is_initialized() and _worker_number():
        torch.cuda.empty_cache()


def _worker_number() -> int:
    """The position of a worker process among its siblings, from 1; 0 in the main process."""
    if multiprocessing.parent_process() is None:
        return 0
    digits = re.search(r"\d+$", multiprocessing.current_process().name)
    return int(digits.group()) if digits else 0


def _can_allocate(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError):
        return False
    return True


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as an array on the host."""
    return tensor.detach().cpu().numpy().copy()


def to_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor on `device` that may share the memory of `array`."""
    array = np.ascontiguousarray(array)
    shared = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shared else array.copy()).to(device)
