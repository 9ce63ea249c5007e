# expect: output
import os

os.fork()
while True:
    os.write(1, b"x" * 10_000)
