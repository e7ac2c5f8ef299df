#!/usr/bin/env bash
# ./run-cmd.sh NAME [ARGUMENT ...]  runs scripts/NAME.py in its own Python environment, made on first use.
# ./run-cmd.sh test [ARGUMENT ...]  runs the tests, over all cores; with names of files, those alone, in one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ $# -eq 0 ]; then
    echo "usage: ./run-cmd.sh NAME [ARGUMENT ...], where NAME is test or one of:"
    for script in scripts/*.py; do echo "  $(basename "$script" .py)"; done
    exit 2
fi
name=$1
shift

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer was not found. Install it, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

# Installs a requirements file if it changed since it was installed last, or if this folder was moved: the optimizers are
# used where they lie, in scaled-optim. Before that the build of torch for this machine, which is asked for once.
install() {
    local stamp=".venv/installed-$1" wanted
    wanted="$(pwd)"$'\n'"$(cat "$1" scaled-optim/pyproject.toml)"
    if [ ! -f .venv/torch-build ] || [ ! -f "$stamp" ] || [ "$wanted" != "$(cat "$stamp")" ]; then
        .venv/bin/python scripts/install_torch.py --remembered
        echo "Installing $1 (once; this takes a few minutes) ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    if ! "$python" -m venv .venv; then
        # half of one would be taken for a whole one at the next start
        rm -f .venv/bin/python*
        echo "error: $python can't make an environment. Debian, Ubuntu: apt install python3-venv. Then start again." >&2
        exit 1
    fi
fi
if [ "$name" = train_ui ] && ! .venv/bin/python -c 'import tkinter' 2>/dev/null; then
    # it says what is missing, before much is downloaded
    exec .venv/bin/python scripts/train_ui.py
fi
if [ "$name" = install_torch ]; then
    # before anything is installed, so that the other builds need not be downloaded first
    exec .venv/bin/python scripts/install_torch.py "$@"
fi
install requirements.txt

if [ "$name" = test ]; then
    install requirements-dev.txt
    exec .venv/bin/python -m pytest "$@"
fi
if [ ! -f "scripts/$name.py" ]; then
    echo "error: there is no scripts/$name.py; run $0 without arguments for a list" >&2
    exit 2
fi
exec .venv/bin/python "scripts/$name.py" "$@"
