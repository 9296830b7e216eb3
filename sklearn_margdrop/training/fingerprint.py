"""Fingerprints that tell one fit from another: digests of data, descriptions of parameters."""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from sklearn_margdrop.numerics.csr import CSR
from sklearn_margdrop.numerics.memory import blocks


def describe(value: Any, within: tuple[int, ...] = ()) -> str:
    """A text that is the same for equal values, in any process.

    Parameters
    ----------
    value : object
        A parameter: plain values, arrays, functions, estimators and other objects with
        parameters, and containers of them. A function stands for its code and the values that it
        refers to, another object for its class and what a pickle would hold of it.
    within : tuple of int
        The ids of the objects that contain this one, in case it refers back to them.

    Examples
    --------
    >>> from sklearn.preprocessing import Binarizer
    >>> from sklearn_margdrop.training.fingerprint import describe
    >>> describe([1, 0.5, None])
    '[1, 0.5, None]'
    >>> describe(Binarizer(threshold=0.5))
    "sklearn.preprocessing._data.Binarizer{'copy': True, 'threshold': 0.5}"
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if id(value) in within:
        return "..."
    describe_part = partial(describe, within=(*within, id(value)))
    if isinstance(value, list | tuple):
        return f"[{', '.join(describe_part(each) for each in value)}]"
    if isinstance(value, set | frozenset):
        return f"[{', '.join(sorted(map(describe_part, value)))}]"
    if isinstance(value, dict):
        pairs = sorted(f"{describe_part(key)}: {describe_part(value[key])}" for key in value)
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, types.CodeType):
        return describe_part([value.co_code, value.co_consts, value.co_names])
    if isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        return f"{value.__module__}.{value.__qualname__}{describe_part(parts)}"
    if hasattr(value, "__qualname__") and not isinstance(value, types.MethodType):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__array__"):
        inside: Any = digest(np.asarray(value))
    elif hasattr(value, "get_params"):
        inside = value.get_params(deep=False)
    else:
        parts = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[1:]  # what it is rebuilt from
        inside = [list(each) if isinstance(each, Iterator) else each for each in parts]
    return f"{describe(type(value))}{describe_part(inside)}"


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
    (True, 'bf593156')
    """
    found = hashlib.blake2b(digest_size=16)
    for each in arrays:
        found.update(repr(None if each is None else each.shape).encode())
        parts: list[Any] = [each]
        if each is not None and not isinstance(each, np.ndarray):
            parts = [each.indptr, each.indices, each.data]
        for array in map(np.atleast_1d, parts):
            found.update(array.dtype.str.encode())
            for block in blocks(len(array), max(1, array[:1].size)):
                rows = array[block]
                is_plain = not array.dtype.hasobject
                found.update(rows.tobytes() if is_plain else repr(rows.tolist()).encode())
    return found.hexdigest()
