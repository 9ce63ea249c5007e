#!/usr/bin/env bash
# The environment of every script: `.venv` at the root of the repository, with the versions of
# constraints-cpu.txt. The second run finds a stamp and starts at once.
#
#   bash launch/setup_env.sh [extras]          e.g. dev sglang-cpu
#   MEGATRON_R1_VENV=DIR bash ...              another environment; it is made where it is not there
#   MEGATRON_R1_SKIP_INSTALL=1 bash ...        use the environment (without one: python3) as it is
#
# Sourced, it defines `setup_env EXTRA...`, which also activates the environment.
#
# torch comes from wherever pip is configured to look: that decides between a CPU and a CUDA build.
# A CUDA build of the same version that is already installed stays.
set -euo pipefail

MEGATRON_R1_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

setup_env() {
    local venv=${MEGATRON_R1_VENV:-$MEGATRON_R1_ROOT/.venv}
    if [[ ${MEGATRON_R1_SKIP_INSTALL:-0} != 1 ]]; then
        mkdir -p "$venv"
        venv=$(cd "$venv" && pwd)
        local stamp
        stamp=$venv/.installed-$(_hash_of_inputs)-$(IFS=+ && echo "${*:-base}")
        if [[ ! -e $stamp ]]; then
            # One installation at a time. The lock is on the folder: nothing can remove it meanwhile.
            (
                _lock 9
                [[ -e $stamp ]] || _install "$venv" "$stamp" "$@"
            ) 9<"$venv"
        fi
    fi
    if [[ -e $venv/bin/activate ]]; then
        # shellcheck disable=SC1091
        . "$venv/bin/activate"
    fi
}

# _install VENV STAMP EXTRA...: the stamp is written last, so that a failed or interrupted
# installation is taken up again by the next run.
_install() {
    local venv=$1 stamp=$2 extra
    shift 2
    for extra in "$@"; do
        grep -q "^$extra =" "$MEGATRON_R1_ROOT/setup.cfg" || _fail "setup.cfg has no extra '$extra'"
    done
    # Stamps of other versions of the inputs no longer describe what is installed.
    find "$venv" -maxdepth 1 -name '.installed-*' ! -name ".installed-$(_hash_of_inputs)-*" -delete
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(_find_python)
        _step "create $venv" "$python" -m venv --clear "$venv"
    fi
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install -qq
        --constraint "$MEGATRON_R1_ROOT/constraints-cpu.txt")
    local extras
    # Transformer Engine is built against the torch that is there: it comes after it, by itself.
    extras=$(printf '%s\n' "$@" | grep -vx gpu | paste -sd, - || true)
    _step "install torch (the largest part)" "${pip[@]}" torch
    _step "install megatron-r1${extras:+[$extras]}" \
        "${pip[@]}" --editable "$MEGATRON_R1_ROOT${extras:+[$extras]}"
    if [[ " $* " == *" sglang-cpu "* ]]; then
        _step "install SGLang without its CUDA libraries" \
            "${pip[@]}" --no-deps sglang xgrammar compressed-tensors openai-harmony
    fi
    if [[ " $* " == *" launch "* ]]; then
        _step "install NeMo-Run without Ray" "${pip[@]}" --no-deps nemo-run leptonai torchx
    fi
    if [[ " $* " == *" gpu "* ]]; then
        # Needs a CUDA toolkit of torch's version (nvcc) and cuDNN's headers, which pip lacks.
        _step "install what Transformer Engine is built with" \
            "${pip[@]}" setuptools wheel ninja pybind11
        _step "install megatron-r1[gpu] (builds Transformer Engine with nvcc and cuDNN's headers; minutes)" \
            "${pip[@]}" --no-build-isolation --editable "$MEGATRON_R1_ROOT[gpu]"
    fi
    touch "$stamp"
}

# The first interpreter that is new enough; says what to install where there is none.
_find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
                _fail "$python cannot make environments. On Debian: apt-get install python3-venv"
            fi
            echo "$python"
            return
        fi
    done
    _fail "no Python 3.11 or later found. On Debian: apt-get install python3 python3-venv"
}

_hash_of_inputs() {
    cat "$MEGATRON_R1_ROOT"/{constraints-cpu.txt,setup.cfg,setup.py} | sha256sum | cut -c1-12
}

_lock() {
    if command -v flock >/dev/null; then
        flock --nonblock "$1" || { echo "setup: waiting for another installation" >&2 && flock "$1"; }
    fi
}

# _step WHAT COMMAND...: one line with the time it took.
_step() {
    local what=$1 start=$SECONDS
    shift
    echo "setup: $what ..." >&2
    "$@" || _fail "could not $what. Run again to take it up from here. The command was: $*"
    echo "setup: $what: $((SECONDS - start)) s" >&2
}

_fail() {
    echo "setup: $*" >&2
    exit 2
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    setup_env "$@"
fi
