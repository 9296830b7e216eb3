"""The structure holds: imports go only downwards, and each module stays readable."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_margdrop

PACKAGE = Path(sklearn_margdrop.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: A module may import those of lower levels only.
LEVELS = {
    "ambient": 0,
    "callbacks": 0,
    "csr": 0,
    "memory": 0,
    "noise": 0,
    "notices": 0,
    "optimizers": 0,
    "stability": 0,
    "units": 0,
    "sparse": 1,
    "products": 2,
    "batches": 2,
    "fingerprint": 2,
    "files": 1,
    "layers": 3,
    "spread": 3,
    "quadrature": 3,
    "families": 4,
    "networks": 4,
    "penalties": 5,
    "backprop": 5,
    "validation": 4,
    "export": 5,
    "objective": 6,
    "prediction": 6,
    "recording": 6,
    "schedules": 6,
    "saving": 5,
    "checkpoints": 6,
    "partitions": 7,
    "training": 7,
    "estimators.ending": 8,
    "estimators.atomic": 8,
    "estimators.dask_data": 8,
    "data_parallel": 8,
    "estimators.export": 8,
    "estimators.html": 8,
    "estimators.coefficients": 8,
    "estimators.curvatures": 8,
    "estimators.pretraining": 8,
    "estimators.weights": 8,
    "estimators.nets": 8,
    "estimators.base": 9,
    "estimators.targets": 9,
    "estimators.indicators": 10,
    "estimators.network": 10,
    "estimators.glm": 10,
    "estimators.classifier": 11,
    "estimators.regressor": 11,
    "estimators.glm_classifier": 11,
    "estimators.glm_regressor": 11,
    "estimators": 11,
    "inspection.unwrap": 12,
    "converters": 12,
    "": 12,
    "inspection.penalty": 13,
    "inspection.training_curve": 13,
    "inspection.fisher_scaling": 13,
    "inspection.regularization_path": 14,
    "inspection": 15,
}

#: Who may know which library.
KNOWN_TO = {
    "sklearn": {"validation"}
    | {name for name in LEVELS if name.startswith(("estimators.", "inspection."))},
    "skorch": {
        "ambient",
        "callbacks",
        "checkpoints",
        "data_parallel",
        "prediction",
        "recording",
        "schedules",
        "saving",
        "training",
    },
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def test_every_module_has_a_level():
    assert {name_of(path) for path in MODULES} == set(LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_only_downwards(path):
    for imported in imports_of(path):
        root, _, module = imported.partition(".")
        if root == "sklearn_margdrop":
            assert LEVELS[module] < LEVELS[name_of(path)], imported
        elif root in KNOWN_TO:
            assert name_of(path) in KNOWN_TO[root], imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= 500


def test_public_names():
    assert sklearn_margdrop.__all__ == sorted(sklearn_margdrop.__all__)
    assert all(hasattr(sklearn_margdrop, name) for name in sklearn_margdrop.__all__)
    assert sklearn_margdrop.__version__.count(".") == 2


def test_import_is_quiet_and_leaves_torch_alone():
    code = (
        "import torch\n"
        "before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "import sklearn_margdrop, sys\n"
        "after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "assert torch.equal(before[0], after[0]) and before[1:] == after[1:]\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
