"""The weights of a network as arrays to read: writing to them would change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sklearn_margdrop.numerics.devices import to_array

#: Why it cannot be done, and what can.
WHERE = (
    "coefs_ and intercepts_ are copies of the weights, to read. The weights themselves are "
    "tensors: change net_.module_.linears[l].weight, of shape (fan_out, fan_in), or .bias in "
    "place, in torch.no_grad()."
)


def _refuse(*_: object, **__: object) -> Never:
    raise ValueError(WHERE)


def _checked(method: Callable[..., None]) -> Callable[..., None]:
    """A method that writes, where the array may be written to."""

    def write(array: ReadOnlyArray, *args: Any, **options: Any) -> None:
        array._check()
        method(array, *args, **options)

    return write


class ReadOnlyList(list[NDArray[Any]]):
    """A list of arrays that cannot be written to, nor exchanged; its copies are ordinary lists."""

    def __init__(self, tensors: Iterable[Tensor] = ()):
        super().__init__(_read_only(tensor) for tensor in tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([np.array(each) for each in self],)

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse


class ReadOnlyArray(np.ndarray):
    """An array that says where to write instead; what is computed from it is an ordinary one."""

    fill, put = _checked(np.ndarray.fill), _checked(np.ndarray.put)
    sort, partition = _checked(np.ndarray.sort), _checked(np.ndarray.partition)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check()
        super().__setitem__(key, value)

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any
    ) -> Any:
        for each in inputs[:1] if method == "at" else out:
            if isinstance(each, ReadOnlyArray):
                each._check()
        if out:
            options["out"] = tuple(map(_plain, out))
        return getattr(ufunc, method)(*map(_plain, inputs), **options)

    def _check(self) -> None:
        if not self.flags.writeable:  # a copy is
            raise ValueError(WHERE)


def _plain(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, ReadOnlyArray) else value


def _read_only(tensor: Tensor) -> NDArray[Any]:
    array = to_array(tensor).view(ReadOnlyArray)
    array.flags.writeable = False
    return array
