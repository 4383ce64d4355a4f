#!/usr/bin/env bash
# A run on GPU nodes of a Kubernetes cluster, as a JobSet; see launch/jobset.yaml.
#
#   NAME=market IMAGE=... CLAIM=... NODES=2 GPUS=8 launch/kubernetes.sh run ARGS...
#   NAME=market launch/kubernetes.sh logs      follows pod INDEX (0)
#   NAME=market launch/kubernetes.sh delete
#
# ARGS are those of `python -m reid_jax.main`. IMAGE has the checkout in /reid_jax and
# its packages (launch/README.md). CLAIM is a persistent volume claim that many nodes
# may write; it is mounted as /shared: put --workdir and --config.data.data_dir there.
# The JobSet controller has to be installed in the cluster. DRY_RUN=1 prints what would
# be sent.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

verb=${1:-}
shift || true

# manifest ARGS...: the JobSet, filled in.
manifest() {
  # shellcheck disable=SC2153  # `need` has seen to NAME
  local args=("${OPTIONS[@]}" "$@" --coordinator="$NAME-nodes-0-0.$NAME:12355")
  # shellcheck disable=SC2016  # for Kubernetes to fill in
  args+=(--process_count="$NODES" '--process_index=$(JOB_COMPLETION_INDEX)')
  filled launch/jobset.yaml "NAME IMAGE CLAIM NODES GPUS" "${args[@]}"
}

start() {
  need IMAGE CLAIM NODES GPUS
  positive NODES GPUS
  local text
  text=$(manifest "$@")
  run kubectl apply --filename=- <<<"$text"
  ! dry || echo "$text"
}

logs() {
  local which="jobset.sigs.k8s.io/jobset-name=$NAME"
  which+=",batch.kubernetes.io/job-completion-index=${INDEX:-0}"
  run kubectl logs --follow --tail=100 --selector="$which"
}

case $verb in
  run | logs | delete) need NAME ;;
  *)
    usage_of launch/kubernetes.sh >&2
    die "the first argument is run, logs or delete, not '$verb'"
    ;;
esac
kubernetes_name
case $verb in
  run) start "$@" ;;
  logs) logs ;;
  delete) run kubectl delete jobset "$NAME" ;;
esac
