// What C++ adds: templates in COMDAT groups, vtables, type infos, guards, exceptions, inline variables.
#include "shared.h"
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
    virtual const char *name() const { return "shape"; }
};
struct Base2 { virtual int id() const { return 1; } int filler = 0; };
struct Square : Shape, Base2 {
    double side;
    explicit Square(double s) : side(s) {}
    double area() const override { return side * side; }
    int id() const override { return 4; }
};
struct Circle final : virtual Base2, Shape {
    double area() const override { return 3.14159; }
    const char *name() const override { return "circle"; }
};
inline int counter = 7;
template <class T> struct Holder { static T value; };
template <class T> T Holder<T>::value = T(3);
template <class T> __attribute__((noinline)) T twice(T x) { return x + x + Holder<T>::value; }
static std::string global = "a string longer than the small buffer";

__attribute__((noinline)) const std::map<std::string, int> &table() {
    static const std::map<std::string, int> all = {{"one", 1}, {"two", 2}, {"three", 3}};
    return all;
}
__attribute__((noinline)) int risky(int n) {
    try {
        if (n > 3) throw std::runtime_error("too large");
        if (n < 0) throw n;
        return table().at(n ? "one" : "none");
    } catch (const std::out_of_range &e) { std::puts(e.what()); return -1; }
    catch (int x) { return x; }
}
__attribute__((noinline)) double total(const std::vector<std::unique_ptr<Shape>> &shapes) {
    double sum = 0;
    for (auto &s : shapes) sum += s->area() * (s->name()[0] == 'c');
    return sum;
}
int twin(int n);
int main(int argc, char **argv) {
    int both = twin(argc) + choose(argc) + int(join<int>({argc}).size()) + Counter().visit(depth);
    std::vector<std::unique_ptr<Shape>> shapes;
    shapes.push_back(std::make_unique<Square>(argc));
    shapes.push_back(std::make_unique<Circle>());
    auto add = [&](int n) { counter += n; return std::to_string(n) + global; };
    thread_local std::string local = argv[0];
    std::puts((add(argc) + local).c_str());
    if (auto *s = dynamic_cast<Square *>(shapes[0].get())) std::printf("%d\n", s->id());
    return both + risky(argc) + int(total(shapes)) + twice(argc) + int(twice(1.5)) + Holder<long>::value;
}
