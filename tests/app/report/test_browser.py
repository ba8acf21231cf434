"""The report in a real browser: headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixbn_flwr.app.report.page import write_report
from tests.support.browser import Browser
from tests.support.pages import ROOT

WIDE, PHONE, PAPER = 1280, 390, 680  # pixels; paper is A4 without its margins


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as browser:
        yield browser


def test_the_page_loads_nothing_and_has_no_error(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.requests[0] == report.as_uri()
    assert {address.partition(":")[0] for address in browser.requests[1:]} == {"data"}
    assert browser.complaints == []


def test_every_figure_and_table_is_drawn(browser: Browser, report: Path) -> None:
    browser.open(report)
    sizes = browser.value("Array.from(document.images, i => [i.naturalWidth, i.width, i.height])")
    assert len(sizes) >= 12
    assert all(min(size) > 100 for size in sizes)
    assert browser.value("Array.from(document.images).every(i => i.alt.length > 20)")
    rows = browser.value("Array.from(document.querySelectorAll('table'), t => t.rows.length)")
    assert len(rows) == 7  # overview, validations, two of clients, two of confusions, config
    assert min(rows) >= 4
    # Each link of the navigation leads to a heading.
    assert (
        browser.value(
            "Array.from(document.querySelectorAll('nav a'),"
            " a => document.querySelector(a.hash)?.tagName)"
        )
        == ["H2"] * 7
    )


@pytest.mark.parametrize(
    ("width", "medium"), [(WIDE, "screen"), (PHONE, "screen"), (PAPER, "print")]
)
def test_nothing_sticks_out_of_the_page(
    browser: Browser, report: Path, width: int, medium: str
) -> None:
    browser.width(width, medium)
    browser.open(report)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    if medium == "print":  # nobody can scroll paper
        assert browser.value(
            "Array.from(document.querySelectorAll('table')).every("
            "t => t.getBoundingClientRect().right <= innerWidth)"
        )


def test_it_can_be_printed(browser: Browser, report: Path) -> None:
    browser.open(report)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


def test_six_runs_of_an_older_version_fit_too(browser: Browser, tmp_path: Path) -> None:
    results = ROOT / "simulation" / "results"
    runs = [results / "digits" / name for name in ("FixBN", "BN")]
    runs += sorted(path for path in (results / "cifar10").iterdir() if path.is_dir())
    write_report(runs, tmp_path / "report.html")
    for width, medium in ((PHONE, "screen"), (PAPER, "print")):
        browser.width(width, medium)
        browser.open(tmp_path / "report.html")
        assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
