# expect: exited
# Files in memory belong to no address space.
import os

for number in range(1000):
    fd = os.memfd_create(str(number))
    os.write(fd, b"x" * (8 << 20))
