// What two files of a program both have: the linker keeps one of each.
#include <cstdio>
#include <string>
#include <vector>

struct Visitor {
    virtual ~Visitor() = default;
    virtual int visit(int n) { return n + seen(); }
    static int &seen() { static int all = 3; return all; }
};
struct Counter : Visitor { int visit(int n) override { return ++seen() + n; } };
inline const char *const titles[] = {"first title", "second title", "third title"};
inline thread_local int depth = 2;
template <class T> __attribute__((noinline)) std::string join(const std::vector<T> &all) {
    static const char separator[] = ", and ";
    std::string out;
    for (const T &one : all) { if (!out.empty()) out += separator; out += std::to_string(one); }
    return out;
}
inline __attribute__((noinline)) int choose(int n) {
    switch (n) { case 0: return depth; case 1: std::puts(titles[1]); return 1; case 2: return Visitor::seen(); case 3: throw n;
    case 4: return titles[2][n]; case 5: return int(join<long>({n}).size()); }
    return -1;
}
