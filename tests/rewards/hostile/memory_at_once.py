# expect: exited
x = b"x" * (1 << 36)
