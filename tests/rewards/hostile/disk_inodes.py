# expect: exited, cpu time, wall time, memory
import os

number = 0
while True:
    os.mkdir(str(number))
    number += 1
