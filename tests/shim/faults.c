/*
 * Makes chosen calls of the C library fail on chosen files while a process runs, and sets its clock.
 *
 * Loaded with LD_PRELOAD. PGANALYTICS_FAULTS_ROOT is the directory whose files may be struck,
 * PGANALYTICS_FAULTS a file that says what is struck at present: the structure `control`, which is
 * mapped, so that whoever writes the file switches a fault on and off, and reads how many calls it
 * has struck. A struck call is not made, or, without an error, made when the fault has ended.
 * tests/support/shim.rs is the other side of this file.
 *
 * Seen are calls through the C library, the only way of Rust's standard library; rustix takes it
 * with its feature `use-libc`.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order of `Call` in tests/support/shim.rs. */
enum call {
    FSYNC,
    FDATASYNC,
    PWRITE,
    WRITE,
    FTRUNCATE,
    RENAME,
    LINK,
    OPEN,
    FALLOCATE,
    SYNC_FILE_RANGE,
    UNLINK,
    MKDIR,
};

struct control {
    /* Written last when a fault begins, first when it ends. */
    _Atomic uint32_t armed;
    /* A bit for each `call`. */
    uint32_t calls;
    /* 0: the call hangs. */
    int32_t error;
    /* Half of the bytes are written and told; the next write to that file fails. */
    uint32_t halves;
    _Atomic uint64_t struck;
    /* As for fnmatch(3), below the root, which is "." itself; a star crosses slashes. */
    char pattern[256];
    /* How far the wall clock is ahead, in seconds. */
    _Atomic int64_t clock_ahead;
};

static struct control *control;
static char root[PATH_MAX];
static size_t root_length;

/* The file of which this thread has written half of what it was told to. */
static _Thread_local int half_written = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *file = getenv("PGANALYTICS_FAULTS"), *place = getenv("PGANALYTICS_FAULTS_ROOT");
    int fd;
    void *mapped;

    if (!file || !place || strlen(place) >= sizeof root)
        return;
    strcpy(root, place);
    root_length = strlen(root);
    fd = open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        control = mapped;
}

/* The path of an open file; 0 when it has none. */
static int path_of(int fd, char path[PATH_MAX])
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int matches(const char *path)
{
    if (strncmp(path, root, root_length) != 0)
        return 0;
    path += root_length;
    if (*path == 0)
        path = ".";
    else if (*path++ != '/')
        return 0;
    return fnmatch(control->pattern, path, 0) == 0;
}

static int is_armed(enum call call)
{
    return control && atomic_load(&control->armed) && (control->calls >> call & 1);
}

static int strike(void)
{
    int before = errno;

    atomic_fetch_add(&control->struck, 1);
    if (control->error) {
        errno = control->error;
        return 1;
    }
    while (atomic_load(&control->armed))
        usleep(5000);
    errno = before;
    return 0;
}

static int strikes_fd(enum call call, int fd)
{
    char path[PATH_MAX];
    int before = errno;

    if (is_armed(call) && path_of(fd, path) && matches(path))
        return strike();
    errno = before;
    return 0;
}

static int strikes_at(enum call call, int dir, const char *name)
{
    char path[PATH_MAX];
    int before = errno;
    size_t length = 0;

    if (!is_armed(call))
        return 0;
    if (*name != '/') {
        if (dir == AT_FDCWD ? !getcwd(path, sizeof path) : !path_of(dir, path))
            return errno = before, 0;
        length = strlen(path);
        path[length++] = '/';
    }
    if (length + strlen(name) < sizeof path) {
        strcpy(path + length, name);
        if (matches(path))
            return strike();
    }
    errno = before;
    return 0;
}

/* A write of `count` bytes: -1 fails, otherwise so many are to be written. */
static ssize_t allowed(enum call call, int fd, size_t count)
{
    char path[PATH_MAX];
    int before = errno;

    if (!is_armed(call) || !path_of(fd, path) || !matches(path)) {
        errno = before;
        half_written = -1;
        return count;
    }
    if (!control->halves || count < 2 || half_written == fd) {
        half_written = -1;
        return strike() ? -1 : (ssize_t)count;
    }
    strike();
    errno = before;
    half_written = fd;
    return count / 2;
}

/* A full or read-only disk is no reason not to open a file for reading. */
static int strikes_open(int dir, const char *name, int flags)
{
    if (is_armed(OPEN) && control->error && control->error != EIO
        && !(flags & (O_WRONLY | O_RDWR | O_CREAT)))
        return 0;
    return strikes_at(OPEN, dir, name);
}

/* What is there already is told before anything is asked of a disk. */
static int strikes_mkdir(int dir, const char *name)
{
    int before = errno, exists = faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;

    errno = before;
    return !exists && strikes_at(MKDIR, dir, name);
}

#define REAL(type, name, ...)                              \
    static type (*real)(__VA_ARGS__);                      \
    if (!real)                                             \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int told;

    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    told = real(clock, at);
    if (told == 0 && clock == CLOCK_REALTIME && control)
        at->tv_sec += atomic_load(&control->clock_ahead);
    return told;
}

int fsync(int fd)
{
    REAL(int, "fsync", int);
    return strikes_fd(FSYNC, fd) ? -1 : real(fd);
}

int fdatasync(int fd)
{
    REAL(int, "fdatasync", int);
    return strikes_fd(FDATASYNC, fd) ? -1 : real(fd);
}

int sync_file_range(int fd, off64_t from, off64_t count, unsigned int flags)
{
    REAL(int, "sync_file_range", int, off64_t, off64_t, unsigned int);
    return strikes_fd(SYNC_FILE_RANGE, fd) ? -1 : real(fd, from, count, flags);
}

#define TRUNCATES(name, offset)                                          \
    int name(int fd, offset length)                                      \
    {                                                                    \
        REAL(int, #name, int, offset);                                   \
        return strikes_fd(FTRUNCATE, fd) ? -1 : real(fd, length);        \
    }

TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define ALLOCATES(name, offset)                                              \
    int name(int fd, int mode, offset from, offset length)                   \
    {                                                                        \
        REAL(int, #name, int, int, offset, offset);                          \
        return strikes_fd(FALLOCATE, fd) ? -1 : real(fd, mode, from, length); \
    }

ALLOCATES(fallocate, off_t)
ALLOCATES(fallocate64, off64_t)

ssize_t write(int fd, const void *bytes, size_t count)
{
    ssize_t part = allowed(WRITE, fd, count);

    REAL(ssize_t, "write", int, const void *, size_t);
    return part < 0 ? -1 : real(fd, bytes, part);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return strikes_fd(WRITE, fd) ? -1 : real(fd, parts, count);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count,
                        unsigned int flags)
{
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned int);
    return strikes_fd(WRITE, out) ? -1 : real(in, from, out, to, count, flags);
}

#define WRITES_AT(name, offset)                                            \
    ssize_t name(int fd, const void *bytes, size_t count, offset at)       \
    {                                                                      \
        ssize_t part = allowed(PWRITE, fd, count);                         \
                                                                           \
        REAL(ssize_t, #name, int, const void *, size_t, offset);           \
        return part < 0 ? -1 : real(fd, bytes, part, at);                  \
    }

WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

static mode_t mode_of(int flags, va_list rest)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name)                                                        \
    int name(const char *path, int flags, ...)                             \
    {                                                                      \
        va_list rest;                                                      \
        mode_t mode;                                                       \
                                                                           \
        REAL(int, #name, const char *, int, ...);                          \
        va_start(rest, flags);                                             \
        mode = mode_of(flags, rest);                                       \
        va_end(rest);                                                      \
        return strikes_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                     \
    int name(int dir, const char *path, int flags, ...)                    \
    {                                                                      \
        va_list rest;                                                      \
        mode_t mode;                                                       \
                                                                           \
        REAL(int, #name, int, const char *, int, ...);                     \
        va_start(rest, flags);                                             \
        mode = mode_of(flags, rest);                                       \
        va_end(rest);                                                      \
        return strikes_open(dir, path, flags) ? -1 : real(dir, path, flags, mode); \
    }

OPENS_AT(openat)
OPENS_AT(openat64)

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    if (strikes_at(RENAME, AT_FDCWD, from) || strikes_at(RENAME, AT_FDCWD, to))
        return -1;
    return real(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    if (strikes_at(RENAME, from_dir, from) || strikes_at(RENAME, to_dir, to))
        return -1;
    return real(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned int flags)
{
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned int);
    if (strikes_at(RENAME, from_dir, from) || strikes_at(RENAME, to_dir, to))
        return -1;
    return real(from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to)
{
    REAL(int, "link", const char *, const char *);
    return strikes_at(LINK, AT_FDCWD, to) ? -1 : real(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    return strikes_at(LINK, to_dir, to) ? -1 : real(from_dir, from, to_dir, to, flags);
}

int unlink(const char *path)
{
    REAL(int, "unlink", const char *);
    return strikes_at(UNLINK, AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int dir, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    return strikes_at(UNLINK, dir, path) ? -1 : real(dir, path, flags);
}

int rmdir(const char *path)
{
    REAL(int, "rmdir", const char *);
    return strikes_at(UNLINK, AT_FDCWD, path) ? -1 : real(path);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    return strikes_mkdir(AT_FDCWD, path) ? -1 : real(path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    return strikes_mkdir(dir, path) ? -1 : real(dir, path, mode);
}
