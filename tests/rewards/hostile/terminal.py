# expect: exited
import fcntl
import os

try:
    fd = os.open("/dev/tty", os.O_RDWR)
    fcntl.ioctl(fd, 0x5412, b"x")
    print("ESCAPED: typed into the terminal")
except OSError:
    pass
