# expect: exited, memory, signalled
import mmap

maps = []
while True:
    area = mmap.mmap(-1, 16 << 20)
    area.write(b"x" * (16 << 20))
    maps.append(area)
