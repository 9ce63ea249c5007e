// expect: does not compile, exited
volatile int data[1 << 30] = {1};
int main() { return data[5]; }
