"""A figure as an image inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        source: The image, as a `data:` URI: the page has no other file.
        text: What it shows, for readers who do not see it.
        wide: Whether it takes the page's whole width.
    """

    source: str
    text: str
    wide: bool


def picture_of(figure: Figure, text: str, *, wide: bool = False) -> Picture:
    """Return a figure as SVG; the same figure gives the same bytes.

    Letters are drawn as outlines, so that they look the same with any fonts.

    Args:
        figure: The figure.
        text: What it shows.
        wide: Whether it takes the page's whole width. Default: half of it.
    """
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "fixbn"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/svg+xml;base64,{encoded}", text, wide)
