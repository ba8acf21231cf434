from __future__ import annotations

import pytest

from simulation.documents.blocks import filled

PAGE = """# Page
<!-- table -->
old
<!-- end -->
It is <!-- number -->1<!-- end --> point.
<!-- other -->kept<!-- end -->
"""


def test_only_the_named_blocks_are_filled_each_in_its_form() -> None:
    blocks = {"table": lambda: "| a |\n| --- |", "number": lambda: "2.5"}
    assert filled(PAGE, blocks) == PAGE.replace("old", "| a |\n| --- |").replace(">1<", ">2.5<")
    assert filled(filled(PAGE, blocks), blocks) == filled(PAGE, blocks)


def test_a_block_that_is_not_in_the_page_is_an_error() -> None:
    with pytest.raises(KeyError, match="missing"):
        filled(PAGE, {"missing": lambda: ""})
