#!/usr/bin/env bash
# One process on this machine.
#
#   launch/local.sh cpu ARGS...                    on the CPU
#   GPU=0 launch/local.sh gpu ARGS...              on one GPU, or several: GPU=0,1
#   launch/local.sh tpu ARGS...                    on all chips of a TPU VM of one host
#   DEVICES=4 launch/local.sh simulated ARGS...    on the CPU as if it were 4 devices
#
# ARGS are those of `python -m reid_jax.main`, such as
# --config=configs/aaformer.py:demo; DRY_RUN=1 prints the command.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

kind=${1:-}
shift || true
case $kind in
  cpu | tpu) settings=(JAX_PLATFORMS="$kind") ;;
  gpu)
    need GPU
    settings=(JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES="$GPU")
    ;;
  simulated)
    need DEVICES
    positive DEVICES
    settings=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$DEVICES")
    ;;
  *)
    usage_of launch/local.sh >&2
    die "the first argument is cpu, gpu, tpu or simulated, not '$kind'"
    ;;
esac
become env "${settings[@]}" "${MAIN[@]}" "$@"
