# make run    train with FixBN on real images, and with plain BN beside it (some minutes)
# make test   lint, types and tests (under ten minutes on two cores)
# make test-long   real federations, on Ray and between processes, kills, soak (half an hour more)
# make test-nightly   the library with other releases of Flower and PyTorch, ten kills of a run (half an hour)
# make gpu    tests, benchmark and a run on a GPU (eight minutes at most; results in gpu/)
# make gpu-evidence   the experiments at full size on a GPU; again, it goes on where it stopped
# make docs   the documentation site, in site/
# They set up their own environment in .venv first; PYTHON picks another Python, 3.11 or newer.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin

# A cluster that is there would take in the simulations of other tests.
ALONE := tests/federation/test_ray_cluster.py

.PHONY: run test test-long test-nightly test-versions gpu gpu-data gpu-evidence lint docs clean

run: $(READY)
	$(BIN)/fixbn compare

# Two tests at a time, each on one core.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# A file of tests at a time on each core: many share a federation.
test-long: $(READY)
	$(BIN)/python -m pytest -p no:randomly -m "slow and not nightly" $(ALONE)
	$(BIN)/python -m pytest -p no:randomly -m "slow and not nightly" -n 2 --dist loadfile --durations 30 --ignore $(ALONE)

# VERSIONS="1.24.0 2.6.0" tests one pair of flwr and torch, VERSIONS="newest newest" what came out since.
test-versions: $(READY)
	$(BIN)/python -m tests.versions $(VERSIONS)

test-nightly: test-versions
	$(BIN)/python -m pytest -p no:randomly -m nightly

# The run needs CIFAR-10: make gpu DATA=directory-of-cifar-10-batches-py; without it, it is left out.
DATA ?= ../shared/data
PAPER_SCALE := task=cifar10 partition-classes=2 local-steps=100 batch-size=20 num-server-rounds=40 \
	learning-rate=0.05 learning-rate-schedule=halfway evaluate-every=5 device=cuda

gpu: $(READY)
	mkdir -p gpu
	$(BIN)/python -m pytest -p no:randomly -m gpu
	$(BIN)/python -m simulation.benchmarks gpu --output gpu/speed.json
	if [ -d $(DATA)/cifar-10-batches-py ]; then \
		$(BIN)/fixbn run --clients 5 $(PAPER_SCALE) data-dir=$(DATA) output-dir=gpu; fi

# The experiments at full size, the most important first, for MINUTES. gpu-data packs CIFAR-10 to travel.
MINUTES ?= 9
DEVICE ?= cuda
OUTPUT ?= gpu/results
EVIDENCE := when-to-use normalisers freeze-after frequency momentum map clients feature-shift segmentation \
	tiny-imagenet gradients freeze-rule
PACKED := gpu-data/cifar10-part.parquet

gpu-data: $(PACKED)
	for name in femnist-small pacs-64 camvid-240x180 tiny-imagenet-50; do cp -rT $(DATA)/$$name gpu-data/$$name; done

$(PACKED): | $(READY)
	$(BIN)/python -m simulation.experiments.packed_tasks $(DATA) gpu-data

gpu-evidence: $(READY)
	timeout --signal=INT $(MINUTES)m sh -c 'for name in $(EVIDENCE); do \
		$(BIN)/python -m simulation.experiments run $$name --scale gpu --device $(DEVICE) \
			--data-dir $(if $(wildcard $(PACKED)),gpu-data,$(DATA)) --output $(OUTPUT) --folders gpu/runs \
			|| left="$$left $$name"; done; \
		[ -z "$$left" ] || { echo "Not complete, see above:$$left"; exit 1; }' \
	|| [ $$? -eq 124 ]

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=deploy $(BIN)/mypy --scripts-are-modules $(wildcard deploy/*-*) deploy/register deploy/revoke

# A warning, such as a link that leads nowhere, fails the build. The variable spares the theme's notice
# about other tools.
docs: $(READY)
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# uv resolves and installs in seconds what takes pip minutes; compiled once, imports stay quick.
# The system's certificates: some networks have their own.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.12.20,<0.13'
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --compile-bytecode --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) site
