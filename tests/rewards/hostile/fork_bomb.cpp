// expect: exited, signalled, cpu time, wall time
#include <unistd.h>
int main() { for (;;) fork(); }
