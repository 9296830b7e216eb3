"""The network in an estimator's HTML representation: layers, noisy sites, the fitted penalty."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from sklearn_margdrop.families import Family
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


class DiagramMixin(BaseEstimator):
    """Shows the network among the parameters in an estimator's HTML representation."""

    loss_curve_: list[float]
    method: str

    if TYPE_CHECKING:

        def __sklearn_is_fitted__(self) -> bool: ...

        def _fitted_family(self) -> Family: ...

    @abstractmethod
    def _layers(self) -> tuple[tuple[int, ...], dict[int, Noise]]:
        """Widths of the hidden layers, and the noise at each site, by the parameters."""

    @abstractmethod
    def _last_penalty(self) -> float:
        """The fitted penalty in nats per sample, nan where it is not known."""

    @abstractmethod
    def _fitted_sites(self) -> tuple[list[int], dict[int, Noise]]:
        """Widths from the input to the output, and the noise at each noisy site, of the fit."""

    def _get_params_html(self, deep: bool = True, doc_link: str = "") -> Any:
        # scikit-learn shows this in diagrams of the estimator and of what it is a part of.
        params = super()._get_params_html(deep, doc_link)
        try:
            table = self._network_table()
        except ValueError:
            return params  # parameters that do not go together: fit says so
        show = params._html_repr
        params._html_repr = lambda: table + show()
        return params

    def _network_table(self) -> str:
        if not self.__sklearn_is_fitted__():
            hidden, noise = self._layers()
            return network_table(["", *hidden, ""], self._activation(), noise, f"{self.method}")
        widths, noise = self._fitted_sites()
        note, family = self.method, self._fitted_family()
        if self.loss_curve_ and np.isfinite(self._last_penalty()):
            note += (
                f": a penalty of {self._last_penalty():.3g} in an objective of "
                f"{self.loss_curve_[-1]:.3g} nats per sample"
            )
        return network_table(widths, self._activation(), noise, note, family.name)

    def _activation(self) -> str:
        """What the hidden layers compute, where there are any."""
        return ""
