"""Pages of reports: one file of HTML that needs no network, figures inside."""

import base64
import html
from collections.abc import Sequence

from tario_jax.evaluate.figures import Drawn


def whole_page(title: str, parts: Sequence[str]) -> str:
    """A page of parts that are HTML, under its title, which is not."""
    heading = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style></head><body><main>\n<h1>{heading}</h1>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text, and escaped; the first of a row is its heading."""
    lines = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    top = f"<th>{html.escape(head[0])}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in head[1:])
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def notices(texts: Sequence[str]) -> str:
    """What must be known before anything else."""
    return "".join(f'<p class="banner">{html.escape(text)}</p>' for text in texts)


def picture(drawn: Drawn) -> str:
    """A figure as HTML text, the image within it."""
    data = base64.b64encode(drawn.path.read_bytes()).decode()
    caption = html.escape(drawn.caption)
    return (f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip


STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5b6775;--rule:#dde2e7;--page:#fff;--card:#f5f7f9;--mark:#0b5cad;
--warn:#7a4a00;--warn-page:#fff4dc}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa6b2;--rule:#33404c;--page:#141a20;--card:#1d252d;
--mark:#6db1f5;--warn:#ffd58a;--warn-page:#3a2d10}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 14px}h2{font-size:19px;margin:38px 0 10px}
.banner{background:var(--warn-page);color:var(--warn);border-left:4px solid;padding:10px 14px;margin:8px 0;
font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px;margin:18px 0 6px}
.tile{background:var(--card);border-radius:8px;padding:12px 16px}
.name,.beside,.note,figcaption{color:var(--soft);font-size:14px}
.figure{font-size:30px;font-weight:650;color:var(--mark);font-variant-numeric:tabular-nums}
figure{margin:26px 0}img{max-width:100%;background:#fff;border-radius:8px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:15px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:400}td{font-variant-numeric:tabular-nums;white-space:nowrap}td span{color:var(--soft);font-size:13px}
thead th,thead td{color:var(--soft);font-size:13px}
tr.model td,tr.model th{font-weight:650;color:var(--mark)}
.differences tr:first-child th,.differences tr:first-child td{border-top:2px solid var(--rule)}
"""
