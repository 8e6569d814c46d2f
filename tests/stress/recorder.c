/* Recorder: journals what a process does to the files of one folder, in the order in which it does
 * it. Preloaded, it stands before the C library's calls; one mutex is held during each real call,
 * so the journal's order is the order of what happened, whichever threads did it.
 *
 * A record is a header and `length` bytes; tests/stress/journal.py reads them. LMDB's data file is
 * mapped for reading only, so there are no writes that are not calls; its lock file is mapped for
 * writing, but nothing in that outlives a power cut.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPENED = 1, WRITTEN, RESIZED, SYNCED, RENAMED, REMOVED, MARKED };
enum { IS_FOLDER = 1, IS_NEW = 2, IS_SYNC = 4 };

struct header {
    uint32_t kind, flags;
    uint64_t file, offset, length;
    double seconds;
};

#define MOST_FILES 4096
static struct { uint64_t file; uint32_t flags; int append; } files[MOST_FILES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char folder[4096];
static int journal = -1;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void must(int fine) {
    if (!fine) { perror("recorder"); abort(); }
}

static void record(uint32_t kind, uint32_t flags, uint64_t file, uint64_t offset,
                   const struct iovec *parts, int count) {
    struct header header = {kind, flags, file, offset, 0, now()};
    for (int i = 0; i < count; i++) header.length += parts[i].iov_len;
    must(REAL(write)(journal, &header, sizeof header) == sizeof header);
    for (int i = 0; i < count; i++)
        must(REAL(write)(journal, parts[i].iov_base, parts[i].iov_len) == (ssize_t)parts[i].iov_len);
}

static struct iovec text(const char *words) {
    return (struct iovec){(void *)words, strlen(words)};
}

/* -- what the test calls -- */

void recorder_begin(const char *path, const char *into) {
    pthread_mutex_lock(&mutex);
    must(strlen(path) < sizeof folder);
    strcpy(folder, path);
    journal = REAL(open)(into, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(journal >= 0);
    pthread_mutex_unlock(&mutex);
}

void recorder_mark(const char *words) {
    pthread_mutex_lock(&mutex);
    struct iovec part = text(words);
    record(MARKED, 0, 0, 0, &part, 1);
    pthread_mutex_unlock(&mutex);
}

void recorder_end(void) {
    pthread_mutex_lock(&mutex);
    must(REAL(close)(journal) == 0);
    journal = -1;
    memset(files, 0, sizeof files);
    pthread_mutex_unlock(&mutex);
}

/* -- names -- */

static int is_ours(const char *path) {
    size_t length = strlen(folder);
    return journal >= 0 && strncmp(path, folder, length) == 0 &&
           (path[length] == 0 || path[length] == '/');
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&mutex);
    struct stat stat_;
    int was_there = is_ours(path) && stat(path, &stat_) == 0;
    int fd = real(path, is_ours(path) ? flags & ~O_SYNC : flags, mode);
    if (fd >= 0 && fd < MOST_FILES && is_ours(path)) {
        must(fstat(fd, &stat_) == 0);
        uint32_t kinds = S_ISDIR(stat_.st_mode) ? IS_FOLDER : 0;
        if (!was_there) kinds |= IS_NEW;
        if (flags & O_DSYNC) kinds |= IS_SYNC; /* O_SYNC has that bit, too */
        files[fd].file = stat_.st_ino;
        files[fd].flags = kinds;
        files[fd].append = flags & O_APPEND;
        struct iovec part = text(path + strlen(folder));
        record(OPENED, kinds, stat_.st_ino, 0, &part, 1);
        if (flags & O_TRUNC) record(RESIZED, kinds, stat_.st_ino, 0, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    return fd;
}

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                \
        return opened(REAL(name), path, flags, mode);                \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    pthread_mutex_lock(&mutex);
    if (fd >= 0 && fd < MOST_FILES) files[fd].file = 0;
    int result = REAL(close)(fd);
    pthread_mutex_unlock(&mutex);
    return result;
}

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&mutex);
    int result = REAL(rename)(from, to);
    if (result == 0 && is_ours(from) && is_ours(to)) {
        struct iovec parts[] = {text(from + strlen(folder)), {"\n", 1}, text(to + strlen(folder))};
        record(RENAMED, 0, 0, 0, parts, 3);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int unlink(const char *path) {
    pthread_mutex_lock(&mutex);
    int result = REAL(unlink)(path);
    if (result == 0 && is_ours(path)) {
        struct iovec part = text(path + strlen(folder));
        record(REMOVED, 0, 0, 0, &part, 1);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

/* -- contents -- */

static int is_recorded(int fd) {
    return journal >= 0 && fd >= 0 && fd < MOST_FILES && files[fd].file;
}

static uint64_t place(int fd) {
    return (uint64_t)lseek(fd, 0, files[fd].append ? SEEK_END : SEEK_CUR);
}

/* Of what was to be written only the first `done` bytes were. */
static void written(int fd, uint64_t offset, const struct iovec *parts, int count,
                    ssize_t done) {
    struct iovec some[1024];
    int used = 0;
    for (must(count <= 1024); used < count && done > 0; used++) {
        some[used] = parts[used];
        if ((ssize_t)some[used].iov_len > done) some[used].iov_len = (size_t)done;
        done -= (ssize_t)some[used].iov_len;
    }
    if (used) record(WRITTEN, files[fd].flags, files[fd].file, offset, some, used);
}

#define WRITE(offset, parts, count, call)                                       \
    if (!is_recorded(fd)) return call;                                          \
    pthread_mutex_lock(&mutex);                                                 \
    uint64_t at = (uint64_t)(offset);                                           \
    ssize_t result = call;                                                      \
    int error = errno;                                                          \
    written(fd, at, parts, count, result);                               \
    pthread_mutex_unlock(&mutex);                                               \
    errno = error;                                                              \
    return result;

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    WRITE(place(fd), &part, 1, REAL(write)(fd, data, size))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    WRITE(place(fd), parts, count, REAL(writev)(fd, parts, count))
}

#define PWRITE(name)                                                            \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) {         \
        struct iovec part = {(void *)data, size};                               \
        WRITE(offset, &part, 1, REAL(name)(fd, data, size, offset))             \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name)                                                           \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset) {  \
        WRITE(offset, parts, count, REAL(name)(fd, parts, count, offset))       \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

/* Calls that return 0 when they have done it. Syncs are only written down: nobody cuts the power
 * of this process, and a disk that is busy would make the test slow. */
#define CHANGE(kind, size, call)                                                \
    if (!is_recorded(fd)) return call;                                          \
    pthread_mutex_lock(&mutex);                                                 \
    int result = call;                                                          \
    int error = errno;                                                          \
    if (result == 0)                                                            \
        record(kind, files[fd].flags, files[fd].file, (uint64_t)(size), NULL, 0); \
    pthread_mutex_unlock(&mutex);                                               \
    errno = error;                                                              \
    return result;

int ftruncate(int fd, off_t size) { CHANGE(RESIZED, size, REAL(ftruncate)(fd, size)) }
int ftruncate64(int fd, off_t size) { CHANGE(RESIZED, size, REAL(ftruncate64)(fd, size)) }
int posix_fallocate(int fd, off_t offset, off_t size) {
    CHANGE(RESIZED, offset + size, REAL(posix_fallocate)(fd, offset, size))
}
int posix_fallocate64(int fd, off_t offset, off_t size) {
    CHANGE(RESIZED, offset + size, REAL(posix_fallocate64)(fd, offset, size))
}

#define SYNC(name)                                                              \
    int name(int fd) {                                                          \
        if (!is_recorded(fd)) return REAL(name)(fd);                            \
        CHANGE(SYNCED, 0, 0)                                                    \
    }
SYNC(fsync)
SYNC(fdatasync)
