# expect: exited, memory, signalled
data = []
while True:
    data.append(bytearray(1 << 20))
