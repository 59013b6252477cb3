"""Peak memory of processes, without what the process that starts them holds.

The kernel's count of a child, `ru_maxrss`, begins with its parent's peak, shared until the child runs its own program.
"""

import re
import resource
import subprocess
import sys
from pathlib import Path


def own_peak() -> int:
    """Peak resident memory (bytes) of this process since it runs its program. Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0]) * 1024


def peak_of(command: list[str]) -> int:
    """Peak resident memory (bytes) of a command: started by a small process. Raises CalledProcessError if it fails."""
    starter = [sys.executable, __file__, *command]
    return int(subprocess.run(starter, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
