/* Sends numbered UDP datagrams as fast as it may, by several sockets at once, each in a process of its own:
 *   flood ADDRESS PORT BYTES COUNT SOCKETS
 * A datagram begins with its sender (1 byte, from 0) and its number (4 bytes, the highest first).  For each sender a
 * line is printed at the end: how many were sent, and how often a send call had to wait because the socket was full. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int produce(const struct sockaddr_in *to, int number, size_t size, uint32_t count)
{
    unsigned char data[65536] = {0};
    uint32_t sent = 0, waited = 0, refused = 0;
    int sock = socket(AF_INET, SOCK_DGRAM, 0);

    if (sock < 0 || connect(sock, (const struct sockaddr *)to, sizeof *to) < 0) {
        perror("flood");
        return 1;
    }
    data[0] = (unsigned char)number;
    while (sent < count) {
        uint32_t order = htonl(sent);
        memcpy(data + 1, &order, sizeof order);
        if (send(sock, data, size, MSG_DONTWAIT) >= 0) {
            sent++;
        } else if (errno == EAGAIN) {
            waited++;
            if (send(sock, data, size, 0) >= 0)
                sent++;
        } else {
            refused++;   /* such as ENOBUFS: the queueing discipline has dropped it, and says so */
            sent++;
        }
    }
    printf("sender %d: %u sent, %u waited, %u refused\n", number, sent, waited, refused);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    int failed = 0, status;

    if (argc != 6 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
        fprintf(stderr, "flood ADDRESS PORT BYTES COUNT SOCKETS\n");
        return 2;
    }
    to.sin_port = htons((uint16_t)atoi(argv[2]));
    for (int number = 0; number < atoi(argv[5]); number++)
        if (fork() == 0)
            exit(produce(&to, number, (size_t)atoi(argv[3]), (uint32_t)atol(argv[4])));
    while (wait(&status) > 0)
        failed |= status;
    return failed != 0;
}
