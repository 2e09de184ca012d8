"""Some records' targets token by token: every token coloured by its NLL under the base model."""
from __future__ import annotations

import math
from html import escape
from statistics import fmean

from sdft.report.run import Run
from sdft.results import TokenMapText


def heat_map(run: Run) -> str:
    """HTML of some records' targets, each token coloured by its NLL under the base model; '' where none are kept."""
    instructions = {line["id"]: line["instruction"] for line in run.distilled}
    cards = "".join(
        f'<div class=card><p class=prompt>{escape(instructions.get(record["id"], record["id"]))}</p><div class=answers>'
        + "".join(_target(name, text) for name, text in record["texts"].items()) + "</div></div>"
        for record in run.measures.get("token_map") or ())
    legend = " ".join(_token(f"{abs(math.log(p)):.1f} (p = {p:g})", abs(math.log(p)))
                      for p in (1.0, 0.4, 0.1, 0.01, 0.001))
    return (f"<p class=legend>Colour: NLL of the token under the base model, in nats: {legend}. Underlined: p &lt; "
            f"0.4. ⏎: line break.</p>{cards}" if cards else "")


def _target(name: str, text: TokenMapText) -> str:
    tokens = "".join(_token(piece, nll, f"{nll:.2f} nats, rank {rank}")
                     for piece, nll, rank in zip(text["pieces"], text["nll"], text["rank"], strict=True))
    return (f"<div class=answer><b>{escape(name)}</b> <small>{fmean(text['nll']):.2f} nats/token, {len(text['nll'])} "
            f"tokens</small><pre class=heat>{tokens}</pre></div>")


def _token(piece: str, nll: float, title: str = "") -> str:
    opacity = min(max(nll, 0) / math.log(1000), 1) * 0.75       # strongest for p ≤ 0.1 %; dark text stays readable
    low = " class=low" if nll > -math.log(0.4) else ""          # underlined, so that colour is not the only sign
    attributes = low + (f' title="{title}"' if title else "")
    text = escape(piece).replace("\n", "⏎\n")
    return f'<span{attributes} style="background:rgba(224,90,0,{opacity:.2f})">{text}</span>'
