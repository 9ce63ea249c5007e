# expect: exited
import os

for path in (
    "/dev/mem",
    "/dev/kmsg",
    "/dev/sda",
    "/dev/vda",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/nvidia0",
):
    try:
        os.open(path, os.O_RDONLY)
    except OSError:
        continue
    print("ESCAPED: opened", path)
try:
    os.mknod("disk", 0o60666, os.makedev(254, 0))
    print("ESCAPED: made a device")
except OSError:
    pass
