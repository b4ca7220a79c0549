/* Raw UDP over loopback between two processes, as a baseline: no headers, no CRC, no reliability.
 *
 *   baseline_udp bandwidth SEGMENT BYTES FOOTPRINT    bytes a second with UDP_SEGMENT / UDP_GRO
 *   baseline_udp latency SIZE ROUNDS                  half a round trip, busy polling, in seconds (median)
 *   baseline_udp rate SIZE LIST COUNT                 datagrams a second, in bursts of LIST
 *
 * Sender and receiver are pinned to processors 0 and 1.  The sender keeps at most 2 MiB unread, so that nothing is
 * lost; the window is a counter in shared memory.  Buffers cycle through FOOTPRINT bytes.  Prints one number.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { WINDOW = 2 << 20, LARGEST_BURST = 64, BURST_BYTES = 65000 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void pin(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor % sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void make_pair(int *a, int *b) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, other;
    socklen_t size = sizeof name;
    int room = 16 << 20;
    *a = socket(AF_INET, SOCK_DGRAM, 0);
    *b = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(*a, (void *)&name, size) || bind(*b, (void *)&name, size)) die("bind");
    for (int i = 0; i < 2; i++) {
        int fd = i ? *b : *a;
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    getsockname(*b, (void *)&other, &size);
    if (connect(*a, (void *)&other, size)) die("connect");
    getsockname(*a, (void *)&other, &size);
    if (connect(*b, (void *)&other, size)) die("connect");
}

/* Datagrams of `segment` bytes, `count` to a burst, `total` bytes in all; returns the seconds it took. */
static double stream(size_t segment, int count, size_t total, size_t footprint) {
    int a, b, one = 1, size = (int)segment;
    size_t burst = segment * (size_t)count, sent = 0;
    volatile size_t *got = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    make_pair(&a, &b);
    if (setsockopt(b, IPPROTO_UDP, UDP_GRO, &one, sizeof one)) die("UDP_GRO");
    if (setsockopt(a, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size)) die("UDP_SEGMENT");
    if (footprint < 65536) footprint = 65536;
    pid_t child = fork();
    if (child == 0) {
        char *buffer = malloc(footprint + 65536);
        size_t at = 0, n = 0;
        pin(1);
        memset(buffer, 1, footprint + 65536);
        while (n < total) {
            ssize_t r = recv(b, buffer + at, 65536, MSG_DONTWAIT);
            if (r <= 0) continue;
            n += (size_t)r;
            at = (at + (size_t)r) % footprint;
            *got = n;
        }
        _exit(0);
    }
    pin(0);
    char *buffer = malloc(footprint + 65536);
    memset(buffer, 2, footprint + 65536);
    size_t at = 0;
    double start = now();
    while (sent < total) {
        size_t part = total - sent < burst ? total - sent : burst;
        while (sent - *got > WINDOW) sched_yield();
        ssize_t r = send(a, buffer + at, part, 0);
        if (r < 0 && errno != EAGAIN && errno != ENOBUFS) die("send");
        if (r > 0) {
            sent += (size_t)r;
            at = (at + (size_t)r) % footprint;
        }
    }
    waitpid(child, 0, 0);
    return now() - start;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double latency(size_t size, int rounds) {
    int a, b;
    char buffer[65536] = {0};
    make_pair(&a, &b);
    pid_t child = fork();
    if (child == 0) {
        pin(1);
        for (int i = 0; i < rounds; i++) {
            while (recv(b, buffer, sizeof buffer, MSG_DONTWAIT) < 0) {}
            send(b, buffer, size, 0);
        }
        _exit(0);
    }
    pin(0);
    double *times = malloc(sizeof(double) * (size_t)rounds);
    for (int i = 0; i < rounds; i++) {
        double start = now();
        send(a, buffer, size, 0);
        while (recv(a, buffer, sizeof buffer, MSG_DONTWAIT) < 0) {}
        times[i] = (now() - start) / 2;
    }
    waitpid(child, 0, 0);
    qsort(times, (size_t)rounds, sizeof *times, compare);
    return times[rounds / 2];
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "bandwidth")) {
        size_t segment = strtoull(argv[2], 0, 0), total = strtoull(argv[3], 0, 0);
        int count = (int)(BURST_BYTES / segment);
        if (count > LARGEST_BURST) count = LARGEST_BURST;
        printf("%.0f\n", (double)total / stream(segment, count, total, strtoull(argv[4], 0, 0)));
    } else if (argc == 4 && !strcmp(argv[1], "latency")) {
        printf("%.9f\n", latency(strtoull(argv[2], 0, 0), atoi(argv[3])));
    } else if (argc == 5 && !strcmp(argv[1], "rate")) {
        size_t size = strtoull(argv[2], 0, 0), count = strtoull(argv[4], 0, 0);
        printf("%.0f\n", (double)count / stream(size, atoi(argv[3]), size * count, 65536));
    } else {
        fprintf(stderr, "usage: baseline_udp bandwidth|latency|rate ... (see the source)\n");
        return 2;
    }
    return 0;
}
