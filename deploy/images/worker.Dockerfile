# syntax=docker/dockerfile:1
# The model worker: torch for CPUs, or with --build-arg VARIANT=cuda for NVIDIA GPUs. It has no weights.
# Build it from the repository's root: make image-worker. docs/deploy.md has the arguments.

# Pin it by digest for builds that repeat: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# pip of a virtual environment that stays behind: the image has none.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/espalier
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/images/requirements.py ./
# Settings of pip, an index of your own among them, come as a secret and are in no layer.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py worker otel < pyproject.toml > requirements.txt \
    && /build/bin/pip --python /opt/espalier/bin/python install -c constraints.txt -r requirements.txt
# `cpu` or `cuda`. Which build of torch pip finds is a matter of its settings; the other one would be gigabytes for nothing,
# or would find no GPU.
ARG VARIANT=cpu
RUN /opt/espalier/bin/python -c "import sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; \
sys.exit(None if found == '${VARIANT}' else f'pip found the {found} build of torch, not ${VARIANT}: see docs/deploy.md')"
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    /build/bin/pip wheel --no-deps -w /wheels . \
    && /build/bin/pip --python /opt/espalier/bin/python install --no-deps /wheels/*.whl

FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="espalier-worker" \
      org.opencontainers.image.description="Runs the Mixture-of-Experts model of Espalier" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/espalier/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    ESPALIER_WORKER_ADDRESS=0.0.0.0:50061
COPY --from=build /opt/espalier /opt/espalier
# No NVIDIA_VISIBLE_DEVICES: whoever gives the container a GPU sets it, and the rest must not see any.
# Nobody's number on the host. It needs no entry in /etc/passwd, no home, and writes to /tmp alone.
USER 65532:65532
WORKDIR /
EXPOSE 50061
ENTRYPOINT ["python", "-m", "services.model_worker"]
