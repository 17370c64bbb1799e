#!/bin/bash
# Build the image and see it keep its promises: deploy/try-image.sh [BASE_IMAGE]
# Needs a Docker engine; BUILD_ARGS adds arguments of `docker build`. Leaves the image outbox-bridge:try behind.
set -euo pipefail
cd "$(dirname "$0")/.."
image=outbox-bridge:try
container=''
work=$(mktemp -d)
finish() {
    [ -z "$container" ] || docker rm -f "$container" >/dev/null
    rm -rf "$work"
}
trap finish EXIT

# shellcheck disable=SC2086  # BUILD_ARGS is several words
docker build -q ${1:+--build-arg BASE_IMAGE="$1"} ${BUILD_ARGS:-} -f deploy/Dockerfile -t "$image" . >/dev/null
echo "built: $(docker image inspect -f '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')"

hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges --network none)
run() { docker run --rm "${hardened[@]}" "$@"; }
check() { # WHAT EXPECTED ACTUAL
    [ "$2" = "$3" ] || { echo "$1: expected '$2', got '$3'" >&2; exit 1; }
    echo "$1: $3"
}

check 'user' 10001 "$(run --entrypoint python "$image" -c 'import os; print(os.getuid())')"
check 'command' "$(sed -n 's/^__version__ = "\(.*\)"/bridge, version \1/p' bridge/__init__.py)" "$(run "$image" --version)"
check 'SQL travels with it' 'create schema if not exists bridge;' \
    "$(sql=$(run "$image" schema target); grep -m1 -o 'create schema if not exists bridge;' <<<"$sql")"
check 'pip is not in it' 1 "$(run --entrypoint python "$image" -m pip --version >/dev/null 2>&1; echo $?)"
check 'no configuration' 2 "$(run "$image" >/dev/null 2>&1; echo $?)"
check 'root file system' 'Read-only file system' \
    "$(run --entrypoint python "$image" -c 'open("/etc/outbox-bridge/x", "w")' 2>&1 | grep -o 'Read-only file system')"

# A bridge without servers: it keeps trying, is alive, is not ready, and stops at SIGTERM.
cat > "$work/bridge.yaml" <<'YAML'
version: 1
source: { dsn: "host=127.0.0.1 port=1 dbname=app" }
connections: { warehouse: { type: postgres, dsn: "host=127.0.0.1 port=1 dbname=warehouse" } }
pipelines:
  all: { event: "*", destinations: { events: { connection: warehouse, table: events.all, mode: upsert, key: [event_id] } } }
admin: { listen: "0.0.0.0:8377", token: "${ADMIN_TOKEN}" }
YAML
chmod 755 "$work"; chmod 644 "$work/bridge.yaml"
container=$(docker run -d "${hardened[@]}" -e ADMIN_TOKEN=try -e BRIDGE_ADMIN_TOKEN=try \
    --health-interval 1s -v "$work/bridge.yaml:/etc/outbox-bridge/bridge.yaml:ro" "$image")
for _ in $(seq 60); do
    health=$(docker inspect -f '{{.State.Health.Status}}' "$container")
    [ "$health" = starting ] || break
    sleep 0.5
done
[ "$health" = healthy ] || docker logs "$container" >&2
check 'health' healthy "$health"
ready=$(docker exec "$container" python -m bridge.observe.probe readyz) && { echo 'ready without servers' >&2; exit 1; }
check 'ready' 'not ready' "$(grep -o 'not ready' <<<"$ready")"
check 'no token' 'admin.token is needed' \
    "$(docker exec -e BRIDGE_ADMIN_TOKEN= "$container" python -m bridge.observe.probe readyz || true)"
docker stop -t 20 "$container" >/dev/null
check 'SIGTERM' 0 "$(docker inspect -f '{{.State.ExitCode}}' "$container")"
echo 'the image keeps its promises'
