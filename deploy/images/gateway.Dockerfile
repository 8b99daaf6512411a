# syntax=docker/dockerfile:1
# The gateway: neither torch nor numba.
# Build it from the repository's root: make image-gateway. docs/deploy.md has the arguments.

# Pin it by digest for builds that repeat: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# pip of a virtual environment that stays behind: the image has none.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/espalier
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/images/requirements.py ./
# Settings of pip, an index of your own among them, come as a secret and are in no layer.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py gateway otel < pyproject.toml > requirements.txt \
    && /build/bin/pip --python /opt/espalier/bin/python install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    /build/bin/pip wheel --no-deps -w /wheels . \
    && /build/bin/pip --python /opt/espalier/bin/python install --no-deps /wheels/*.whl

FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="espalier-gateway" \
      org.opencontainers.image.description="The decode loop of Espalier, a structured-output gateway" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/espalier/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    ESPALIER_GATEWAY_ADDRESS=0.0.0.0:50060
COPY --from=build /opt/espalier /opt/espalier
# Nobody's number on the host. It needs no entry in /etc/passwd, no home, and writes to /tmp alone.
USER 65532:65532
WORKDIR /
EXPOSE 50060
ENTRYPOINT ["python", "-m", "gateway"]
