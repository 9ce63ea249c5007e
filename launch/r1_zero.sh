#!/usr/bin/env bash
#SBATCH --job-name=r1_zero
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# DeepSeek-R1-Zero. From the root of the checkout; submitting it again resumes:
#
#   sbatch [sbatch's options] launch/r1_zero.sh [overrides]
#   sbatch -N 8 launch/r1_zero.sh model=qwen2.5_7b model.init_from=/models/qwen parallel.tensor=4 \
#       data=jsonl data.path=/data/prompts.jsonl parallel.max_tokens_per_microbatch=66560
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the checkout}"
. launch/job.sh
run_stage r1_zero "$@"
