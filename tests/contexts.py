"""The contexts of torch that a call may be made in, and what there is to see of them."""

import contextlib
import functools
import sys

import torch


@contextlib.contextmanager
def setting(getter, setter, value):
    """A setting of the thread or of the process, and what it was before."""
    before = getter()
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def autocast_of_cuda():
    """As on a machine with a GPU; elsewhere `torch.autocast("cuda")` does nothing."""
    get, turn = torch.is_autocast_enabled, torch.set_autocast_enabled
    with setting(lambda: get("cuda"), lambda value: turn("cuda", value), True):
        yield


def deterministic(warn_only=False):
    turn = functools.partial(torch.use_deterministic_algorithms, warn_only=warn_only)
    return setting(torch.are_deterministic_algorithms_enabled, turn, True)


def flushes_denormals():
    return sys.float_info.min / 2 == 0


def default_dtype(dtype):
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


def forget(tensor):
    return torch.zeros_like(tensor)


CONTEXTS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "autocast of cuda": autocast_of_cuda,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "no gradients in the thread": lambda: setting(
        torch.is_grad_enabled, torch.set_grad_enabled, False
    ),
    "device": lambda: torch.device("meta"),
    "default device": lambda: setting(lambda: None, torch.set_default_device, "meta"),
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(forget, forget),
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
    "denormals": lambda: setting(flushes_denormals, torch.set_flush_denormal, True),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "deterministic, with warnings": lambda: deterministic(warn_only=True),
    "anomalies": lambda: setting(
        torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, True
    ),
}


@contextlib.contextmanager
def together(*names):
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(CONTEXTS[name]())
        yield


@contextlib.contextmanager
def all_contexts():
    """Of each kind one."""
    with (
        together("float16", "deterministic", "denormals", "anomalies", "default device"),
        together("autocast to bfloat16", "autocast of cuda", "hooks", "inference_mode"),
    ):
        yield


#: Each context once, several at a time.
SCENES = {
    "all": all_contexts,
    "float64": lambda: together("float64", "autocast to float16", "no_grad", "device"),
    "bfloat16": lambda: together(
        "bfloat16", "deterministic, with warnings", "no gradients in the thread", "save_on_cpu"
    ),
}


def state():
    """The context of torch in this thread and process."""
    kinds = ("cpu", "cuda", "mps", "xpu")
    return {
        "autocast": [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds],
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "device": torch.get_default_device(),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "dtype": torch.get_default_dtype(),
        "flushes denormals": flushes_denormals(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "anomalies": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "random numbers": torch.get_rng_state().sum().item(),
    }


@contextlib.contextmanager
def left_alone(context):
    with context():
        before = state()
        yield
        assert state() == before
