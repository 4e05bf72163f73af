#!/usr/bin/env bash
# 16 GPUs on two nodes under Slurm, the paper's setting:
#   sbatch examples/launch_slurm.sh --config examples/from_scratch.yaml --save runs/alum --load runs/alum
# Slurm warns with SIGTERM 120 s before the time limit: the run saves, ends cleanly and the job goes back into the queue,
# until the run is finished or a job ends without a newer checkpoint than it found.
#SBATCH --job-name=alum
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # a new store after every restart, without addresses of dead workers

save_folder() {
    while [ $# -gt 1 ]; do
        if [ "$1" = --save ]; then echo "$2"; return; fi
        shift
    done
    echo "error: --save DIR must stand on the command line: whether the job is requeued depends on what is in DIR." >&2
    return 2
}
newest() { cat "$SAVE/latest_checkpointed_iteration.txt" 2>/dev/null || echo none; }

SAVE=$(save_folder "$@")
mkdir -p "$SAVE"  # --load of an empty folder is a fresh start, of a missing one an error
FOUND=$(newest)
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id "$SLURM_JOB_ID" \
    pretrain_bert_alum.py "$@"; then
    exit 0  # a run that was told to stop ends otherwise: torchrun fails on SIGTERM
fi
if [ "$(newest)" = "$FOUND" ]; then
    echo "error: the run failed without a newer checkpoint in $SAVE than $FOUND; the job is not requeued." >&2
    exit 1
fi
scontrol requeue "$SLURM_JOB_ID"
