#!/usr/bin/env bash
# The tests, in the environment that they need.
#
#   bash tests/run.sh [pytest arguments]     e.g. tests/algos -k kl;  -m gpu;  -n 0 for one process
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/setup_env.sh
setup_env dev sglang-cpu launch

# Two workers, and one thread in each. Four ranks on two cores wait for each other in busy loops, so
# the layouts are tested after the rest, alone.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if (($#)); then
    exec python3 -m pytest -n 2 --dist loadgroup "$@"
fi
python3 -m pytest -n 2 --dist loadgroup --ignore tests/distributed
exec python3 -m pytest -n 0 tests/distributed
