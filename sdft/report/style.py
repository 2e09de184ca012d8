"""The style sheet of the report: one column; wide tables scroll in their box; figures two abreast where they fit."""

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:#1b1c1d;font:16px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 4rem}
h1{font-size:clamp(1.4rem,4vw,2rem);line-height:1.2}
h2{font-size:1.3rem;margin:2.5rem 0 .8rem;border-bottom:1px solid #ddd;padding-bottom:.3rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.9rem}
a{color:#1559a6}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;text-align:right;border-bottom:1px solid #e4e4e4;vertical-align:top}
td{white-space:nowrap}
thead th{border-bottom:2px solid #999;vertical-align:bottom;max-width:9rem}
th:first-child,td:first-child{text-align:left;white-space:nowrap}
tbody tr:hover{background:#f5f7fa}
.note,figcaption,small{color:#5a5e63;font-size:.84rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1.2rem}
figure{margin:0}
img{width:100%;height:auto;display:block}
details{border:1px solid #e0e0e0;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
.card{border-top:1px solid #eee;margin-top:.6rem;padding-top:.3rem}
.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0;color:#333;font-size:.9rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:.6rem;margin:.5rem 0}
.answer{background:#f6f7f9;border-radius:5px;padding:.5rem .7rem;min-width:0}
.heat span,.legend span{border-radius:2px}
.low{text-decoration:underline;text-underline-offset:3px;text-decoration-color:#8a3200}
.legend{font-size:.88rem}
.legend span{padding:.1rem .2rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0 0;font:.84rem/1.45 ui-monospace,monospace}
"""
