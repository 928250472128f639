/* In the place of the bundle's program: writes down how it was started, in a folder beside itself, `ran`, and in `ran-again`
 * the second time. FAILING in its environment is the command that it fails.
 */

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void keep(const char *name, const void *bytes, size_t size)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0600);

    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size || close(fd) != 0)
        abort();
}

static void copy(const char *name, int fd)
{
    static char bytes[1 << 16];
    ssize_t got;

    keep(name, "", 0);
    while ((got = read(fd, bytes, sizeof bytes)) > 0)
        keep(name, bytes, (size_t)got);
}

int main(int argc, char **argv)
{
    char open_fds[1024], stdin_name[PATH_MAX];
    ssize_t length;
    int i;

    for (i = 0; i < (int)sizeof open_fds; i++)
        open_fds[i] = fcntl(i, F_GETFD) >= 0;
    *strrchr(argv[0], '/') = '\0';
    if (chdir(argv[0]) != 0)
        abort();
    if (mkdir("ran", 0700) == 0 ? chdir("ran") != 0 : mkdir("ran-again", 0700) != 0 || chdir("ran-again") != 0)
        abort();
    keep("fds", open_fds, sizeof open_fds);
    length = readlink("/proc/self/fd/0", stdin_name, sizeof stdin_name);
    keep("stdin-name", stdin_name, length > 0 ? (size_t)length : 0);
    for (i = 1; i < argc; i++)
        keep("arguments", argv[i], strlen(argv[i]) + 1);
    copy("environ", open("/proc/self/environ", O_RDONLY));
    copy("status", open("/proc/self/status", O_RDONLY));
    copy("stdin", 0);
    if (getenv("FAILING") != NULL && strcmp(getenv("FAILING"), getenv("CNI_COMMAND")) == 0)
        return 1;
    return puts("one-shot") < 0;
}
