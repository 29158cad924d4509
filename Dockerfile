# raypipe with its pinned environment, for Kubernetes (experiments/rayjob.yaml) and other containers.
#
#   docker build --tag raypipe .                             # for CPUs
#   docker build --build-arg DEVICE=cuda --tag raypipe .     # with PyTorch for CUDA, which the host's driver must support
FROM python:3.11-slim

ARG DEVICE=cpu
# Debian's wget is what KubeRay's health probes call.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/raypipe
COPY requirements.txt pyproject.toml README.md LICENSE ./
# PyPI has PyTorch for CUDA; the build for CPUs, a tenth of the size, has a place of its own.
RUN case "$DEVICE" in \
      cpu) index=--extra-index-url=https://download.pytorch.org/whl/cpu; torch=+cpu ;; \
      cuda) index=; torch= ;; \
      *) echo "DEVICE: must be cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac \
    && sed "s/^\(torch==.*\)/\1$torch/" requirements.txt > /tmp/requirements.txt \
    && pip install --no-cache-dir $index -r /tmp/requirements.txt
COPY raypipe raypipe
COPY experiments experiments
RUN pip install --no-cache-dir --no-deps --editable .

RUN useradd --create-home --uid 1000 ray
USER ray
ENV RAYPIPE_STORAGE=/mnt/raypipe
