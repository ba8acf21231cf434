# One image for every machine of a federation, for SuperLinks and SuperNodes.
#
#   docker build --tag fixbn-flwr .                                        # PyTorch for CPUs
#   docker build --tag fixbn-flwr:cuda --build-arg TORCH_BACKEND=cu128 .   # for NVIDIA GPUs
#   docker build --tag fixbn-flwr --build-arg EXTRAS=app,segmentation .    # for CamVid and Cityscapes
#
# deploy/compose.yaml starts a federation with this image; deploy/README.md explains both ways.
# PyTorch brings the CUDA libraries. The machine needs NVIDIA's driver and container toolkit, and
# `docker run --gpus`.
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_BACKEND=cpu
ARG EXTRAS=app
WORKDIR /build
RUN python -m venv /opt/venv \
    && python -m pip install --no-cache-dir "uv>=0.12.20,<0.13"
COPY pyproject.toml README.md LICENSE ./
COPY fixbn_flwr fixbn_flwr
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --torch-backend "${TORCH_BACKEND}" ".[${EXTRAS}]"

FROM python:${PYTHON}
# For the gateway.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/*
# A new volume takes over the owner and mode of the directory that it is mounted on.
RUN useradd --uid 10001 --create-home fixbn \
    && install --directory --owner fixbn --mode 700 \
        /var/lib/fixbn /home/fixbn/fixbn-runs /certificates /keys/hospital-a /keys/hospital-b
COPY --from=build /opt/venv /opt/venv
COPY --chown=root:root deploy /opt/deploy
ENV PATH=/opt/deploy:/opt/venv/bin:$PATH \
    FIXBN_HOME=/var/lib/fixbn \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/fixbn
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["check-health"]
CMD ["start-superlink", "--help"]
