# expect: exited
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(4321)
