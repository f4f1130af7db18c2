"""One HTML page that stands alone: headings, tables and pictures a screen reader can follow, nothing from outside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

NO_VALUE = "–"

_STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1b1b1b;
  background: #fff; margin: 0 auto; padding: 1rem 1.25rem 3rem; max-width: 86rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-top: 2px solid #d0d0d0;
  padding-top: 1rem; } h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; }
p, li, dd, figcaption, caption { max-width: 62rem; }
a { color: #0b4f8a; } a:focus, summary:focus, [tabindex]:focus { outline: 3px solid #0b4f8a; outline-offset: 2px; }
.skip { position: absolute; left: -100rem; } .skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
.note { color: #4a4a4a; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; color: #3a3a3a; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d0d0d0; text-align: right; vertical-align: top; }
th[scope=row], thead th:first-child, .text { text-align: left; }
td { white-space: nowrap; } td.text { white-space: normal; min-width: 6rem; }
th[scope=row] { font-weight: 600; } thead th { background: #eef1f4; }
.range { display: block; color: #4a4a4a; font-size: .85em; white-space: nowrap; }
figure { margin: .6rem 0 1.4rem; } img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .4rem; } dt { font-weight: 600; margin-top: .6rem; } dd { margin-left: 0; }
.sheet { border-top: 1px solid #d0d0d0; padding-top: 1.2rem; margin-top: 2.2rem; }
summary { cursor: pointer; padding: .3rem 0; }
@media print { .scroll { overflow: visible; } nav, .skip { display: none; } figure, tr { break-inside: avoid; }
  .sheet { break-before: page; } }
"""


class Page:
    """A page that is written from top to bottom; every text is escaped, every heading gets a place in the contents.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._contents: list[tuple[str, str]] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        anchor = f"s{len(self._contents) + 1}"
        self._contents.append((anchor, text))
        self._parts.append(f'<h2 id="{anchor}">{escape(text)}</h2>')

    def links(self, texts: Sequence[str], prefix: str) -> None:
        """Add links to the sheets `prefix`1, `prefix`2, ... that follow, in this order."""
        items = "".join(f'<li><a href="#{prefix}{n}">{escape(text)}</a></li>' for n, text in enumerate(texts, start=1))
        self._parts.append(f'<nav aria-label="Sheets"><ul>{items}</ul></nav>')

    def sheet(self, text: str, anchor: str) -> None:
        """Begin a part of a section that is printed on a sheet of its own."""
        self._parts.append(f'<h3 class="sheet" id="{escape(anchor)}">{escape(text)}</h3>')

    def subheading(self, text: str) -> None:
        """Begin a part of a section."""
        self._parts.append(f"<h3>{escape(text)}</h3>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """Add a paragraph; `kind` is "note" for a quiet one."""
        self._parts.append(f"<p{_class(kind)}>{escape(text)}</p>")

    def bullets(self, items: Sequence[str], kind: str = "") -> None:
        """Add a list; nothing when it is empty."""
        if items:
            self._parts.append(f"<ul{_class(kind)}>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")

    def definitions(self, entries: Mapping[str, str]) -> None:
        """Add terms and what they mean."""
        rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def picture(self, png: bytes, alt: str, caption: str) -> None:
        """Add a PNG; `alt` says in words what it shows."""
        address = "data:image/png;base64," + base64.b64encode(png).decode()
        self._parts.append(
            f'<figure><img src="{address}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def table(
        self, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, folded: bool = False
    ) -> None:
        """Add a table; the first column names the rows. An interval in brackets goes on a line of its own.

        Args:
            caption: what the table holds.
            header: names of the columns.
            rows: the cells.
            folded: closed until a reader opens it.
        """
        wordy = [bool(rows) and _is_text(rows[0][column]) for column in range(len(header))]
        head = "".join(
            f'<th scope="col"{_class("text" if text else "")}>{escape(name)}</th>'
            for name, text in zip(header, wordy, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(_cell(cell) for cell in row[1:]) + "</tr>"
            for row in rows
        )
        title = "" if folded else f"<caption>{escape(caption)}</caption>"
        # Focusable, so that a wide table can be scrolled without a mouse.
        table = (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
            f"{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
        self._parts.append(f"<details><summary>{escape(caption)}</summary>{table}</details>" if folded else table)

    def text(self) -> str:
        """Return the page."""
        links = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in self._contents)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<a class="skip" href="#main">To the report</a>\n<header><h1>{escape(self._title)}</h1>\n'
            f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main id="main">\n'
            + "\n".join(self._parts)
            + "\n</main>\n</body>\n</html>\n"
        )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(text: str) -> str:
    value, bracket, rest = text.partition(" (")
    if bracket and rest.endswith(")") and value[-1:].isdigit():
        words = "".join(f'<span class="range">{escape(word)}</span>' for word in f"({rest}".split("; "))
        return f"<td>{escape(value)} {words}</td>"
    return f"<td{_class('text' if _is_text(text) else '')}>{escape(text)}</td>"


def _is_text(text: str) -> bool:
    return not any(character.isdigit() for character in text.partition(" (")[0]) and text != NO_VALUE


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """Return a value as text: one decimal for mm, three for parts of 1, a dash for none."""
    if value is None:
        return NO_VALUE
    # Accuracy and specificity are close to 1 in a whole scan: three decimals would all be the same.
    digits = 1 if metric.endswith("_mm") else 4 if metric in ("accuracy", "specificity") else 3
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def interval(entry: Mapping[str, Any], metric: str, *, signed: bool = False, of: int | None = None) -> str:
    """Return a value with its interval: "0.931 (0.902 to 0.951)"; with fewer cases than `of`, their number too."""
    value = number(entry["value"], metric, signed=signed)
    low, high = (number(entry[key], metric, signed=signed) for key in ("low", "high"))
    words = [f"{low} to {high}"] if entry["low"] is not None else []
    words += [plural(entry["n"], "case")] if of is not None and entry["n"] < of else []
    return f"{value} ({'; '.join(words)})" if words else value


def plural(count: int, noun: str) -> str:
    """Return "1 case", "2 cases"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
