# expect: exited
try:
    import megatron_r1

    print("ESCAPED: imports", megatron_r1.__file__)
except ImportError:
    pass
