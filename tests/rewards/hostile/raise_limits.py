# expect: exited
import resource

for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
    _, hard = resource.getrlimit(getattr(resource, name))
    try:
        resource.setrlimit(getattr(resource, name), (hard + 1, hard + 1))
    except (OSError, ValueError):
        continue
    print("ESCAPED: raised", name)
