#!/usr/bin/env bash
# A run on a Cloud TPU VM, from this machine, with your gcloud login.
#
#   TPU_NAME=... ZONE=... ACCELERATOR=v5litepod-8 VERSION=v2-alpha-tpuv5-lite \
#     launch/tpu_vm.sh create       makes it: it costs money until it is deleted
#   TPU_NAME=... ZONE=... launch/tpu_vm.sh setup          the last commit, and packages
#   TPU_NAME=... ZONE=... launch/tpu_vm.sh run ARGS...    starts, and returns
#   TPU_NAME=... ZONE=... launch/tpu_vm.sh logs           follows worker WORKER (0)
#   TPU_NAME=... ZONE=... launch/tpu_vm.sh delete         with everything on its disks
#
# ARGS are those of `python -m reid_jax.main`. SPOT=1 creates a spot VM. On a slice of
# several hosts --workdir and data must be on a file system that all of them see; mount
# it by SETUP_COMMAND, which `setup` runs on every host last. The project is gcloud's
# (or CLOUDSDK_CORE_PROJECT). DRY_RUN=1 prints the commands.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

verb=${1:-}
shift || true
tpu() { run gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu ssh "$TPU_NAME" --worker=all --command="$1"; }

create() {
  need ACCELERATOR VERSION
  echo "$TPU_NAME costs money from now until: launch/tpu_vm.sh delete" >&2
  local options=(--accelerator-type="$ACCELERATOR" --version="$VERSION")
  [[ ${SPOT:-0} != 1 ]] || options+=(--spot)
  tpu create "$TPU_NAME" "${options[@]}"
}

setup() {
  local archive=runs/checkout.tar.gz
  run mkdir -p runs
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$TPU_NAME:checkout.tar.gz" --worker=all
  on_all "mkdir -p reid_jax && tar -xzf checkout.tar.gz -C reid_jax"
  # Images come with an older Python; uv brings one of its own.
  on_all "python3 -m pip install --user uv && cd reid_jax &&\
 ~/.local/bin/uv venv --allow-existing --python 3.12 .venv &&\
 ~/.local/bin/uv pip install --python .venv/bin/python\
 -r requirements.txt 'jax[tpu]<0.13'"
  [[ -z ${SETUP_COMMAND:-} ]] || on_all "$SETUP_COMMAND"
}

start() {
  local command
  command=$(show .venv/bin/python -m reid_jax.main "${OPTIONS[@]}" "$@" \
    --coordinator=auto)
  on_all "cd reid_jax && (nohup $command >>run.log 2>&1 </dev/null &)"
}

logs() {
  tpu ssh "$TPU_NAME" --worker="${WORKER:-0}" \
    --command="tail -n 100 -f reid_jax/run.log"
}

case $verb in
  create | setup | run | logs | delete) need TPU_NAME ZONE ;;
  *)
    usage_of launch/tpu_vm.sh >&2
    die "the first argument is create, setup, run, logs or delete, not '$verb'"
    ;;
esac
case $verb in
  run) start "$@" ;;
  delete) tpu delete "$TPU_NAME" ;; # gcloud asks first
  *) "$verb" ;;
esac
