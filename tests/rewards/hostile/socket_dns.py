# expect: exited
import socket

try:
    print("ESCAPED:", socket.getaddrinfo("example.com", 80))
except OSError as error:
    print("refused:", error)
