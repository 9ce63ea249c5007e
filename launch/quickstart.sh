#!/usr/bin/env bash
# R1-Zero in miniature, from a fresh machine to a curve that moves. Starting it again resumes it.
#
#   bash launch/quickstart.sh [overrides]            e.g. stage.zero.num_steps=200 run.name=longer
#   NPROC=1 bash launch/quickstart.sh                processes; a GPU, or a single core, means 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/setup_env.sh
extras=()
for override in "$@"; do # on a GPU SGLang chooses the version of torch: that is for the user to do
    if [[ $override == rollout=sglang && ! -e /dev/nvidiactl ]]; then extras=(sglang-cpu); fi
done
setup_env "${extras[@]}"

if [[ -z ${NPROC:-} ]]; then
    NPROC=1
    cores=$(env -u OMP_NUM_THREADS nproc) # which would otherwise answer for the cores
    if [[ ! -e /dev/nvidiactl && $cores -ge 2 ]]; then NPROC=2; fi
fi
# Two processes on a core each: more threads would fight over the cores.
if ((NPROC > 1)); then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi

# One process a rank, as torchrun would start them; but the exit code is the program's own: 2 for a
# mistake in the overrides, 75 for "run me again".
port=$(python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
guard=() # kill -9 of this script ends its ranks too, where the system can promise that
if command -v setpriv >/dev/null; then guard=(setpriv --pdeathsig TERM); fi
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((rank = 0; rank < NPROC; rank++)); do
    RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$NPROC MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
        "${guard[@]}" python3 -m megatron_r1.train experiment=quickstart "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
    # When one rank gives up the others lose their connection: its own code says more than theirs.
    wait "$pid" || { last=$?; if ((code == 0 || last == 2)); then code=$last; fi; }
done
if ((code != 0)); then exit "$code"; fi

name=quickstart root=runs
for override in "$@"; do
    case $override in
    run.name=*) name=${override#*=} ;;
    run.root=*) root=${override#*=} ;;
    esac
done
cat <<END

$root/$name/summary.json            the figures of the table
$root/$name/r1_zero/curves.png      the curves
$root/$name/r1_zero/rollouts/       what the policy wrote, with rewards and reasons
END
