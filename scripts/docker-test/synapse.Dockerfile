# Stands in for matrixdotorg/synapse where no registry can be reached: the same release from PyPI behind the same contract.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl gosu python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ARG SYNAPSE_VERSION
ARG PIP_INDEX_URL
RUN python3 -m venv /usr/local/synapse \
    && /usr/local/synapse/bin/pip install --quiet --no-cache-dir --only-binary matrix-synapse,psycopg2-binary \
        "matrix-synapse==$SYNAPSE_VERSION" psycopg2-binary
ENV PATH=/usr/local/synapse/bin:$PATH
COPY synapse-entry.sh /start.sh
EXPOSE 8008/tcp
ENTRYPOINT ["/start.sh"]
