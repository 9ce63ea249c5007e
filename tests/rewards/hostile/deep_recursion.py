# expect: exited, signalled, memory, cpu time
import sys

sys.setrecursionlimit(1 << 30)


def f(n):
    return f(n + 1)


f(0)
