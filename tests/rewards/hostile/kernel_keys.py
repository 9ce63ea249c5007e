# expect: exited
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(248, b"user", b"left_behind", b"x", 1, -4) > 0:
    print("ESCAPED: added a key")
if libc.syscall(321, 0, 0, 0) >= 0 or libc.syscall(298, 0, 0, 0, 0, 0) >= 0:
    print("ESCAPED: bpf or perf")
if libc.syscall(425, 8, 0) >= 0:
    print("ESCAPED: io_uring")
