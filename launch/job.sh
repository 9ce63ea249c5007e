# What follows the header of every sbatch script here: the tasks, and what comes after them.
# Sourced. `run_stage STAGE OVERRIDE...` does not return.
#
#   MEGATRON_R1_SRUN_ARGS='--container-image=/images/r1.sqsh --container-mounts=/shared:/shared'

EXIT_USER_ERROR=2 # errors.py: starting again would end the same way
END_S=45          # for ranks to save, and servers to end, when the others are gone
MAX_RESTARTS=100  # as cluster.max_restarts; it also stops programs that die before they can count

run_stage() {
    local stage=$1 override code=0
    shift
    local chosen=0 cluster=0
    for override in "$@"; do
        case $override in
        stage=* | experiment=*) chosen=1 ;;
        cluster=*) cluster=1 ;;
        esac
    done
    if ((!chosen)); then set -- "stage=$stage" "$@"; fi
    if ((!cluster)); then set -- "cluster=slurm" "$@"; fi

    local log=runs/logs/$SLURM_JOB_NAME-$SLURM_JOB_ID-restart${SLURM_RESTART_COUNT:-0}.log
    mkdir -p runs/logs
    echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restart ${SLURM_RESTART_COUNT:-0}: $log"
    # The first rank that leaves after saving must not end those that still save. --wait does end
    # them where a rank was lost.
    # shellcheck disable=SC2206  options, by words
    local tasks=(srun --label --kill-on-bad-exit=0 --wait=60 ${MEGATRON_R1_SRUN_ARGS:-})
    if ((${SLURM_HET_SIZE:-1} == 1)); then
        "${tasks[@]}" --output="$log" bash launch/step.sh "$@" || code=$?
    else
        run_beside_servers "$@" || code=$?
    fi
    echo "$(date +%FT%T) exit code $code"
    if ((code != 0 && code != EXIT_USER_ERROR && ${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
        scontrol requeue "$SLURM_JOB_ID" # same number, same run directory: it resumes
    fi
    exit "$code"
}

# A heterogeneous job: ranks in its first component, rollout servers in its second, one task a node.
# Neither is of use without the other.
run_beside_servers() {
    local trainer servers code=0 servers_code=0
    "${tasks[@]}" --het-group=0 --output="$log" bash launch/step.sh "$@" &
    trainer=$!
    "${tasks[@]}" --het-group=1 --output="${log%.log}-servers.log" bash launch/step.sh serve "$@" &
    servers=$!
    wait -n "$trainer" "$servers" || true
    # To the tasks: srun itself would have them killed at once. What is still there is, after a while.
    (sleep "$END_S" && kill -TERM "$trainer" "$servers" 2>/dev/null) &
    local impatience=$!
    timeout "$END_S" scancel --signal=TERM "$SLURM_JOB_ID_HET_GROUP_0" "$SLURM_JOB_ID_HET_GROUP_1" 2>/dev/null || true
    wait "$trainer" || code=$?
    wait "$servers" || servers_code=$?
    kill "$impatience" 2>/dev/null || true
    echo "$(date +%FT%T) exit code of the ranks $code, of the servers $servers_code"
    if ((servers_code == EXIT_USER_ERROR)); then code=$servers_code; fi
    return "$code"
}
