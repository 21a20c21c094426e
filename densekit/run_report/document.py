"""A whole HTML page with its style and script, which needs no other file."""

from __future__ import annotations

import html

import densekit
from densekit.show import svg
from densekit.show.chart_script import SCRIPT

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --ground: #fff; --bar: #5b8fc7;
--link: #0969da; --heat: 120 170 225 }
@media (prefers-color-scheme: dark) {
:root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --ground: #0d1117; --bar: #4a7db5;
--link: #58a6ff; --heat: 47 95 153 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 0 auto;
max-width: 68em; padding: 1em } h2 { border-top: 1px solid var(--line); padding-top: .8em; margin-top: 2em }
table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 1em } td, th { padding: .25em .7em;
text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
td:first-child { min-width: 4em } td:last-child:nth-child(2), li, figcaption { overflow-wrap: anywhere }
figure { margin: 1em 0 }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line) }
figcaption, .soft { color: var(--soft); font-size: 13px } pre { overflow-x: auto; font-size: 12px }
.lead { font-size: 17px; overflow-wrap: anywhere } h1, h2 { overflow-wrap: anywhere; line-height: 1.2 }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em } a { color: var(--link) } .two { display: grid; gap: 1em;
grid-template-columns: repeat(auto-fit, minmax(min(100%, 26em), 1fr)) }
@media (max-width: 40em) { table { font-size: 14px } td, th { padding: .25em .35em } body { padding: .6em } }
@media print { nav { display: none } h2 { break-after: avoid } figure, .two > div { break-inside: avoid }
:root { --text: #000; --soft: #444; --line: #bbb; --ground: #fff; --heat: 120 170 225 } }
"""


def document(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: text.
        body: HTML.
    """
    shown = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{shown}</title>'
        f"<style>{_STYLE}{svg.STYLE}</style></head><body><h1>{shown}</h1>{body}"
        f'<p class="soft">densekit {densekit.__version__}</p><script>{SCRIPT}</script></body></html>\n'
    )
