#!/usr/bin/env bash
# A large collection's embeddings, in shares that know nothing of each other.
#
#   SHARDS=64 GPUS=1 CPUS=8 launch/embed.sh slurm ARGS...           a Slurm array
#   NAME=gallery IMAGE=... CLAIM=... SHARDS=64 PARALLEL=8 GPUS=1 \
#     launch/embed.sh kubernetes ARGS...                            an indexed Job
#
# ARGS are those of `reid-jax embed` but --shard. Each share writes a file of its own,
# --to=all.parquet the files all-00000-of-00064.parquet and so on, and is started again
# where its machine fails: it goes on where it was. --model, --images and --to must be on
# a file system that all machines see; in Kubernetes CLAIM, mounted as /shared. Partition,
# account and time limit of Slurm come from SBATCH_PARTITION and so on. DRY_RUN=1 prints
# what would be sent.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

where=${1:-}
shift || true
embed=(-m reid_jax embed "$@")

slurm() {
  need SHARDS GPUS CPUS
  positive SHARDS GPUS CPUS
  run mkdir -p runs
  # The number of the share is put in by the shell of the job.
  run sbatch --job-name=reid_jax-embed --array="0-$((SHARDS - 1))" --ntasks=1 \
    --cpus-per-task="$CPUS" --gres="gpu:$GPUS" --requeue \
    --output=runs/embed-%A-%a.log --open-mode=append \
    --wrap="exec $(show "$PYTHON" "${embed[@]}") --shard=\$SLURM_ARRAY_TASK_ID/$SHARDS"
}

kubernetes() {
  need NAME IMAGE CLAIM SHARDS PARALLEL GPUS
  positive SHARDS PARALLEL GPUS
  kubernetes_name
  # shellcheck disable=SC2016  # for Kubernetes to fill in
  local args=("${embed[@]:2}" '--shard=$(JOB_COMPLETION_INDEX)/'"$SHARDS")
  local text
  text=$(filled launch/embed_job.yaml "NAME IMAGE CLAIM SHARDS PARALLEL GPUS" "${args[@]}")
  run kubectl apply --filename=- <<<"$text"
  ! dry || echo "$text"
}

case $where in
  slurm | kubernetes) "$where" ;;
  *)
    usage_of launch/embed.sh >&2
    die "the first argument is slurm or kubernetes, not '$where'"
    ;;
esac
