#!/bin/bash
# Convert on many machines: sbatch launch/convert_slurm.sh SOURCE OUT [--size 224 ...]
# Then close the dataset:   sbatch --dependency=afterok:JOB --wrap 'fastload merge OUT'
# SOURCE and OUT must lie on storage that all nodes see. A task that failed: sbatch --array=17-17 with
# FASTLOAD_TASKS=64, since Slurm counts only the tasks of this submission.
#SBATCH --job-name=fastload-convert
#SBATCH --array=1-64
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
set -euo pipefail
exec fastload convert "$@" --workers "$SLURM_CPUS_PER_TASK" \
  --task "$SLURM_ARRAY_TASK_ID/${FASTLOAD_TASKS:-$SLURM_ARRAY_TASK_COUNT}"
