#!/usr/bin/env bash
# Two or more processes on this machine that are one run.
#
#   PROCESSES=2 DEVICES=2 launch/processes.sh simulated ARGS...   2 x 2 CPU devices
#   PROCESSES=4 launch/processes.sh gpu ARGS...                   one GPU each
#
# ARGS are those of `python -m reid_jax.main`; DRY_RUN=1 prints the commands. Process 0
# writes to the terminal, the others to LOGS/process-N.log (default runs/logs). Ctrl-C
# or SIGTERM saves first. If one process dies the others notice it; any that does not
# within GRACE seconds (default 150) is killed. The exit code is the first one's that
# failed. PORT is that of process 0 (default: a free one).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

kind=${1:-}
shift || true
need PROCESSES
positive PROCESSES
case $kind in
  gpu) ;;
  simulated)
    need DEVICES
    positive DEVICES
    ;;
  *)
    usage_of launch/processes.sh >&2
    die "the first argument is simulated or gpu, not '$kind'"
    ;;
esac
LOGS=${LOGS:-runs/logs}
GRACE=${GRACE:-150}
positive GRACE
free_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
if [[ -z ${PORT:-} ]]; then
  if dry; then PORT=PORT; else PORT=$("$PYTHON" -c "$free_port"); fi
fi

# command_of INDEX ARGS...: sets `command` to that process's.
command_of() {
  local index=$1
  shift
  if [[ $kind == gpu ]]; then
    command=(env JAX_PLATFORMS=cuda JAX_LOCAL_DEVICE_IDS="$index")
  else
    command=(env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$DEVICES")
  fi
  command+=("${MAIN[@]}" "$@" --coordinator="localhost:$PORT")
  command+=(--process_count="$PROCESSES" --process_index="$index")
}

if dry; then
  for ((index = 0; index < PROCESSES; index++)); do
    command_of "$index" "$@"
    show "${command[@]}"
  done
  exit 0
fi

mkdir -p "$LOGS"
declare -A index_of=() # process id: index, of those that still run
signal_all() { kill "-$1" "${!index_of[@]}" 2>/dev/null || true; }
# Background processes of a script ignore Ctrl-C; SIGTERM asks them to save and stop.
trap 'signal_all TERM' INT TERM EXIT
for ((index = 0; index < PROCESSES; index++)); do
  command_of "$index" "$@"
  if ((index == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$LOGS/process-$index.log" 2>&1 &
  fi
  index_of[$!]=$index
done

status=0
deadline=
while ((${#index_of[@]} > 0)); do
  code=0
  wait -n -p ended "${!index_of[@]}" || code=$?
  [[ -n ${ended:-} ]] || continue # a signal came, not an end
  index=${index_of[$ended]}
  unset "index_of[$ended]"
  ((code != 0 && status == 0)) || continue
  status=$code
  echo "process $index ended with code $code; the others have $GRACE s" >&2
  ((index == 0)) || tail -n 20 "$LOGS/process-$index.log" >&2
  (
    trap - INT TERM EXIT
    for ((second = 0; second < GRACE; second++)); do sleep 1; done
    signal_all KILL
  ) >/dev/null 2>&1 &
  deadline=$!
done
[[ -z $deadline ]] || kill "$deadline" 2>/dev/null || true
exit "$status"
