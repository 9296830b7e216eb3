"""Several processes that fit one network: each takes a part of the rows of every batch.

Gradients are written by hand (:mod:`~sklearn_margdrop.backprop`), where the hooks of torch's
`DistributedDataParallel` do not see them; so the module stays as it is, and what the parts
contribute is summed explicitly, once a step, the terms of the objective along with the gradients.
All decisions rest on such sums: all processes take the same ones.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from skorch.callbacks import Callback
from skorch.hf import AccelerateMixin
from torch import Tensor

from sklearn_margdrop.numerics.devices import to_array
from sklearn_margdrop.objective import Terms
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.training.stability import StopTraining
from sklearn_margdrop.weighting import Batch

S = TypeVar("S")

_LOST = (
    "Process {index} of {count} waited for the others of a data-parallel fit in vain: one of them "
    "has ended with an error of its own, does not answer, or never called fit with the same "
    "accelerator. Look at what the others printed; how long to wait is set by Accelerator("
    "kwargs_handlers=[InitProcessGroupKwargs(timeout=...)])."
)

#: Parameters of the net that are checked by a name of their own, or need not agree.
_OWN_ENTRIES = {"device", "loss_unit", "module__input_scale", "module__seed", "seed", "verbose"}


def check_accelerator(accelerator: Any, device: str | torch.device) -> str | torch.device:
    """The device to compute on; raises where the accelerator asks for what there is not.

    Parameters
    ----------
    accelerator : accelerate.Accelerator or None
    device : str or torch.device
        That of the estimator. "auto" leaves it to the accelerator, if there is one.

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
    """`random_state`; of None, a seed that the main process draws for all."""
    if accelerator is None or accelerator.num_processes == 1 or random_state is not None:
        return random_state
    seed = (
        int(np.random.SeedSequence().generate_state(1)[0]) if is_main_process(accelerator) else 0
    )
    return int(_add_up(accelerator, torch.tensor([seed], device=accelerator.device)))


def parallel(net_class: type[MarginalizedNet], accelerator: Any) -> Callable[..., MarginalizedNet]:
    """What makes a net of this class that trains on all processes, if there are several."""
    if accelerator is None or accelerator.num_processes == 1:
        return net_class
    kind: Any = net_class
    return functools.partial(_parallel_class(kind), accelerator=accelerator)


@functools.cache
def _parallel_class(net_class: Any) -> Any:
    return type(f"DataParallel{net_class.__name__}", (DataParallel, net_class), {})


def alone(net: MarginalizedNet) -> MarginalizedNet:
    """The same net, which knows of no other processes; it shares all it has with the first."""
    if not isinstance(net, DataParallel):
        return net
    kind: Any = type(net).__mro__[type(net).__mro__.index(AccelerateMixin) + 1]
    twin: MarginalizedNet = kind.__new__(kind)
    own = ("accelerator", "unwrap_after_train", "_wrapped_with_accelerator", "_local_generator")
    for name, value in vars(net).items():
        if name not in own and not name.startswith("callbacks__print_log"):
            twin.__dict__[name] = value
    return twin


class DataParallel(AccelerateMixin):
    """A net that trains together with its copies on other processes.

    skorch's mixin brings the parameter `accelerator`, and has parameters saved by the main
    process alone. What it does for autograd (wrap the module, divide a `DataLoader`) is not used.
    """

    _local_generator: torch.Generator | None = None

    @property
    def _part(self) -> tuple[int, int]:
        """Which part of the rows of each batch is this process's."""
        return self.accelerator.process_index, self.accelerator.num_processes

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        callbacks: list[tuple[str, Callback]] = super()._default_callbacks
        main = is_main_process(self.accelerator)
        return [(name, each) for name, each in callbacks if main or name != "epoch_log"]

    def _validate_params(self) -> None:
        # The mixin's own asks for device=None: the module would be moved, which knows its device.
        super(AccelerateMixin, self)._validate_params()

    def _initialize_accelerator(self) -> DataParallel:
        return self  # nothing is wrapped

    def __reduce_ex__(self, protocol: Any) -> Any:
        return alone(cast("MarginalizedNet", self)).__reduce_ex__(protocol)

    def train(
        self, rows: Rows, valid: Rows | None, epochs: int, *helpers: Callback | None
    ) -> None:
        self._check_same(rows, valid, epochs)
        state = list(self.module_.state_dict().values())
        with torch.no_grad():
            for tensor, main in zip(state, self._from_main(state), strict=True):
                tensor.copy_(main)
        # Noise of its own for each process, from the one stream that all of them have.
        index, count = self._part
        seeds = torch.randint(2**31, (count,), generator=self.generator_, device=self.device)
        self._local_generator = torch.Generator(self.device).manual_seed(int(seeds[index]))
        super().train(rows, valid, epochs, *helpers)

    def fit_loop(self, *args: Any, **kwargs: Any) -> DataParallel:
        super().fit_loop(*args, **kwargs)
        if self.stop_reason_ == "interrupted":
            # The others wait for this process: it is to end, instead of going on with its share.
            raise KeyboardInterrupt
        return self

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        stop = None
        try:
            super().notify(method_name, **cb_kwargs)
        except StopTraining as raised:
            stop = raised
        # Where one process stops (by its clock, say), all do.
        if method_name == "on_epoch_end" and self._sum_of(float(stop is not None)) > 0:
            raise stop or StopTraining("stopped")

    def linear_predictor(self, X: Rows) -> Tensor:
        """That of the validation rows, of which each process takes a part."""
        index, count = self._part
        start, stop = (len(X) * k // count for k in (index, index + 1))
        weight = self.module_.linears[-1].weight
        eta = weight.new_zeros(len(X), len(weight))
        if start < stop:
            own = torch.arange(start, stop, device="cpu")
            eta[start:stop] = super().linear_predictor(X.subset(own))
        return self._add_up([eta])[0]

    def _evaluate(self, rows: Rows) -> float:
        return self._sum_of(super()._evaluate(rows))

    def _differentiate(self, batch: Batch) -> Terms:
        generator = self._local_generator
        terms = self.criterion_.backward(self.module_, batch, generator, self._part)
        parameters = [p for p in self.module_.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        *gradients, loss, penalty, l2 = self._add_up([*gradients, *terms])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return Terms(loss, penalty, l2)

    def _check_same(self, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Raise, on all processes, unless all of them were given the same."""
        settings = {
            name: str(value)
            for name, value in sorted(self.get_params(deep=False).items())
            if isinstance(value, bool | int | float | str | tuple | dict | torch.dtype)
            and name not in _OWN_ENTRIES
        }
        first = to_array(cast("Tensor", rows.take(slice(0, 100))))
        scale = repr(self.module_.input_scale)  # of all rows, for adam
        parts = {
            "the number of rows": len(rows),
            "X": zlib.crc32(first.tobytes() + scale.encode()),
            "y": _checksum(rows.y) ^ _checksum_of_units(rows),
            "the sample weights": _checksum(rows.weight),
            "the number of unlabelled rows": len(rows.unlabeled or ()),
            "the number of validation rows": len(valid or ()),
            "random_state": self.seed,
            "the parameters": zlib.crc32(repr((epochs, settings)).encode()),
        }
        index, count = self._part
        values = torch.zeros(count, len(parts), dtype=torch.int64, device=self.device)
        values[index] = torch.tensor(list(parts.values()), device=self.device)
        values = _add_up(self.accelerator, values)
        differ = (values != values[0]).any(0).tolist()
        names = [name for name, different in zip(parts, differ, strict=True) if different]
        if names:
            raise ValueError(
                "All processes of a data-parallel fit are to be given the same, and the whole of "
                f"it; these differ: {', '.join(names)}. The rows of each batch are divided by the "
                "fit itself."
            )

    def _from_main(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        main = is_main_process(self.accelerator)
        return self._add_up([t if main else torch.zeros_like(t) for t in tensors])

    def _sum_of(self, value: float) -> float:
        number = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(_add_up(self.accelerator, number))

    def _add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each of the tensors summed over all processes, by one exchange."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        parts = _add_up(self.accelerator, flat).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _checksum_of_units(rows: Rows) -> int:
    units = rows.units
    return 0 if units is None else zlib.crc32(units.location.tobytes() + units.scale.tobytes())


def _checksum(tensor: Tensor | None) -> int:
    return 0 if tensor is None else zlib.crc32(to_array(tensor).tobytes())


def _add_up(accelerator: Any, tensor: Tensor) -> Tensor:
    try:
        total: Tensor = accelerator.reduce(tensor, "sum")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        index, count = accelerator.process_index, accelerator.num_processes
        raise RuntimeError(_LOST.format(index=index, count=count)) from error
    return total
