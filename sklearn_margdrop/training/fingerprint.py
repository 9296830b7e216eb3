"""What tells one fit from another: digests of data, and descriptions of parameters."""

from __future__ import annotations

import collections
import functools
import hashlib
import pickle
import types
from typing import Any

import numpy as np

from sklearn_margdrop.numerics.csr import CSR

#: Bytes that are digested at a time, of arrays that may lie on a disk.
_BLOCK_BYTES = 2**24


def describe(value: Any, within: tuple[int, ...] = ()) -> str:
    """A text that two values share if they are alike, in any process.

    Parameters
    ----------
    value : object
        A parameter: plain values, arrays, functions, estimators and other objects with
        parameters, and containers of them. Of functions the code and what it refers to count, of
        other objects the class and its attributes.
    within : tuple of int
        The identities of what this is a part of, which may refer back to it.

    Examples
    --------
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_margdrop.training.fingerprint import describe
    >>> describe([1, 0.5, None])
    '[1, 0.5, None]'
    >>> describe(StandardScaler(with_std=False))
    'sklearn.preprocessing._data.StandardScaler{copy: True, with_mean: True, with_std: False}'
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) in within:
        return "..."
    describe_part = functools.partial(describe, within=(*within, id(value)))
    if hasattr(value, "__array__") and not isinstance(value, type):
        return f"{type(value).__qualname__} {digest(np.asarray(value))}"
    if isinstance(value, list | tuple | set | frozenset | range | collections.deque):
        parts = [describe_part(each) for each in value]
        return f"[{', '.join(sorted(parts) if isinstance(value, set | frozenset) else parts)}]"
    if isinstance(value, dict):
        pairs = sorted((describe_part(key), describe_part(each)) for key, each in value.items())
        return f"{{{', '.join(f'{key}: {each}' for key, each in pairs)}}}"
    if isinstance(value, functools.partial):
        return f"partial{describe_part([value.func, value.args, value.keywords])}"
    if isinstance(value, types.MethodType):
        return f"{describe_part(value.__self__)}.{value.__name__}"
    if isinstance(value, types.CodeType):
        return describe_part([value.co_code, value.co_consts, value.co_names])
    if isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        inside = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        return f"{value.__module__}.{value.__qualname__}{describe_part(inside)}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.random.RandomState):
        return describe_part(list(value.get_state()))
    attributes = value.get_params(deep=False) if hasattr(value, "get_params") else None
    if attributes is None:
        attributes = getattr(value, "__dict__", None)
    if attributes is None:
        return f"{describe(type(value))} {pickle.dumps(value)!r}"
    inner = ", ".join(
        f"{name}: {describe_part(each)}" for name, each in sorted(attributes.items())
    )
    return f"{describe(type(value))}{{{inner}}}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return None


def digest(*arrays: np.ndarray | CSR | None) -> str:
    """A digest of the values, shapes and dtypes of arrays and sparse matrices.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.training.fingerprint import digest
    >>> digest(np.arange(3)) == digest(np.array([0, 1, 2])), digest(np.arange(3.0))[:8]
    (True, '2f35a4bf')
    """
    found = hashlib.blake2b(digest_size=16)
    for each in arrays:
        if each is None or isinstance(each, np.ndarray):
            _update(found, each)
            continue
        found.update(repr(each.shape).encode())
        for part in (each.indptr, each.indices, each.data):
            _update(found, part)
    return found.hexdigest()


def _update(found: Any, array: np.ndarray | None) -> None:
    if array is None:
        found.update(b"None")
        return
    found.update(f"{array.dtype.str} {array.shape}".encode())
    if array.dtype.hasobject:
        found.update(repr(array.tolist()).encode())
    elif array.size:
        rows = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(-1, 1)
        size = max(1, _BLOCK_BYTES // max(1, rows[0].nbytes))
        for start in range(0, len(rows), size):
            found.update(np.ascontiguousarray(rows[start : start + size]).data)
