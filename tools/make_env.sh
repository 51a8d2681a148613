#!/usr/bin/env bash
# tools/make_env.sh VENV STACK PYTHON            makes the environment VENV of requirements/STACK.txt, if it is not yet
# tools/make_env.sh VENV lock PYTHON [OPTION…]   compiles requirements/*.txt from *.in, with the uv in VENV
set -euo pipefail
uv='uv==0.13.9'
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

take_pip_settings() {  # uv reads neither pip's files nor PIP_…; where its own variable is set, that one holds
    local settings pair value
    settings=$("$venv/bin/python" -m pip config list)
    for pair in UV_DEFAULT_INDEX=index-url SSL_CERT_FILE=cert; do
        value=$(sed -nE "s/^(:env:|global)\.${pair#*=}='(.*)'$/\2/p" <<<"$settings" | head -n 1)
        [ -z "$value" ] || [ -n "$(printenv "${pair%=*}")" ] || export "${pair%=*}=$value"
    done
}

make_env() {
    echo unfinished >"$made_of"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name "${made_of##*/}" -exec rm -rf {} +
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$uv"
    take_pip_settings
    if [ "$variant" = cpu ]; then
        export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=  # mmcv's build takes CUDA wherever it sees a GPU
    else  # with a setting that means nothing to the build, and keeps it apart from others in uv's cache
        export FORCE_CUDA=1
        set -- --config-settings-package "onedl-mmcv:cuda=$variant" --config-settings-package "mmcv:cuda=$variant"
    fi
    # Bytecode now: where Python may not write any (PYTHONDONTWRITEBYTECODE, as in many containers), each run of a tool
    # would compile all that it imports, which takes longer than importing it.
    # Of the build, which uv logs line by line and repeats if it fails: a line a file, and errors.
    MAX_JOBS=${MAX_JOBS:-$jobs} RUST_LOG=uv_build_frontend=debug \
        "$venv/bin/uv" pip sync --compile-bytecode "requirements/$stack.txt" -p "$venv/bin/python" "$@" 2>&1 | tee "$venv/uv.log" |
        sed -u -E -e 's#^DEBUG (\[[0-9]+/[0-9]+\]) .*[/ ]([^/ ]+\.(cpp|cc|cu)) -o .*#\1 \2#' \
            -e 's#^DEBUG (.*([Ee]rror:|Killed|No space left).*)#\1#' -e '/^DEBUG|^ [-+~] /d' -e '/^ +\[stdout\]$/,/^ +\[stderr\]$/d'
    "$venv/bin/uv" pip install --quiet --offline --no-build-isolation --no-deps -p "$venv/bin/python" -e .
    PYTHONPATH=tools "$venv/bin/python" -c 'import doctor_machine; exec(doctor_machine.CHECK_OPS)' "${variant%%-*}"
    printf '%s\n' "$inputs" >"$made_of"
}

mapfile -t found < <("$3" -c 'import sys, sysconfig
print("%d.%d" % sys.version_info[:2])
print(getattr(sys, "_base_executable", sys.executable))  # not the one in VENV
print(sysconfig.get_path("include"))' 2>/dev/null)
version=${found[0]-} python=${found[1]-} headers=${found[2]-}
[[ $version =~ ^3\.1[0-2]$ ]] ||
    fail "Python 3.10 to 3.12 is needed, and $3 is ${version:-no Python that runs} (make env PYTHON=python3.12)"
mkdir -p "$1" && venv=$(cd "$1" && pwd) || fail "$1 is no folder that can be written to"
stack=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER

if [ "$stack" = lock ]; then
    take_pip_settings
    lock() {  # STACK TOOLKITS [OPTION…]
        "$venv/bin/uv" pip compile --quiet --universal --python-version 3.10 --no-emit-index-url --no-annotate \
            --extra dev --extra "$2" pyproject.toml "requirements/$1.in" -o "requirements/$1.txt" "${@:3}"
    }
    lock onedl onedl "${@:4}"
    lock openmmlab openmmlab "${@:4}"
    lock clients onedl --constraints requirements/onedl.txt "${@:4}"
    exit
fi

cuda=$(sed -nE 's/^(cuda-toolkit|nvidia-cuda-runtime-cu12)==([0-9]+\.[0-9]+).*/\2/p' "requirements/$stack.txt")  # torch's
mapfile -t found < <(PYTHONPATH=tools "$python" -c 'import os, sys, doctor_machine as machine
print(*machine.mmcv_target(sys.argv[1], os.environ), machine.compiler_jobs(), sep="\n")' "$cuda")
variant=${found[0]} problem=${found[1]} jobs=${found[2]}
[ -z "$problem" ] || [ "${FORCE_CUDA-}" != 1 ] || fail "FORCE_CUDA=1, but $problem"
made_of="$venv/cvt_dense-made-of.txt"
inputs="$stack, Python $version ($python), mmcv for $variant, in $venv for $PWD
$(cat "requirements/$stack.txt" uv.toml pyproject.toml setup.py tools/make_env.sh | sha256sum)"

exec 9<"$venv"
flock -n 9 || { echo "another set-up is at work in $venv: waiting for it" && flock 9; }
if [ "$(cat "$made_of" 2>/dev/null)" = "$inputs" ] && [ -x "$venv/bin/python" ] && [ -e cvt_dense/.mim ]; then
    echo "environment $venv is up to date"
    exit
fi
[ -z "$(ls -A "$venv")" ] || ls "$venv"/cvt_dense-* >/dev/null 2>&1 ||
    fail "$venv holds files and was not made by make env: remove it, or choose another folder (VENV=)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "this Python cannot make virtual environments (Debian and Ubuntu: apt install python$version-venv)"
# shellcheck disable=SC2086  # CXX may be a command with options
command -v ${CXX:-c++ g++ clang++} >/dev/null ||
    fail "no C++ compiler was found to compile mmcv's operators (Debian and Ubuntu: apt install g++)"
[ -e "$headers/Python.h" ] ||
    fail "Python's headers were not found to compile mmcv's operators (Debian and Ubuntu: apt install python$version-dev)"
[ -z "$problem" ] || echo "note: there is a GPU, but $problem; mmcv's operators are built for the CPU"

echo "making the environment $venv: $stack, mmcv for ${variant%%-*}"
set -m  # in a process group of its own, so that no compiler goes on when this is interrupted
make_env </dev/null &
set +m
trap 'kill -- -$! && wait; fail "interrupted: the next run starts again, with what uv has kept"' INT TERM HUP
wait $! || fail "$venv is not complete; python3 tools/doctor.py looks for causes (at 'compiling'), all output is in $venv/uv.log"
echo "environment $venv is ready"
