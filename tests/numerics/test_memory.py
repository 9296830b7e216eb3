"""Work is cut into slices by the memory that is free."""

import pytest
import torch

from sklearn_margdrop.numerics import memory


@pytest.mark.parametrize(("free", "expected"), [(2**40, 64), (2**28, 16), (1, 1), (None, 64)])
def test_slices_shrink_with_the_free_memory(free, expected, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert memory.slice_length(1000, 2**20, torch.empty(0)) == expected


def test_free_memory_is_known_here():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert memory.free_bytes(torch.device("meta")) is None
