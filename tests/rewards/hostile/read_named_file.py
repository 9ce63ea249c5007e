# expect: exited
# The path of a file that the test wrote outside.
import sys

try:
    print("ESCAPED:", open(sys.stdin.readlines()[1].strip()).read())
except OSError as error:
    print("refused:", error)
