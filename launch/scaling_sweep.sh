#!/usr/bin/env bash
# Throughput and efficiency against the number of devices of this machine: strong
# scaling (BATCH images shared by all) and weak scaling (BATCH_PER_DEVICE for each).
#
#   DEVICES=1,2,4 BATCH=64 BATCH_PER_DEVICE=64 launch/scaling_sweep.sh KIND ARGS...
#
# KIND is gpu, tpu (a VM of one host) or simulated, which shows that it runs but not
# how hardware scales. ARGS are those of `python -m reid_jax.main`, with --config and
# --workdir. PROCESSES=each starts a process for every device (gpu and simulated)
# instead of one for all. Figures of all launches into a --workdir add up in its
# benchmark/ (table.md, benchmark.png). DRY_RUN=1 prints the commands.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

kind=${1:-}
shift || true
need DEVICES BATCH BATCH_PER_DEVICE
positive BATCH BATCH_PER_DEVICE
[[ $DEVICES =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] ||
  die "DEVICES is '$DEVICES'; it must be numbers such as 1,2,4"
processes=${PROCESSES:-one}
[[ $processes == one || $processes == each ]] ||
  die "PROCESSES is '$processes'; it must be one or each"
case $kind in
  gpu | simulated) ;;
  tpu) [[ $processes == one ]] || die "a TPU host runs one process for all its chips" ;;
  *)
    usage_of launch/scaling_sweep.sh >&2
    die "the first argument is gpu, tpu or simulated, not '$kind'"
    ;;
esac
IFS=, read -ra counts <<<"$DEVICES"
most=0
for count in "${counts[@]}"; do ((count <= most)) || most=$count; done

# `pmap`, the step for comparison, is measured in one process only. What ARGS repeat,
# such as --measure, is theirs.
measure=train,pmap,embed
[[ $processes == one ]] || measure=train,embed
args=(--mode=benchmark "--measure=$measure" "$@")
for images in --batch="$BATCH" --batch_per_device="$BATCH_PER_DEVICE"; do
  if [[ $processes == one ]]; then
    env GPU="$(seq -s, 0 $((most - 1)))" DEVICES="$most" \
      launch/local.sh "$kind" "${args[@]}" "$images" --devices="$DEVICES"
    continue
  fi
  for count in "${counts[@]}"; do
    env PROCESSES="$count" DEVICES=1 launch/processes.sh "$kind" "${args[@]}" "$images"
  done
done
