/* A disk that fails, for test_disk_faults.py: preloaded (LD_PRELOAD), it makes one kind of call fail for the files whose
 * path holds FAULT_PATH. FAULT_CALL is "write" or "fsync", FAULT_ERRNO the number of the error; all three are read at
 * every call, so that a process can change them, and nothing fails while FAULT_PATH is unset. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char *call, int descriptor) {
    const char *part = getenv("FAULT_PATH"), *kind = getenv("FAULT_CALL"), *number = getenv("FAULT_ERRNO");
    if (!part || !kind || !number || strcmp(kind, call)) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, part)) return 0;
    errno = atoi(number);
    return 1;
}

#define FAULTY(type, name, call, descriptor, parameters, arguments)                            \
    type name parameters {                                                                     \
        static type(*real) parameters;                                                         \
        if (fails(call, descriptor)) return -1;                                                \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                         \
        return real arguments;                                                                 \
    }

FAULTY(ssize_t, write, "write", fd, (int fd, const void *data, size_t size), (fd, data, size))
FAULTY(ssize_t, pwrite, "write", fd, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FAULTY(ssize_t, pwrite64, "write", fd, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
FAULTY(ssize_t, writev, "write", fd, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FAULTY(ssize_t, sendfile, "write", out, (int out, int in, off_t *at, size_t size), (out, in, at, size))
FAULTY(ssize_t, sendfile64, "write", out, (int out, int in, off64_t *at, size_t size), (out, in, at, size))
FAULTY(ssize_t, copy_file_range, "write", out,
       (int in, off_t *in_at, int out, off_t *out_at, size_t size, unsigned flags), (in, in_at, out, out_at, size, flags))
FAULTY(int, fsync, "fsync", fd, (int fd), (fd))
FAULTY(int, fdatasync, "fsync", fd, (int fd), (fd))
