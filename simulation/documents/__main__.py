"""Write the tables and figures of the documentation that come from the committed results.

python -m simulation.documents
"""

from __future__ import annotations

import shutil

from simulation import REPOSITORY
from simulation.documents import freeze_page, results_page, tables_page
from simulation.documents.blocks import filled
from simulation.experiments.result_log import RESULTS

DOCS = REPOSITORY / "docs"
PAGES = {
    REPOSITORY / "README.md": results_page.README_BLOCKS,
    DOCS / "results.md": results_page.BLOCKS,
    DOCS / "result-tables.md": tables_page.BLOCKS,
    DOCS / "when-to-freeze.md": freeze_page.BLOCKS,
}
# The figures in docs/figures are copies.
FIGURES = {
    "freeze-after.png": "freeze-after/cpu-when.png",
    "map.png": "map/cpu-main.png",
    "normalisers.png": "normalisers/cpu-main.png",
    "updates.png": "gradients/cpu-updates.png",
    "when-to-use.png": "when-to-use/cpu-main.png",
}


def main() -> None:
    """Write all pages and figures."""
    for path, blocks in PAGES.items():
        path.write_text(filled(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    for name, source in FIGURES.items():
        shutil.copyfile(RESULTS / source, DOCS / "figures" / name)


if __name__ == "__main__":
    main()
