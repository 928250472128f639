/* libFuzzer target: a hostile agent. The input is all it says; its first byte tells which call it is said to.
 *
 * Whatever it is, the launcher neither crashes nor hangs, and keeps the rule of docs/agent-protocol.md: an ADD that cannot
 * be taken back (here no process for that can be made) is not served by the bundle once GO was said, and error 11 is for
 * that alone.
 */

#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>

/* A second process would go on fuzzing. */
static pid_t no_process(void)
{
    return -1;
}

static void *room;

/* The launcher ends with its call and frees nothing; here many calls are one process. */
static void *only(size_t size)
{
    free(room);
    return room = malloc(size);
}

/* Small bounds, so that small inputs reach them. */
#define MOST_TEXT 300u
#define MOST_STRINGS 64u
#define MOST_STDIN 64u
#define malloc only
#define fork no_process
#include "../../launcher/agent.c"
#undef fork
#undef malloc

struct stamp stamp = {STAMP_MARK, "bridge", "1-0", "0"};
char self[] = "/bin/bridge";
char spoken[SPOKEN_SIZE];
static int failed; /* the code of the last error */

int has_bundle(void)
{
    return 0;
}

void speak_as_asked(const char *json, size_t size)
{
    (void)json, (void)size;
}

int fail(int code, const char *text, const char *details)
{
    failed = strlen(text) > 0 && strlen(details) > 0 && strlen(spoken) > 0 ? code : -1;
    return 1;
}

static void must(int truth)
{
    if (!truth)
        abort();
}

/* The size of a request, which the launcher has sent before anything is said. */
static size_t begin(int verb)
{
    used = 0;
    must(append(VERSION) && append(stamp.plugin) && append(self) && append(verb == 0 ? "CNI_COMMAND=ADD" : "CNI_COMMAND=DEL"));
    return offsetof(struct request, rest) + used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char heard[sizeof request + 8];
    int ends[2], adds, code, null = open("/dev/null", O_RDONLY);
    const int fds[] = {null, null, null};
    size_t sent, got = 0;
    ssize_t part;

    if (size == 0 || size > 4096)
        return -1;
    adds = data[0] % 2;
    sent = begin(!adds);
    failed = 0;
    strcpy(spoken, "1.1.0");
    must(null >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    must(write(ends[1], data + 1, size - 1) == (ssize_t)size - 1 && shutdown(ends[1], SHUT_WR) == 0);
    code = converse(ends[0], adds, fds, data[0] / 2 % 4);

    must(close(ends[0]) == 0);
    while ((part = read(ends[1], heard + got, sizeof heard - got)) > 0)
        got += (size_t)part;
    must(got >= sent && got <= sent + 2);
    must(memcmp(heard, &request, sent) == 0);
    int go = got > sent && heard[sent] == 'G';
    int taken = got > sent && heard[got - 1] == 'K';
    must(code == ONE_SHOT ? !(adds && go) : code >= 0 && code <= 255);
    must(failed == 0 || (failed == TRY_AGAIN && adds && go && code == 1 && !taken));
    must(!taken || (adds && code == 0));
    must(close(ends[1]) == 0 && close(null) == 0);
    return 0;
}
