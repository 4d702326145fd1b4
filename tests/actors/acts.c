/*
 * Acts that a scripting language cannot do, in one static program: `acts NAME ARGUMENT...`.
 *
 * Exits 0 when the act succeeded, and with the errno of the call that failed otherwise. Needs no library at run time, so
 * that nothing but the act itself opens a file. It decides nothing: the test knows what ought to have happened.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct clone_request {		/* struct clone_args, up to the field that names a cgroup */
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ULL

static int show(int fd)
{
	char buffer[4096];
	ssize_t got;

	if (fd < 0)
		return errno;
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		if (write(STDOUT_FILENO, buffer, got) != got)
			return errno;
	return got < 0 ? errno : 0;
}

static int cat(char **words)
{
	return show(open(words[0], O_RDONLY));
}

static char *late_path;

static void *after_main(void *main_thread)
{
	pthread_join(*(pthread_t *)main_thread, NULL);
	exit(show(open(late_path, O_RDONLY)));
}

/* The process goes on after its first thread has ended: whoever looks at that thread alone has lost it. */
static int late(char **words)
{
	static pthread_t first;
	pthread_t second;

	late_path = words[0];
	first = pthread_self();
	if (pthread_create(&second, NULL, after_main, &first))
		return EAGAIN;
	pthread_exit(NULL);
}

/* words: a file to read, and the folder of the cgroup that the reading child is to be born in. */
static int into_cgroup(char **words)
{
	struct clone_request request = { .flags = INTO_CGROUP, .exit_signal = SIGCHLD };
	int folder = open(words[1], O_RDONLY | O_DIRECTORY), status;
	pid_t child;

	if (folder < 0)
		return errno;
	request.cgroup = folder;
	child = syscall(SYS_clone3, &request, sizeof(request));
	if (child < 0)
		return errno;
	if (child == 0)
		_exit(show(open(words[0], O_RDONLY)));
	if (waitpid(child, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
}

/* words: a file; it is read by a child that this process's own parent gets, not this process. */
static int siblings(char **words)
{
	int line[2], result = ECHILD;
	pid_t child;

	if (pipe(line) < 0)
		return errno;
	child = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	if (child < 0)
		return errno;
	if (child == 0) {
		result = show(open(words[0], O_RDONLY));
		_exit(write(line[1], &result, sizeof(result)) < 0);
	}
	close(line[1]);
	return read(line[0], &result, sizeof(result)) == sizeof(result) ? result : ECHILD;
}

/* words: a file, and how many processes live and die before it is read: whoever lists processes has a long list then. */
static int many_lives(char **words)
{
	for (long i = 0; i < atol(words[1]); i++) {
		pid_t child = fork();

		if (child == 0)
			_exit(0);
		if (child < 0 || waitpid(child, NULL, 0) < 0)
			return errno;
	}
	return show(open(words[0], O_RDONLY));
}

/* The parent stands still until the child has ended. Not by clone3, which a sandbox may not offer at all. */
static int vfork_cat(char **words)
{
	int status;
	pid_t child = syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);

	if (child < 0)
		return errno;
	if (child == 0)
		_exit(show(open(words[0], O_RDONLY)));
	if (waitpid(child, &status, 0) < 0)
		return errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
}

static void *entry_of(int ring, size_t size, off_t offset)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset);
}

/* Opens a file by a ring, where no open system call is made. */
static int uring(char **words)
{
	struct io_uring_params setup = {};
	int ring = syscall(SYS_io_uring_setup, 4, &setup);
	struct io_uring_sqe *request;
	struct io_uring_cqe *answer;
	char *asked, *answered;
	unsigned int tail;

	if (ring < 0)
		return errno;
	asked = entry_of(ring, setup.sq_off.array + setup.sq_entries * sizeof(unsigned int), IORING_OFF_SQ_RING);
	answered = entry_of(ring, setup.cq_off.cqes + setup.cq_entries * sizeof(*answer), IORING_OFF_CQ_RING);
	request = entry_of(ring, setup.sq_entries * sizeof(*request), IORING_OFF_SQES);
	if (asked == MAP_FAILED || answered == MAP_FAILED || (void *)request == MAP_FAILED)
		return errno;
	memset(request, 0, sizeof(*request));
	request->opcode = IORING_OP_OPENAT;
	request->fd = AT_FDCWD;
	request->addr = (uintptr_t)words[0];
	request->open_flags = O_RDONLY;
	tail = *(unsigned int *)(asked + setup.sq_off.tail);
	((unsigned int *)(asked + setup.sq_off.array))[tail & (setup.sq_entries - 1)] = 0;
	__atomic_store_n((unsigned int *)(asked + setup.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return errno;
	answer = (struct io_uring_cqe *)(answered + setup.cq_off.cqes);
	if (answer->res < 0)
		return -answer->res;
	return show(answer->res);
}

/* Types a line into the controlling terminal, as if the person had. */
static int type_ahead(char **words)
{
	for (char *letter = words[0]; *letter; letter++)
		if (ioctl(STDIN_FILENO, TIOCSTI, letter) < 0)
			return errno;
	return 0;
}

#ifdef __x86_64__
/* The same through the 32-bit entry of the kernel, where every call has another number. */
static int cat_32bit(char **words)
{
	static char path[4096];		/* a static program's data lies below 4 GiB */
	int fd;

	strncpy(path, words[0], sizeof(path) - 1);
	__asm__ volatile("int $0x80" : "=a"(fd) : "a"(5), "b"(path), "c"(O_RDONLY), "d"(0) : "memory");
	return fd < 0 ? -fd : show(fd);
}
#endif

/* What a storm of opens met. It succeeds when even one of them gets the file. */
static struct {
	char *path, *other;
	long times;
	int opened, refused, missing, stop;
} storming;

static int tell_storm(void)
{
	printf("opened %d refused %d missing %d\n", storming.opened, storming.refused, storming.missing);
	fflush(stdout);
	return storming.opened ? 0 : EACCES;
}

static void ask_once(char *path, int flags)
{
	int fd = open(path, O_RDONLY | flags, 0600);

	if (fd >= 0)
		close(fd);
	__atomic_add_fetch(fd >= 0 ? &storming.opened : errno == EACCES ? &storming.refused : &storming.missing, 1,
			   __ATOMIC_RELAXED);
}

static void *ask_often(void *unused)
{
	(void)unused;
	for (long i = 0; i < storming.times; i++) {
		ask_once(storming.path, 0);
		if (storming.other)
			ask_once(storming.other, 0);
	}
	return NULL;
}

static void *rename_often(void *unused)
{
	char *names[] = { strdup(storming.path), strdup(storming.other) };

	(void)unused;
	for (int i = 0; i < 2; i++)
		*strrchr(names[i], '/') = '\0';
	for (int i = 0; !__atomic_load_n(&storming.stop, __ATOMIC_RELAXED); i = !i)
		rename(names[i], names[!i]);
	return NULL;
}

static void run_threads(long count, void *(*work)(void *))
{
	pthread_t threads[128];
	long made = 0;

	while (made < count && made < 128 && !pthread_create(&threads[made], NULL, work, NULL))
		made++;
	while (made--)
		pthread_join(threads[made], NULL);
}

/* words: a file, threads, opens of each; all on one processor. */
static int storm(char **words)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	storming.path = words[0];
	storming.times = atol(words[2]);
	run_threads(atol(words[1]), ask_often);
	return tell_storm();
}

/* words: a file and the name that it has when its folder is renamed, which happens all the time; opens of each. */
static int rename_storm(char **words)
{
	pthread_t renaming;

	storming.path = words[0];
	storming.other = words[1];
	storming.times = atol(words[2]);
	if (pthread_create(&renaming, NULL, rename_often, NULL))
		return EAGAIN;
	run_threads(4, ask_often);
	__atomic_store_n(&storming.stop, 1, __ATOMIC_RELAXED);
	pthread_join(renaming, NULL);
	return tell_storm();
}

static void *fork_often(void *unused)
{
	int status;

	(void)unused;
	for (long i = 0; i < storming.times; i++) {
		pid_t child = fork();

		if (child == 0) {
			int fd = open(storming.path, O_RDONLY);

			_exit(fd >= 0 ? 0 : errno);
		}
		if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFEXITED(status))
			continue;
		__atomic_add_fetch(!WEXITSTATUS(status) ? &storming.opened : WEXITSTATUS(status) == EACCES ?
				   &storming.refused : &storming.missing, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *fork_after_main(void *main_thread)
{
	pthread_join(*(pthread_t *)main_thread, NULL);
	run_threads(4, fork_often);
	exit(tell_storm());
}

/* words: a file, forks of each thread; the first thread has ended when the forks begin. */
static int fork_storm(char **words)
{
	static pthread_t first;
	pthread_t second;

	storming.path = words[0];
	storming.times = atol(words[1]);
	first = pthread_self();
	if (pthread_create(&second, NULL, fork_after_main, &first))
		return EAGAIN;
	pthread_exit(NULL);
}

/* words: a folder, files to make in it: many different refusals, so that each is a record of its own. */
static int many(char **words)
{
	char path[4096];

	for (long i = 0; i < atol(words[1]); i++) {
		snprintf(path, sizeof(path), "%s/%ld", words[0], i);
		ask_once(path, O_CREAT);
	}
	return tell_storm();
}

static const struct {
	const char *name;
	int (*act)(char **words);
	int words;
} acts[] = {
	{ "cat", cat, 1 },
	{ "late", late, 1 },
	{ "into-cgroup", into_cgroup, 2 },
	{ "vfork", vfork_cat, 1 },
	{ "siblings", siblings, 1 },
	{ "many-lives", many_lives, 2 },
	{ "uring", uring, 1 },
	{ "type-ahead", type_ahead, 1 },
	{ "storm", storm, 3 },
	{ "rename-storm", rename_storm, 3 },
	{ "fork-storm", fork_storm, 2 },
	{ "many", many, 2 },
#ifdef __x86_64__
	{ "cat-32bit", cat_32bit, 1 },
#endif
};

int main(int count, char **words)
{
	for (size_t i = 0; i < sizeof(acts) / sizeof(*acts); i++)
		if (count == acts[i].words + 2 && !strcmp(words[1], acts[i].name))
			return acts[i].act(words + 2);
	fprintf(stderr, "usage: acts NAME ARGUMENT...\n");
	return 255;
}
