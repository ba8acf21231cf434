"""The GPU benchmark, run on the CPU with a small job."""

from __future__ import annotations

import pytest

from simulation.benchmarks.gpu_speed import (
    BARE,
    BARE_GRAPHS,
    ENGINE,
    ENGINE_EAGER,
    JOBS,
    Job,
    gpu_table,
    measure_gpu,
)


def test_jobs_have_names_and_count_their_images() -> None:
    assert [job.images_per_round for job in JOBS] == [200, 1000, 20_000, 25_000]
    assert JOBS[0].name == "resnet20, 10 clients x 1 steps of 20"
    assert JOBS[-1].name == "resnet18, 100 clients x 5 epochs of 50"


@pytest.mark.slow
def test_every_row_runs_and_has_its_line() -> None:
    job = Job("resnet20", clients=10, images=500, batch_size=4, steps=1)
    measured = measure_gpu((job,), "cpu", rounds=1, with_ray=False)
    assert list(measured[job.name]) == [BARE, BARE_GRAPHS, ENGINE, ENGINE_EAGER]
    for row in measured[job.name].values():
        assert row["images_per_second"] * row["seconds"] == pytest.approx(40, rel=0.05)
    head, first, *_ = gpu_table(measured).splitlines()
    assert head.split()[-3:] == ["seconds", "images/s", "ratio"]
    assert first.split()[-1] == "1.00x"
