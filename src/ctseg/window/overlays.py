"""What is written over a picture as SVG, in the picture's pixels: the patient's sides, and a line that measures."""

from __future__ import annotations

from collections.abc import Sequence


def letters_svg(letters: tuple[str, str, str, str], size: tuple[int, int]) -> str:
    """The letters of the left, right, top and bottom edge of a picture of a width and height; "" leaves one out."""
    width, height = size
    high = 0.04 * max(size)
    left, right, top, bottom = letters
    places = (
        (left, high * 0.5, height / 2),
        (right, width - high * 0.5, height / 2),
        (top, width / 2, high),
        (bottom, width / 2, height - high * 0.3),
    )
    style = f'font-size="{high}" font-family="sans-serif" text-anchor="middle" fill="#f2f4f6"'
    edge = 'stroke="#0b0d10" stroke-width="0.35em" paint-order="stroke" font-weight="bold"'
    return "".join(f'<text x="{x}" y="{y}" {style} {edge}>{letter}</text>' for letter, x, y in places if letter)


def line_svg(ends: Sequence[tuple[float, float]], size: tuple[int, int]) -> str:
    """A dot for each of no, one or two places, and the line between two; dark-edged, to be seen on skin and on air."""
    longest = max(size)
    style = f'r="{longest / 130}" fill="#ffe066" stroke="#0b0d10" stroke-width="{longest / 500}"'
    dots = "".join(f'<circle cx="{x}" cy="{y}" {style}/>' for x, y in ends)
    if len(ends) < 2:
        return dots
    (x1, y1), (x2, y2) = ends
    place = f'x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
    under = f'<line {place} stroke="#0b0d10" stroke-width="{longest / 160}" stroke-opacity="0.6"/>'
    return f'{under}<line {place} stroke="#ffe066" stroke-width="{longest / 320}"/>{dots}'
