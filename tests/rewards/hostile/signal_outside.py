# expect: exited, signalled
# The process id of the test, which must survive.
import os
import signal
import sys

pid = int(sys.stdin.readlines()[2])
for target in (pid, -pid, os.getppid(), 1):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        try:
            os.kill(target, number)
        except OSError:
            pass
