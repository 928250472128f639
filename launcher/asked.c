/* The cniVersion in a configuration, for the answer of a launcher that has no bundle to parse it. */

#define _GNU_SOURCE
#include "launcher.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#ifndef SUPPORTED
#error "compile with -DSUPPORTED (a JSON list): cli/bundle.py does"
#endif

/* The quote that ends the string that begins at `at`; `end` when there is none. */
static const char *string_end(const char *at, const char *end)
{
    while (at < end && *at != '"')
        at += *at == '\\' && at + 1 < end ? 2 : 1;
    return at;
}

/* Whether a key is cniVersion: the letters of keys count in any case, as in Go. */
static int is_version_key(const char *key, size_t size)
{
    static const char name[] = "cniVersion";

    return size == sizeof name - 1 && strncasecmp(key, name, size) == 0;
}

/* Whether a string is one of the versions that we support. */
static int is_supported(const char *version, size_t size)
{
    char quoted[SPOKEN_SIZE + 2];
    size_t i;

    if (size >= SPOKEN_SIZE)
        return 0;
    for (i = 0; i < size; i++) /* a comma in quotes stands in the list too */
        if ((version[i] < '0' || version[i] > '9') && version[i] != '.')
            return 0;
    snprintf(quoted, sizeof quoted, "\"%.*s\"", (int)size, version);
    return strstr(SUPPORTED, quoted) != NULL;
}

/* What is broken after all asks for nothing. Of two keys the last one counts, whatever its value is. */
void speak_as_asked(const char *json, size_t size)
{
    const char *at, *end = json + size, *close, *asked = NULL;
    size_t depth = 0, length = 0;
    int is_key = 0, is_version = 0;

    for (at = json; at < end; at++) {
        if (*at == '{' || *at == '[') {
            if (depth++ == 0 && *at == '[')
                return;
            is_key = depth == 1;
        } else if ((*at == '}' || *at == ']') && depth-- == 0) {
            return;
        } else if (*at == ',' && depth == 1) {
            is_key = 1;
        } else if (*at == ':' && depth == 1) {
            is_key = 0;
        } else if (*at == '"') {
            if ((close = string_end(at + 1, end)) == end)
                return;
            length = (size_t)(close - at - 1);
            if (depth == 1 && is_key) {
                is_version = is_version_key(at + 1, length);
                asked = is_version ? NULL : asked;
            } else if (depth == 1 && is_version) {
                asked = at + 1;
            }
            at = close;
        }
    }
    if (depth == 0 && asked != NULL && is_supported(asked, length = (size_t)(string_end(asked, end) - asked)))
        snprintf(spoken, SPOKEN_SIZE, "%.*s", (int)length, asked);
}
