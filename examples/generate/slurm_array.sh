#!/bin/bash
# An array of independent jobs of one GPU each that share one output; no process group, no network between them.
#
#   sbatch slurm_array.sh
#
# On a file system that all nodes share, every task takes blocks that no other has: tasks may start late, be preempted,
# requeued or added later. On an object store (s3://...) there are no locks: add
#   --shard $((SLURM_ARRAY_TASK_ID))/$SLURM_ARRAY_TASK_COUNT
# so that each task does its own part. The task that finishes last writes metadata.jsonl.
#SBATCH --job-name=kts-generate
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=generate_%A_%a.log

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
srun kts generate --config flux.yaml

# Afterwards, once:  kts verify /shared/flux-kpe
