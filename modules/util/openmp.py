"""How threads of torch wait for each other. Loads no torch: it reads its environment when it is loaded."""

import os
from collections.abc import MutableMapping

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What a user may set to choose otherwise: of all kinds of OpenMP, of GNU's, of Intel's and LLVM's."""

SHORT = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
"""Turns of GNU's loop, and milliseconds of Intel's and LLVM's."""


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads that wait for others spin for a moment and then sleep, unless the environment says how they wait.

    By default they spin for long, which takes the core from the thread that they wait for as soon as another program
    wants one. To sleep at once costs a training on an idle machine half of its speed. See docs/performance.md.
    """
    if not any(name in environment for name in CHOICES):
        environment.update(SHORT)
