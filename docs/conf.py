"""Sphinx configuration."""

import sys
from pathlib import Path

from sklearn.experimental import enable_halving_search_cv  # noqa: F401  (examples name it)
from sphinx_gallery.sorting import ExplicitOrder

import sklearn_margdrop

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import cells
from benchmarks.quality import choices, mnist_tables, text_tables
from sklearn_margdrop.methods import GLM_METHODS, METHODS, NETWORK_METHODS
from sklearn_margdrop.noise import NOISE_MODELS

project = "sklearn_margdrop"
author = "The sklearn_margdrop developers"
copyright = f"2026, {author}"
version = release = sklearn_margdrop.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb", "generated"]
default_role = "literal"
smartquotes = False  # tables name parameters with their quotes
nitpicky = False

# Links instead of inventories of other projects, so that nothing is downloaded.
extlinks = {
    "sklearn": ("https://scikit-learn.org/stable/modules/generated/sklearn.%s.html", "%s"),
    "torch": ("https://docs.pytorch.org/docs/stable/generated/torch.%s.html", "%s"),
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
templates_path = ["templates"]  # which list the members of a class, each once
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "all",  # but for these:
    "ES01",  # many a summary says it all,
    "EX01",  # tests/test_docs.py knows what needs an example
    "SA01",  # and stands alone
    "SS02",  # the summary of a noise model begins with its formula
    "SS06",  # as long as a line of the source is short enough
    "RT02",  # "self : object", as in scikit-learn
    "YD01",
}
numpydoc_validation_exclude = {
    r"^sklearn_margdrop(\.[a-z]\w*)+\.[A-Z]\w*\.",  # methods of what is within say it in a line
    r"\.(set_\w+_request|get_metadata_routing|get_params|set_params|score)$",  # scikit-learn's
}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": ExplicitOrder(
        [
            f"plot_{name}.py"
            for name in (
                "quickstart",
                "noise_placement",
                "training_curve",
                "penalty_per_sample",
                "width_regression",
                "calibration",
                "unlabeled_rows",
                "tuning",
                "successive_halving",
                "scoring_monitor",
                "text_vs_logistic_regression",
                "poisson_counts",
                "fisher_scaled_penalty",
                "regularization_path",
                "gaussian_noise_is_ridge",
                "penalty_along_retain_rate",
                "probes",
                "online_fisher_adagrad",
            )
        ]
        + ["*"]  # examples that are not listed come last
    ),
    "parallel": 2,  # examples at a time, each on one thread; those that take times run alone
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "sklearn_margdrop"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "logo": {
        "text": "sklearn_margdrop",
        "image_light": "_static/logo-light.svg",
        "image_dark": "_static/logo-dark.svg",
        "alt_text": "sklearn_margdrop, the first page",
    },
    "header_links_before_dropdown": 7,
    "navbar_persistent": ["search-button"],
    "search_bar_text": "Search these pages",
    "show_toc_level": 2,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": []}
html_show_sourcelink = False
html_copy_source = False


def write(app, name, text):
    """A file to be included."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text + "\n")


def write_noise_table(app):
    """A row for each registered noise model: its name, its parameter, its first line."""
    rows = [("noise", "parameter", "the noisy activation z~ and its variance")]
    for name, model in NOISE_MODELS.items():
        rows.append((f'`"{name}"`', f"`{model.parameter}`", model.__doc__.splitlines()[0]))
    write(app, "noise.inc", cells.restructured("", *rows[:1], rows[1:]))


def write_method_table(app):
    """A row for each method: its name, what it is, and the estimators that take it."""
    tables = NETWORK_METHODS, GLM_METHODS
    rows = [
        (f'`"{name}"`', m.summary, *("yes" if name in t else "" for t in tables))
        for name, m in METHODS.items()
    ]
    head = "method", "what it is", "networks", "GLMs"
    write(app, "methods.inc", cells.restructured("", head, rows))


def write_results(app):
    """The tables of both papers, as far as their cells are stored, and Figure 1."""
    for name, module in {"mnist_tables": mnist_tables, "text_tables": text_tables}.items():
        lines = []
        for path in sorted(cells.RESULTS.glob(f"{name}_c*.jsonl")):
            stored = cells.Cells(path)
            if "quick" not in path.stem:
                lines += [cells.restructured(*table) for table in module.tables(stored)]
                lines += [f"Measured with {each}.\n" for each in stored.environments()]
        write(app, f"{name}.inc", "\n".join(lines))
    stored = cells.Cells(cells.RESULTS / "mnist_tables_cpu.jsonl")
    mnist_tables.figure(stored, Path(app.srcdir) / "generated" / "mnist_figure_1.png")


def write_choices(app):
    """The tables of the page on choosing, one file each."""
    stored = cells.Cells(cells.RESULTS / "choices_cpu.jsonl")
    for question, table in choices.tables(stored).items():
        write(app, f"choices_{question.replace(' ', '_')}.inc", cells.restructured(*table))
    measured = " ".join(f"Measured with {each}." for each in stored.environments())
    write(app, "choices_environment.inc", measured)


def setup(app):
    app.connect("builder-inited", write_noise_table)
    app.connect("builder-inited", write_method_table)
    app.connect("builder-inited", write_results)
    app.connect("builder-inited", write_choices)
