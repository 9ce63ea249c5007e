# expect: cpu time
while True:
    pass
