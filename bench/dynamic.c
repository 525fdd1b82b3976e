/* What fork-exec-dynamic starts: the dynamic loader and libc are the work. */
int main(void) { return 0; }
