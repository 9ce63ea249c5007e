# expect: signalled
import os

os.abort()
