# expect: exited
# The port of a server that the test started outside.
import socket
import sys

try:
    socket.create_connection(("127.0.0.1", int(sys.stdin.readline())), timeout=1)
    print("ESCAPED: connected")
except OSError as error:
    print("refused:", error)
