// Shapes of references that compilers and linkers make. Compiled only; nothing runs it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <time.h>
#define APART __attribute__((noinline, noclone))

// Objects side by side, used from before their start to one past their end.
static int first[16];
static int second[16];
int third[16] = {1, 2, 3};
static const int fixed[16] = {4, 5, 6, 7};
static const int more[16] = {7, 6, 5, 4};
int shared;
int getpid_like(int n);
static char bytes[3] = "ab";
static const char text[] = "text";
APART int *past_first(void) { return first + 16; }
APART int *start_second(void) { return second; }
APART const int *past_fixed(void) { return fixed + 16; }
APART int sum_first(void) { int n = 0; for (int *p = first; p != first + 16; p++) n += *p; return n; }
APART int sum_fixed(void) { int n = 0; for (const int *p = fixed; p != fixed + 16; p++) n += *p * shared; return n; }
APART int before_first(int i) { return first[i - 1]; }
APART int far_before_second(int i) { return second[i - 100]; }
APART int before_fixed(int i) { return fixed[i - 3] + more[i - 70]; }
APART void fill(int n) { for (int i = 100; i < 100 + n; i++) second[i - 100] = third[i - 99] = i; }
APART void backwards(void) { for (int i = 15; i >= 0; i--) third[i] = first[15 - i] + second[i]; }
APART char *tail_of_bytes(void) { return bytes + 2; }
APART const char *tail_of_text(int n) { return n ? text + 1 : text; }

// Strings of which one is the tail of another.
APART const char *whole(void) { return "a string and its tail"; }
APART const char *tail(void) { return "its tail"; }
APART const char *empty(void) { return ""; }
APART const char *with_nul(void) { return "one\0two"; }
APART int compare(const char *s) { return strcmp(s, "yes") == 0 || memcmp(s, "no\0no", 5) == 0; }
APART double constants(double x, float y) { return x * 1.25 + y * 0.1f + __builtin_fabs(x) - 3.75L; }

// Switches: dense, sparse, of strings, two with shared bounds, one that falls through.
APART int dense(int n) {
    switch (n) { case 0: return shared; case 1: return 7 * n; case 2: puts("two"); return 0; case 3: return rand();
    case 4: abort(); case 5: return getpid_like(n); case 6: return first[n]; case 7: return -1; case 8: return third[3]; }
    return 99;
}
int getpid_like(int n) { return n + errno; }
APART const char *words(int n) {
    switch (n) { case 10: return "ten"; case 11: return "eleven"; case 12: return "twelve"; case 13: return "thirteen";
    case 14: return "fourteen"; case 15: return "fifteen"; case 16: return "sixteen"; }
    return "?";
}
APART int two_switches(unsigned n, int *p) {
    if (n > 7) return -1;
    switch (n) { case 0: *p = 1; break; case 1: *p += 2; break; case 2: *p *= 3; break; case 3: *p = shared; break;
    case 4: puts("4"); break; case 5: *p ^= 5; break; case 6: *p -= 6; break; case 7: shared = 7; break; }
    puts("between");
    switch (n) { case 0: return 5; case 1: puts("1"); return 4; case 2: return *p; case 3: return first[1];
    case 4: return rand(); case 5: shared++; return 1; case 6: return *p / 3; case 7: return second[2]; }
    return 0;
}
APART int interpreter(const unsigned char *code) {
    static const void *const labels[] = {&&add, &&twice, &&print, &&end};
    static const int offsets[] = {&&add2 - &&add2, &&twice2 - &&add2, &&end2 - &&add2};
    int n = 0;
    goto *labels[*code++];
add: n += 3; goto *labels[*code++];
twice: n *= 2; goto *labels[*code++];
print: printf("%d\n", n); goto *labels[*code++];
end:
    goto *(&&add2 + offsets[*code++]);
add2: n += 5; goto *(&&add2 + offsets[*code++]);
twice2: n *= 7; goto *(&&add2 + offsets[*code++]);
end2:
    return n;
}
APART int bits(unsigned long c) {
    switch (c) { case 'a': case 'e': case 'i': case 'o': case 'u': return 1; case ' ': case '\t': return 2; case 300: return rand(); }
    return 0;
}

// Pointers in data.
struct entry { const char *name; int (*call)(int); int *value; };
static int twice(int x) { return 2 * x; }
static const struct entry table[] = {{"dense", dense, first}, {"twice", twice, &third[5]}, {"end", getpid_like, first + 16}};
struct entry writable[] = {{"dense", dense, second}, {0, abs, &shared}};
FILE **stream = &stdout;
APART int walk(int n) {
    int sum = 0;
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++) sum += table[i].call(n) + (i < 2 ? *table[i].value : 0);
    for (struct entry *e = writable; e < writable + 2; e++) sum += e->call(n);
    return sum;
}

// Thread-local variables.
static __thread int own;
static __thread int own_initial = 5;
__thread int shown;
extern __thread int other;
APART int locals(void) { return own++ + own_initial + shown + other + errno; }
APART int *local_address(int n) { return n ? &own : n < 0 ? &shown : &other; }

// Weak symbols, aliases, linker symbols, functions chosen at start-up.
extern int missing(int) __attribute__((weak));
extern char _end[], __bss_start[], _edata[];
APART int weak(int n) { return missing ? missing(n) : (int)(_end - __bss_start) + (int)(_edata - (char *)0); }
static int chosen_one(int x) { return x + 1; }
static int chosen_two(int x) { return x + 2; }
static int (*choose(void))(int) { return getenv("TWO") ? chosen_two : chosen_one; }
#ifndef NO_IFUNC
int chosen(int) __attribute__((ifunc("choose")));
#else
int chosen(int x) { return choose()(x); }
#endif
APART int call_chosen(int n) { int (*volatile f)(int) = chosen; return f(n) + chosen(n); }
APART __attribute__((cold)) void failed(const char *why) { fprintf(stderr, "%s\n", why); exit(1); }
APART int unlikely(int n) {
    if (__builtin_expect(n > 1000, 0)) { fprintf(stderr, "large: %d\n", n); shared += n; failed("large"); }
    return n * 3;
}
APART long clock_of(void) { struct tm t; time_t now = time(0); localtime_r(&now, &t); return t.tm_gmtoff + timezone; }
// Numbers that could be addresses.
APART unsigned number(unsigned n) { return n == 0x401000 ? 0x402000 : n * 0x404018 + 0x4010; }
APART long large_number(long n) { return n ^ 0x405060; }

int answer(int n, char **v) {
    return *past_first() + *start_second() + *past_fixed() + sum_first() + sum_fixed() + before_first(n) + far_before_second(n)
        + before_fixed(n) + *tail_of_bytes() + *tail_of_text(n) + *whole() + *tail() + *empty() + *with_nul() + compare(*v)
        + (int)constants(n, n) + dense(n) + *words(n) + two_switches(n, &n) + interpreter((void *)*v) + bits(n) + walk(n)
        + locals() + *local_address(n) + weak(n) + call_chosen(n) + unlikely(n) + (int)clock_of() + number(n) + (int)large_number(n)
        + (stream != 0) + (fill(n), backwards(), 0);
}
