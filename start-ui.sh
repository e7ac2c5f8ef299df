#!/usr/bin/env bash
# Opens the window. Makes the Python environment on first use.
exec "$(dirname "${BASH_SOURCE[0]}")/run-cmd.sh" train_ui "$@"
