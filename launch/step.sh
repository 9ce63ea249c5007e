#!/usr/bin/env bash
# One task. Every task of a job runs this: `sbatch launch/*.sh` and `python -m megatron_r1.launch` alike.
#
#   srun launch/step.sh [overrides]            a rank: its number, world size and meeting point are Slurm's
#   srun launch/step.sh serve [overrides]      a node's rollout servers
#   MEGATRON_R1_PYTHON=python3.12              another interpreter than .venv's
set -euo pipefail
trap '' USR1 # Slurm's warning: until the program watches for it, it must not end the task

root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "${SLURM_SUBMIT_DIR:-$root}" # runs/ and relative paths are where the job was submitted
export PYTHONPATH=$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}

program=train
if [[ ${1:-} == serve ]]; then
    program=serve
    shift
fi

address_of() { scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'; }
# Inside a container there may be no scontrol; the node that runs the batch script is the first one.
first_node_address() {
    if command -v scontrol >/dev/null; then
        address_of "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    else
        echo "$SLURM_LAUNCH_NODE_IPADDR"
    fi
}
own_address() { if command -v scontrol >/dev/null; then address_of "$SLURMD_NODENAME"; else hostname; fi; }

if [[ $program == serve ]]; then export SERVER_HOST=${SERVER_HOST:-$(own_address)}; fi
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export MASTER_ADDR=${MASTER_ADDR:-$(first_node_address)}
export MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))} # below the ephemeral range
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

python=${MEGATRON_R1_PYTHON:-${MEGATRON_R1_VENV:-$root/.venv}/bin/python}
if [[ ! -x $(command -v "$python") ]]; then python=python3; fi # a container's own
exec "$python" -m "megatron_r1.$program" "$@"
