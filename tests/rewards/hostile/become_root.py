# expect: exited
import os

for uid in (0, 65534, 1):
    try:
        os.setresuid(uid, uid, uid)
    except OSError:
        continue
    print("ESCAPED: user", uid)
for program in ("su", "mount", "passwd", "newgrp"):
    path = f"/usr/bin/{program}"
    if os.path.exists(path) and os.getuid() == 0:
        print("ESCAPED: root")
