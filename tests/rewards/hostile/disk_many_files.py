# expect: exited
for number in range(1_000_000):
    with open(str(number), "wb") as file:
        file.write(b"x" * (1 << 20))
