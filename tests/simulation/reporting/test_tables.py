"""The exact text of tables."""

from __future__ import annotations

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.reporting.grouping import as_numbers, ordered
from simulation.reporting.tables import (
    console,
    costs,
    hardware_line,
    learning_rates,
    table,
)
from tests.support.handmade import result

IID, TWO = {"partition": "IID"}, {"partition": "two classes"}


def test_a_cell_is_mean_interval_and_number_of_seeds() -> None:
    results = [
        *(result("BN", IID, share, seed=k) for k, share in enumerate((0.70, 0.72, 0.74))),
        result("FixBN", IID, 0.5),
        result("BN", TWO, 0.2),
        *(result("BN", TWO, None, seed=k, diverged=True) for k in (1, 2)),
        *(result("FixBN", TWO, 0.1, seed=k, diverged=True) for k in (0, 1)),
    ]
    assert table(results, "partition") == (
        "| method | IID | two classes |\n"
        "| --- | ---: | ---: |\n"
        "| BN | 72.0 ± 5.0 (3) | 20.0 (1), 2 of 3 diverged |\n"
        "| FixBN | 50.0 (1) | 2 of 2 diverged |"
    )


def test_a_cell_has_the_mean_of_two_seeds_and_counts_the_one_that_diverged() -> None:
    results = [
        result("BN", IID, 0.4, seed=0),
        result("BN", IID, 0.5, seed=1),
        result("BN", IID, 0.9, seed=2, failure="no client delivers"),
    ]
    assert (
        table(results, "partition").splitlines()[2] == "| BN | 45.0 ± 63.5 (2), 1 of 3 diverged |"
    )


def test_other_axes_are_columns_and_a_cell_without_runs_is_a_dash() -> None:
    results = [
        result("GN", {"steps": "20", "participation": "full"}, 0.3),
        result("BN", {"steps": "5", "participation": "full"}, 0.4),
        result("BN", {"steps": "5", "participation": "20 %"}, 0.5),
        result("BN", {"steps": "100", "participation": "full"}, 0.6),
        result("BN", {"steps": "5", "participation": "full"}, 0.9, kind="search"),
    ]
    assert table(results, "steps") == (
        "| participation | method | steps 5 | steps 20 | steps 100 |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| full | GN | - | 30.0 (1) | - |\n"
        "| full | BN | 40.0 (1) | - | 60.0 (1) |\n"
        "| 20 % | BN | 50.0 (1) | - | - |"
    )


def test_a_run_without_an_axis_is_repeated_for_all_its_values() -> None:
    results = [result("BN", IID, 0.7), result("BN", TWO, 0.2), result("central", {}, 0.8)]
    assert table(results, "partition").splitlines()[-1] == "| central | 80.0 (1) | 80.0 (1) |"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["20", "1", "100", "5"], ["1", "5", "20", "100"]),
        (["50 %", "9 %"], ["9 %", "50 %"]),
        (["two classes", "IID", "two classes"], ["two classes", "IID"]),
        (["IID", "0.6", "0.1"], ["IID", "0.6", "0.1"]),
        (["nan", "2", "1"], ["nan", "2", "1"]),
    ],
)
def test_labels_are_sorted_only_if_all_are_numbers(labels: list[str], expected: list[str]) -> None:
    assert ordered(labels) == expected


def test_percentages_are_numbers() -> None:
    assert as_numbers(["10 %", "0.1"]) == [10.0, 0.1]


def test_no_results_and_several_grids_are_errors() -> None:
    with pytest.raises(
        ConfigError, match=r"no result to show.*python -m simulation.experiments run"
    ):
        table([result("BN", IID, 0.5, kind="search")], "partition")
    with pytest.raises(ConfigError, match="grids main, other cannot share"):
        table([result("BN", IID, 0.5), result("BN", IID, 0.5, grid="other")], "partition")


def test_the_used_rate_is_bold_else_the_best_one_and_rates_at_the_edge_are_counted() -> None:
    def search(method: str, setting: dict[str, str], rate: float, **fields: object) -> object:
        return result(method, setting, kind="search", learning_rate=rate, **fields)

    lines = [
        search("BN", IID, 0.1, accuracy=0.7),
        search("BN", IID, 0.01, accuracy=0.8),
        search("GN", IID, 0.01, accuracy=0.3),
        search("GN", IID, 0.1, accuracy=0.4),
        search("GN", IID, 1.0, accuracy=0.2),
        search("GN", TWO, 0.01, accuracy=None, diverged=True),
        # Used but not the best, in a grid with more axes than the search.
        result("BN", {"steps": "5", **IID}, 0.75, learning_rate=0.1, grid="other"),
    ]
    assert learning_rates(lines) == (
        "| partition | method | rate 0.01 | rate 0.1 | rate 1 |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| IID | BN | 80.0 | **70.0** |  |\n"
        "| IID | GN | 30.0 | **40.0** | 20.0 |\n"
        "| two classes | GN | diverged |  |  |\n\n"
        "In 1 of 3 rows the bold rate is the smallest or the largest of the search: a better rate"
        " may lie outside it."
    )


def test_without_a_search_there_is_no_table() -> None:
    text = learning_rates([result("BN", IID, 0.5)])
    assert text == "There was no search for learning rates."


def test_an_axis_is_a_column_of_costs_only_if_bytes_differ_along_it() -> None:
    results = [
        result(
            "FixBN",
            {"momentum": momentum, **partition},
            0.5,
            seconds=seconds,
            client_state_bytes=kept,
        )
        for momentum, kept in (("reset", 0.0), ("local", 1_078_888.0))
        for partition, seconds in ((IID, 1000.0), (TWO, 2000.0))
    ]
    cut_short = result("FixBN", {"momentum": "reset", **IID}, None, failure="lost", seconds=1.0)
    headings = (
        "sent to a client in a round (MB) | received from it (MB) | kept by a client (MB) |"
        " seconds a run |\n"
    )
    plain = result("BN", {"momentum": "reset", **IID}, 0.5)  # its bytes do not differ
    assert costs([*results, cut_short, plain]) == (
        f"| momentum | method | {headings}"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| reset | FixBN | 1.080 | 1.080 | 0 | 1,500 (1,000 to 2,000) |\n"
        "| local | FixBN | 1.080 | 1.080 | 1.079 | 1,500 (1,000 to 2,000) |\n"
        "| reset | BN | 1.080 | 1.080 | 0 | 10 |"
    )
    assert costs([results[0]]).splitlines()[2] == "| FixBN | 1.080 | 1.080 | 0 | 1,000 |"
    assert costs([cut_short]).splitlines()[2] == "| FixBN | 1.080 | 1.080 | 0 | - |"


def test_the_hardware_line_counts_searches_and_names_every_machine() -> None:
    gpu = {"cpu": "EPYC", "cores": 16, "gpu": "H200"}
    lines = [
        result("BN", IID, 0.5, seconds=1000.0),
        result("BN", IID, 0.5, kind="search", seconds=234.4),
        result(
            "BN",
            IID,
            0.5,
            seconds=0.2,
            hardware=gpu,
            started="2026-12-01T01:00:00+00:00",
            versions={"flwr": "1.41.0", "torch": "2.12.0"},
        ),
    ]
    assert hardware_line(lines) == (
        "Xeon, 2 cores, no GPU and EPYC, 16 cores, H200; flwr 1.41.0, torch 2.11.0 and 2.12.0;"
        " 22 November 2026 to 1 December 2026; 3 runs (1 to find learning rates), 1,235 s in all."
    )
    assert hardware_line(lines[:1]).endswith("; 22 November 2026; 1 run, 1,000 s in all.")


def test_the_console_shows_the_same_cells(capsys: pytest.CaptureFixture[str]) -> None:
    console("| method | rate 0.1 |\n| --- | ---: |\n| BN | **70.0** |\n| a [b] |  |")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [lines[0], *lines[2:]] == [["method", "rate", "0.1"], ["BN", "70.0"], ["a", "[b]"]]
    console("There was no search for learning rates.")
    assert capsys.readouterr().out == "There was no search for learning rates.\n"


def test_the_console_keeps_asterisks_in_text_and_does_not_truncate(capsys) -> None:
    wide = ["until T*", *(f"{number}.123 ± 4.567 (3)" for number in range(8))]
    console("\n".join(f"| {' | '.join(row)} |" for row in (["h"] * 9, ["---"] * 9, wide)))

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "until" in line]
    assert all(cell in line for cell in wide)
