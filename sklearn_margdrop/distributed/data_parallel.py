"""Several processes that fit one network: each takes a part of the rows of every batch.

Gradients are written by hand (:mod:`~sklearn_margdrop.backprop`), where the hooks of torch's
`DistributedDataParallel` do not see them; so the module stays as it is, and the
contributions of the parts are summed explicitly, once a step: the terms of the objective and the
gradients. All decisions depend on such sums, so that all processes take the same ones.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_margdrop.numerics.devices import to_array
from sklearn_margdrop.objective import Terms
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.engine import Engine
from sklearn_margdrop.training.fingerprint import describe
from sklearn_margdrop.weighting import WeightedRows

S = TypeVar("S")

_LOST = (
    "Process {index} of {count} waited for the others of a data-parallel fit in vain: one of them "
    "has ended with an error of its own, does not answer, or never called fit with the same "
    "accelerator. Look at what the others printed; how long to wait is set by Accelerator("
    "kwargs_handlers=[InitProcessGroupKwargs(timeout=...)])."
)

#: Parameters of the net that are compared separately or may differ.
_OWN_ENTRIES = {"device", "loss_unit", "module__input_scale", "module__seed", "seed", "verbose"}


def check_accelerator(accelerator: Any, device: str | torch.device) -> str | torch.device:
    """The device to compute on; raises if the accelerator asks for something unsupported.

    Parameters
    ----------
    accelerator : accelerate.Accelerator or None
    device : str or torch.device
        The estimator's device. "auto" leaves the choice to the accelerator, if there is one.

    Returns
    -------
    str or torch.device

    Raises
    ------
    ValueError
        If the accelerator is set to mixed precision, gradient accumulation or a sharded model,
        does not know of the processes that were launched, or has another device.
    """
    if accelerator is None:
        return device
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"accelerator has mixed_precision={accelerator.mixed_precision!r}, which is not "
            "supported; use Accelerator(mixed_precision='no'). float32 data are fitted in float32."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "accelerator accumulates gradients over "
            f"{accelerator.gradient_accumulation_steps} steps, which is not supported; set "
            "gradient_accumulation_steps=1 and raise batch_size."
        )
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerator is of the type {kind}, which is not supported: a whole copy of the "
            "model is on each process. Launch several CPU or GPU processes."
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes == 1 < launched:
        raise ValueError(
            f"{launched} processes were launched, but the accelerator knows of one: each would "
            "fit alone. For processes on CPUs set the environment variable "
            "ACCELERATE_USE_CPU=true, or use Accelerator(cpu=True)."
        )
    own = torch.device(accelerator.device)
    if own.type == "cpu":
        own = torch.device("cpu")  # not "cpu:0"
    if device != "auto" and torch.device(device) != own:
        raise ValueError(
            f"device={str(device)!r} is not that of the accelerator, {str(own)!r}; use "
            "device='auto'."
        )
    return own


def is_main_process(accelerator: Any) -> bool:
    """Whether this process is the one that prints and warns."""
    return accelerator is None or bool(accelerator.is_main_process)


def shared_seed(accelerator: Any, random_state: S) -> S | int:
    """`random_state`; if it is None, a seed that the main process draws for all."""
    if accelerator is None or accelerator.num_processes == 1 or random_state is not None:
        return random_state
    seed = (
        int(np.random.SeedSequence().generate_state(1)[0]) if is_main_process(accelerator) else 0
    )
    return int(_add_up(accelerator, torch.tensor([seed], device=accelerator.device)))


def engine_of(accelerator: Any) -> Engine:
    """The engine that shares a fit with the other processes, if there are any."""
    is_alone = accelerator is None or accelerator.num_processes == 1
    return Engine() if is_alone else DataParallel(accelerator)


class DataParallel(Engine):
    """Evaluates the objective together with other processes, on a part of the rows of each batch.

    Parameters
    ----------
    accelerator : accelerate.Accelerator

    Attributes
    ----------
    generator : torch.Generator
        The generator of this process's noise. That of the net is the same in all processes.
    """

    generator: torch.Generator

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.part = accelerator.process_index, accelerator.num_processes

    def begin(self, net: NeuralNet, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Check that all processes were given the same, and give them the same start."""
        self._check_same(net, rows, valid, epochs)
        index, count = self.part
        state = list(net.module_.state_dict().values())
        first = self._add_up([t if index == 0 else torch.zeros_like(t) for t in state])
        with torch.no_grad():
            for tensor, value in zip(state, first, strict=True):
                tensor.copy_(value)
        seeds = torch.randint(2**31, (count,), generator=net.generator_, device=net.device)
        self.generator = torch.Generator(net.device).manual_seed(int(seeds[index]))

    def differentiate(self, net: NeuralNet, rows: WeightedRows) -> Terms:
        terms = net.criterion_.backward(net.module_, rows, self.generator, self.part)
        parameters = [p for p in net.module_.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        *gradients, loss, penalty, l2 = self._add_up([*gradients, *terms])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return Terms(loss, penalty, l2)

    def linear_predictor(self, net: NeuralNet, rows: Rows) -> Tensor:
        index, count = self.part
        start, stop = (len(rows) * k // count for k in (index, index + 1))
        weight = net.module_.linears[-1].weight
        eta = weight.new_zeros(len(rows), len(weight))
        if start < stop:
            own = torch.arange(start, stop, device="cpu")
            eta[start:stop] = net.linear_predictor(rows.subset(own))
        return self._add_up([eta])[0]

    def sum(self, value: float) -> float:
        number = torch.tensor([value], dtype=torch.float64, device=self.accelerator.device)
        return float(_add_up(self.accelerator, number))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def _check_same(self, net: NeuralNet, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Raise, on all processes, unless all of them were given the same."""
        settings = {
            name: str(value)
            for name, value in net.get_params(deep=False).items()
            if isinstance(value, bool | int | float | str | tuple | dict | torch.dtype)
            and name not in _OWN_ENTRIES
        }
        scale = net.module_.input_scale  # of all rows, for adam
        parts = {
            "the number of rows": len(rows),
            "X": _checksum(rows.take(slice(0, 100)), scale),
            "y": _checksum(rows.y, net.target.units),
            "the sample weights": _checksum(rows.weight),
            "the number of unlabelled rows": len(rows.unlabeled or ()),
            "the number of validation rows": len(valid or ()),
            "random_state": net.seed,
            "the parameters": _checksum(epochs, settings),
        }
        index, count = self.part
        values = torch.zeros(count, len(parts), dtype=torch.int64, device=net.device)
        values[index] = torch.tensor(list(parts.values()), device=net.device)
        values = _add_up(self.accelerator, values)
        differ = (values != values[0]).any(0).tolist()
        names = [name for name, different in zip(parts, differ, strict=True) if different]
        if names:
            raise ValueError(
                "All processes of a data-parallel fit are to be given the same, and the whole of "
                f"it; these differ: {', '.join(names)}. The rows of each batch are divided by the "
                "fit itself."
            )

    def _add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each of the tensors summed over all processes, by one exchange."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        parts = _add_up(self.accelerator, flat).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _checksum(*values: Any) -> int:
    arrays = [to_array(each) if isinstance(each, Tensor) else each for each in values]
    return zlib.crc32(describe(arrays).encode())


def _add_up(accelerator: Any, tensor: Tensor) -> Tensor:
    try:
        total: Tensor = accelerator.reduce(tensor, "sum")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        index, count = accelerator.process_index, accelerator.num_processes
        raise RuntimeError(_LOST.format(index=index, count=count)) from error
    return total
