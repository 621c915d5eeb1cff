#!/bin/sh
# What the container does: a ComfyUI, the head or a worker of a Ray cluster, or a command of run.py.
set -eu
store=104857600 # bytes of Ray's object store: clips go through the disk
what=${1:-server}
[ $# -eq 0 ] || shift
case $what in
server)
    cd "$COMFYUI_DIR"
    exec .venv/bin/python main.py --listen 0.0.0.0 --disable-auto-launch "$@"
    ;;
head)
    # Lost nodes are seen within ten seconds in place of half a minute.
    export RAY_health_check_period_ms=2000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3
    exec ray start --head --port 6379 --num-gpus 0 --include-dashboard false --object-store-memory "$store" --block "$@"
    ;;
worker)
    exec ray start --address "${RAY_HEAD:?names the head, such as head:6379}" --object-store-memory "$store" --block "$@"
    ;;
fleet | serve)
    exec python run.py --inside "$what" "$@"
    ;;
*)
    echo "Expected server, head, worker, fleet or serve, found $what." >&2
    exit 2
    ;;
esac
