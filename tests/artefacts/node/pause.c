// The process that keeps a pod's namespaces: it waits, reaps the orphans that a shared PID namespace gives it, and ends
// at the signals that stop a container.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    for (int number = 0; sigwait(&signals, &number) == 0;) {
        if (number != SIGCHLD) {
            return 0;
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
    }
    return 1;
}
