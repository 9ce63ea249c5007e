# expect: exited
import os

pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
if len(pids) > 4:
    print("ESCAPED: sees", pids)
