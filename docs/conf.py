"""Sphinx configuration."""

import sklearn_margdrop

project = "sklearn_margdrop"
author = "The sklearn_margdrop developers"
copyright = f"2026, {author}"
version = release = sklearn_margdrop.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb"]
default_role = "literal"
nitpicky = False

autosummary_generate = True
numpydoc_show_class_members = True
numpydoc_class_members_toctree = False
numpydoc_attributes_as_param_list = True
# What an engine's class inherits from torch or skorch is documented there.
numpydoc_show_inherited_class_members = {
    f"sklearn_margdrop.{name}": False
    for name in (
        "networks.NoisyNetwork",
        "networks.Trace",
        "batches.Batch",
        "objective.Objective",
        "training.MarginalizedNet",
    )
}
numpydoc_validation_checks = {"GL01", "GL02", "GL03", "GL05", "PR01", "PR02", "PR03", "PR10"}
numpydoc_validation_exclude = {
    r"^sklearn_margdrop\.[a-z]",  # the engine
    r"\.(set_\w+_request|get_metadata_routing|get_params|set_params)$",  # scikit-learn's
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_margdrop"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}
html_sidebars = {"index": [], "user_guide": []}
html_show_sourcelink = False
html_copy_source = False
