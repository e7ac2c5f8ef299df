#!/usr/bin/env bash
# scripts/check_in_onetrainer.sh DIR [PYTHON]  installs the plugin into the environment of a OneTrainer checkout, runs
# everything that is checked there on the CPU, takes the plugin out again, and looks that nothing of it is left. It trains
# on the tiny base for about an hour. Results: workspace/onetrainer/results.json, and the table beside it.
# PYTHON is that of the checkout's environment; DIR/venv/bin/python if it is not said.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -lt 1 ] || [ ! -f "$1/scripts/train.py" ]; then
    echo "usage: $0 DIR [PYTHON], where DIR is a checkout of OneTrainer" >&2
    exit 2
fi
checkout=$(cd "$1" && pwd)
python=${2:-$checkout/venv/bin/python}
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "error: $python has no torch. Install OneTrainer first, or name its Python: $0 $1 /path/to/python" >&2
    exit 2
fi
checks=$here/scaled-onetrainer/checks
work=$here/workspace/onetrainer
own=$here/.venv/bin/python
mkdir -p "$work"
rm -f "$work/results.json"
export CUDA_VISIBLE_DEVICES=
failed=0

files() { "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | xargs -I{} find {} -not -name '*.pyc' -not -name __pycache__ | sort; }
run() {
    echo "== $1"
    "$python" "$checks/$1" --onetrainer "$checkout" --work "$work/${1%.py}" "${@:2}" || failed=1
}

files >"$work/files-before.txt"
git -C "$checkout" status --porcelain >"$work/status-before.txt" 2>/dev/null || true
echo "== without the plugin"
"$python" "$checks/unused.py" --onetrainer "$checkout" --work "$work/unused" >"$work/without.json" 2>"$work/without.log"
(cd "$here/scaled-onetrainer" && "$python" -m scaled_onetrainer install --onetrainer "$checkout" --python "$python")
echo "== installed and unused"
"$python" "$checks/unused.py" --onetrainer "$checkout" --work "$work/unused" >"$work/unused.json" 2>"$work/unused.log"
"$python" "$checks/same_files.py" "$work/results.json" "installed and unused: the same losses, files and configs" \
    "$work/without.json" "$work/unused.json" || failed=1
echo "== contract and doctor"
"$python" -m scaled_onetrainer check "$checkout" >"$work/contract.txt" || failed=1
(cd "$checkout" && "$python" -m scaled_onetrainer doctor) >"$work/doctor.txt" 2>&1 || failed=1
tail -n 1 "$work/contract.txt" "$work/doctor.txt"
run training.py --table "$work/results.json"
run behaviour.py --table "$work/results.json"
if [ -x "$own" ]; then
    (cd "$here" && "$own" "$checks/make_tiny_bases.py" "$work/families/bases") >"$work/bases.log" 2>&1
    run families.py --table "$work/results.json"
fi
run presets.py --table "$work/results.json"
echo "== windows"
"$python" "$checks/windows.py" --onetrainer "$checkout" --output "$work/windows" || failed=1
if [ -x "$own" ]; then
    echo "== with our own trainer, converter and node"
    (cd "$here" && PYTHONPATH=$here/scaled-onetrainer "$own" "$checks/same_step.py" "$work/behaviour" --table "$work/results.json") || failed=1
    (cd "$here" && PYTHONPATH=$here/scaled-onetrainer "$own" "$checks/adapter_files.py" "$work/behaviour" --table "$work/results.json") || failed=1
fi
(cd "$work" && "$python" -m scaled_onetrainer uninstall --onetrainer "$checkout" --python "$python")
files >"$work/files-after.txt"
git -C "$checkout" status --porcelain >"$work/status-after.txt" 2>/dev/null || true
"$python" "$checks/same_files.py" "$work/results.json" "uninstalled: no file is left, in the environment or the checkout" \
    "$work/files-before.txt" "$work/files-after.txt" "$work/status-before.txt" "$work/status-after.txt" || failed=1
exit $failed
