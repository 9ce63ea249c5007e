# expect: exited
names = ("kernel/core_pattern", "kernel/hostname", "vm/overcommit_memory", "kernel/modprobe")
for path in [f"/proc/sys/{name}" for name in names] + [
    "/proc/sysrq-trigger",
    "/proc/1/oom_score_adj",
]:
    try:
        with open(path, "w") as file:
            file.write("1")
    except OSError:
        continue
    print("ESCAPED: wrote", path)
