"""Small pieces of SVG: what tools/figures.py draws with. Equal arguments give equal bytes, on any machine.

Every picture is a white card with dark text, so that it reads the same on a white and on a dark page. Text is never
measured, because its size depends on a machine's fonts.
"""

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, SOFT, LINE = "#1f2328", "#59636e", "#d1d9e0"
"""Colours of text, of notes, and of rules."""


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """Return one element; `_` in a name stands for `-`, a number is written with at most one decimal."""
    written = " ".join(f"{name.replace('_', '-')}={quoteattr(number(value))}" for name, value in attributes.items())
    return f"<{tag} {written}>{content}</{tag}>" if content else f"<{tag} {written}/>"


def number(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, size: int = 13, fill: str = INK, **attributes: object) -> str:
    return element("text", escape(words), x=x, y=y, font_size=size, fill=fill, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = LINE, **attributes: object) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **attributes)


def dot(x: float, y: float, fill: str, stroke: str, radius: float = 4.5) -> str:
    return element("circle", cx=x, cy=y, r=radius, fill=fill, stroke=stroke, stroke_width=2)


def card(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a whole picture; `title` is for screen readers."""
    frame = element("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=10, fill="#ffffff", stroke=LINE)
    content = "\n".join(["", f"<title>{escape(title)}</title>", frame, *parts, ""])
    return (
        element(
            "svg",
            content,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
            role="img",
            font_family=FONT,
        )
        + "\n"
    )
