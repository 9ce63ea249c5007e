# expect: exited
import os

for name in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        continue
    if int(name) > 2 and not target.startswith("/proc/"):
        print("ESCAPED: inherited", name, target)
for fd in range(3, 64):
    try:
        os.fstat(fd)
    except OSError:
        continue
    print("ESCAPED: inherited", fd)
