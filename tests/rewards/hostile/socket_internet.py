# expect: exited
import socket

try:
    socket.create_connection(("1.1.1.1", 53), timeout=1)
    print("ESCAPED: connected")
except OSError as error:
    print("refused:", error)
