# expect: memory
# Each process stays within its own limit; together they do not.
import os
import time

for _ in range(7):
    if os.fork() == 0:
        break
data = bytearray(40 << 20)
for page in range(0, len(data), 4096):
    data[page] = 1
time.sleep(3600)
