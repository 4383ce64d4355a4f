"""Pieces of a page, text in them escaped; tables; and the page around them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from etils import epath
from PIL import Image

from reid_jax.errors import UserError


class Html(str):
    """Text that is HTML already; every other string is escaped where it is put in."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`.

    An attribute's `_` becomes `-`; one at its end is dropped, as in `class_`.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Sequence[str]) -> Html:
    """Pieces behind each other, text among them escaped."""
    pieces = (c if isinstance(c, Html) else html.escape(c) for c in children)
    return Html("".join(pieces))


def section(title: str, *children: str) -> Html:
    """A part of the page with its heading; "" where there is nothing in it."""
    there = [child for child in children if child]
    return element("section", element("h2", title), *there) if there else Html()


def folded(title: str, *children: str, opened: bool = False) -> Html:
    """What is shown after a click, or until one."""
    given = {"open": ""} if opened else {}
    return element("details", element("summary", title), *children, **given)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls by itself where it is wider than the page.

    A cell that is a `<td>` already stays as it is.
    """
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = (element("tr", *map(_cell, row)) for row in rows)
    made = element("table", element("thead", top), element("tbody", *body))
    return element("div", made, class_="scroll")


def _cell(content: str) -> Html:
    if isinstance(content, Html) and content.startswith("<td"):
        return content
    return element("td", content)


def grid(*children: str) -> Html:
    """Pieces beside each other, as many as the width allows."""
    return element("div", *children, class_="grid") if children else Html()


_LARGEST = 16383, 16383  # of a WebP, in pixels


def picture(path: epath.Path, caption: str) -> Html:
    """A picture within the page, as WebP: a fifth of its PNG.

    One that is larger than a WebP can be is made smaller.

    Raises:
      UserError: if the file is no picture.
    """
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            opened.thumbnail(_LARGEST)
            opened.save(file, "WEBP", quality=85)
    except Exception as error:  # Pillow raises many kinds, also of one too large.
        raise UserError(f"{path} is no picture ({error}); remove that file") from error
    data = base64.b64encode(file.getvalue()).decode()
    image = Html(
        f'<img loading="lazy" alt="{html.escape(caption)}" '
        f'src="data:image/webp;base64,{data}">'
    )
    return element("div", image, class_="scroll")


def page(title: str, *children: str) -> str:
    """The whole file: it loads nothing."""
    head = joined(
        (
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width">'),
            element("title", title),
            element("style", Html(_STYLE)),
        )
    )
    body = element("main", element("h1", title), *children)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #667; --line: #d9dce1;
  --ground: #fff; --card: #f6f7f9; --right: #14833c; --wrong: #c22; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --faint: #9aa0aa;
  --line: #3a3f47; --ground: #15171a; --card: #1e2125; --right: #4cc074;
  --wrong: #ff7a70; } }
body, main { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: auto; padding: 12px 16px 48px; }
h1 { font-size: 1.5em; margin: .4em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 1.8em 0 .5em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1.2em 0 .4em; overflow-wrap: anywhere; }
p { max-width: 75ch; } .faint, figcaption, small { color: var(--faint); }
.grid { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
td:first-child, th:first-child { text-align: left; }
.words td, .words th { text-align: left; vertical-align: top; }
.words td + td { white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
.better { color: var(--right); } .worse { color: var(--wrong); }
figure { margin: 0 0 12px; } figure.chart { background: var(--card);
  border-radius: 8px; padding: 8px 10px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
img { max-width: max(100%, 640px); height: auto; border-radius: 4px; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; margin: .5em 0; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .35em; }
.keys span { margin-right: 1em; white-space: nowrap; }
.missing { border-left: 3px solid #e69f00; padding-left: 10px; }
"""
