/* An MCP server whose answer is ready: between its reading, in a way that it is told, and its writing is nothing. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static const char answer[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n";
static char text[65536];
/* Comes behind the question, when the call that sent it has ended. */
enum { MORE = 4096, TINY = 1000 };

/* The first thread answers as soon as the second one has ended its call. */
static volatile ssize_t read_there;

static void *read_in_a_thread(void *unused)
{
	(void)unused;
	read_there = read(0, text, sizeof(text));
	return 0;
}

/* In pieces that hold nothing by themselves, until a call is among them. */
static ssize_t read_in_pieces(size_t length, int flags)
{
	ssize_t got = 0, one;

	do {
		one = flags < 0 ? read(0, text + got, length) : recv(0, text + got, length, flags);
		got += one > 0 ? one : 0;
	} while (one > 0 && got + length < sizeof(text) && !(memmem(text, got, "tools/call", 10) && text[got - 1] == '\n'));
	return got;
}

int main(int count, char **words)
{
	struct iovec vectors[2] = { { text, 7 }, { text + 7, sizeof(text) - 7 } };
	struct msghdr header = { .msg_iov = vectors, .msg_iovlen = 2 };
	struct mmsghdr several = { .msg_hdr = header };
	static struct iovec tiny[TINY];
	const char *way = count > 1 ? words[1] : "read";
	int other[2], in = 0, waiting = 0, at = 1;
	ssize_t got = 0;
	pthread_t thread;

	if (!strcmp(way, "elsewhere")) {
		in = dup(0);
		close(0);
		open("/dev/null", O_RDONLY);
	}
	if (!strcmp(way, "reopened"))
		in = open("/proc/self/fd/0", O_RDONLY);
	if (!strcmp(way, "splice") || !strcmp(way, "tee"))
		while (!ioctl(0, FIONREAD, &waiting) && waiting < MORE)
			sched_yield();
	for (waiting = 0; waiting < TINY; waiting++)
		tiny[waiting] = (struct iovec){ text + waiting, 1 };
	if (!strcmp(way, "tiny"))
		got = readv(0, tiny, TINY);
	else if (!strcmp(way, "pieces"))
		got = read_in_pieces(7, -1);
	else if (!strcmp(way, "until"))
		got = read_in_pieces(4096, -1);
	else if (!strcmp(way, "offset") && !setsockopt(0, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof(at)))
		got = read_in_pieces(7, MSG_PEEK);
	else if (!strcmp(way, "peekmsg"))
		got = recvmsg(0, &header, MSG_PEEK);
	else if (!strcmp(way, "vmsplice"))
		got = vmsplice(0, vectors, 2, 0);
	else if (!strcmp(way, "thread") && !pthread_create(&thread, 0, read_in_a_thread, 0)) {
		while (!read_there)
			;
		got = read_there;
	} else if (!strcmp(way, "splice-now") && !pipe(other))
		got = splice(0, 0, other[1], 0, sizeof(text), 0);
	else if (!strcmp(way, "tee-now") && !pipe(other))
		got = tee(0, other[1], sizeof(text), 0);
	else if (!strcmp(way, "file"))
		got = splice(0, 0, open("spliced", O_WRONLY | O_CREAT | O_TRUNC, 0600), 0, sizeof(text), 0);
	else if (!strcmp(way, "bytes"))
		while (read(0, text + got, 1) == 1 && text[got++] != '\n')
			;
	else if (!strcmp(way, "readv"))
		got = readv(0, vectors, 2);
	else if (!strcmp(way, "preadv2"))
		got = preadv2(0, vectors, 2, -1, 0);
	else if (!strcmp(way, "recv"))
		got = recv(0, text, sizeof(text), 0);
	else if (!strcmp(way, "peek"))
		got = recv(0, text, 1, MSG_PEEK) + recv(0, text, sizeof(text), MSG_PEEK);
	else if (!strcmp(way, "recvmsg"))
		got = recvmsg(0, &header, 0);
	else if (!strcmp(way, "recvmmsg"))
		got = recvmmsg(0, &several, 1, 0, 0);
	else if (!strcmp(way, "splice") && !pipe(other))
		got = splice(0, 0, other[1], 0, sizeof(text), 0);
	else if (!strcmp(way, "tee") && !pipe(other))
		got = tee(0, other[1], sizeof(text), 0);
	else
		got = read(in, text, sizeof(text));
	if (got > 0 && write(1, answer, sizeof(answer) - 1) > 0)
		while (read(in, text, sizeof(text)) > 0)
			;
	return 0;
}
