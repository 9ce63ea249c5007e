# expect: exited
import os
import sys

outside = sys.stdin.readlines()[1].strip()
os.symlink(outside, "link")
os.symlink("/", "root")
for path in ("link", "root" + outside, "root/../../../.." + outside):
    try:
        print("ESCAPED:", open(path).read())
    except OSError:
        pass
