// expect: does not compile
#define A x x x x x x x x x x x x x x x x
#define B A A A A A A A A A A A A A A A A
#define C B B B B B B B B B B B B B B B B
#define D C C C C C C C C C C C C C C C C
#define E D D D D D D D D D D D D D D D D
#define G E E E E E E E E E E E E E E E E
#define H G G G G G G G G G G G G G G G G
int main() { H }
