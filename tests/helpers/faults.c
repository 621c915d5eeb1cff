/* Makes system calls fail, on demand and at a chosen one; loaded before the C library of a test's child process.
   What fails, how and when stands in a shared page that tests/helpers/faults.py writes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, MKDIR = 16, LINK = 32, UNLINK = 64, LOCK = 128, ALLOCATE = 256 };

struct page {
    volatile int32_t kinds, error, after, stays, calls, hits;
    volatile int64_t clock_s, least_bytes;
    char root[PATH_MAX];
};

static struct page *page;

#define NEXT(name) ((name##_t)(name##_next ? name##_next : (name##_next = dlsym(RTLD_NEXT, #name))))
#define REAL(result, name, ...) typedef result (*name##_t)(__VA_ARGS__); static void *name##_next

REAL(int, open, const char *, int, ...);
REAL(int, open64, const char *, int, ...);
REAL(int, openat, int, const char *, int, ...);
REAL(int, openat64, int, const char *, int, ...);
REAL(ssize_t, write, int, const void *, size_t);
REAL(int, fsync, int);
REAL(int, rename, const char *, const char *);
REAL(int, mkdir, const char *, mode_t);
REAL(int, link, const char *, const char *);
REAL(int, unlink, const char *);
REAL(int, flock, int, int);
REAL(int, posix_memalign, void **, size_t, size_t);
REAL(int, clock_gettime, clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("I2V_FAULTS");
    int handle = path ? NEXT(open)(path, O_RDWR) : -1;
    if (handle < 0) return;
    void *found = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    close(handle);
    if (found != MAP_FAILED) page = found;
}

static int due(int kind) {
    if (!page || !(page->kinds & kind)) return 0;
    int call = __sync_add_and_fetch(&page->calls, 1);
    if (page->after == 0 || call < page->after || (call > page->after && !page->stays)) return 0;
    __sync_add_and_fetch(&page->hits, 1);
    errno = page->error;
    return 1;
}

static int at_path(int kind, const char *path) {
    return page && path && (page->kinds & kind) && !strncmp(path, page->root, strlen(page->root)) && due(kind);
}

static int at_handle(int kind, int handle) {
    char name[64], path[PATH_MAX];
    if (!page || !(page->kinds & kind)) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return at_path(kind, path);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY)

int open(const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && at_path(OPEN, path) ? -1 : NEXT(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && at_path(OPEN, path) ? -1 : NEXT(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && at_path(OPEN, path) ? -1 : NEXT(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return WRITES(flags) && at_path(OPEN, path) ? -1 : NEXT(openat64)(folder, path, flags, mode);
}
/* As a disk that fills up: half of what was given is still written. */
ssize_t write(int handle, const void *data, size_t size) {
    if (!at_handle(WRITE, handle)) return NEXT(write)(handle, data, size);
    int error = errno;
    if (error == ENOSPC && size > 1) (void)!NEXT(write)(handle, data, size / 2);
    errno = error;
    return -1;
}
int fsync(int handle) { return at_handle(SYNC, handle) ? -1 : NEXT(fsync)(handle); }
int rename(const char *from, const char *to) { return at_path(RENAME, to) ? -1 : NEXT(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return at_path(MKDIR, path) ? -1 : NEXT(mkdir)(path, mode); }
int link(const char *from, const char *to) { return at_path(LINK, to) ? -1 : NEXT(link)(from, to); }
int unlink(const char *path) { return at_path(UNLINK, path) ? -1 : NEXT(unlink)(path); }
int flock(int handle, int operation) { return at_handle(LOCK, handle) ? -1 : NEXT(flock)(handle, operation); }
int posix_memalign(void **found, size_t alignment, size_t size) {
    if (page && page->kinds & ALLOCATE && (int64_t)size >= page->least_bytes && due(ALLOCATE)) return ENOMEM;
    return NEXT(posix_memalign)(found, alignment, size);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = NEXT(clock_gettime)(clock, now);
    if (page && clock == CLOCK_REALTIME && !status) now->tv_sec += page->clock_s;
    return status;
}
