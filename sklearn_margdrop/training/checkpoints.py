"""Checkpoints, from which a fit that was killed continues.

A file holds the whole state of a training at the end of an epoch. A new file is written beside the
old one and then replaces it, so that a complete file exists at any time. It contains only plain
values and tensors, which torch loads without executing code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.history import History
from torch import Tensor

from sklearn_margdrop.notices import warn
from sklearn_margdrop.training.files import replace_file
from sklearn_margdrop.training.fingerprint import describe
from sklearn_margdrop.training.state import learned_state, load_learned_state

_MAGIC = b"sklearn_margdrop checkpoint 1\n"

#: The part of a folder's path that is replaced with a digest of the fit.
_PLACEHOLDER = "{fit}"

#: The entries of a file.
_KEYS = {
    *("random_state", "fitted", "held", "callbacks", "weights", "trainable", "optimizer"),
    *("noise", "order", "device", "unlabeled_left"),
}

#: Callbacks that depend on settings which may change when a fit is started again.
_WATCHING = {"watcher", "checkpoint", "epoch_log"}

#: Large attributes of skorch's callbacks that are reset at each epoch.
_PASSING = {"y_trues_", "y_preds_"}


class Checkpoints:
    """The checkpoints of one fit: a folder with a file for each training, and a lock.

    Parameters
    ----------
    folder : str or path-like
        Created if missing. ``{fit}`` in it stands for a digest of `identity`.
    identity : mapping of str to str
        What identifies the fit: names of its parts, and a description of each.
    random_state : RandomState
        That of the fit. It is set to the state with which a stored fit began.

    Raises
    ------
    ValueError
        If the folder holds a checkpoint that is damaged or of another fit, or if another fit is
        using it now.
    OSError
        If the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: Mapping[str, str],
        random_state: np.random.RandomState,
    ):
        self._identity = dict(sorted(identity.items()))
        name = hashlib.blake2b(_to_line(self._identity), digest_size=8).hexdigest()
        self._folder = Path(os.fsdecode(folder).replace(_PLACEHOLDER, name))
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"checkpoint must be a folder; {str(self._folder)!r} is a file.")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another fit is using the checkpoint folder {str(self._folder)!r}. " + _OWN_FOLDER
            ) from None
        try:
            paths = sorted(self._folder.glob("training-*.ckpt"))
            self._states = {path: _read(path, self._identity) for path in paths}
            for state in self._states.values():
                kind, keys, *others = state["random_state"]
                random_state.set_state((kind, keys.numpy(), *others))
        except BaseException:
            self._lock.release()
            raise
        kind, keys, *others = random_state.get_state()
        self._random_state = [kind, torch.from_numpy(keys), *others]

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *args: object) -> None:
        self._lock.release()

    def of(self, training: int) -> TrainingCheckpoint:
        """The callback that writes the checkpoint of the n-th training of the fit."""
        path = self._folder / f"training-{training}.ckpt"
        state = self._states.pop(path, None)
        return TrainingCheckpoint(path, self._identity, self._random_state, state)


_OWN_FOLDER = (
    "Give each fit a folder of its own: '{fit}' in the path, as in checkpoint='runs/{fit}', "
    "stands for a digest of the parameters and the data."
)


@dataclass(eq=False)
class TrainingCheckpoint(Callback):
    """Writes the state of a training to a file at the end of each epoch.

    Parameters
    ----------
    path : Path
        The file.
    identity : mapping of str to str
        That of the fit.
    random_state : list
        The state of the fit's RandomState before the fit.
    state : dict or None
        The state that the file held before.
    """

    path: Path
    identity: dict[str, str]
    random_state: list[Any]
    state: dict[str, Any] | None

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.begin_ = len(net.history)
        left_out = _left_out(net, _callback_states(net))
        self.given_ = {name: text for name, text in left_out.items() if text is not None}

    def stored(self, name: str) -> Any:
        """An attribute that the net of the stored checkpoint had; None if it has none."""
        return None if self.state is None else self.state["fitted"].get(name)

    def restore(self, net: NeuralNet) -> int:
        """Set the net to the state of the stored checkpoint, if there is one.

        Returns
        -------
        int
            The number of epochs that the stored training had completed.
        """
        state, self.state = self.state, None
        if state is None:
            return 0
        try:
            _restore(net, state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _damaged(self.path) from error
        n_epochs = len(net.history) - self.begin_
        if n_epochs > net.max_epochs:
            raise ValueError(
                f"The checkpoint {str(self.path)!r} has {n_epochs} epochs behind it, more than "
                f"max_iter={net.max_epochs}. Raise max_iter, or choose another folder."
            )
        return n_epochs

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        state = {"random_state": self.random_state, **_state(net)}
        left_out = _left_out(net, state["callbacks"])
        lost = [n for n, text in left_out.items() if text is None or self.given_.get(n) != text]
        if lost:
            warn(
                f"A checkpoint holds plain values and tensors, not {', '.join(lost)}: where the "
                "fit goes on from it, that is as at the beginning.",
            )
        try:
            _write(self.path, self.identity, state)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint could not be written ({error.strerror}). The one of the epoch "
                "before, if any, is complete: make room and call fit again to go on from it",
                str(self.path),
            ) from error


def _state(net: Any) -> dict[str, Any]:
    """Everything that the rest of the training depends on."""
    state = learned_state(net)
    return {
        "fitted": _kept(state.pop("fitted")),
        "held": {name: _kept(values) for name, values in state.pop("held").items()},
        **_plain(state),
        "callbacks": _callback_states(net),
        "trainable": [p.requires_grad for p in net.module_.parameters()],
        "unlabeled_left": [
            [each.start, each.stop] if isinstance(each, slice) else _plain(each)
            for each in net._unlabeled_left
        ],
    }


def _restore(net: Any, state: dict[str, Any]) -> None:
    for name, callback in _stateful(net):
        for attribute, value in state["callbacks"][name].items():
            part: Any = getattr(callback, attribute, None)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                setattr(callback, attribute, value)
    load_learned_state(net, state)
    net.history = History(net.history)
    for parameter, trainable in zip(net.module_.parameters(), state["trainable"], strict=True):
        parameter.requires_grad_(trainable)
    net._unlabeled_left = [
        slice(*p) if isinstance(p, list) else p for p in state["unlabeled_left"]
    ]


def _stateful(net: Any) -> list[tuple[str, Callback]]:
    """The callbacks that belong to the training, rather than to one call."""
    return [(name, each) for name, each in net.callbacks_ if name not in _WATCHING]


def _parts(callback: Callback) -> dict[str, Any]:
    """The attributes of a callback; those with a `state_dict` are replaced with it."""
    return {
        key: value.state_dict() if hasattr(type(value), "state_dict") else value
        for key, value in vars(callback).items()
        if key not in _PASSING
    }


def _callback_states(net: Any) -> dict[str, dict[str, Any]]:
    """The attributes of the callbacks that can be written."""
    return {name: _kept(_parts(each)) for name, each in _stateful(net)}


def _left_out(net: Any, kept: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """The attributes that cannot be written; parameters among them have a description."""
    return {
        f"{key} of the callback {name}": None if key.endswith("_") else describe(value)
        for name, each in _stateful(net)
        for key, value in _parts(each).items()
        if key not in kept[name] and not (key.endswith("_") and callable(value))
    }


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that can be written."""
    kept = {}
    for name, value in values.items():
        try:
            kept[name] = _plain(value)
        except TypeError:
            continue
    return kept


def _plain(value: Any) -> Any:
    """The value, converted to types that torch loads without executing code."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(each) for each in value]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(type(value))


def _to_line(identity: dict[str, str]) -> bytes:
    return json.dumps(identity).encode() + b"\n"


def _write(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    payload = io.BytesIO()
    torch.save(state, payload)
    head, body = _to_line(identity), payload.getbuffer()
    # Always the same name, so that what a killed process left is overwritten.
    temporary = path.with_suffix(".writing")
    replace_file(path, temporary, _MAGIC, _checksum(head, body), head, body)


def _read(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """The state in a file of the fit with this identity."""
    with path.open("rb") as file:
        magic, checksum, head = file.readline(), file.readline(), file.readline()
        body = file.read()
    if magic != _MAGIC or checksum != _checksum(head, body):
        raise _damaged(path)
    other = json.loads(head)
    names = sorted(identity.keys() | other.keys())
    different = [name for name in names if identity.get(name) != other.get(name)]
    if different:
        raise ValueError(
            f"The checkpoint {str(path)!r} is of another fit; these differ: "
            f"{', '.join(different)}. Delete its folder or choose another one. {_OWN_FOLDER}"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or state.keys() != _KEYS:
        raise _damaged(path)
    return state


def _checksum(*parts: bytes | memoryview) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest().encode() + b"\n"


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{str(path)!r} is damaged, or no checkpoint that this version can read; nothing was "
        "loaded from it. Delete it to start anew."
    )
