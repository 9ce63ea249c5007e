# expect: exited
import socket

for family in (socket.AF_INET, socket.AF_INET6, 16, 17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_STREAM)
        print("ESCAPED: family", family)
    except OSError:
        pass
