// The other half of the program: what shapes.c only declares.
#include <stdio.h>
#include <stdlib.h>
int answer(int n, char **v);
__thread int other = 3;
extern int third[16];
static int first[4];
static const char *const names[] = {"its tail", "tail", "a string and its tail", "one"};
int pick(int n) { first[n & 3]++; return third[n & 7] + first[n & 3]; }
const char *name(int n) { return names[n & 3]; }
#ifndef LIBRARY
int main(int argc, char **argv) { return puts(name(argc)) + pick(argc) + answer(argc, argv); }
#endif
