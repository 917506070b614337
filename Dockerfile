# The bridge in an image: 1. build, 2. a small Debian with the program, libopus, certificates, and voices for prompts.
#
#   docker build -t trunkline --build-arg VERSION=$(git describe --tags --always) .
#   docker run --network host -v /var/lib/trunkline:/data trunkline      # docs/deployment.md

FROM golang:1.26-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends libopus-dev pkg-config espeak-ng \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Where modules come from, for builders behind a proxy; unset = Go's own defaults.
ARG GOPROXY
ARG GOSUMDB
ENV CGO_ENABLED=1 GOFLAGS="-trimpath -tags=goolm,nolibopusfile"
# What takes long to compile, in a layer of its own that a change of our code does not touch.
COPY go.mod go.sum ./
RUN go build modernc.org/sqlite github.com/jackc/pgx/v5/stdlib maunium.net/go/mautrix/crypto maunium.net/go/mautrix/appservice \
    github.com/pion/webrtc/v4 github.com/emiago/sipgo gopkg.in/hraban/opus.v2 github.com/prometheus/client_golang/prometheus/promhttp
COPY . .
# The voice that is built in, for languages that have no recorded one.
RUN scripts/make-sounds.sh -f
ARG VERSION=development
RUN go build -ldflags "-s -w -X main.version=$VERSION" -o /bridge ./cmd/bridge

FROM debian:bookworm-slim
# Languages of recorded prompts (Asterisk's sound sets, 25 MB each): en, es, fr, it, ru.
ARG SOUNDS="en es fr it ru"
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libopus0 \
    && for language in $SOUNDS; do apt-get install -y --no-install-recommends "asterisk-core-sounds-$language-wav" || exit 1; done \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1337 trunkline \
    && useradd --uid 1337 --gid 1337 --no-create-home --home-dir /data --shell /usr/sbin/nologin trunkline \
    && install -d -o 1337 -g 1337 -m 700 /data
COPY --from=build /bridge /usr/local/bin/bridge
COPY deploy/start.sh /usr/local/bin/start-bridge
COPY LICENSE /usr/share/doc/trunkline/
USER 1337:1337
# Everything that must be kept: config.yaml, registration.yaml, and the SQLite file if that is the database.
VOLUME /data
WORKDIR /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=3 CMD ["bridge", "-c", "/data/config.yaml", "-healthy"]
ENTRYPOINT ["start-bridge"]
