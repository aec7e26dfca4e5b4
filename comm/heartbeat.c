/* SPDX-License-Identifier: Apache-2.0
 * Heartbeat: see heartbeat.h.
 */
#include "comm/heartbeat.h"

#include "base/err.h"
#include "base/log.h"
#include "base/thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const double beat_s = 0.25;
static const double connect_s = 5; /* a rank's patience with each of rank 0's addresses */
static const double parent_patience =
    8; /* ranks allow rank 0 so many times the silence: it may be busy with its clients */
static const char beat = '.', goodbye = 'q', abandon = 'a';
enum { MOST_ADDRESSES = 8, EXIT_CODE = 6 };

/* What rank 0 tells the others before they connect. */
struct invitation {
    uint8_t secret[16];
    uint32_t addresses[MOST_ADDRESSES]; /* network order */
    int n_addresses;
    uint16_t port; /* network order */
};

/* What a rank says first. */
struct greeting {
    uint8_t secret[16];
    int32_t rank;
    char host[64];
};

struct peer {
    int fd, rank, has_left;
    double heard_s;
    char host[64];
};

struct heartbeat {
    struct heartbeat_options options;
    int rank, n_peers;
    struct peer *peers; /* of rank 0: the others; of the others: rank 0 */
    int wake[2];        /* a pipe: stop */
    pthread_t thread;
    int has_thread;
    atomic_int abandoned;
};

/* ---- connections ------------------------------------------------------------------------------------------------ */

static void own_addresses(struct invitation *invitation)
{
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) != 0)
        return;
    for (struct ifaddrs *i = list; i && invitation->n_addresses < MOST_ADDRESSES; i = i->ifa_next)
        if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_UP) &&
            !(i->ifa_flags & IFF_LOOPBACK))
            invitation->addresses[invitation->n_addresses++] =
                ((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr.s_addr;
    freeifaddrs(list);
}

static int open_listener(struct invitation *invitation, int *fd)
{
    int err = OK;
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t n = sizeof a;
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0 || bind(*fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(*fd, 128) != 0 ||
        getsockname(*fd, (struct sockaddr *)&a, &n) != 0)
        FAIL(ERR_IO, "heartbeat: no socket: %s", strerror(errno));
    invitation->port = a.sin_port;
    own_addresses(invitation);
    if (getrandom(invitation->secret, sizeof invitation->secret, 0) != sizeof invitation->secret)
        FAIL(ERR_IO, "heartbeat: no random numbers");
out:
    return err;
}

/* All n bytes, within the time left; 0: no. */
static int read_all(int fd, void *data, size_t n, double until_s)
{
    char *p = data;
    while (n > 0) {
        struct pollfd f = {.fd = fd, .events = POLLIN};
        const double left = until_s - now_s();
        if (left <= 0 || poll(&f, 1, (int)(1000 * left) + 1) <= 0)
            return 0;
        const ssize_t got = recv(fd, p, n, 0);
        if (got <= 0)
            return 0;
        p += got;
        n -= (size_t)got;
    }
    return 1;
}

static int dial(uint32_t address, uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = address};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd f = {.fd = fd, .events = POLLOUT};
    int failure = 0;
    socklen_t n = sizeof failure;
    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
        return fd;
    if (errno == EINPROGRESS && poll(&f, 1, (int)(1000 * connect_s)) == 1 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &n) == 0 && failure == 0)
        return fd;
    close(fd);
    return -1;
}

/* A rank's way to rank 0: over the loopback on its host, else the first address that answers and knows the secret (it echoes it). */
static int join(struct comm *comm, const struct invitation *invitation, struct peer *peer)
{
    struct greeting greeting = {.rank = comm->rank};
    uint8_t echo[16];
    memcpy(greeting.secret, invitation->secret, sizeof greeting.secret);
    gethostname(greeting.host, sizeof greeting.host - 1);
    snprintf(peer->host, sizeof peer->host, "rank 0's host");
    for (int i = comm->host == 0 ? -1 : 0; i < invitation->n_addresses; i++) {
        const int fd = dial(i < 0 ? htonl(INADDR_LOOPBACK) : invitation->addresses[i], invitation->port);
        if (fd < 0)
            continue;
        if (send(fd, &greeting, sizeof greeting, MSG_NOSIGNAL) == sizeof greeting &&
            read_all(fd, echo, sizeof echo, now_s() + connect_s) &&
            memcmp(echo, invitation->secret, sizeof echo) == 0) {
            peer->fd = fd;
            return 1;
        }
        close(fd);
    }
    return 0;
}

/* Rank 0 takes the others in; strangers are shown out. How many came. */
static int receive(struct comm *comm, const struct invitation *invitation, int listener, struct peer *peers)
{
    const double until_s = now_s() + connect_s * (invitation->n_addresses + 1);
    int n = 0;
    while (n < comm->size - 1 && now_s() < until_s) {
        struct pollfd f = {.fd = listener, .events = POLLIN};
        struct greeting greeting;
        if (poll(&f, 1, 100) <= 0)
            continue;
        const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            continue;
        if (!read_all(fd, &greeting, sizeof greeting, now_s() + 1) ||
            memcmp(greeting.secret, invitation->secret, sizeof greeting.secret) != 0 || greeting.rank < 1 ||
            greeting.rank >= comm->size ||
            send(fd, invitation->secret, sizeof invitation->secret, MSG_NOSIGNAL) != sizeof invitation->secret) {
            close(fd);
            continue;
        }
        greeting.host[sizeof greeting.host - 1] = 0;
        peers[n] = (struct peer){.fd = fd, .rank = greeting.rank};
        snprintf(peers[n++].host, sizeof peers[0].host, "%s", greeting.host);
    }
    return n;
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

/* A peer is gone. Rank 0 hears it through on_lost, once; another rank ends. */
static void lose(struct heartbeat *heart, struct peer *peer, const char *how, int *told)
{
    char why[160];
    peer->has_left = 1;
    if (heart->rank != 0) {
        fprintf(stderr, "glowq: error: rank %d: rank 0 %s; ending\n", heart->rank, how);
        _exit(EXIT_CODE); /* the thread of MPI may wait for ever */
    }
    snprintf(why, sizeof why, "rank %d on %s %s", peer->rank, peer->host, how);
    if (!*told)
        heart->options.on_lost(heart->options.ctx, peer->rank, why);
    *told = 1;
}

static void hear(struct heartbeat *heart, struct peer *peer, int *told)
{
    char bytes[256];
    const ssize_t n = recv(peer->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0 && heart->options.on_abandoned && memchr(bytes, abandon, (size_t)n))
        heart->options.on_abandoned();
    if (n > 0 && memchr(bytes, goodbye, (size_t)n))
        peer->has_left = 1;
    else if (n > 0)
        peer->heard_s = now_s();
    else
        lose(heart, peer, "ended", told);
}

static void *live(void *arg)
{
    struct heartbeat *heart = arg;
    const double silence_s = heart->options.silence_s * (heart->rank == 0 ? 1 : parent_patience);
    struct pollfd *fds = calloc((size_t)heart->n_peers + 1, sizeof *fds);
    double beaten_s = 0, seen_s = now_s();
    int told = 0;
    if (!fds)
        return NULL;
    for (;;) {
        for (int i = 0; i < heart->n_peers; i++)
            fds[i] = (struct pollfd){.fd = heart->peers[i].has_left ? -1 : heart->peers[i].fd, .events = POLLIN};
        fds[heart->n_peers] = (struct pollfd){.fd = heart->wake[0], .events = POLLIN};
        poll(fds, (nfds_t)heart->n_peers + 1, (int)(1000 * beat_s));
        const double now = now_s();
        /* whoever was stopped himself has heard nobody, and it says nothing about them */
        const double missed = now - seen_s > 3 * beat_s ? now - seen_s : 0;
        seen_s = now;
        for (int i = 0; i < heart->n_peers; i++) {
            struct peer *peer = &heart->peers[i];
            peer->heard_s += missed;
            if (fds[i].revents && !peer->has_left)
                hear(heart, peer, &told);
            if (!peer->has_left && now - peer->heard_s > silence_s)
                lose(heart, peer, "has fallen silent", &told);
        }
        const int stop = fds[heart->n_peers].revents != 0;
        if (stop || now - beaten_s >= beat_s) {
            const char *say = stop ? &goodbye : atomic_load(&heart->abandoned) ? &abandon : &beat;
            for (int i = 0; i < heart->n_peers; i++)
                if (!heart->peers[i].has_left) /* a full buffer: that peer doesn't listen, and falls silent too */
                    send(heart->peers[i].fd, say, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
            beaten_s = now;
        }
        if (stop)
            break;
    }
    free(fds);
    return NULL;
}

/* ---- start and stop --------------------------------------------------------------------------------------------- */

static void heartbeat_free(struct heartbeat *heart)
{
    for (int i = 0; i < heart->n_peers; i++)
        close(heart->peers[i].fd);
    for (int i = 0; i < 2; i++)
        if (heart->wake[i] >= 0)
            close(heart->wake[i]);
    free(heart->peers);
    free(heart);
}

static int heartbeat_create(const struct comm *comm, const struct heartbeat_options *options, struct heartbeat **out)
{
    int err = OK;
    struct heartbeat *heart = calloc(1, sizeof *heart);
    if (!heart)
        FAIL(ERR_NOMEM, "a heartbeat");
    *out = heart; /* the caller frees it in any case */
    heart->options = *options;
    heart->options.silence_s = options->silence_s > 0 ? options->silence_s : 1.5;
    heart->rank = comm->rank;
    heart->wake[0] = heart->wake[1] = -1;
    if (!(heart->peers = calloc((size_t)comm->size, sizeof *heart->peers)))
        FAIL(ERR_NOMEM, "a heartbeat among %d ranks", comm->size);
out:
    return err;
}

int heartbeat_start(struct comm *comm, const struct heartbeat_options *options, struct heartbeat **out)
{
    int err = OK, listener = -1;
    struct invitation invitation = {0};
    struct heartbeat *heart = NULL;
    *out = NULL;
    if (comm->size == 1)
        return OK;
    TRY(comm_agree(comm, comm->rank == 0 ? open_listener(&invitation, &listener) : OK));
    TRY(comm_bcast(comm, &invitation, sizeof invitation, 0));
    TRY(comm_agree(comm, heartbeat_create(comm, options, &heart)));
    const int wanted = comm->rank == 0 ? comm->size - 1 : 1;
    heart->n_peers =
        comm->rank == 0 ? receive(comm, &invitation, listener, heart->peers) : join(comm, &invitation, heart->peers);
    int64_t missing = heart->n_peers < wanted || pipe2(heart->wake, O_CLOEXEC) != 0;
    TRY(comm_max_i64(comm, &missing, 1));
    if (missing) {
        log_warn("no heartbeat: not every rank reaches rank 0 by TCP; a lost rank is noticed by stalled steps alone");
        goto out;
    }
    for (int i = 0; i < heart->n_peers; i++)
        heart->peers[i].heard_s = now_s();
    err = thread_start(&heart->thread, live, heart, "the heartbeat");
    heart->has_thread = err == OK;
    TRY(comm_agree(comm, err));
    *out = heart;
    heart = NULL;
out:
    if (listener >= 0)
        close(listener);
    if (heart && heart->has_thread)
        heartbeat_stop(heart);
    else if (heart)
        heartbeat_free(heart);
    return err;
}

void heartbeat_abandon(struct heartbeat *heart)
{
    if (heart)
        atomic_store(&heart->abandoned, 1);
}

void heartbeat_stop(struct heartbeat *heart)
{
    if (!heart)
        return;
    if (write(heart->wake[1], "", 1) == 1)
        pthread_join(heart->thread, NULL);
    heartbeat_free(heart);
}
