# expect: cpu time, exited, memory
print(len(str(9 ** (9**9))))
