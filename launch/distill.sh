#!/usr/bin/env bash
#SBATCH --job-name=distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Distillation: SFT of a dense model on stage 3's samples. From the root of the checkout;
# submitting it again resumes:
#
#   sbatch [sbatch's options] launch/distill.sh [overrides]
#   sbatch -N 8 launch/distill.sh experiment=distill_qwen_7b stage.examples=runs/r1_stage3/data/train.jsonl \
#       model.init_from=/models/qwen_math parallel.max_tokens_per_microbatch=32768
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the checkout}"
. launch/job.sh
run_stage distill "$@"
