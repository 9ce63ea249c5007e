# expect: exited
import os
import time

for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        time.sleep(4321)
