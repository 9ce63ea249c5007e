#!/usr/bin/env bash
# The tests, in the environment that they need.
#
#   bash tests/run.sh [pytest arguments]     e.g. tests/algos -k kl;  -m gpu;  -n 0 for one process
#
# With -m gpu, or an expression that has it, on a machine that has one, Transformer Engine is
# installed, too, and has to be there.
# There -m "gpu or megatron" runs the spine's tests on it as well: models, steps, rollouts, checkpoints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/setup_env.sh

# What -m selects; pytest takes the last one, with a space behind -m or without.
selected='' before=''
for argument in "$@"; do
    if [[ $before == -m || $argument == -m?* ]]; then
        selected=${argument#-m}
    fi
    before=$argument
done
selected=${selected//not gpu/}
selected=${selected//not multi_gpu/}

wants_gpu=0
if [[ $selected == *gpu* ]] && nvidia-smi --list-gpus >/dev/null 2>&1; then
    wants_gpu=1
fi
extras=(dev sglang-cpu launch)
if ((wants_gpu)); then
    extras+=(gpu)
fi
setup_env "${extras[@]}"
if ((wants_gpu)); then
    # What cannot be imported would be skipped, and the run would be green without it.
    python3 - <<'CHECK' || exit 2
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(
        f"tests: -m gpu: torch {torch.__version__} does not see the GPU that nvidia-smi lists. "
        "Install a CUDA build of torch (docs/gpu.md)"
    )
try:
    import transformer_engine.pytorch
except ImportError as error:
    sys.exit(
        f"tests: -m gpu: Transformer Engine cannot be imported ({error}). "
        "Install it, for this torch and CUDA: pip install --no-build-isolation "
        "'transformer-engine[pytorch]>=2.10,<2.12'"
    )
from transformer_engine.pytorch.fp8 import check_fp8_block_scaling_support

is_fit, reason = check_fp8_block_scaling_support()
if not is_fit:
    print(f"tests: -m gpu: tests of precision=fp8_block are skipped: {reason}", file=sys.stderr)
CHECK
fi

# Two workers, and one thread in each. Four ranks on two cores wait for each other in busy loops, so
# the layouts are tested after the rest, alone.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if (($#)); then
    exec python3 -m pytest -n 2 --dist loadgroup "$@"
fi
python3 -m pytest -n 2 --dist loadgroup --ignore tests/distributed
exec python3 -m pytest -n 0 tests/distributed
