// expect: exited, signalled, memory
#include <cstring>
#include <new>
int main() { for (;;) memset(new char[1 << 20], 1, 1 << 20); }
