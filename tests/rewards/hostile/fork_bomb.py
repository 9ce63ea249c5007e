# expect: exited, signalled, cpu time, wall time
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
