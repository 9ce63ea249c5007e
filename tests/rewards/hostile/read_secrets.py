# expect: exited
import glob
import os

paths = ["/etc/shadow", "/etc/passwd", "/etc/hostname", "/root/.bashrc", "/home", "/opt"]
paths += ["/proc/1/environ", "/proc/1/root/etc/shadow", "/sys/class", "/var", "/mnt", "/srv"]
for path in paths + glob.glob("/root/.ssh/*") + glob.glob("/home/*"):
    try:
        content = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
    except OSError:
        continue
    if content and path != "/proc/1/environ":
        print("ESCAPED:", path, content[:40])
