/* A small server with a bug that leaks memory, for `hp demo`.
 *
 *     cc -O2 -g -pthread server.c             the old build
 *     cc -O2 -g -pthread -DFIXED server.c     the new build
 *
 * It listens on a free port of the loopback interface, prints the port, and serves each
 * connection in a thread of its own until its standard input ends. One line is one request. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINE = 128, REPLY_LIMIT = 36 };

struct session {
    char text[16];
    char token[32];
    unsigned long requests;
};

static unsigned long served;

/* "echo LENGTH TEXT": sends LENGTH bytes of TEXT back. */
static int echo(struct session *session, const char *arguments, char *reply) {
    char *text;
    long length = strtol(arguments, &text, 10);
    if (*text == ' ')
        text++;
    memset(session->text, 0, sizeof session->text);
    strncpy(session->text, text, sizeof session->text - 1);
#ifdef FIXED
    size_t sent = strlen(session->text);
    if (length < 0 || (size_t)length > sent)
        return sprintf(reply, "error: %ld bytes asked for, %zu sent", length, sent);
#endif
    if (length < 0 || length > REPLY_LIMIT)
        length = REPLY_LIMIT;
    memcpy(reply, session, length);
    return (int)length;
}

/* "count": how many requests this session has made. */
static int count(struct session *session, const char *arguments, char *reply) {
    (void)arguments;
    return sprintf(reply, "%lu", session->requests);
}

static const struct command {
    const char *name;
    int (*run)(struct session *, const char *arguments, char *reply);
} commands[] = {{"echo ", echo}, {"count", count}};

static int handle(struct session *session, const char *line, char *reply) {
    session->requests++;
    __atomic_add_fetch(&served, 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        size_t length = strlen(commands[i].name);
        if (strncmp(line, commands[i].name, length) == 0)
            return commands[i].run(session, line + length, reply);
    }
    return sprintf(reply, "error: no such command");
}

static void *serve(void *argument) {
    int socket = (int)(long)argument;
    struct session session = {.token = "password=hunter2"};
    FILE *in = fdopen(socket, "r");
    char line[LINE], reply[LINE];
    while (in && fgets(line, sizeof line, in)) {
        line[strcspn(line, "\r\n")] = 0;
        int length = handle(&session, line, reply);
        for (int i = 0; i < length; i++)
            if (reply[i] < ' ')
                reply[i] = '.';
        reply[length++] = '\n';
        if (write(socket, reply, (size_t)length) != length)
            break;
    }
    if (in)
        fclose(in);
    return NULL;
}

static void *listen_for_clients(void *argument) {
    int listener = (int)(long)argument, on = 1;
    for (;;) {
        pthread_t thread;
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (pthread_create(&thread, NULL, serve, (void *)(long)client) == 0)
            pthread_detach(thread);
        else
            close(client);
    }
    return NULL;
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;
    char ignored;
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 16) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        pthread_create(&thread, NULL, listen_for_clients, (void *)(long)listener) != 0) {
        perror("server");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    while (read(0, &ignored, 1) > 0)
        continue;
    return 0;
}
