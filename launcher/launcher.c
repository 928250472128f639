/* The file that stands in the CNI bin directory: a small static program that hands the call to the resident
 * agent, or when there is none executes the bundle.
 *
 * Every plugin's file is a copy of this one. It needs no library, no /proc, no environment and no working
 * directory. Its two halves:
 *
 * The agent (docs/agent-protocol.md). Whatever is wrong with it, the bundle serves the call instead, with the
 * same stdin and environment: nothing of the caller's is changed until the bundle is executed, and every file
 * opened here closes itself then. The one exception is an ADD that the agent was told to begin: that is never
 * begun a second time. The answer is not believed in before all of it is there.
 *
 * The bundle. It finds its own place, looks for the bundle `.cnikit/VERSION/` beside it (then in
 * /usr/lib/cnikit), and executes the bundle's program there. When there is none, it says so as a CNI error.
 * That program (PyInstaller's bootloader) would start itself twice, because it can set LD_LIBRARY_PATH for the
 * next program only, and it needs a bundled libz before that. So this program sets what the bootloader would
 * set, which saves the second start. None of it may reach the plugin's own children: variables of those names
 * that the caller had are handed over in argv, and cni/main.py puts them back. The arguments are
 *
 *     PROGRAM CALLED SELF [NAME=VALUE...] "" [ARGUMENT...]
 *
 * CALLED is the path that was executed, SELF the real path of this file, NAME=VALUE what the caller had,
 * ARGUMENT what the caller gave.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#error "compile with -DVERSION=... (cli/bundle.py does)"
#endif
#ifndef FOLDER
#define FOLDER ".cnikit"
#endif
#ifndef PROGRAM
#define PROGRAM "cnikit-oneshot"
#endif
#define SYSTEM "/usr/lib/cnikit"
#define AGENT_SOCKET "/run/cnikit/agent.sock"
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif

/* The bounds of docs/agent-protocol.md, in milliseconds; tests make SECOND shorter. */
#ifndef SECOND
#define SECOND 1000
#endif
#define CONNECT_BOUND (SECOND / 10)
#define SILENCE (10 * SECOND)
#define PROBE_SILENCE (SECOND / 10) /* of a writer that may never come: as `Stdin.probe` in cni/main.py */
#define READY_BOUND (5 * SECOND)
#define ANSWER_BOUND (60 * SECOND)
#define OUTPUT_BOUND (10 * SECOND)
#define UNWIND_BOUND (60 * SECOND)
#define MOST_STRINGS (8u << 20)
#define MOST_STDIN ((16u << 20) + 1)
#define MOST_TEXT (64u << 20)

#define ONE_SHOT -1 /* in the place of an exit code: execute the bundle */

enum { IO_FAILURE = 5, TRY_AGAIN = 11, INTERNAL = 999 }; /* as in cni/errors.py */

struct header { /* of a request */
    char magic[8];
    uint32_t silent, strings, input;
};

struct frame { /* from the agent */
    uint8_t kind, code;
    uint16_t zero;
    uint32_t first, second;
};

extern char **environ;

static char self[PATH_MAX];    /* the real path of this file */
static char beside[PATH_MAX];  /* the folder of bundles beside it */
static char program[PATH_MAX]; /* the bundle's program, where it was looked for last */
static char spoken[16] = "1.1.0"; /* the cniVersion of error objects */

/* One CNI error object on stdout, `text` with its quotes escaped; or plain text for people. Returns the exit code. */
static int fail(int code, const char *text, const char *details)
{
#ifdef PEOPLE
    (void)code, (void)spoken;
    fprintf(stderr, "%s\n%s\n", text, details);
#else
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", spoken, code);
    for (; *text != '\0'; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ' || (unsigned char)*text >= 0x7f)
            printf("\\u%04x", (unsigned char)*text);
        else
            putchar(*text);
    printf("\",\"details\":\"%s\"}\n", details);
#endif
    return 1;
}

/* The variables that the bootloader reads: ours replace the caller's for the length of one start. */
static int replaced(const char *entry)
{
    return !strncmp(entry, "LD_LIBRARY_PATH=", 16) || !strncmp(entry, "_PYI_", 5) || !strncmp(entry, "PYINSTALLER_", 12);
}

static char *joined(const char *left, const char *right)
{
    size_t length = strlen(left);
    char *result = malloc(length + strlen(right) + 1);
    if (result != NULL)
        strcpy(stpcpy(result, left), right);
    return result;
}

/* Fill `self`: from /proc, or where that is missing from the path that the kernel was given. */
static int find_self(const char *called)
{
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = '\0';
        return 1;
    }
    return realpath(called, self) != NULL;
}

/* What the bootloader of `program` would have put into its environment before its second start. */
static char **prepared(char **environment)
{
    char *library_path = joined("LD_LIBRARY_PATH=", program), *archive = joined("_PYI_ARCHIVE_FILE=", program);

    if (library_path == NULL || archive == NULL)
        return NULL;
    *strrchr(library_path, '/') = '\0';
    *environment++ = library_path;
    *environment++ = archive;
    *environment++ = "_PYI_PARENT_PROCESS_LEVEL=-1";
    return environment;
}

/* Fill `program` with the real path of the program in a folder of bundles; returns an error number or 0.
 *
 * The bootloader compares real paths, wants them in UTF-8, and LD_LIBRARY_PATH cannot hold ':', ';' and '$'.
 */
static int find_program(const char *bundles)
{
    static char path[PATH_MAX];

    if (snprintf(path, sizeof path, "%s/" VERSION "/" PROGRAM, bundles) >= (int)sizeof path)
        return ENAMETOOLONG;
    strcpy(program, path);
    if (realpath(path, program) == NULL)
        return errno;
    setlocale(LC_CTYPE, "C.UTF-8");
    return strpbrk(program, ":;$") != NULL || mbstowcs(NULL, program, 0) == (size_t)-1 ? EILSEQ : 0;
}

/* Become `program`; returns an error number when that failed. */
static int start(const char *called, int argc, char **argv)
{
    int variables = 0, i;
    char **arguments, **environment, **argument, **variable;

    while (environ[variables] != NULL)
        variables++;
    argument = arguments = calloc((size_t)(variables + argc) + 5, sizeof *arguments);
    environment = calloc((size_t)variables + 4, sizeof *environment);
    if (arguments == NULL || environment == NULL || (variable = prepared(environment)) == NULL)
        return ENOMEM;
    *argument++ = program;
    *argument++ = (char *)called;
    *argument++ = self;
    for (i = 0; i < variables; i++)
        if (replaced(environ[i]))
            *argument++ = environ[i];
        else
            *variable++ = environ[i];
    *argument++ = "";
    for (i = 1; i < argc; i++)
        *argument++ = argv[i];
    execve(program, arguments, environment);
    return errno;
}

/* Why the program at `program` did not start. */
static int fail_start(int error)
{
    static char text[2 * PATH_MAX];

    snprintf(text, sizeof text, "cnikit " VERSION " cannot execute %s: %s", program, strerror(error));
    if (error == EILSEQ)
        return fail(INTERNAL, text, "Its path must be UTF-8, with no ':', ';' and '$'. Copy it to such a folder (cp -a).");
    return fail(INTERNAL, text, "The bundle needs this machine's architecture, glibc, and a file system without noexec.");
}

/* That there is no bundle. */
static int fail_missing(void)
{
    static char text[2 * PATH_MAX];

    snprintf(text, sizeof text, "cnikit " VERSION " has no bundle: expected the folder %s/" VERSION " or " SYSTEM "/" VERSION, beside);
    return fail(INTERNAL, text, "Copy the folder " FOLDER " from beside the original file as well (cp -a), or run: make install");
}

#ifdef PEOPLE
#define ask_agent(called) ONE_SHOT
#else
static char *request; /* header, strings, stdin */
static size_t length = sizeof(struct header);

/* Milliseconds of a clock that nobody sets. */
static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

/* Whether `fd` is ready (or broken) before the deadline; if not, errno tells why. */
static int wait_for(int fd, short events, int64_t deadline)
{
    struct pollfd waited = {fd, events, 0};
    int64_t left;
    int ready;

    do {
        left = deadline - now();
        ready = poll(&waited, 1, left > 0 ? (int)left : 0);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0)
        errno = ETIMEDOUT;
    return ready > 0;
}

/* Read (POLLIN) or write (POLLOUT) exactly so many bytes; if not, errno tells why, 0 being the end. */
static int transfer(int fd, short direction, char *bytes, size_t size, int64_t deadline)
{
    ssize_t moved;

    while (size > 0) {
        if (!wait_for(fd, direction, deadline))
            return 0;
        /* What poll calls writable takes PIPE_BUF bytes without blocking. */
        moved = direction == POLLIN ? read(fd, bytes, size) : write(fd, bytes, size < PIPE_BUF ? size : PIPE_BUF);
        if (moved > 0) {
            bytes += moved;
            size -= (size_t)moved;
        } else if (moved == 0)
            return errno = 0;
        else if (errno != EINTR && errno != EAGAIN)
            return 0;
    }
    return 1;
}

/* A connection to an agent of root's, or -1. */
static int connect_agent(void)
{
    const char *path = getenv("CNIKIT_SOCKET");
    const struct timeval bound = {0, CONNECT_BOUND * 1000};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct pollfd standard[] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}};
    struct stat found;
    struct ucred peer;
    socklen_t size = sizeof peer;
    int agent;

    /* A file that is opened here would take the place of a closed stdin, stdout or stderr. */
    if (poll(standard, 3, 0) < 0 || (standard[0].revents | standard[1].revents | standard[2].revents) & POLLNVAL)
        return -1;
    if (path == NULL)
        path = AGENT_SOCKET;
    if (strlen(path) >= sizeof address.sun_path || stat(path, &found) != 0 || !S_ISSOCK(found.st_mode) || found.st_uid != 0)
        return -1;
    strcpy(address.sun_path, path);
    if ((agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0)
        return -1;
    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound); /* connect waits when the backlog is full */
    while (connect(agent, (struct sockaddr *)&address, sizeof address) != 0)
        if (errno != EINTR)
            return -1;
    return getsockopt(agent, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0 ? agent : -1;
}

/* Our two namespaces, for the agent to compare, and the pod's; returns how many, 0 without our own. */
static int open_namespaces(int *fds)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK; /* a FIFO would block */
    const char *pod = getenv("CNI_NETNS");

    fds[0] = open("/proc/self/ns/net", flags);
    fds[1] = open("/proc/self/ns/mnt", flags);
    fds[2] = pod == NULL ? -1 : open(pod, flags);
    return fds[0] < 0 || fds[1] < 0 ? 0 : fds[2] < 0 ? 2 : 3;
}

/* Begin the request with its strings. */
static int put_strings(const char *called)
{
    char *first[] = {VERSION, (char *)called, self, NULL}, **lists[] = {first, environ, NULL}, ***list, **string;
    const size_t most = sizeof(struct header) + MOST_STRINGS + MOST_STDIN;

    request = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (request == MAP_FAILED)
        return 0;
    madvise(request, most, MADV_NOHUGEPAGE); /* or the first byte would cost 2 MiB of zeros */
    for (list = lists; *list != NULL; list++)
        for (string = *list; *string != NULL; string++) {
            if (strlen(*string) >= sizeof(struct header) + MOST_STRINGS - length)
                return 0;
            length = (size_t)(stpcpy(request + length, *string) + 1 - request);
        }
    return 1;
}

/* Add stdin, up to its end or to one byte too many; returns an error number, ETIMEDOUT after silence. */
static int put_stdin(int silence)
{
    const size_t limit = length + MOST_STDIN;
    ssize_t got = 1;

    while (got != 0 && length < limit) {
        if (!wait_for(0, POLLIN, now() + silence))
            return errno;
        got = read(0, request + length, limit - length);
        if (got > 0)
            length += (size_t)got;
        else if (got < 0 && errno != EINTR && errno != EAGAIN)
            return errno;
    }
    return 0;
}

/* Give the bundle a stdin with the bytes that were read; returns an error number or 0. */
static int restore_stdin(char *bytes, size_t size)
{
    int fd = memfd_create("stdin", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("stdin", MFD_CLOEXEC); /* Linux before 6.3 */
    if (fd < 0 || !transfer(fd, POLLOUT, bytes, size, now() + OUTPUT_BOUND) || lseek(fd, 0, SEEK_SET) != 0 || dup2(fd, 0) != 0)
        return errno;
    return 0;
}

/* Send the request, the descriptors with its first byte. */
static int send_request(int agent, const int *fds, int count, int64_t deadline)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {.head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec whole = {request, length};
    struct msghdr message = {.msg_iov = &whole, .msg_iovlen = 1};
    ssize_t sent;

    if (count > 0) {
        control.head.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(&control.head), fds, (size_t)count * sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    }
    sent = sendmsg(agent, &message, MSG_DONTWAIT);
    return sent > 0 && transfer(agent, POLLOUT, request + sent, length - (size_t)sent, deadline);
}

/* Receive one frame; returns its texts, which end with a zero byte, or NULL when it is none. */
static char *receive_frame(int agent, struct frame *frame, int64_t deadline)
{
    static char few[1 << 14];
    char *texts = few;
    size_t size;

    if (!transfer(agent, POLLIN, (char *)frame, sizeof *frame, deadline))
        return NULL;
    size = (size_t)frame->first + frame->second;
    if (frame->zero != 0 || size > MOST_TEXT || (size >= sizeof few && (texts = malloc(size + 1)) == NULL))
        return NULL;
    texts[size] = '\0';
    return transfer(agent, POLLIN, texts, size, deadline) ? texts : NULL;
}

/* Write an answer out and tell the agent whether the result of an ADD was taken; returns the exit code. */
static int deliver(int agent, const struct frame *answer, char *texts, int added)
{
    int64_t deadline = now() + OUTPUT_BOUND;
    int error = transfer(1, POLLOUT, texts, answer->first, deadline) ? 0 : errno;

    if (added)
        transfer(agent, POLLOUT, error ? "F" : "K", 1, deadline);
    transfer(2, POLLOUT, texts + answer->first, answer->second, deadline);
    if (error == 0)
        return answer->code;
    dprintf(2, "cnikit: cannot write to stdout: %s\n", strerror(error));
    if (added)
        transfer(agent, POLLIN, request, length, now() + UNWIND_BOUND); /* it ends when the ADD is taken back */
    return 1;
}

/* Send the request and follow the agent; returns the exit code or ONE_SHOT. */
static int converse(int agent, int adds, const int *fds, int count)
{
    int64_t start = now();
    struct frame frame;
    char *texts;
    int begun = 0;

    if (!send_request(agent, fds, count, start + READY_BOUND))
        return ONE_SHOT;
    texts = receive_frame(agent, &frame, start + READY_BOUND);
    if (texts != NULL && frame.kind == 'R' && frame.first < sizeof spoken && strspn(texts, "0123456789.") == frame.first) {
        memcpy(spoken, texts, frame.first + 1);
        if (!transfer(agent, POLLOUT, "G", 1, start + READY_BOUND))
            return ONE_SHOT;
        begun = 1;
        texts = receive_frame(agent, &frame, start + ANSWER_BOUND);
    }
    if (texts != NULL && frame.kind == 'A')
        return deliver(agent, &frame, texts, adds && frame.code == 0);
    if (adds && begun)
        return fail(TRY_AGAIN, "the agent was lost in the middle of an ADD, which is not begun a second time",
                    "expected its answer within 60 s; DEL the attachment, which cleans up, then ADD it anew");
    return ONE_SHOT;
}

/* Let the agent serve the call; returns the exit code or ONE_SHOT. */
static int ask_agent(const char *called)
{
    static const char *const configured[] = {"ADD", "DEL", "CHECK", "STATUS", "GC", NULL}, *const *verb;
    const char *command = getenv("CNI_COMMAND") != NULL ? getenv("CNI_COMMAND") : "";
    struct header header = {{'c', 'n', 'i', 'k', 'i', 't', 0, 1}, 0, 0, 0};
    void (*pipe_signal)(int);
    int fds[3], count = 0, agent = connect_agent(), code, error;

    if (agent < 0 || (strcmp(command, "VERSION") != 0 && (count = open_namespaces(fds)) == 0) || !put_strings(called))
        return ONE_SHOT;
    header.strings = (uint32_t)(length - sizeof header);
    for (verb = configured; *verb != NULL && strcmp(command, *verb) != 0; verb++)
        ;
    error = put_stdin(*verb != NULL ? SILENCE : PROBE_SILENCE);
    header.silent = *verb != NULL && error == ETIMEDOUT;
    if (*verb != NULL && error != 0 && !header.silent)
        return fail(IO_FAILURE, "error reading from stdin", strerror(error));
    header.input = (uint32_t)(length - sizeof header - header.strings);
    memcpy(request, &header, sizeof header);

    pipe_signal = signal(SIGPIPE, SIG_IGN);
    code = converse(agent, strcmp(command, "ADD") == 0, fds, count);
    if (code != ONE_SHOT)
        return code;
    signal(SIGPIPE, pipe_signal);
    if (header.silent)
        return fail(IO_FAILURE, "stdin: expected the network configuration and its end, found 10 s of silence",
                    "close stdin after the configuration is written");
    error = restore_stdin(request + length - header.input, header.input);
    return error == 0 ? ONE_SHOT : fail(IO_FAILURE, "cannot hand stdin on to the bundle", strerror(error));
}
#endif

int main(int argc, char **argv)
{
    const char *called = (const char *)getauxval(AT_EXECFN), *places[] = {beside, SYSTEM};
    size_t i;
    int error;

    if (!find_self(called))
        return fail(INTERNAL, "cnikit cannot find its own place: there is no /proc/self/exe", "Call it by an absolute path, or mount /proc.");
    if (snprintf(beside, sizeof beside, "%.*s/" FOLDER, (int)(strrchr(self, '/') - self), self) >= (int)sizeof beside)
        return fail(INTERNAL, "cnikit cannot look for its bundle: its own path is too long", "Copy it to a folder with a shorter name.");
    if ((error = ask_agent(called)) != ONE_SHOT)
        return error;
    for (i = 0; i < sizeof places / sizeof *places; i++) {
        error = find_program(places[i]);
        if (error == 0)
            error = start(called, argc, argv);
        else if (error == ENOENT || error == ENOTDIR)
            continue;
        return fail_start(error);
    }
    return fail_missing();
}
