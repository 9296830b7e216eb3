"""The structure holds: imports go only downwards, and each module stays readable."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_margdrop

PACKAGE = Path(sklearn_margdrop.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: A room, or a module that is one by itself, may import those of lower floors only, and the
#: modules of a room each other, in no circle.
FLOORS = {
    "noise": 0,
    "notices": 0,
    "numerics": 0,
    "layers": 1,
    "family": 2,
    "families": 3,
    "networks": 2,
    "penalties": 3,
    "backprop": 3,
    "weighting": 3,
    "methods": 4,
    "single_layer": 4,
    "objective": 5,
    "training": 6,
    "distributed": 7,
    "export": 7,
    "estimators": 8,
    "inspection": 9,
    "export.converters": 9,
    "": 9,
}

#: Who may know which library.
KNOWN_TO = {
    "sklearn": {"estimators", "inspection"},
    "skorch": {"training", "distributed"},
}

#: The modules that may know what other libraries keep private.
PRIVATE = {"numerics.torch_private", "estimators.sklearn_private"}

#: What the libraries name as if it were private, but ask others to call or to override.
FOR_OTHERS = {"_get_params_html", "_init_callback_context", "_meta"}

#: Of named tuples, and of the standard library.
STANDARD = {"_replace", "_getframe"}


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


def room_of(module):
    return module if module in FLOORS else module.partition(".")[0]


def test_every_module_is_in_a_room():
    assert {room_of(name_of(path)) for path in MODULES} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_only_downwards(path):
    room = room_of(name_of(path))
    for imported in imports_of(path):
        root, _, module = imported.partition(".")
        if root == "sklearn_margdrop" and room_of(module) != room:
            assert FLOORS[room_of(module)] < FLOORS[room], imported
        elif root in KNOWN_TO:
            assert room in KNOWN_TO[root], imported


def test_no_imports_go_in_a_circle():
    imported = {
        name_of(path): {
            module.partition(".")[2]
            for module in imports_of(path)
            if module.partition(".")[0] == "sklearn_margdrop"
        }
        for path in MODULES
    }
    graphlib.TopologicalSorter(imported).prepare()  # which raises CycleError


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture(scope="module")
def own_names():
    """The private names that the package defines."""
    names = set()
    for node in (node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_libraries_keep_private_stands_in_one_place(path, own_names):
    if name_of(path) in PRIVATE:
        return
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.module.startswith("sklearn_margdrop"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if is_private(name)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            found |= {node.attr} - own_names
    assert found <= FOR_OTHERS | STANDARD


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


#: Modules whose tests are not in a namesake.
TESTED_ELSEWHERE = {
    "weighting": "in test_objective.py, with the losses that the weights belong to",
    "estimators.classifier": "parameters and docstrings, in test_estimators.py",
    "estimators.regressor": "the same",
    "estimators.glm_classifier": "the same",
    "estimators.glm_regressor": "the same",
}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.stem != "__init__"], ids=name_of
)
def test_every_module_has_a_namesake_among_the_tests(path):
    room = name_of(path).rpartition(".")[0]
    test = Path(__file__).parent / room / f"test_{path.stem}.py"
    assert test.exists() != (name_of(path) in TESTED_ELSEWHERE)


def test_names_of_test_files_are_unique():
    """As pytest asks of folders that are no packages."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(set(names)) == len(names)
