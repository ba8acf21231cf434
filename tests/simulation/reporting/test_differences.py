from __future__ import annotations

from simulation.reporting.differences import differences, differences_along
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


def test_a_method_that_diverged_is_not_ahead() -> None:
    results = [
        *(result("BN", {"partition": "IID"}, 0.5, seed=seed) for seed in range(3)),
        *(result("FixBN", {"partition": "IID"}, 0.6 + 0.01 * seed, seed=seed) for seed in range(2)),
        result("FixBN", {"partition": "IID"}, None, seed=2, diverged=True),
    ]
    last = differences(results, "partition", [("FixBN", "BN")]).splitlines()[-1]
    assert last == "| FixBN - BN | +10.5 ± 6.4 (2), 1 diverged |"


def test_values_of_an_axis_are_compared_within_each_method_and_other_setting() -> None:
    results = [
        result("BN", {"clients": who, "momentum": kept}, accuracy, seed=seed)
        for who, kept, accuracies in [
            ("all", "reset", (0.50, 0.60)),
            ("all", "local", (0.58, 0.70)),
            ("few", "reset", (0.40, 0.50)),
        ]
        for seed, accuracy in enumerate(accuracies)
    ]
    assert differences_along(results, "momentum", [("local", "reset")]).splitlines() == [
        "| momentum | all, BN | few, BN |",
        "| --- | ---: | ---: |",
        "| local - reset | +9.0 ± 12.7 (2), level | - |",
    ]
