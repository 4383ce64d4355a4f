#!/usr/bin/env bash
# A run on GPU nodes of a Slurm cluster, one process per GPU.
#
#   NODES=2 GPUS=8 CPUS=8 launch/slurm.sh ARGS...    2 nodes x 8 GPUs, 8 cores a GPU
#
# Outside a job it submits itself; inside one (from sbatch, or after salloc) it starts
# the run. Partition, account and time limit come from Slurm's own SBATCH_PARTITION,
# SBATCH_ACCOUNT and SBATCH_TIMELIMIT. ARGS are those of `python -m reid_jax.main`;
# checkout, --workdir and data must be on a file system that all nodes see. Two minutes
# before the time limit the run saves and stops; the same command goes on from there.
# DRY_RUN=1 prints the commands.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

need NODES GPUS CPUS
positive NODES GPUS CPUS
size=(--nodes="$NODES" --ntasks-per-node="$GPUS" --cpus-per-task="$CPUS")
# JAX takes the GPU of each process's number on its node, so every process has to see
# all GPUs: they belong to the node, not to the task, and nothing is bound.
size+=(--gres="gpu:$GPUS")

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  run mkdir -p runs
  # SIGTERM goes to the processes, which save. After a node's failure Slurm starts the
  # job again, and the run goes on from its last checkpoint.
  run sbatch --job-name=reid_jax "${size[@]}" --signal=TERM@120 --requeue \
    --output=runs/slurm-%j.log --open-mode=append \
    --wrap="$(show launch/slurm.sh "$@")"
  dry || exit 0
fi
# One process that fails ends the others: they would only wait for it.
become srun "${size[@]}" --gpu-bind=none --kill-on-bad-exit=1 --label \
  "${MAIN[@]}" "$@" --coordinator=auto
