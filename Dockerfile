# The image of `tenuto serve`. From a clone: docker build -t tenuto .
#
# It runs with a read-only root, as a user without rights, and keeps its file in /data:
#
#   docker run --read-only --volume tenuto:/data --publish 8000:8000 --env TENUTO_VISITORS=1 tenuto
#
# Each option of `tenuto serve` is a variable: TENUTO_STORE for --store. deploy/ has complete settings.

# A release names the digest of its base, as RELEASING.md describes: --build-arg BASE=python:3.13-slim@sha256:…
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/tenuto
# .dockerignore lists what the package is built from. If `make web` has built the browser client, the image has that one.
COPY . .
RUN /opt/tenuto/bin/python -m pip install --no-cache-dir '.[serve,client,postgres,redis,jwt]'

FROM ${BASE}
ARG UID=10001
RUN groupadd --gid "${UID}" tenuto \
    && useradd --uid "${UID}" --gid "${UID}" --no-create-home --home-dir /data --shell /usr/sbin/nologin tenuto \
    && install --directory --owner="${UID}" --group="${UID}" --mode=0700 /data
COPY --from=build /opt/tenuto /opt/tenuto
ENV PATH=/opt/tenuto/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TENUTO_HOST=0.0.0.0 \
    TENUTO_STORE=sqlite:////data/tenuto.db
VOLUME /data
USER ${UID}:${UID}
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["tenuto", "health"]
ENTRYPOINT ["tenuto"]
CMD ["serve"]
