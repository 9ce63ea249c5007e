# expect: wall time, cpu time, exited
import os
import time

while os.fork() == 0:
    pass
time.sleep(3600)
