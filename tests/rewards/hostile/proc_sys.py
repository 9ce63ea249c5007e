# expect: exited
names = ["sys/kernel/core_pattern", "sys/kernel/hostname", "sys/vm/overcommit_memory"]
for name in [*names, "sys/kernel/modprobe", "sysrq-trigger", "1/oom_score_adj"]:
    # Anyone may raise this one of its own processes; nobody may make them immortal.
    value = "-1000" if name.startswith("1/") else "1"
    try:
        with open("/proc/" + name, "w") as file:
            file.write(value)
    except OSError:
        continue
    print("ESCAPED: wrote", name)
