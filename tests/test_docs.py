"""The documents: links and pictures lead somewhere, commands exist, and the index names every guide."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "bundles").glob("*/docs/README.md")),
]
LARGEST_PICTURE = 250_000  # bytes
_LARGE = {"preview.png"}  # the front page's, which is meant to be large
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|\b(?:src|href)=\"([^\"]+)\"")
# `ctseg X` where a command is meant: at the start of code, or behind a shell's prompt, pipe or path.
_COMMAND = re.compile(r"(?:^|[`$;|&(/]|\bthen )\s*ctseg +([A-Za-z][\w-]*)", re.MULTILINE)


def links_in(text: str) -> list[str]:
    """Every target of a Markdown or HTML link or picture, outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    return [first or second for first, second in _LINK.findall(prose)]


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings: lower case, no punctuation, hyphens for blanks, -1 for the second."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", _FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{name}-{n}" if n else name) not in anchors)
        anchors.add(f"{name}-{number}" if number else name)
    return anchors


def broken_links(document: Path) -> list[str]:
    """The relative links of a document that lead to no file, or to no heading of it."""
    broken = []
    for target in links_in(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site: a test asks no network
        path, _, anchor = unquote(target).partition("#")
        file = document if not path else document.parent / path
        leads = file.exists() and not path.startswith("/")
        if leads and anchor and file.suffix == ".md":
            leads = anchor in anchors_of(file.read_text(encoding="utf-8"))
        if not leads:
            broken.append(target)
    return broken


def commands_in(text: str) -> set[str]:
    """The words behind `ctseg` where a command is shown: in fenced code at a line's start, and in inline code."""
    fenced = "\n".join(match[0] for match in _FENCE.finditer(text))
    inline = "\n".join(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)))
    shown = (line for line in f"{fenced}\n{inline}".splitlines() if not line.lstrip().startswith("#"))
    return set(_COMMAND.findall("\n".join(shown)))


@cache
def subcommands() -> set[str]:
    """The subcommands that the command line has, asked of its own parser."""
    import argparse

    from ctseg.cli import _parser

    actions = _parser()._actions
    return {name for one in actions if isinstance(one, argparse._SubParsersAction) for name in one.choices}


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_commands_exist(document: Path) -> None:
    assert commands_in(document.read_text(encoding="utf-8")) <= subcommands()


def test_the_index_names_every_guide_once() -> None:
    index = ROOT / "docs" / "README.md"
    named = [link for link in links_in(index.read_text(encoding="utf-8")) if "/" not in link and link.endswith(".md")]
    assert sorted(named) == sorted(file.name for file in (ROOT / "docs").glob("*.md") if file != index)


def test_pictures_are_small_and_shown() -> None:
    shown = {
        (document.parent / unquote(link)).resolve()
        for document in DOCUMENTS
        for link in links_in(document.read_text(encoding="utf-8"))
        if link.endswith(".png")
    }
    pictures = {picture.resolve() for picture in (ROOT / "docs" / "images").iterdir()}
    assert pictures - shown == set(), "nobody shows these"
    assert {picture.name for picture in pictures if picture.stat().st_size >= LARGEST_PICTURE} <= _LARGE


def test_what_the_checks_find(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One: two\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n")
    document = tmp_path / "a.md"
    document.write_text(
        "[ok](there.md) [ok](there.md#one-two) [ok](there.md#same-1) [ok](https://example.org/x) [ok](#here)\n"
        "# Here\n[bad](gone.md) ![bad](images/gone.png) [bad](there.md#no-heading) [bad](#gone) [bad](/there.md)\n"
        '<img src="gone.svg"> `[code](not-a-link.md)`\n```\n[code](not-a-link-either.md)\n```\n'
    )
    expected = ["gone.md", "images/gone.png", "there.md#no-heading", "#gone", "/there.md", "gone.svg"]
    assert broken_links(document) == expected
    text = "ctseg reads CTs. `ctseg serve X`, `.venv/bin/ctseg doctor`\n```\nctseg user a\nctseg: no\n# ctseg not\n```"
    assert commands_in(text) == {"serve", "doctor", "user"}
