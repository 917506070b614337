#!/bin/bash
# Tries the image and the compose file for real: builds them, starts everything as a fresh checkout would, and places a
# call through it.
#
# No registry is needed. A private Docker engine is started, its base images are made with debootstrap and tagged with
# the public names, PostgreSQL and Synapse among them. The engine's layers stay in the cache folder
# (${XDG_CACHE_HOME:-~/.cache}/trunkline/docker; remove it to begin anew), everything else is removed at the end.
# With DOCKER_HOST set, that engine is used instead, with the public images.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly project=trunkline-test
readonly stand_ins=scripts/docker-test
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trunkline
sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
engine="" # not empty: ours, to be stopped
export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0 # Debian's engine has no buildx
unset SERVER_NAME PUBLIC_IP PUBLISH_ON SIP_PORT SYNAPSE_PORT PHONES VERSION

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
die() { say "FAILED: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---- the engine -------------------------------------------------------------------------------------------------------

install_tools() {
    local missing=()
    have dockerd || missing+=(docker.io)
    have docker-compose || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
    have debootstrap || missing+=(debootstrap)
    have iptables || missing+=(iptables)
    have ip || missing+=(iproute2)
    [ ${#missing[@]} = 0 ] && return
    have apt-get || die "please install (Debian's names): ${missing[*]}"
    say "installing ${missing[*]} (a Docker engine of our own, and what makes its base images)"
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    # Debian starts the engine it has installed; two at a time would fight for the packet filter.
    if [[ " ${missing[*]} " == *" docker.io "* ]] && [ -d /run/systemd/system ]; then
        $sudo systemctl stop docker.socket docker.service
    fi
}

start_engine() {
    if docker info >/dev/null 2>&1; then
        die "a Docker engine runs here, and a second one would take over its packet filter rules." \
            "Test with it and the public images: DOCKER_HOST=unix:///var/run/docker.sock make docker-test"
    fi
    mkdir -p "$cache"
    exec 8>"$cache/docker.lock"
    flock -n 8 || die "another docker-test runs"
    stop_engine "$(cat "$cache/docker.pid" 2>/dev/null || true)" # of a run that was killed
    $sudo iptables-save >"$scratch/iptables"
    cat /proc/sys/net/ipv4/ip_forward >"$scratch/ip_forward"
    engine=started
    $sudo dockerd --data-root "$cache/docker" --exec-root "$scratch/exec" --pidfile "$cache/docker.pid" --bridge none \
        --host "unix://$scratch/docker.sock" --group "$(id -gn)" >"$scratch/dockerd.log" 2>&1 8>&- &
    export DOCKER_HOST=unix://$scratch/docker.sock
    for _ in {1..150}; do
        docker info >/dev/null 2>&1 && break
        sleep 0.2
    done
    docker info >/dev/null 2>&1 || { tail -n 20 "$scratch/dockerd.log" >&2; die "the Docker engine does not start"; }
    docker volume prune --force >/dev/null # of runs that were killed
    docker image prune --force --filter until=336h >/dev/null # what two weeks of builds have left
    say "Docker engine $(docker version --format '{{.Server.Version}}') runs, layers in $cache/docker"
}

stop_engine() { # stop_engine PID: nothing happens unless it is a dockerd
    [ -n "$1" ] && [ "$(cat "/proc/$1/comm" 2>/dev/null)" = dockerd ] || return 0
    $sudo kill -TERM "$1"
    timeout 60 tail --pid="$1" -f /dev/null || $sudo kill -KILL "$1"
}

restore_network() {
    # A table that did not exist before is not in the file, and must be emptied.
    grep -q '^\*filter' "$scratch/iptables" || printf '%s\n' '*filter' ':INPUT ACCEPT' ':FORWARD ACCEPT' ':OUTPUT ACCEPT' COMMIT >>"$scratch/iptables"
    grep -q '^\*nat' "$scratch/iptables" || printf '%s\n' '*nat' ':PREROUTING ACCEPT' ':POSTROUTING ACCEPT' COMMIT >>"$scratch/iptables"
    $sudo iptables-restore <"$scratch/iptables"
    $sudo sh -c "cat '$scratch/ip_forward' >/proc/sys/net/ipv4/ip_forward"
    # dockerd leaves the mount of its network namespace.
    awk -v under="$scratch/" 'index($2, under) == 1 {print $2}' /proc/mounts | xargs -r -n1 $sudo umount
}

clean_up() {
    local code=$?
    trap - EXIT
    set +e
    if [ -n "${DOCKER_HOST:-}" ] && docker info >/dev/null 2>&1; then
        [ $code = 0 ] || tell_what_happened >&2
        compose down --volumes --timeout 20 >/dev/null 2>&1
        docker rm --force trunkline-alone >/dev/null 2>&1
        docker volume rm --force trunkline-alone >/dev/null 2>&1
    fi
    if [ -n "$engine" ]; then
        stop_engine "$(cat "$cache/docker.pid" 2>/dev/null)"
        restore_network
    fi
    $sudo rm -rf "$scratch"
    exit $code
}

tell_what_happened() {
    echo "---- the services, and what they said last"
    docker ps --all --format '{{.Names}}: {{.Status}}'
    compose logs --no-color --tail 5 setup postgres
    compose logs --no-color --tail 60 bridge
    compose logs --no-color --tail 400 synapse | grep -E ' (WARNING|ERROR|CRITICAL) ' | tail -n 20
}

# ---- images -----------------------------------------------------------------------------------------------------------

# build NAME ARGUMENTS: with what this machine is told about proxies and package sources; nothing of it is in any file.
build() {
    local name=$1 args=() variable value
    shift
    for variable in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL; do
        [ -z "${!variable:-}" ] || args+=(--build-arg "$variable=${!variable}")
    done
    if have go; then
        for variable in GOPROXY GOSUMDB; do
            value=$(go env $variable)
            [ -z "$value" ] || args+=(--build-arg "$variable=$value")
        done
    fi
    timeout 1200 docker build --quiet --network host "${args[@]}" --tag "$name" "$@" >"$scratch/build.log" 2>&1 ||
        { tail -n 60 "$scratch/build.log" >&2; die "image $name is not built"; }
    say "image $name: $(($(docker image inspect --format '{{.Size}}' "$name") / 1000000)) MB"
}

base_image() {
    if ! docker image inspect debian:bookworm-slim >/dev/null 2>&1; then
        local mirror
        mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' | awk '$2 == "bookworm" && $3 == "main" {print $1; exit}')
        # shellcheck disable=SC2086 # no mirror, no argument
        timeout 600 $sudo debootstrap --variant=minbase bookworm "$scratch/root" $mirror >"$scratch/build.log" 2>&1 ||
            { tail -n 20 "$scratch/build.log" >&2; die "debootstrap"; }
        # What this machine needs to reach package sources is needed inside, too: its own certificate authorities, apt's settings.
        $sudo mkdir -p "$scratch/root/usr/local/share/ca-certificates"
        $sudo find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$scratch/root/usr/local/share/ca-certificates" {} +
        apt-config dump | grep -E '^Acquire::(https?|Check|Retries)' | $sudo tee "$scratch/root/etc/apt/apt.conf.d/90machine" >/dev/null || true
        $sudo tar -C "$scratch/root" --exclude './var/cache/apt/archives/*.deb' --exclude './var/lib/apt/lists/*' -c . |
            docker import --change 'CMD ["bash"]' - debian:bookworm-slim >/dev/null
        $sudo rm -rf "$scratch/root"
    fi
    say "image debian:bookworm-slim"
}

go_image() {
    [ "$(docker run --rm golang:1.26-bookworm go version 2>/dev/null)" = "$(go version)" ] && return
    mkdir "$scratch/golang"
    cp -r "$(go env GOROOT)" "$scratch/golang/go"
    build golang:1.26-bookworm --file $stand_ins/golang.Dockerfile "$scratch/golang"
    rm -rf "$scratch/golang"
}

# public_name SERVICE: the image that docker-compose.yml names.
public_name() { sed -n "s|^ *image: \($1:.*\)|\1|p" docker-compose.yml; }

stand_in_images() {
    have go || die "please install Go: the image that builds the bridge is made from it"
    base_image
    go_image
    build "$(public_name postgres)" --file $stand_ins/postgres.Dockerfile $stand_ins
    local synapse
    synapse=$(public_name matrixdotorg/synapse)
    build "$synapse" --build-arg "SYNAPSE_VERSION=${synapse#*:v}" --file $stand_ins/synapse.Dockerfile $stand_ins
}

# ---- the image alone --------------------------------------------------------------------------------------------------

# alone ARGUMENTS: the image as a careful admin runs it.
alone() {
    timeout 60 docker run --rm --name trunkline-alone --read-only --cap-drop ALL --security-opt no-new-privileges \
        --network none --volume trunkline-alone:/data trunkline "$@" 2>&1
}

# expect CODE TEXT COMMAND: the command must end with the code and say the text.
expect() {
    local code=0 said
    said=$("${@:3}" 2>&1) || code=$?
    [ "$code" = "$1" ] && [[ $said == *"$2"* ]] || die "${*:3}: want exit code $1 and “$2”, got $code and: $said"
}

try_image_alone() {
    docker volume rm --force trunkline-alone >/dev/null
    expect 0 "trunkline " alone -v
    expect 2 "Wrote /data/config.yaml" alone
    expect 2 "homeserver.domain" alone # the example names no homeserver, and says so
    timeout 60 docker run --rm --volume trunkline-alone:/data --entrypoint sed trunkline -i 's/domain: ""/domain: example.org/' config.yaml
    expect 2 "wrote /data/registration.yaml" alone
    expect 1 "registration.yaml fits the config" alone -doctor
    expect 0 "uid=1337(trunkline) gid=1337(trunkline)" docker run --rm --entrypoint id trunkline
    # shellcheck disable=SC2016 # the shell in the image says which language it is
    expect 0 "all five" docker run --rm --entrypoint sh trunkline -c 'for language in en es fr it ru; do
        ls /usr/share/asterisk/sounds/"$language"_*/conf-getpin.wav >/dev/null || exit 1; done; echo all five'
    docker volume rm trunkline-alone >/dev/null
    say "the image alone: has the voices of five languages, writes config and registration at its first starts; user 1337, read-only, no capability"
}

# ---- compose ----------------------------------------------------------------------------------------------------------

# within SECONDS ARGUMENTS: the compose command with a limit.
within() {
    local cli=(docker-compose) # 1.29, Debian's
    ! docker compose version >/dev/null 2>&1 || cli=(docker compose)
    timeout "$1" "${cli[@]}" -p $project --env-file "$scratch/env" "${@:2}"
}

compose() { within 120 "$@"; }

port_is_free() { [ -z "$(ss --no-header --listening --tcp --udp --numeric "sport = :$1")" ]; }

# Ports of the fresh checkout, unless this machine uses them.
choose_ports() {
    port_is_free 5060 || echo "SIP_PORT=${sip_port:=15060}"
    port_is_free 8008 || echo "SYNAPSE_PORT=${synapse_port:=18008}"
    port_is_free 29401 || echo "ADMIN_PORT=${admin_port:=19401}"
}

healthy() { # healthy SERVICE
    local id
    id=$(compose ps -q "$1") && [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ]
}

up() {
    local began=$SECONDS
    within 300 up -d >"$scratch/up.log" 2>&1 ||
        { tail -n 30 "$scratch/up.log" >&2; die "docker-compose up"; }
    for _ in {1..120}; do
        healthy bridge && break
        sleep 0.5
    done
    healthy bridge || die "the bridge does not become healthy"
    say "docker-compose up: all healthy after $((SECONDS - began)) s"
}

# Sound is judged, and a machine that has no time to spare makes bad sound: wait for it, but not for ever.
quiet() {
    local pressure
    for _ in {1..60}; do
        pressure=$(sed -n 's/^some avg10=\([0-9]*\).*/\1/p' /proc/pressure/cpu 2>/dev/null)
        [ "${pressure:-0}" -gt 30 ] || return 0
        sleep 1
    done
    say "this machine is busy: processes wait for a processor $pressure % of the time, which will be heard"
}

# call ADDRESS: a scripted phone on this machine dials in by ADDRESS, a scripted member is in the room; both must hear the other.
call() {
    local secret
    quiet
    secret=$(compose exec -T synapse cat /data/registration_shared_secret)
    timeout 120 "$scratch/demo" -attach -homeserver "http://$1:${synapse_port:-8008}" -register-secret "$secret" \
        -sip "$1:${sip_port:-5060}" -number 1000 -alias phone -out "$scratch" || die "the call through $1"
    say "a call through $1: both sides heard each other"
}

# admin_answers asks for the metrics, as docs/deployment.md says an admin may.
admin_answers() {
    exec 3<>"/dev/tcp/127.0.0.1/${admin_port:-29401}" || return
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    timeout 10 cat <&3 | grep -c '^trunkline_' >/dev/null # all of it is read: with pipefail nobody may hear of a broken pipe
    local found=$?
    exec 3>&-
    return $found
}

# ask_doctor wants everything to be right but that nobody has made the room yet which the trial's number leads to.
ask_doctor() {
    local said
    said=$(compose exec -T bridge bridge -doctor 2>&1) && die "bridge -doctor does not miss the room: $said"
    [[ $said == *"ping came back"* && $said == *"make the room"* && $(grep -c '^FAIL' <<<"$said") = 1 ]] || die "bridge -doctor: $said"
    say "bridge -doctor misses the room, which is not made yet, and nothing else"
}

# A homeserver that was not given the registration: waiting cannot help, so the bridge must say so and end.
try_unknown_registration() {
    docker volume rm --force trunkline-alone >/dev/null
    expect 2 "Wrote /data/config.yaml" alone
    timeout 60 docker run --rm --volume trunkline-alone:/data --entrypoint sed trunkline -i -e 's/domain: ""/domain: localhost/' \
        -e 's|^  address: http.*|  address: http://synapse:8008|' -e 's/^  advertise: ""/  advertise: 127.0.0.1/' config.yaml
    expect 2 "wrote /data/registration.yaml" alone
    expect 1 "app_service_config_files" timeout 60 docker run --rm --name trunkline-alone --network "${project}_default" \
        --volume trunkline-alone:/data trunkline
    docker volume rm trunkline-alone >/dev/null
    say "a bridge that the homeserver does not know says so, and ends"
}

try_compose() {
    have go || die "please install Go: the scripted phone and room member are built with it"
    go build -tags goolm,nolibopusfile -o "$scratch/demo" ./internal/testbed/demo
    : >"$scratch/env"
    choose_ports >"$scratch/env"
    [ ! -s "$scratch/env" ] || say "taken here, so other ports: $(tr '\n' ' ' <"$scratch/env")"
    . "$scratch/env"
    sip_port=${SIP_PORT:-} synapse_port=${SYNAPSE_PORT:-} admin_port=${ADMIN_PORT:-}
    unset SIP_PORT SYNAPSE_PORT ADMIN_PORT

    say "first the fresh checkout: nothing configured, reachable from this machine only"
    up
    call 127.0.0.1
    admin_answers || die "the admin's port does not answer on 127.0.0.1"

    local address
    address=$(ip -4 -oneline address show scope global up | awk '$2 !~ /^(docker0$|br-|veth)/ {sub("/.*", "", $4); print $4; exit}')
    if [ -n "$address" ]; then
        say "then .env names an address of this machine: $address"
        printf '%s\n' "PUBLIC_IP=$address" "PUBLISH_ON=$address" "PHONES=$address/32" >>"$scratch/env"
        up
        ask_doctor
        call "$address"
    fi

    try_unknown_registration
    local bridge
    bridge=$(compose ps -q bridge)
    local began=$SECONDS
    compose stop bridge >/dev/null 2>&1
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$bridge")" = 0 ] || die "the bridge does not end well when stopped"
    say "stopped in $((SECONDS - began)) s with exit code 0"
}

# ---- all of it --------------------------------------------------------------------------------------------------------

scratch=$(mktemp -d "${TMPDIR:-/tmp}/trunkline-docker-XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
touch "$scratch/env"
if [ -z "${DOCKER_HOST:-}" ]; then
    install_tools
    start_engine
    stand_in_images
fi
build trunkline:latest --build-arg "VERSION=$(git describe --tags --always --dirty 2>/dev/null || echo development)" .
try_image_alone
try_compose
say "all is well"
