/* What the launcher's parts share: launcher.c, which starts the bundle; agent.c, which asks the agent; asked.c, which
 * looks for a version in JSON.
 */

#pragma once

#include <stddef.h>

#define ONE_SHOT -1 /* in the place of an exit code: the bundle shall serve the call */

enum { IO_FAILURE = 5, TRY_AGAIN = 11, INTERNAL = 999 }; /* codes of CNI errors, as in cni/errors.py */

/* What this file is. cli/bundle.py writes it into the compiled program, once for each plugin, and cni/start.py reads
 * it there: strings with zero bytes behind them. Two launchers of one build differ in nothing else.
 */
#define STAMP_MARK "\x7f" "cnikit-stamp1\n"
struct stamp {
    char mark[16];
    char plugin[256]; /* its name; empty for the command */
    char build[64];   /* its bundle's folder: the version and a digest of the bundle */
    char code[64];    /* a digest of the code that its calls run, which the agent compares with its own */
};

extern struct stamp stamp;
extern char self[];   /* the real path of the launcher's file */
extern char spoken[]; /* the cniVersion of error objects */
#define SPOKEN_SIZE 16

/* Whether the bundle is where `main` will look for it. */
int has_bundle(void);

/* Say why it fails; returns the exit code. */
int fail(int code, const char *text, const char *details);

/* Answer VERSION when it is asked for as runtimes do; returns the exit code or ONE_SHOT. */
int answer_version(void);

/* Let the agent serve the call; returns the exit code or ONE_SHOT. */
int ask_agent(void);

/* Speak the version that stdin asks for. */
void hear_version(void);

/* Speak the version that a configuration asks for, if it is one that we support. */
void speak_as_asked(const char *json, size_t size);
