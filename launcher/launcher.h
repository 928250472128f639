/* What the launcher's two halves share: launcher.c, which starts the bundle, and agent.c, which asks the agent. */

#define ONE_SHOT -1 /* in the place of an exit code: the bundle shall serve the call */

enum { IO_FAILURE = 5, TRY_AGAIN = 11, INTERNAL = 999 }; /* codes of CNI errors, as in cni/errors.py */

extern char self[];   /* the real path of the launcher's file */
extern char spoken[]; /* the cniVersion of error objects */
#define SPOKEN_SIZE 16

/* Say why it fails; returns the exit code. */
int fail(int code, const char *text, const char *details);

/* Answer VERSION when it is asked for as runtimes do; returns the exit code or ONE_SHOT. */
int answer_version(const char *called);

/* Let the agent serve the call that came by this path; returns the exit code or ONE_SHOT. */
int ask_agent(const char *called);
