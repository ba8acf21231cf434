from __future__ import annotations

import pytest

from simulation.documents.results_page import gain


def test_a_sentence_whose_word_the_data_does_not_allow_is_an_error() -> None:
    text = gain("when-to-use", "setting", "IID, 1 step", "ahead")
    with pytest.raises(ValueError, match="IID, 1 step: the page says ahead, the data behind"):
        text()
