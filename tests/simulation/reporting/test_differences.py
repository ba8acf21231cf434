from __future__ import annotations

from simulation.reporting.differences import differences
from tests.support.handmade import result


def test_a_row_is_a_pair_and_a_column_a_value() -> None:
    accuracies = {"BN": (0.50, 0.60, 0.70), "FixBN": (0.58, 0.69, 0.80), "GN": (0.50, 0.61, 0.69)}
    results = [
        result(method, {"partition": where}, accuracy, seed=seed)
        for where in ("IID", "two classes")
        for method, found in accuracies.items()
        for seed, accuracy in enumerate(found)
        if where == "IID" or method != "GN"
    ]
    pairs = [("FixBN", "BN"), ("GN", "BN"), ("LN", "BN")]
    assert differences(results, "partition", pairs).splitlines() == [
        "| difference | IID | two classes |",
        "| --- | ---: | ---: |",
        "| FixBN - BN | +9.0 ± 2.5 (3), ahead | +9.0 ± 2.5 (3), ahead |",
        "| GN - BN | +0.0 ± 2.5 (3), level | - |",
    ]
