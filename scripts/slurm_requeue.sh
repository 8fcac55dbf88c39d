#!/usr/bin/env bash
# Runs a command as a SLURM job that outlives its time limit.
# Five minutes before the limit the command is told to stop, and the job is queued again. The same command then resumes:
# the study with its next cell, prune with its search and reconstruction, finetune with its last saved step (--resume is
# added where there is one).
#
#   sbatch --gres=gpu:1 --mem=64G scripts/slurm_requeue.sh hgsp prune --base_model ... --output_name ... --pruning_ratio 0.2
#   sbatch --gres=gpu:8 --mem=256G scripts/slurm_requeue.sh scripts/run_all_experiments.sh --devices cuda:0,cuda:1,...
#
#SBATCH --job-name=hgsp
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
set -uo pipefail

command=("$@")
output_dir=
for index in "${!command[@]}"; do
  case "${command[index]}" in
    --output_dir | --output-dir) output_dir="${command[index + 1]:-}" ;;
    --output_dir=* | --output-dir=*) output_dir="${command[index]#*=}" ;;
  esac
done
if [ -n "$output_dir" ] && [ -d "${output_dir%/}.training" ]; then command+=(--resume); fi

requeued=
stop() {
  requeued=yes
  kill -TERM "$child" 2>/dev/null
}
trap stop USR1 TERM

"${command[@]}" &
child=$!
wait "$child"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done  # a signal ends `wait` while the command is cleaning up
wait "$child"
code=$?
if [ -n "$requeued" ] && [ "$code" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
