"""The network in an estimator's HTML representation: layers, noisy sites, the fitted penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np

from sklearn_margdrop.estimators.sklearn_private import shown_after
from sklearn_margdrop.noise import Noise

_TABLE = """
<div class="estimator-table">
  <details open>
    <summary>Network</summary>
    <table class="parameters-table">
      <tbody>
        <tr><th>Layer</th><th>Units</th><th>Noise</th></tr>
        {rows}
      </tbody>
    </table>
    <p>{note}</p>
  </details>
</div>
"""

#: Widths from the input to the output, empty where they are not known; what the hidden layers
#: compute; the noise at each noisy site.
Outline: TypeAlias = tuple[Sequence[int | str], str, Mapping[int, Noise]]


def with_network(params: Any, estimator: Any) -> Any:
    """The parameters of an estimator, as scikit-learn shows them, after a table of its network.

    The table has a row for each layer, and the method and the fitted penalty below.
    """
    try:
        widths, activation, noise = estimator._outline()
        note, family = estimator.method, ""
        if hasattr(estimator, "loss_curve_"):
            family = estimator._target.family.name
            curve = getattr(estimator, "penalty_curve_", None)  # a linear model has the last alone
            penalty = curve[-1] if curve else getattr(estimator, "penalty_", np.nan)
            if estimator.loss_curve_ and np.isfinite(penalty):
                note += (
                    f": a penalty of {penalty:.3g} in an objective of "
                    f"{estimator.loss_curve_[-1]:.3g} nats per sample"
                )
    except ValueError:
        return params  # parameters that do not go together: fit says so
    names = ["input", *(f"hidden, {activation}" for _ in widths[2:]), f"output {family}".strip()]
    rows = (
        (name, width, noise.get(site, ""))
        for site, (name, width) in enumerate(zip(names, widths, strict=True))
    )
    lines = (
        '<tr class="default">' + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return shown_after(params, _TABLE.format(rows="\n        ".join(lines), note=escape(note)))
