"""Run stages in one process: `python -m tests.one_process < commands`; a command is `stages.merge --raw ...`.

An emulated CPU takes half a minute to import torch, so a process for each stage would take too long.
"""

import runpy
import sys

for line in sys.stdin:
    sys.argv[:] = line.split()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
