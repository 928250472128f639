/* The file that stands in the CNI bin directory: a small static program that lets the resident agent serve the call
 * (agent.c), or when there is none starts the bundle.
 *
 * Every plugin's file is this one with another stamp (launcher.h), which says whose it is and which build's bundle it
 * starts: so a copy, a link or a renamed file is the plugin that it was. It needs no library, no /proc, no environment
 * and no working directory: it finds its own place, looks for the bundle `.cnikit/BUILD/` beside it (then in
 * /usr/lib/cnikit), and executes the bundle's program there. When there is none, it says so as a CNI error.
 *
 * The bundle's program (PyInstaller's bootloader) would start itself twice, because it can set
 * LD_LIBRARY_PATH for the next program only, and it needs a bundled libz before that. So this program sets
 * what the bootloader would set, which saves the second start. None of it may reach the plugin's own
 * children: variables of those names that the caller had are handed over in argv, and cni/main.py puts
 * them back. The arguments are
 *
 *     PROGRAM PLUGIN SELF [NAME=VALUE...] "" [ARGUMENT...]
 *
 * PLUGIN is the name in the stamp, SELF the real path of this file, NAME=VALUE what the caller had, ARGUMENT what the
 * caller gave. SIGPIPE=ignored or SIGXFSZ=ignored among the variables says that the caller ignores the signal: Python
 * ignores both from its start on, and could not say any more what a program that it runs should inherit.
 */

#include "launcher.h"

#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
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

extern char **environ;

/* Not const: what the compiler knew would be in the code, and not what was written into the file afterwards. */
struct stamp stamp = {.mark = STAMP_MARK};

char self[PATH_MAX];
char spoken[SPOKEN_SIZE] = "1.1.0";
static char beside[PATH_MAX];  /* the folder of bundles beside it */
static char program[PATH_MAX]; /* the bundle's program, where it was looked for last */

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

/* Fill `self` from the path that the kernel was given, or if that leads nowhere from /proc, which takes longer. */
static int find_self(const char *called)
{
    return realpath(called, self) != NULL || readlink("/proc/self/exe", self, sizeof self - 1) > 0;
}

/* Append what the caller ignores of the signals that Python ignores. */
static char **ignored(char **argument)
{
    static const struct {
        int number;
        char *text;
    } signals[] = {{SIGPIPE, "SIGPIPE=ignored"}, {SIGXFSZ, "SIGXFSZ=ignored"}};
    struct sigaction found;
    size_t i;

    for (i = 0; i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i].number, NULL, &found) == 0 && found.sa_handler == SIG_IGN)
            *argument++ = signals[i].text;
    return argument;
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

/* The path of this build's program in a folder of bundles, or NULL when it is too long. */
static const char *path_in(const char *bundles)
{
    static char path[PATH_MAX];

    return snprintf(path, sizeof path, "%s/%s/" PROGRAM, bundles, stamp.build) < (int)sizeof path ? path : NULL;
}

/* Whether this build's program is in a folder of bundles. */
static int is_in(const char *bundles)
{
    const char *path = path_in(bundles);

    return path != NULL && access(path, X_OK) == 0;
}

/* Fill `beside` from the path of this file; whether it fits. */
static int find_beside(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL)
        return snprintf(beside, sizeof beside, FOLDER) > 0;
    return snprintf(beside, sizeof beside, "%.*s/" FOLDER, (int)(slash - path), path) < (int)sizeof beside;
}

int has_bundle(void)
{
    const char *called = (const char *)getauxval(AT_EXECFN);

    /* Nearly always that path is no link, and a path without links takes as many system calls as it has folders. */
    if (find_beside(called) && is_in(beside))
        return 1;
    return find_self(called) && find_beside(self) && (is_in(beside) || is_in(SYSTEM));
}

/* Fill `program` with the real path of the program in a folder of bundles; returns an error number or 0.
 *
 * The bootloader compares real paths, wants them in UTF-8, and LD_LIBRARY_PATH cannot hold ':', ';' and '$'.
 */
static int find_program(const char *bundles)
{
    const char *path = path_in(bundles);

    if (path == NULL)
        return ENAMETOOLONG;
    strcpy(program, path);
    if (realpath(path, program) == NULL)
        return errno;
    setlocale(LC_CTYPE, "C.UTF-8");
    return strpbrk(program, ":;$") != NULL || mbstowcs(NULL, program, 0) == (size_t)-1 ? EILSEQ : 0;
}

/* Become `program`; returns an error number when that failed. */
static int start(int argc, char **argv)
{
    int variables = 0, i;
    char **arguments, **environment, **argument, **variable;

    while (environ[variables] != NULL)
        variables++;
    argument = arguments = calloc((size_t)(variables + argc) + 7, sizeof *arguments);
    environment = calloc((size_t)variables + 4, sizeof *environment);
    if (arguments == NULL || environment == NULL || (variable = prepared(environment)) == NULL)
        return ENOMEM;
    *argument++ = program;
    *argument++ = stamp.plugin;
    *argument++ = self;
    for (i = 0; i < variables; i++)
        if (replaced(environ[i]))
            *argument++ = environ[i];
        else
            *variable++ = environ[i];
    argument = ignored(argument);
    *argument++ = "";
    for (i = 1; i < argc; i++)
        *argument++ = argv[i];
    execve(program, arguments, environment);
    return errno;
}

/* One CNI error object on stdout, `text` with its quotes escaped; or plain text for people. */
int fail(int code, const char *text, const char *details)
{
#ifdef PEOPLE
    (void)code;
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

/* The same for what ends a call before anybody has read its stdin, which says the version of the answer. */
static int fail_unread(const char *text, const char *details)
{
#ifndef PEOPLE
    hear_version();
#endif
    return fail(INTERNAL, text, details);
}

/* Why the program at `program` did not start. */
static int fail_start(int error)
{
    static char text[2 * PATH_MAX];

    snprintf(text, sizeof text, "cnikit " VERSION " cannot execute %s: %s", program, strerror(error));
    if (error == EILSEQ)
        return fail_unread(text, "Its path must be UTF-8, with no ':', ';' and '$'. Copy it to such a folder (cp -a).");
    return fail_unread(text, "The bundle needs this machine's architecture, glibc, and a file system without noexec.");
}

/* That there is no bundle. */
static int fail_missing(void)
{
    static char text[2 * PATH_MAX];

    snprintf(text, sizeof text, "cnikit " VERSION " has no bundle: expected the folder %s/%s or " SYSTEM "/%s", beside,
             stamp.build, stamp.build);
    return fail_unread(text, "Copy the folder " FOLDER " from beside the original file as well (cp -a), or run: make install");
}

int main(int argc, char **argv)
{
    const char *const places[] = {beside, SYSTEM};
    size_t i;
    int error;

#ifndef PEOPLE
    if ((error = answer_version()) != ONE_SHOT)
        return error;
#endif
    if (!find_self((const char *)getauxval(AT_EXECFN)))
        return fail_unread("cnikit cannot find its own place: there is no /proc/self/exe", "Call it by an absolute path, or mount /proc.");
#ifndef PEOPLE
    if ((error = ask_agent()) != ONE_SHOT)
        return error;
#endif
    if (!find_beside(self))
        return fail_unread("cnikit cannot look for its bundle: its own path is too long", "Copy it to a folder with a shorter name.");
    for (i = 0; i < sizeof places / sizeof *places; i++) {
        error = find_program(places[i]);
        if (error == 0)
            error = start(argc, argv);
        else if (error == ENOENT || error == ENOTDIR)
            continue;
        return fail_start(error);
    }
    return fail_missing();
}
