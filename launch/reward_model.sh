#!/usr/bin/env bash
#SBATCH --job-name=reward_model
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# A reward model: rm_helpful, or stage=rm_safety stage.examples=FILE. From the root of the checkout;
# submitting it again resumes:
#
#   sbatch [sbatch's options] launch/reward_model.sh [overrides]
#   sbatch -N 8 launch/reward_model.sh model=qwen2.5_7b model.init_from=/models/qwen \
#       stage.examples=/data/pairs.jsonl parallel.max_tokens_per_microbatch=16384
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the checkout}"
. launch/job.sh
run_stage rm_helpful "$@"
