"""On the path of a job, SIGUSR2 puts a rank to sleep for ever: a rank that hangs."""

import signal
import time


def hang(number, frame):
    while True:
        time.sleep(1)


signal.signal(signal.SIGUSR2, hang)
