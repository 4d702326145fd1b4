/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The record of a system call that has ended, wherever that was noticed. */
#ifndef MG_CALLS_H
#define MG_CALLS_H

#include <linux/fcntl.h>
#include "mg_refused.h"
#include "mg_scratch.h"
#include "mg_spoken.h"
#include "mg_syscalls.h"
#include "mg_unix.h"

enum {
	MG_EPERM = 1,
	MG_ENOENT = 2,
	MG_EACCES = 13,
	MG_EBUSY = 16,
	MG_EXDEV = 18,
	MG_EROFS = 30,
	MG_ENOSYS = 38,
	MG_RENAME_EXCHANGE = 2,
	MG_AT_REMOVEDIR = 0x200,
	MG_AT_SYMLINK_NOFOLLOW = 0x100,
	MG_AT_SYMLINK_FOLLOW = 0x400,
	MG_IN_DONT_FOLLOW = 0x2000000,
	MG_TIOCSTI = 0x5412,
	MG_TIOCLINUX = 0x541c,
	MG_SUBVOL_CREATE = 0x5000940e,
	MG_SUBVOL_CREATE_V2 = 0x50009418,
	MG_SNAP_CREATE = 0x50009401,
	MG_SNAP_CREATE_V2 = 0x50009417,
	MG_SNAP_DESTROY = 0x5000940f,
	MG_SNAP_DESTROY_V2 = 0x5000943f,
	MG_SUBVOL_SETFLAGS = 0x4008941a,
	MG_S_IFMT = 0xf000,
	MG_S_IFREG = 0x8000,
	MG_S_IFDIR = 0x4000,
	MG_S_IFCHR = 0x2000,
	MG_S_IFBLK = 0x6000,
	MG_S_IFSOCK = 0xc000,
	MG_DESCRIPTOR_NAME = 48, /* characters in which a name of a descriptor of one's own has its number */
	MG_CLONE_NEW = 0x7e020080, /* every namespace flag */
};

struct mg_open_key {
	__u64 life;
	__u64 inode;
	__u32 generation;
	__u32 device;
	__u32 pid;
	__u8 access;
	__u8 created;
	__u16 reserved;
};

/* Opens: the oldest make room, and what they had counted but not sent goes with them. */
struct mg_opens {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct mg_open_key));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_open_sums, struct mg_opens);

/* --- opens that succeeded --- */

static __always_inline __u8 mg_file_kind(struct file *file, struct inode *inode)
{
	struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);

	switch (BPF_CORE_READ(inode, i_mode) & MG_S_IFMT) {
	case MG_S_IFREG:
		return BPF_CORE_READ(mnt, mnt_flags) & MG_MNT_INTERNAL ? MG_MEMFD : MG_REGULAR;
	case MG_S_IFDIR:
		return MG_DIRECTORY;
	case MG_S_IFCHR:
	case MG_S_IFBLK:
		return MG_DEVICE;
	}
	return MG_OTHER;
}

__noinline int mg_opened(const struct mg_session *session, __u64 fd)
{
	struct file *file = mg_own_file(fd);
	struct inode *inode = (void *)MG_ADDRESS(struct file, file, f_inode);
	unsigned int mode = MG_READ(struct file, file, f_mode);
	struct mg_open_key key = {};
	struct mg_scratch *scratch;
	struct mg_open *record;
	__u64 count, series;
	__u8 cut = 0;

	if (!session || !inode)
		return 0;
	/* O_PATH is no access, but what a later /proc/PID/fd/N/... stands for can only be told with it. */
	if (!(mode & MG_FMODE_PATH))
		key.access = (mode & MG_FMODE_READ ? MG_READ : 0) | (mode & MG_FMODE_WRITE ? MG_WRITE : 0);
	key.created = !!(mode & MG_FMODE_CREATED);
	key.life = mg_life();
	key.inode = MG_READ(struct inode, inode, i_ino);
	key.generation = MG_READ(struct inode, inode, i_generation);
	key.device = MG_READ(struct super_block, MG_READ(struct inode, inode, i_sb), s_dev);
	key.pid = bpf_get_current_pid_tgid() >> 32;
	count = mg_tally(session, mg_of_slot(&mg_open_sums, session->slot), &key, &series);
	if (!count)
		return 0;
	scratch = mg_claim(session, 0);
	if (!scratch)
		return 0;
	record = (void *)scratch->record;
	mg_fill_head(&record->head, MG_RECORD_OPEN);
	record->series = series;
	record->count = count;
	record->fd = fd;
	record->reserved = 0;
	record->access = key.access;
	record->created = key.created;
	record->file_kind = mg_file_kind(file, inode);
	record->path_length = mg_put_path(scratch, (__u64)&file->f_path, sizeof(*record), &cut);
	record->cut = cut;
	if (record->path_length <= MG_PATH_BYTES)
		mg_send(session, record, sizeof(*record) + record->path_length, 0);
	mg_release(scratch);
	return 0;
}

/* --- changes, and calls on paths that were refused --- */

struct mg_hashing {
	struct mg_scratch *scratch;
	__u64 hash[2];
};

static long mg_hash_word(__u32 index, void *data)
{
	struct mg_hashing *hashing = data;
	__u32 at = (sizeof(struct mg_path_call) + index * 8) & MG_RECORD_MASK;
	__u64 word = *(__u64 *)&hashing->scratch->record[at];

	hashing->hash[0] = (hashing->hash[0] ^ word) * 0x9e3779b97f4a7c15ull;
	hashing->hash[0] ^= hashing->hash[0] >> 29;
	hashing->hash[1] = (hashing->hash[1] + word) * 0xc2b2ae3d27d4eb4full;
	hashing->hash[1] ^= hashing->hash[1] >> 31;
	return 0;
}

/* Identical refusals of one process become one aggregate; the strings decide, all of them. */
static __always_inline __u64 mg_tally_refused(const struct mg_session *session, struct mg_scratch *scratch, __u32 end,
					      __u32 number)
{
	struct mg_path_call *record = (void *)scratch->record;
	struct mg_hashing hashing = { .scratch = scratch };
	struct mg_refused_key key = {};
	__u32 words = (end - (__u32)sizeof(*record) + 7) / 8;

	/* The kernel refuses a loop count with high bits set, and the compiler leaves some in when it folds the sum. */
	barrier_var(words);
	if (words > MG_RECORD_MASK / 8)
		words = MG_RECORD_MASK / 8;
	__builtin_memset(&scratch->record[end & MG_RECORD_MASK], 0, 8);
	bpf_loop(words, mg_hash_word, &hashing, 0);
	key.life = mg_life();
	key.hash[0] = hashing.hash[0];
	key.hash[1] = hashing.hash[1];
	key.pid = record->head.pid;
	key.number = number;
	key.result = record->result;
	key.access = record->access;
	return mg_tally(session, mg_of_slot(&mg_refused_sums, session->slot), &key, &record->series);
}

/* The directory that a relative path starts from, or the file itself for an empty path. */
static __always_inline __u32 mg_put_base(struct mg_scratch *scratch, int fd, __u32 at, __u8 *cut)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file *file;

	if (fd == AT_FDCWD)
		return mg_put_path(scratch, (__u64)&BPF_CORE_READ(task, fs)->pwd, at, cut);
	file = mg_own_file((__u32)fd);
	return file ? mg_put_path(scratch, (__u64)&file->f_path, at, cut) : 0;
}

/* A name such as /proc/self/fd/7 leads to what the descriptor stands for, which nobody can tell once the process has ended. */
struct mg_descriptor_name {
	struct mg_scratch *scratch;
	__u32 at;
	int fd; /* what was found; negative: nothing */
	__u32 number;
	__u8 digits;
	__u8 follows; /* how much of "fd/" lies before this character; 3: all, so that digits are a descriptor's */
};

static long mg_descriptor_step(__u32 index, void *data)
{
	struct mg_descriptor_name *name = data;
	char one = name->scratch->record[(name->at + index) & MG_RECORD_MASK];

	if (name->follows == 3 && one >= '0' && one <= '9') {
		name->number = name->number * 10 + (one - '0');
		return ++name->digits > 7;
	}
	if (name->digits && (!one || one == '/')) {
		name->fd = name->number;
		return 1;
	}
	if (name->digits) { /* as in fd/7x: no descriptor, and nothing begins with its last letter */
		name->digits = name->number = 0;
		name->follows = 4;
		return 0;
	}
	if (one == '/')
		name->follows = name->follows == 2 ? 3 : 0;
	else if (one == 'f')
		name->follows = name->follows == 0 || name->follows == 3 ? 1 : 4; /* only behind a slash */
	else
		name->follows = one == 'd' && name->follows == 1 ? 2 : 4;
	return !one;
}

/* The same byte in each of a word's. */
#define MG_EIGHT(byte) ((byte) * 0x0101010101010101ull)

static __always_inline __u64 mg_eight_at(const struct mg_scratch *scratch, __u32 at)
{
	return *(const __u64 *)&scratch->record[at & MG_RECORD_MASK];
}

/* Is "/fd/" in the string at `at`? Nearly none has it, and words are sooner read than characters. It may lie behind the
 * end. A function of its own, as there is little stack where it is called.
 */
__noinline int mg_may_name_descriptor(struct mg_scratch *scratch, __u32 at)
{
	__u64 word, next, differ, found = 0;
	__u32 i;

	if (!scratch)
		return 0;
	next = mg_eight_at(scratch, at);
#pragma clang loop unroll(disable)
	for (i = 8; i <= MG_DESCRIPTOR_NAME; i += 8) {
		word = next;
		next = mg_eight_at(scratch, at + i);
		/* Each byte, and the three that follow it. */
		differ = (word ^ MG_EIGHT('/')) | ((word >> 8 | next << 56) ^ MG_EIGHT('f')) |
			 ((word >> 16 | next << 48) ^ MG_EIGHT('d')) | ((word >> 24 | next << 40) ^ MG_EIGHT('/'));
		found |= (differ - MG_EIGHT(1)) & ~differ & MG_EIGHT(0x80);
	}
	return !!found;
}

/* The first descriptor that the string at `at` names; negative: none. */
static __always_inline int mg_named_descriptor(struct mg_scratch *scratch, __u32 at)
{
	struct mg_descriptor_name name = { .scratch = scratch, .at = at, .fd = -1, .follows = 4 };

	if (!mg_may_name_descriptor(scratch, at))
		return -1;
	bpf_loop(MG_DESCRIPTOR_NAME, mg_descriptor_step, &name, 0);
	return name.fd;
}

/* /proc/self is the whole process: it does not name the descriptors of a thread that took a table of its own. */
static __always_inline int mg_shares_descriptors(void)
{
	__u64 task = bpf_get_current_task(), leader = MG_ADDRESS(struct task_struct, task, group_leader);

	return MG_ADDRESS(struct task_struct, task, files) == MG_ADDRESS(struct task_struct, leader, files);
}

struct mg_named {
	__u16 base_length;
	__u16 path_length;
	__u16 stands;	/* the base is where the thread stands */
	__u16 in_proc;	/* this path, or one before it, leads through /proc, where names may be the caller's own */
};

static __always_inline int mg_begins_in_proc(const struct mg_scratch *scratch, __u32 at)
{
	static const char folder[] = "/proc/";
	__u32 i;

#pragma unroll
	for (i = 0; i < sizeof(folder) - 1; i++)
		if (scratch->record[(at + i) & MG_RECORD_MASK] != folder[i])
			return 0;
	return 1;
}

/* Append base and path in this order. An absolute path has one only when it leads through a descriptor. */
__noinline int mg_put_named(struct mg_scratch *scratch, int fd, __u64 string, __u32 at, struct mg_named *named)
{
	char first = 0;
	__u8 cut = 0;

	if (!scratch || !named)
		return 0;
	named->base_length = 0;
	named->path_length = 0;
	if (string)
		bpf_probe_read_user(&first, 1, (void *)string);
	named->stands = first != '/' && fd == AT_FDCWD;
	if (first == '/') {
		named->path_length = mg_put_user_string(scratch, string, at, &cut);
		named->in_proc |= mg_begins_in_proc(scratch, at);
		fd = mg_shares_descriptors() ? mg_named_descriptor(scratch, at) : -1;
		if (fd < 0)
			return cut;
		cut = 0;
	}
	named->base_length = mg_put_base(scratch, fd, at, &cut);
	if (string)
		named->path_length = mg_put_user_string(scratch, string, at + named->base_length, &cut);
	return cut;
}

/* Append where /proc/self/cwd leads, which nobody can tell any more once the process has gone elsewhere. Threads may stand apart:
 * of a process the first one counts, and of /proc/thread-self the caller.
 */
__noinline int mg_put_cwd(struct mg_scratch *scratch, __u32 path_at, __u32 at)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 length;
	__u8 cut = 0;

	if (!scratch)
		return 0;
	if (!mg_begins_in_proc(scratch, path_at) || scratch->record[(path_at + sizeof("/proc/") - 1) & MG_RECORD_MASK] != 't')
		task = BPF_CORE_READ(task, group_leader);
	length = mg_put_path(scratch, (__u64)&BPF_CORE_READ(task, fs)->pwd, at, &cut);
	return cut ? 0 : length;
}

static __always_inline int mg_base_of(const struct mg_syscall *call, __u8 base)
{
	switch (base) {
	case MG_FD0:
		return call->args[0];
	case MG_FD1:
		return call->args[1];
	case MG_FD2:
		return call->args[2];
	}
	return AT_FDCWD;
}

static __always_inline __u64 mg_argument(const struct mg_syscall *call, __u8 index)
{
	return call->args[index & 7];
}

static __always_inline __u8 mg_follows(const struct mg_syscall *call, const struct mg_shape *shape)
{
	__u64 flags = mg_argument(call, shape->at_flags);

	switch (shape->follow) {
	case MG_UNLESS:
		return !(flags & MG_AT_SYMLINK_NOFOLLOW);
	case MG_IF:
		return !!(flags & MG_AT_SYMLINK_FOLLOW);
	case MG_WATCHES:
		return !(flags & MG_IN_DONT_FOLLOW);
	}
	return shape->follow;
}

/* What differs from the table: the calls whose flags change what they are. */
static __always_inline void mg_settle(const struct mg_syscall *call, struct mg_path_call *record)
{
	if (call->number == __NR_unlinkat && call->args[2] & MG_AT_REMOVEDIR)
		record->op = MG_OP_RMDIR;
	if (call->number == __NR_renameat2 && call->args[4] & MG_RENAME_EXCHANGE)
		record->op = MG_OP_EXCHANGE;
}

static __always_inline __u64 mg_open_flags(const struct mg_syscall *call)
{
	__u64 flags = 0;

	switch (call->number) {
	case __NR_openat:
		return call->args[2];
	case __NR_openat2:
		bpf_probe_read_user(&flags, sizeof(flags), (void *)call->args[2]);
		return flags;
#ifdef __NR_open
	case __NR_open:
		return call->args[1];
	case __NR_creat:
		return O_CREAT | O_WRONLY | O_TRUNC;
#endif
	}
	return 0;
}

static __always_inline void mg_settle_open(const struct mg_syscall *call, struct mg_path_call *record)
{
	__u64 flags = mg_open_flags(call);

	record->op = (flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL) ? MG_OP_CREATE : MG_OP_OPEN;
	record->follow = !(flags & O_NOFOLLOW);
	record->access = (flags & O_ACCMODE) == O_WRONLY ? 0 : MG_READ;
	if (flags & O_ACCMODE || flags & (O_CREAT | O_TRUNC))
		record->access |= MG_WRITE;
}

static __always_inline void mg_path_call_record(const struct mg_session *session, struct mg_scratch *scratch,
						const struct mg_syscall *call, const struct mg_shape *shape)
{
	struct mg_path_call *record = (void *)scratch->record;
	struct mg_named named = {};
	__u32 at = sizeof(*record);
	int refused = call->result < 0;

	__builtin_memset(record, 0, sizeof(*record));
	mg_fill_head(&record->head, MG_RECORD_PATH_CALL);
	record->result = refused ? -call->result : 0;
	record->op = shape->op;
	record->access = shape->access;
	record->follow = mg_follows(call, shape);
	record->paths = 1 + shape->two;
	record->cut = mg_put_named(scratch, mg_base_of(call, shape->base),
				   shape->kind == MG_SHAPE_DESCRIPTOR ? 0 : mg_argument(call, shape->path), at, &named);
	record->base_length = named.base_length;
	record->path_length = named.path_length;
	record->stands = named.stands;
	at += named.base_length + named.path_length;
	if (shape->two) {
		record->cut |= mg_put_named(scratch, mg_base_of(call, shape->base2), mg_argument(call, shape->path2),
					    at, &named);
		record->base2_length = named.base_length;
		record->path2_length = named.path_length;
		at += named.base_length + named.path_length;
	}
	/* Of a refusal also where no name shows that it leads there: a link may. It takes no room from the names. */
	if (!record->stands && (refused || named.in_proc) && at <= MG_RECORD_MASK - MG_PATH_BYTES) {
		record->cwd_length = mg_put_cwd(scratch, sizeof(*record) + record->base_length, at);
		at += record->cwd_length;
	}
	if (shape->kind == MG_SHAPE_OPEN)
		mg_settle_open(call, record);
	mg_settle(call, record);
	record->count = refused ? mg_tally_refused(session, scratch, at, call->number) : 1;
	if (!record->count)
		return;
	if (at <= MG_RECORD_MASK)
		mg_send(session, record, at, refused);
	else
		mg_lost(session, refused);
}

__noinline int mg_path_call(const struct mg_session *session, const struct mg_syscall *call)
{
	struct mg_scratch *scratch;

	if (!session || !call)
		return 0;
	scratch = mg_claim(session, call->result < 0);
	if (!scratch)
		return 0;
	mg_path_call_record(session, scratch, call, &mg_shapes[call->number & (MG_CALLS - 1)]);
	mg_release(scratch);
	return 0;
}

/* --- unix sockets that a cover hides --- */

enum bpf_attach_type___names_judged { BPF_CGROUP_UNIX_CONNECT___names_judged = 49 };

/* Does the kernel have programs on the cgroup that see every request to a unix socket, before a path is looked up? */
#define MG_NAMES_JUDGED \
	bpf_core_enum_value_exists(enum bpf_attach_type___names_judged, BPF_CGROUP_UNIX_CONNECT___names_judged)

/* The path in the address of a refused connect or send takes the place of the second argument. 0: nothing to record: another
 * family, or a name without a file.
 */
static __always_inline int mg_peer_path(struct mg_syscall *call, const struct mg_shape *shape)
{
	struct {
		__u16 family;
		char first;
	} start = {};
	__u64 address = shape->argument == 4 ? call->args[4] : call->args[1];

	if (call->number == __NR_sendmsg && bpf_probe_read_user(&address, sizeof(address), (void *)address))
		return 0;
	if (bpf_probe_read_user(&start, MG_SUN_PATH_AT + 1, (void *)address))
		return 0;
	call->args[1] = address + MG_SUN_PATH_AT;
	return start.family == MG_AF_UNIX && start.first;
}

/* --- refused calls without a path --- */

/* Requests that the filter of system calls refuses. */
static __always_inline int mg_filter_refuses(__u32 request)
{
	switch (request) {
	case MG_TIOCSTI:
	case MG_TIOCLINUX:
	case MG_SUBVOL_CREATE:
	case MG_SUBVOL_CREATE_V2:
	case MG_SNAP_CREATE:
	case MG_SNAP_CREATE_V2:
	case MG_SNAP_DESTROY:
	case MG_SNAP_DESTROY_V2:
	case MG_SUBVOL_SETFLAGS:
		return 1;
	}
	return 0;
}

/* Sockets that the cgroup program judged are on record already; its answer is EPERM, and that of the filter of servers that are
 * kept without a network is EACCES. Clone and ioctl matter only for some arguments, limits only of a process that is named.
 */
static __always_inline int mg_uninteresting(const struct mg_syscall *call, const struct mg_shape *shape, __u64 argument)
{
	__u32 type = call->args[1] & 0xf, number = argument; /* of numbers the kernel reads half */

	switch (shape->op) {
	case MG_CALL_SOCKET:
		return (number == 2 || number == 10) && (type == 1 || type == 2) && call->result == -MG_EPERM;
	case MG_CALL_CLONE:
		return !(argument & MG_CLONE_NEW);
	case MG_CALL_IOCTL:
		return !mg_filter_refuses(number);
	case MG_CALL_PROCESS:
		return !argument;
	}
	return 0;
}

__noinline int mg_refused_call(const struct mg_session *session, const struct mg_syscall *call)
{
	const struct mg_shape *shape;
	__u64 argument;

	if (!session || !call)
		return 0;
	shape = &mg_shapes[call->number & (MG_CALLS - 1)];
	argument = mg_argument(call, shape->argument);
	if (call->number == __NR_clone3)
		bpf_probe_read_user(&argument, sizeof(argument), (void *)call->args[0]);
	if (!mg_uninteresting(call, shape, argument))
		mg_tell_refused(session, call->number, -call->result, shape->op, argument,
				mg_argument(call, shape->argument + 1));
	return 0;
}

/* --- abstract socket names of the tree --- */

/* After a bind: which socket took which abstract name, as the socket itself says. */
__noinline int mg_bound_name(const struct mg_session *session, __u64 fd)
{
	struct file *file = mg_own_file(fd);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct unix_address *address;
	struct mg_name name = {};
	struct socket *socket;
	struct sock *sk;
	__u64 holder;
	void *names;

	if (!session || (BPF_CORE_READ(inode, i_mode) & MG_S_IFMT) != MG_S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || !mg_is_tree_socket(sk, session->slot))
		return 0;
	address = BPF_CORE_READ((struct unix_sock *)sk, addr);
	if (!mg_read_name(&name, &address->name, BPF_CORE_READ(address, len)) || name.bytes[0])
		return 0;
	name.type = BPF_CORE_READ(sk, sk_type);
	holder = (__u64)sk;
	names = mg_of_slot(&mg_own_names, session->slot);
	if (names)
		bpf_map_update_elem(names, &name, &holder, BPF_ANY);
	return 0;
}

/* An open of a guarded thread has succeeded. A hook may have said something before that: it asks of a name that is not known yet
 * whether it may be made, and of one that turns out to be there that does not count.
 */
static __always_inline int mg_open_ended(const struct mg_session *session, __u32 number, __u64 fd)
{
	if (session->flags & MG_SESSION_FILES)
		mg_was_told(number);
	return mg_opened(session, fd);
}

/* Which results are refusals of this call. */
static __always_inline int mg_is_refusal(const struct mg_shape *shape, long result)
{
	switch (-result) {
	case MG_EPERM:
	case MG_EACCES:
		return 1;
	case MG_EROFS:
		return shape->kind != MG_SHAPE_CALL;
	case MG_EXDEV:
	case MG_EBUSY:
		return shape->moves;
	case MG_ENOSYS:
		return shape->op == MG_CALL_IO_URING && shape->kind == MG_SHAPE_CALL;
	}
	return 0;
}

/* A terminal outside has no name inside: asked for by its number, it is not there. User space knows whether there is one. */
static __always_inline int mg_asks_for_terminal(const struct mg_syscall *call, const struct mg_shape *shape)
{
	static const char folder[] = "/dev/pts/";
	char path[sizeof(folder) - 1];
	__u32 at;

	if (bpf_probe_read_user(path, sizeof(path), (void *)mg_argument(call, shape->path)))
		return 0;
#pragma unroll
	for (at = 0; at < sizeof(path); at++)
		if (path[at] != folder[at])
			return 0;
	return 1;
}

/* What is on record of a call, and how; 0: nothing. */
static __always_inline const struct mg_shape *mg_shape_of(__u64 number)
{
	const struct mg_shape *shape;
	__u32 place = number;

	/* Older verifiers forget the bounds of what comes back from the stack, so the place is masked and not compared. */
	barrier_var(place);
	shape = &mg_shapes[place & (MG_CALLS - 1)];
	return number < MG_CALLS && shape->kind != MG_SHAPE_NONE ? shape : 0;
}

/* Most calls are on record only when they are refused. (So is an exec; but there a hook may have said something that this end of
 * the call takes back.)
 */
static __always_inline int mg_matters(const struct mg_shape *shape, long result)
{
	switch (shape->kind) {
	case MG_SHAPE_PEER:
		return !MG_NAMES_JUDGED && mg_is_refusal(shape, result);
	case MG_SHAPE_LOOK:
	case MG_SHAPE_CALL:
		return mg_is_refusal(shape, result);
	}
	return 1;
}

/* A call of a guarded thread has ended, and matters: `call` has its number and result, its arguments are still in the registers. */
static __always_inline int mg_ended(const struct mg_session *session, const struct mg_shape *shape, void *registers,
				    struct mg_syscall *call)
{
	int told;

	if (shape->kind == MG_SHAPE_OPEN && call->result >= 0)
		return mg_open_ended(session, call->number, call->result);
	/* Only hooks tell, and in sessions that they do not judge they do not. */
	told = session->flags & MG_SESSION_FILES && mg_was_told(call->number);
	if (shape->kind == MG_SHAPE_BIND) {
		if (call->result)
			return 0;
		mg_arguments(registers, call);
		return mg_bound_name(session, (__u32)call->args[0]);
	}
	if (call->result < 0) {
		if (told && shape->kind != MG_SHAPE_CALL)
			return 0;
		if (!mg_is_refusal(shape, call->result)) {
			if (call->result != -MG_ENOENT || shape->kind != MG_SHAPE_OPEN)
				return 0;
			mg_arguments(registers, call);
			return mg_asks_for_terminal(call, shape) ? mg_path_call(session, call) : 0;
		}
	} else if (shape->kind == MG_SHAPE_EXEC) {
		return 0;
	}
	mg_arguments(registers, call);
	if (shape->kind == MG_SHAPE_PEER && !mg_peer_path(call, shape))
		return 0;
	return shape->kind == MG_SHAPE_CALL ? mg_refused_call(session, call) : mg_path_call(session, call);
}

#endif
