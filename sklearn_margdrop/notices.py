"""Warnings, which point at the line of the user that led to them."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_PACKAGE = __name__.partition(".")[0]

#: Packages that may stand between a line of the user and this package.
_BETWEEN = {
    *(_PACKAGE, "accelerate", "cloudpickle", "dask", "dask_ml", "distributed", "joblib"),
    *("optuna", "sklearn", "skops", "skorch", "torch"),
    *sys.stdlib_module_names,
}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line outside of this package and of libraries.

    Where there is none, as in worker processes, it is at the outermost line of this package.

    Parameters
    ----------
    message : str
    category : type of Warning, default=UserWarning
    """
    frame: FrameType | None = sys._getframe()
    level = own = 1
    while frame is not None:
        origin = _origin(frame)
        if origin not in _BETWEEN:
            break
        if origin == _PACKAGE:
            own = level
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=own if frame is None else level)


def _origin(frame: FrameType) -> str:
    """The package of a frame's module; empty where it is a script or a session."""
    spec = frame.f_globals.get("__spec__")  # has the name of a module that runs as __main__
    name = frame.f_globals.get("__name__") if spec is None else spec.name
    return str(name or "").partition(".")[0]
