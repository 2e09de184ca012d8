"""Single records token by token: their targets as text, each token as warm as it is surprising to the seed."""
from __future__ import annotations

import math
from html import escape
from statistics import fmean
from typing import Any

from sdft.report.run import Row, Run

HOTTEST = math.log(1000)                # nats: p of 0.1 % and less is as warm as it gets
LOW = -math.log(0.4)                    # less probable tokens are underlined as well: nothing rests on colour alone
LEGEND = (1.0, 0.4, 0.1, 0.01, 0.001)   # probabilities


def heat_map(run: Run) -> str:
    """measures.json's token_map as HTML, record by record, the sets of targets beside one another ('' without it)."""
    records: list[dict[str, Any]] = run.measures.get("token_map") or []
    asked = {row["id"]: row["instruction"] for row in run.distilled}
    cards = "".join(
        f'<div class=card><p class=prompt>{escape(asked.get(record["id"], record["id"]))}</p><div class=answers>'
        + "".join(_text(name, text) for name, text in record["texts"].items()) + "</div></div>" for record in records)
    legend = " ".join(_span(f"{abs(math.log(p)):.1f} (p = {p:g})", abs(math.log(p))) for p in LEGEND)
    return (f"<p class=legend>NLL of a token under the untouched seed, nats: {legend}. Underlined: p &lt; 0.4. ⏎ is a "
            f"line end.</p>{cards}" if cards else "")


def _text(name: str, text: Row) -> str:
    spans = "".join(_span(piece, nll, f"{nll:.2f} nats, rank {rank}")
                    for piece, nll, rank in zip(text["pieces"], text["nll"], text["rank"], strict=True))
    return (f"<div class=answer><b>{escape(name)}</b> <small>{fmean(text['nll']):.2f} nats/token, {len(text['nll'])} "
            f"tokens</small><pre class=heat>{spans}</pre></div>")


def _span(piece: str, nll: float, title: str = "") -> str:
    warmth = min(max(nll, 0) / HOTTEST, 1) * 0.75           # dark text stays readable on the warmest
    kind = " class=low" if nll > LOW else ""
    told = f' title="{title}"' if title else ""
    text = escape(piece).replace("\n", "⏎\n")
    return f'<span{kind}{told} style="background:rgba(224,90,0,{warmth:.2f})">{text}</span>'
