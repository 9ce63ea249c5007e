// expect: does not compile
#include "/etc/shadow"
int main() {}
