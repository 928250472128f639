/* libFuzzer target: any stdin of a call of VERSION, and as a configuration of which a version is asked. The input's first byte tells whether an end follows, or silence.
 *
 * Whatever it is, the launcher answers exactly the one question of docs/agent-protocol.md, and otherwise writes
 * nothing and leaves a stdin in which the bundle finds the same bytes.
 */

#define _GNU_SOURCE
/* Small bounds, so that small inputs reach them; a probe is silent for one millisecond. */
#define MOST_TEXT 64u
#define MOST_STRINGS 64u
#define MOST_STDIN 64u
#define SECOND 10
#include "../../launcher/agent.c"
#include "../../launcher/asked.c"

struct stamp stamp = {STAMP_MARK, "bridge", "1-0", "0"};
char self[] = "/bin/bridge";
char spoken[SPOKEN_SIZE] = "1.1.0";

static int bundled;

int has_bundle(void)
{
    return bundled;
}

static void must(int truth)
{
    if (!truth)
        abort();
}

int fail(int code, const char *text, const char *details)
{
    (void)code, (void)text, (void)details;
    abort();
}

/* Everything that can be read from a descriptor, with a zero byte behind it. */
static size_t take(int fd, char *bytes, size_t room)
{
    ssize_t got = read(fd, bytes, room - 1);

    must(got >= 0);
    bytes[got] = '\0';
    return (size_t)got;
}

/* The version that is asked for, if this is the question to the byte. */
static int asks(const char *bytes, size_t size, char *version)
{
    int end = -1;

    return sscanf(bytes, "{\"cniVersion\":\"%15[0123456789.]\"}%n", version, &end) == 1 && (size_t)end == size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char given[512] = "", found[512], version[SPOKEN_SIZE], expected[512];
    int in[2], out[2], next, code, ends;

    if (size == 0 || size > 200)
        return -1;
    ends = data[0] % 8 != 0;
    memcpy(given, data + 1, --size);
    must(setenv("CNI_COMMAND", "VERSION", 1) == 0 && pipe(in) == 0 && pipe2(out, O_NONBLOCK) == 0);
    must(write(in[1], given, size) == (ssize_t)size && dup2(in[0], 0) == 0 && dup2(out[1], 1) == 1);
    if (ends)
        must(close(in[1]) == 0);
    memset(&request, 0, sizeof request);
    used = 0;
    bundled = data[0] / 8 % 8 != 0;
    strcpy(spoken, "1.1.0");
    speak_as_asked(given, size);
    must(strlen(spoken) == 5 && strstr(SUPPORTED, spoken) != NULL);
    must((next = dup(0)) >= 0 && close(next) == 0);
    code = answer_version();
    close(next); /* of the stdin for the bundle, where one was made: a launcher becomes the bundle, which closes it */

    if (bundled && ends && size <= MOST_STDIN && asks(given, size, version)) {
        must(code == 0);
        snprintf(expected, sizeof expected, "{\"cniVersion\":\"%s\",\"supportedVersions\":" SUPPORTED "}", version);
        must(take(out[0], found, sizeof found) == strlen(expected) && strcmp(found, expected) == 0);
    } else {
        must(code == ONE_SHOT);
        must(read(out[0], found, sizeof found) < 0 && errno == EAGAIN);
        if (bundled && size > MOST_STDIN)
            size = MOST_STDIN;
        if (size > 0 || ends)
            must(take(0, found, sizeof found) == size && memcmp(found, given, size) == 0);
    }
    must(close(in[0]) == 0 && close(out[0]) == 0 && close(out[1]) == 0 && (ends || close(in[1]) == 0));
    return 0;
}
