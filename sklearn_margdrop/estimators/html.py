"""The network in an estimator's HTML representation: layers, noisy sites, the fitted penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

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


def network_table(
    widths: Sequence[int | str],
    activation: str,
    noise: Mapping[int, Noise],
    note: str,
    family: str = "",
) -> str:
    """A row for each layer, and a line below.

    Parameters
    ----------
    widths : sequence of (int or str)
        Of the input, of each hidden layer and of the output; empty where it is not known.
    activation : str
        Activation function of the hidden layers.
    noise : mapping of int to Noise
        The noise at each noisy site.
    note : str
        The line: method and penalty.
    family : str, default=""
        The family of the output.
    """
    names = ["input", *(f"hidden, {activation}" for _ in widths[2:]), f"output {family}".strip()]
    rows = [
        (name, width, "" if noise.get(site) is None else noise[site])
        for site, (name, width) in enumerate(zip(names, widths, strict=True))
    ]
    lines = (
        '<tr class="default">' + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return _TABLE.format(rows="\n        ".join(lines), note=escape(note))
