#!/usr/bin/env bash
#SBATCH --job-name=r1_stage4
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# RL for all scenarios. From the root of the checkout;
# submitting it again resumes:
#
#   sbatch [sbatch's options] launch/r1_stage4.sh [overrides]
#   sbatch -N 8 launch/r1_stage4.sh model=qwen2.5_7b model.init_from=runs/r1_stage3 \
#       reward.models.helpful=runs/rm_helpful reward.models.safety=runs/rm_safety \
#       data=jsonl data.path=/data/all_prompts.jsonl parallel.max_tokens_per_microbatch=33792
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the checkout}"
. launch/job.sh
run_stage r1_stage4 "$@"
