# expect: exited
import os

for path in ("/usr/bin/python3", "/bin/sh", "/lib/ld-linux.so.2", "/usr/lib/evil"):
    try:
        os.symlink("/box/main.py", path + ".new")
        os.replace(path + ".new", path)
    except OSError:
        continue
    print("ESCAPED: replaced", path)
