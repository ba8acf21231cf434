"""The sizes of messages and state, with ResNet-20."""

from __future__ import annotations

from simulation.benchmarks.message_sizes import Cost, measure, table

PARAMETERS = 269_722  # of ResNet-20: He et al.'s 0.27 million
STATISTICS = 2 * 688  # a mean and a variance for each normalised channel


def test_fixbn_adds_only_config_to_messages_except_with_global_momentum() -> None:
    cost = {
        name: measure("ResNet-20", name)
        for name in ("FedAvg", "FixBN, reset", "FixBN, local", "FixBN, global")
    }
    plain, buffers = cost["FedAvg"], 4 * PARAMETERS
    for name in ("FixBN, reset", "FixBN, local"):
        assert 0 <= cost[name].down - plain.down < 200  # its keys in the config
        assert cost[name].up == plain.up
    for size in ("down", "up"):
        extra = getattr(cost["FixBN, global"], size) - getattr(plain, size)
        assert buffers < extra < 1.05 * buffers
    assert (plain.client_state, plain.server_state) == (0, 0)
    assert cost["FixBN, reset"].client_state == 0
    assert buffers < cost["FixBN, local"].client_state < 1.05 * buffers
    assert cost["FixBN, global"].client_state == 0
    assert cost["FixBN, local"].server_state == 4 * STATISTICS
    assert cost["FixBN, global"].server_state == 4 * STATISTICS + buffers


def test_the_table_is_in_megabytes() -> None:
    lines = table([Cost("ResNet-20", "FedAvg", 1_234_567, 2_000_000, 0, 5_000)]).splitlines()
    assert lines[-1] == "| ResNet-20 | FedAvg | 1.235 | 2.000 | 0 | 0.005 |"
