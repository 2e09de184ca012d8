"""The style sheet of report.html: light and dark, screen and print, from 320 px up."""
from __future__ import annotations

from sdft.report.drawing import COLOURS

DARK = ("#b4b9bf", "#ff9d5c", "#7db6f7", "#71c285", "#c79be0", "#dfb54a", "#f07ba6", "#4fc3ce")


def style_sheet() -> str:
    """The CSS, with a colour for every arm: class arm0 is the first."""
    light, dark = ("".join(f"--arm{index}:{colour};" for index, colour in enumerate(colours))
                   for colours in (COLOURS, DARK))
    arms = "".join(f".arm{index}{{--arm:var(--arm{index})}}" for index in range(len(COLOURS)))
    night = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}{NIGHT}}}}}"
    return f":root{{{light}{LIGHT}}}\n{night}\n{arms}{RULES}{PRINT}"


LIGHT = ("color-scheme:light dark;--page:#fff;--text:#1b1c1d;--quiet:#5a5e63;--line:#dcdfe3;--box:#f6f7f9;"
         "--link:#1559a6;")
NIGHT = "--page:#16181b;--text:#e9eaec;--quiet:#a9aeb5;--line:#3a3f45;--box:#22262b;--link:#8ec1ff;"
RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 4rem}
h1{font-size:clamp(1.3rem,3.2vw,1.75rem);line-height:1.2;margin:.2rem 0 .7rem;text-wrap:balance}
h2{font-size:1.15rem;margin:1.8rem 0 .5rem} h3{font-size:1rem;margin:1rem 0 .4rem;overflow-wrap:anywhere}
.lead{font-size:1.08rem;max-width:52rem;margin:.4rem 0 1rem}
a{color:var(--link)} nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:1.6rem 0 .8rem}
[class*=arm]{color:inherit} .number b,.said>b,.bar>b,.name{color:var(--arm)} .name{white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.8rem}
.summary-card{border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.summary-card h2{margin:0;font-size:.95rem} .summary-card p,.summary-card ul{margin:.35rem 0 0;font-size:.9rem}
.summary-card ul{padding-left:1.05rem} .numbers{display:flex;flex-wrap:wrap;gap:.1rem .9rem}
.number{display:inline-flex;flex-direction:column;line-height:1.25} .number b{font-size:1.5rem;white-space:nowrap}
.number small{font-size:.78rem}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));gap:.7rem 1.2rem}
.said{border-left:4px solid var(--arm);padding:0 .2rem 0 .7rem;font-size:.92rem;min-width:0}
.mark{border:1px solid currentColor;border-radius:4px;padding:0 .3rem}
.said p{margin:.15rem 0 0;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 2.5rem;margin-top:1rem}
.bar{margin:.7rem 0} .counts{display:inline-block;color:var(--quiet);font-size:.92rem}
.track{display:flex;height:1.5rem;margin-top:.2rem;padding-right:2.6rem} .track small{margin-left:.35rem}
.track i{min-width:3px;background:var(--arm)} .track .lost{background:none;border:2px dashed var(--arm)}
.track .new{margin-left:2%;background:repeating-linear-gradient(135deg,var(--arm) 0 3px,transparent 3px 8px)}
.reasons{padding-left:1.2rem} .reasons li{margin:.35rem 0;max-width:62rem}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .5rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--quiet);vertical-align:bottom;max-width:7.5rem}
td{white-space:nowrap} th:first-child{text-align:left} tbody th{min-width:4rem} tbody tr:hover{background:var(--box)}
.note,figcaption,small{color:var(--quiet);font-size:.84rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1.2rem}
figure{margin:0} img{width:100%;max-width:560px;height:auto;display:block;background:#fff;border-radius:6px}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
.part{padding:.6rem .9rem} .part>summary{font-size:1.08rem}
summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
.card{border-top:1px solid var(--line);margin-top:.6rem;padding-top:.3rem}
.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0;font-size:.9rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:.6rem;margin:.5rem 0}
.answer{background:var(--box);border-radius:5px;padding:.5rem .7rem;min-width:0}
.low{text-decoration:underline;text-underline-offset:3px;text-decoration-color:currentColor}
.heat span,.legend span{border-radius:2px} .legend{font-size:.88rem} .legend span{padding:.1rem .2rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0 0;font:.84rem/1.45 ui-monospace,monospace}
"""
PRINT = """
@media print{
:root{color-scheme:light;font-size:9.5pt} body{font-size:9.5pt} main{max-width:none;padding:0} nav{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.summary-card,.said,.bar,figure,tr{break-inside:avoid} h2,h3,h2+.note{break-after:avoid}
.numbers{gap:.1rem .8rem} .number small{font-size:6pt}
.cards,.side{grid-template-columns:repeat(3,1fr)} .pair{grid-template-columns:1fr 1fr}
.part:not(:has(>#answers))::details-content{content-visibility:visible;block-size:auto} .scroll{overflow:visible}
.part .figures{grid-template-columns:1fr 1fr}
table{font-size:7pt} th,td{padding:.15rem .25rem} td{white-space:normal}
}
"""
