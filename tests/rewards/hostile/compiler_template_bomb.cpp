// expect: does not compile
template <int N, int M> struct F { static const long value = F<N - 1, M>::value + F<N - 1, M + 1>::value; };
template <int M> struct F<0, M> { static const long value = M; };
int main() { return F<100000, 0>::value; }
