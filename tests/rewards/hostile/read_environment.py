# expect: exited
import glob
import os

texts = [str(dict(os.environ)).encode()]
for path in glob.glob("/proc/*/environ"):
    try:
        texts.append(open(path, "rb").read())
    except OSError:
        pass
if any(b"MEGATRON_R1_SECRET" in text for text in texts):
    print("ESCAPED: the environment")
