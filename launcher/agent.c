/* The launcher's half that asks the resident agent: docs/agent-protocol.md. VERSION, which has no effect and is
 * asked for before everything else, it answers itself.
 *
 * Whatever is wrong with the agent, the bundle serves the call instead, as if nobody had been asked: stdin is
 * read only when somebody listens, and what was read is there to be read again; nothing else of the caller's is
 * changed, and every file that is opened here closes itself when the bundle is executed. The one exception is an
 * ADD that the agent was sent GO for: it is begun anew only when the agent is gone and a DEL has taken back what it
 * did. No byte of an answer is written before all of it is there.
 *
 * What a call costs is its system calls (VERSION: 18) and the pages it touches, so both are few.
 */

#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if !defined VERSION || !defined SUPPORTED
#error "compile with -DVERSION and -DSUPPORTED (a JSON list): cli/bundle.py does"
#endif

#define AGENT_SOCKET "/run/cnikit/agent.sock"

/* The bounds: sizes in bytes, times in milliseconds. Tests have smaller ones. */
#ifndef MOST_TEXT
#define MOST_TEXT (64u << 20)
#define MOST_STRINGS (8u << 20)
#define MOST_STDIN ((16u << 20) + 1)
#endif
#ifndef SECOND
#define SECOND 1000
#endif
#define CONNECT_BOUND (SECOND / 10)
#define SILENCE (10 * SECOND)
#define PROBE_SILENCE (SECOND / 10) /* where no configuration is needed, as `Stdin.probe` in cni/main.py */
#define READY_BOUND (5 * SECOND)
#define ANSWER_BOUND (60 * SECOND)
#define OUTPUT_BOUND (10 * SECOND)
#define UNWIND_BOUND (60 * SECOND)

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif

extern char **environ;

static struct request {
    char magic[8];
    uint32_t silent, strings, input; /* whether stdin fell silent; sizes */
    char rest[MOST_STRINGS + MOST_STDIN]; /* costs nothing where it is not touched */
} request;
static size_t used; /* of `request.rest` */

struct frame { /* the head of what comes from the agent */
    uint8_t kind, code;
    uint16_t zero;
    uint32_t first, second;
};

/* Milliseconds of a clock that nobody sets. The library would look for the vDSO, which costs more than it saves. */
static int64_t now(void)
{
    struct timespec time;

    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

/* Whether `fd` is ready (or broken) before the deadline; if not, errno says why. */
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

/* Read (POLLIN) or write (POLLOUT) exactly so many bytes; if that fails, errno says why, ECONNRESET for an end. */
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
        } else if (moved == 0) {
            errno = ECONNRESET;
            return 0;
        } else if (errno != EINTR && errno != EAGAIN)
            return 0;
    }
    return 1;
}

/* Whether stdin, stdout and stderr are open: a file that is opened would take the place of a closed one. */
static int standard_files_are_open(void)
{
    struct pollfd standard[] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}};

    return poll(standard, 3, 0) >= 0 && !((standard[0].revents | standard[1].revents | standard[2].revents) & POLLNVAL);
}

/* A connection to an agent of root's, or -1. */
static int connect_agent(void)
{
    const char *path = getenv("CNIKIT_SOCKET");
    const struct timeval bound = {0, CONNECT_BOUND * 1000};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat found;
    struct ucred peer;
    socklen_t size = sizeof peer;
    int agent;

    if (!standard_files_are_open())
        return -1;
    if (path == NULL)
        path = AGENT_SOCKET;
    if (strlen(path) >= sizeof address.sun_path || stat(path, &found) != 0)
        return -1;
    if (!S_ISSOCK(found.st_mode) || found.st_uid != 0 || (agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0)
        return -1;
    strcpy(address.sun_path, path);
    setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound); /* connect waits while the backlog is full */
    while (connect(agent, (struct sockaddr *)&address, sizeof address) != 0)
        if (errno != EINTR)
            return -1;
    return getsockopt(agent, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0 ? agent : -1;
}

/* Our own two namespaces and the pod's, if there is one; returns how many, 0 when not even ours can be opened. */
static int open_namespaces(int *fds)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK; /* a FIFO would block */
    const char *pod = getenv("CNI_NETNS");

    fds[0] = open("/proc/self/ns/net", flags);
    fds[1] = open("/proc/self/ns/mnt", flags);
    fds[2] = pod == NULL ? -1 : open(pod, flags);
    return fds[0] < 0 || fds[1] < 0 ? 0 : fds[2] < 0 ? 2 : 3;
}

/* Add a string to the request. */
static int append(const char *string)
{
    size_t size = strlen(string) + 1;

    if (size > MOST_STRINGS - used)
        return 0;
    memcpy(request.rest + used, string, size);
    used += size;
    return 1;
}

/* Begin the request with all its strings. */
static int append_strings(void)
{
    char **variable = environ;
    int fits = append(VERSION) && append(stamp.code) && append(stamp.plugin) && append(self);

    while (fits && *variable != NULL)
        fits = append(*variable++);
    request.strings = (uint32_t)used;
    return fits;
}

/* Add stdin, up to its end or to one byte too many; returns an error number, ETIMEDOUT after silence. */
static int append_stdin(int silence)
{
    const size_t limit = used + MOST_STDIN;
    ssize_t got = 1;

    while (got != 0 && used < limit) {
        if (!wait_for(0, POLLIN, now() + silence))
            return errno;
        got = read(0, request.rest + used, limit - used);
        if (got > 0)
            used += (size_t)got;
        else if (got < 0 && errno != EINTR && errno != EAGAIN)
            return errno;
    }
    return 0;
}

/* Give the bundle a stdin with what was read of ours; returns an error number or 0. */
static int restore_stdin(void)
{
    int fd = memfd_create("stdin", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("stdin", MFD_CLOEXEC); /* Linux before 6.3 */
    if (fd < 0 || !transfer(fd, POLLOUT, request.rest + request.strings, request.input, now() + OUTPUT_BOUND))
        return errno;
    return lseek(fd, 0, SEEK_SET) == 0 && dup2(fd, 0) == 0 ? 0 : errno;
}

/* Send the request, the descriptors with its first byte. */
static int send_request(int agent, const int *fds, int count, int64_t deadline)
{
    const size_t fds_size = (size_t)count * sizeof *fds;
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(3 * sizeof *fds)];
    } control = {.head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec whole = {&request, offsetof(struct request, rest) + used};
    struct msghdr message = {.msg_iov = &whole, .msg_iovlen = 1};
    ssize_t sent;

    if (count > 0) {
        control.head.cmsg_len = CMSG_LEN(fds_size);
        memcpy(CMSG_DATA(&control.head), fds, fds_size);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fds_size);
    }
    sent = sendmsg(agent, &message, MSG_DONTWAIT);
    return sent > 0 && transfer(agent, POLLOUT, (char *)&request + sent, whole.iov_len - (size_t)sent, deadline);
}

/* Receive a frame; returns its texts with a zero byte behind them. NULL when it is none, or when errno says why. */
static char *receive_frame(int agent, struct frame *frame, int64_t deadline)
{
    char *texts = request.rest + used; /* nearly always there is room */
    size_t size;

    if (!transfer(agent, POLLIN, (char *)frame, sizeof *frame, deadline))
        return NULL;
    size = (size_t)frame->first + frame->second;
    errno = EPROTO;
    if (frame->zero != 0 || size > MOST_TEXT)
        return NULL;
    if (size >= sizeof request.rest - used && (texts = malloc(size + 1)) == NULL)
        return NULL;
    texts[size] = '\0';
    return transfer(agent, POLLIN, texts, size, deadline) ? texts : NULL;
}

/* Whether this frame is READY. Keeps the version that it brings. */
static int is_ready(const struct frame *frame, const char *texts)
{
    if (frame->kind != 'R' || frame->first == 0 || frame->first >= SPOKEN_SIZE || frame->second != 0)
        return 0;
    if (strspn(texts, "0123456789.") != frame->first)
        return 0;
    strcpy(spoken, texts);
    return 1;
}

/* Say why an answer was not written, when stderr takes it; returns the exit code. */
static int fail_output(int error, int64_t deadline)
{
    if (wait_for(2, POLLOUT, deadline))
        dprintf(2, "cnikit: cannot write to stdout: %s\n", strerror(error));
    return 1;
}

/* Write an answer out, and report to the agent whether the result of an ADD was taken; returns the exit code. */
static int deliver(int agent, const struct frame *answer, char *texts, int added)
{
    const int64_t deadline = now() + OUTPUT_BOUND;
    const int written = transfer(1, POLLOUT, texts, answer->first, deadline), error = errno;

    if (added)
        transfer(agent, POLLOUT, written ? "K" : "F", 1, deadline);
    transfer(2, POLLOUT, texts + answer->first, answer->second, deadline);
    if (written)
        return answer->code;
    fail_output(error, deadline);
    if (added) /* the connection ends when the ADD is taken back */
        transfer(agent, POLLIN, request.rest, sizeof request.rest, now() + UNWIND_BOUND);
    return 1;
}

/* Take back what an agent that is gone had begun of this ADD, by a process that goes on as the same call's DEL: for that
 * one this returns 1 too. For us it returns whether the DEL has succeeded, and so whether the ADD can be begun anew.
 */
static int take_back(void)
{
    void (*child_signal)(int) = signal(SIGCHLD, SIG_DFL); /* ignored, it would cost us the exit code */
    const pid_t deletion = fork();
    pid_t ended;
    int status;

    if (deletion == 0) {
        signal(SIGCHLD, child_signal);
        if (dup2(2, 1) < 0 || setenv("CNI_COMMAND", "DEL", 1) != 0) /* the answer is the ADD's; an error is for people */
            _exit(1);
        return 1;
    }
    while ((ended = waitpid(deletion, &status, 0)) < 0 && errno == EINTR)
        ;
    signal(SIGCHLD, child_signal);
    return deletion > 0 && ended == deletion && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Send the request and follow the agent; returns the exit code or ONE_SHOT. */
static int converse(int agent, int adds, const int *fds, int count)
{
    const int64_t start = now();
    struct frame frame;
    char *texts;
    int begun = 0;

    if (!send_request(agent, fds, count, start + READY_BOUND))
        return ONE_SHOT;
    texts = receive_frame(agent, &frame, start + READY_BOUND);
    if (texts != NULL && is_ready(&frame, texts)) {
        if (!transfer(agent, POLLOUT, "G", 1, start + READY_BOUND))
            return ONE_SHOT;
        begun = 1;
        texts = receive_frame(agent, &frame, start + ANSWER_BOUND);
    }
    if (texts != NULL && frame.kind == 'A')
        return deliver(agent, &frame, texts, adds && frame.code == 0);
    /* An agent that is silent may still be at it; one whose connection has ended is not. */
    if (adds && begun && !(texts == NULL && errno == ECONNRESET && take_back()))
        return fail(TRY_AGAIN, "the agent was lost in the middle of an ADD, which could not be taken back",
                    "expected its answer within 60 s; DEL the attachment, which cleans up, then ADD it anew");
    return ONE_SHOT;
}

int answer_version(void)
{
    static const char head[] = "{\"cniVersion\":\"";
    const char *command = getenv("CNI_COMMAND"), *asked = request.rest + sizeof head - 1;
    char answer[256];
    int64_t deadline;
    size_t length;
    int error, size;

    if (command == NULL || strcmp(command, "VERSION") != 0 || !has_bundle() || !standard_files_are_open())
        return ONE_SHOT;
    error = append_stdin(PROBE_SILENCE);
    request.input = (uint32_t)used;
    length = strspn(asked, "0123456789.");
    /* What libcni sends, to the byte; any other JSON is for a JSON parser. */
    if (error == 0 && length > 0 && length < SPOKEN_SIZE && used == sizeof head - 1 + length + 2
        && memcmp(request.rest, head, sizeof head - 1) == 0 && memcmp(asked + length, "\"}", 2) == 0) {
        size = snprintf(answer, sizeof answer, "%s%.*s\",\"supportedVersions\":" SUPPORTED "}", head, (int)length, asked);
        signal(SIGPIPE, SIG_IGN);
        deadline = now() + OUTPUT_BOUND;
        return transfer(1, POLLOUT, answer, (size_t)size, deadline) ? 0 : fail_output(errno, deadline);
    }
    error = restore_stdin();
    return error == 0 ? ONE_SHOT : fail(IO_FAILURE, "cannot hand stdin on to the bundle", strerror(error));
}

int ask_agent(void)
{
    static const char *const configured[] = {"ADD", "DEL", "CHECK", "STATUS", "GC", NULL}, *const *verb = configured;
    const char *command = getenv("CNI_COMMAND");
    int fds[3], count, agent, code, error;
    void (*pipe_signal)(int);

    /* VERSION is left when it was not asked for as runtimes do, and nothing when a person looks what this is. */
    if (command == NULL || *command == '\0' || strcmp(command, "VERSION") == 0 || (agent = connect_agent()) < 0)
        return ONE_SHOT;
    if (!append_strings() || (count = open_namespaces(fds)) == 0)
        return ONE_SHOT;
    while (*verb != NULL && strcmp(command, *verb) != 0)
        verb++;
    error = append_stdin(*verb != NULL ? SILENCE : PROBE_SILENCE);
    if (*verb != NULL && error != 0 && error != ETIMEDOUT)
        return fail(IO_FAILURE, "error reading from stdin", strerror(error));
    memcpy(request.magic, "cnikit\0\2", sizeof request.magic);
    request.silent = *verb != NULL && error == ETIMEDOUT;
    request.input = (uint32_t)used - request.strings;

    pipe_signal = signal(SIGPIPE, SIG_IGN);
    code = converse(agent, strcmp(command, "ADD") == 0, fds, count);
    if (code != ONE_SHOT)
        return code;
    signal(SIGPIPE, pipe_signal);
    if (request.silent)
        return fail(IO_FAILURE, "stdin: expected the network configuration and its end, found 10 s of silence",
                    "close stdin after the configuration is written");
    error = restore_stdin();
    return error == 0 ? ONE_SHOT : fail(IO_FAILURE, "cannot hand stdin on to the bundle", strerror(error));
}

void hear_version(void)
{
    const char *command = getenv("CNI_COMMAND");

    if (command == NULL || *command == '\0')
        return; /* a person looks what this is: nothing is on stdin */
    used = 0;
    append_stdin(PROBE_SILENCE);
    speak_as_asked(request.rest, used);
}
