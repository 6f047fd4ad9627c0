// The other user of shared.h.
#include "shared.h"
int twin(int n) {
    Counter counter;
    Visitor *visitor = n > 2 ? &counter : new Visitor;
    try { return visitor->visit(choose(n)) + int(join<int>({n, depth}).size()) + *titles[n & 1]; }
    catch (int caught) { return caught; }
}
