# syntax=docker/dockerfile:1
# The constraint service, with its mask kernels compiled.
# Build it from the repository's root: make image-constraint. docs/deploy.md has the arguments.

# Pin it by digest for builds that repeat: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# pip of a virtual environment that stays behind: the image has none.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/espalier
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/images/requirements.py ./
# Settings of pip, an index of your own among them, come as a secret and are in no layer.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py constraint otel < pyproject.toml > requirements.txt \
    && /build/bin/pip --python /opt/espalier/bin/python install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    /build/bin/pip wheel --no-deps -w /wheels . \
    && /build/bin/pip --python /opt/espalier/bin/python install --no-deps /wheels/*.whl
# What kernels are compiled for. `generic` runs on every machine of this architecture; with x86-64-v3, say, and the empty
# features that go with a name, only on processors that have it.
ARG NUMBA_CPU_NAME=generic
ARG NUMBA_CPU_FEATURES=
ENV NUMBA_CACHE_DIR=/opt/espalier/kernels \
    NUMBA_CPU_NAME=${NUMBA_CPU_NAME} \
    NUMBA_CPU_FEATURES=${NUMBA_CPU_FEATURES}
# Outside /src: the installed files are the ones whose kernels are looked up.
WORKDIR /
RUN /opt/espalier/bin/python -m services.constraint.kernels

FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="espalier-constraint" \
      org.opencontainers.image.description="Compiles schemas and grammars into token masks for Espalier" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ARG NUMBA_CPU_NAME=generic
ARG NUMBA_CPU_FEATURES=
ENV PATH=/opt/espalier/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    ESPALIER_CONSTRAINT_ADDRESS=0.0.0.0:50062 \
    NUMBA_CACHE_DIR=/opt/espalier/kernels \
    NUMBA_CPU_NAME=${NUMBA_CPU_NAME} \
    NUMBA_CPU_FEATURES=${NUMBA_CPU_FEATURES}
COPY --from=build /opt/espalier /opt/espalier
# Nobody's number on the host. It needs no entry in /etc/passwd, no home, and writes to /tmp alone.
USER 65532:65532
WORKDIR /
EXPOSE 50062
ENTRYPOINT ["python", "-m", "services.constraint"]
