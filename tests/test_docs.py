"""The reference is complete: what it lists exists, and has an example."""

import importlib
import re
from pathlib import Path

import pytest

import sklearn_margdrop

DOCS = Path(__file__).parents[1] / "docs"
NAMES = re.findall(r"^   ([a-z_.]*[A-Za-z_]\w*)$", (DOCS / "api.rst").read_text(), re.MULTILINE)


def find(name):
    module, _, attribute = f"sklearn_margdrop.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def has_example(thing):
    return re.search(r"Examples\n\s*-{8}\n(.*\n)*\s*>>> ", thing.__doc__ or "") is not None


def test_all_public_names_are_listed():
    assert set(sklearn_margdrop.__all__) <= set(NAMES)
    assert len(NAMES) == len(set(NAMES)) > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_an_example_of_its_own(name):
    thing = find(name)
    assert has_example(thing) or has_example(getattr(thing, "of", None))  # which makes it


@pytest.mark.parametrize("name", sklearn_margdrop.__all__)
def test_so_has_what_scikit_learn_does_not_have(name):
    for method in ("partial_fit", "sparsify", "densify"):
        if hasattr(find(name), method) or method == "partial_fit":
            assert has_example(getattr(find(name), method)), method
