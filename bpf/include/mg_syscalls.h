/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which system calls are on record, and where their paths stand among the arguments. */
#ifndef MG_SYSCALLS_H
#define MG_SYSCALLS_H

#include <asm/unistd.h>
#include <linux/types.h>
#include "mg_abi.h"

/* Younger than some build hosts' headers; one number on every architecture. */
#if defined(__TARGET_ARCH_arm64)
#define MG_NR_fstatat 79
#else
#define MG_NR_fstatat __NR_newfstatat
#endif
#define MG_NR_fchmodat2 452
#define MG_NR_setxattrat 463
#define MG_NR_removexattrat 466
#define MG_NR_open_tree_attr 467

enum { MG_CALLS = 512 };

enum mg_shape_kind {
	MG_SHAPE_NONE = 0,
	MG_SHAPE_OPEN,
	MG_SHAPE_PATH,		/* on record when refused, and when it changed something */
	MG_SHAPE_EXEC,		/* a path, on record only when refused: success has its own record */
	MG_SHAPE_DESCRIPTOR,	/* changes the file behind a descriptor */
	MG_SHAPE_PEER,		/* the address of a unix socket with a path, on record only when refused */
	MG_SHAPE_CALL,		/* no path, on record only when refused */
	MG_SHAPE_BIND,		/* may give a socket an abstract name */
};

/* Where a relative path starts: the working directory, or the descriptor in argument n - 1. */
enum { MG_CWD = 0, MG_FD0 = 1, MG_FD1 = 2, MG_FD2 = 3 };
/* Is a symlink in the last component followed: never, always, unless (AT_SYMLINK_NOFOLLOW), if (AT_SYMLINK_FOLLOW), unless
 * (IN_DONT_FOLLOW).
 */
enum { MG_NEVER = 0, MG_ALWAYS = 1, MG_UNLESS = 2, MG_IF = 3, MG_WATCHES = 4 };

struct mg_shape {
	__u8 kind;
	__u8 op;
	__u8 access;
	__u8 base;	/* MG_CWD or MG_FD* */
	__u8 path;	/* argument */
	__u8 two;	/* a second path follows */
	__u8 base2;
	__u8 path2;
	__u8 follow;
	__u8 at_flags;	/* argument that holds AT_* or IN_* flags */
	__u8 moves;	/* EXDEV and EBUSY are refusals, too */
	__u8 argument;	/* of a call: its most telling argument; of a peer: its address */
};

#define MG_ONE(o, b, p, f, at) { .kind = MG_SHAPE_PATH, .op = o, .access = MG_WRITE, .base = b, .path = p, .follow = f, .at_flags = at }
#define MG_GONE(o, b, p) { .kind = MG_SHAPE_PATH, .op = o, .access = MG_WRITE, .base = b, .path = p, .moves = 1 }
#define MG_PAIR(o, b, p, b2, p2, f, at) { .kind = MG_SHAPE_PATH, .op = o, .access = MG_WRITE, .base = b, .path = p, \
	.two = 1, .base2 = b2, .path2 = p2, .follow = f, .at_flags = at, .moves = 1 }
#define MG_DESCRIPTOR(o) { .kind = MG_SHAPE_DESCRIPTOR, .op = o, .access = MG_WRITE, .base = MG_FD0 }
/* A look at what is there; refused only below a hidden directory. */
#define MG_LOOK(o, b, p, f, at) { .kind = MG_SHAPE_EXEC, .op = o, .access = MG_READ, .base = b, .path = p, .follow = f, .at_flags = at }
#define MG_PEER(o, a) { .kind = MG_SHAPE_PEER, .op = o, .access = MG_WRITE, .path = 1, .follow = MG_ALWAYS, .argument = a }
#define MG_CALL(o, a) { .kind = MG_SHAPE_CALL, .op = o, .argument = a }

static const struct mg_shape mg_shapes[MG_CALLS] = {
#ifdef __NR_open /* the old forms, which arm64 never had */
	[__NR_open] = { .kind = MG_SHAPE_OPEN, .path = 0 },
	[__NR_creat] = { .kind = MG_SHAPE_OPEN, .path = 0 },
	[__NR_unlink] = MG_GONE(MG_OP_UNLINK, MG_CWD, 0),
	[__NR_rmdir] = MG_GONE(MG_OP_RMDIR, MG_CWD, 0),
	[__NR_mkdir] = MG_ONE(MG_OP_MKDIR, MG_CWD, 0, MG_NEVER, 0),
	[__NR_mknod] = MG_ONE(MG_OP_MKNOD, MG_CWD, 0, MG_NEVER, 0),
	/* The second path of a symlink is what is written into it. */
	[__NR_symlink] = MG_PAIR(MG_OP_SYMLINK, MG_CWD, 1, MG_CWD, 0, MG_NEVER, 0),
	[__NR_link] = MG_PAIR(MG_OP_LINK, MG_CWD, 0, MG_CWD, 1, MG_NEVER, 0),
	[__NR_rename] = MG_PAIR(MG_OP_RENAME, MG_CWD, 0, MG_CWD, 1, MG_NEVER, 0),
	[__NR_chmod] = MG_ONE(MG_OP_CHMOD, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_chown] = MG_ONE(MG_OP_CHOWN, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_lchown] = MG_ONE(MG_OP_CHOWN, MG_CWD, 0, MG_NEVER, 0),
	[__NR_stat] = MG_LOOK(MG_OP_STAT, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_lstat] = MG_LOOK(MG_OP_STAT, MG_CWD, 0, MG_NEVER, 0),
	[__NR_readlink] = MG_LOOK(MG_OP_READLINK, MG_CWD, 0, MG_NEVER, 0),
	[__NR_utime] = MG_ONE(MG_OP_UTIMES, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_utimes] = MG_ONE(MG_OP_UTIMES, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_futimesat] = MG_ONE(MG_OP_UTIMES, MG_FD0, 1, MG_ALWAYS, 0),
#endif
	[__NR_openat] = { .kind = MG_SHAPE_OPEN, .base = MG_FD0, .path = 1 },
	[__NR_openat2] = { .kind = MG_SHAPE_OPEN, .base = MG_FD0, .path = 1 },
	[__NR_unlinkat] = MG_GONE(MG_OP_UNLINK, MG_FD0, 1),
	[__NR_mkdirat] = MG_ONE(MG_OP_MKDIR, MG_FD0, 1, MG_NEVER, 0),
	[__NR_mknodat] = MG_ONE(MG_OP_MKNOD, MG_FD0, 1, MG_NEVER, 0),
	[__NR_symlinkat] = MG_PAIR(MG_OP_SYMLINK, MG_FD1, 2, MG_CWD, 0, MG_NEVER, 0),
	[__NR_linkat] = MG_PAIR(MG_OP_LINK, MG_FD0, 1, MG_FD2, 3, MG_IF, 4),
#ifdef __NR_renameat
	[__NR_renameat] = MG_PAIR(MG_OP_RENAME, MG_FD0, 1, MG_FD2, 3, MG_NEVER, 0),
#endif
	[__NR_renameat2] = MG_PAIR(MG_OP_RENAME, MG_FD0, 1, MG_FD2, 3, MG_NEVER, 0),
	[__NR_fchmodat] = MG_ONE(MG_OP_CHMOD, MG_FD0, 1, MG_ALWAYS, 0),
	[MG_NR_fchmodat2] = MG_ONE(MG_OP_CHMOD, MG_FD0, 1, MG_UNLESS, 3),
	[__NR_fchownat] = MG_ONE(MG_OP_CHOWN, MG_FD0, 1, MG_UNLESS, 4),
	[__NR_utimensat] = MG_ONE(MG_OP_UTIMES, MG_FD0, 1, MG_UNLESS, 3),
	[__NR_truncate] = MG_ONE(MG_OP_TRUNCATE, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_setxattr] = MG_ONE(MG_OP_XATTR, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_lsetxattr] = MG_ONE(MG_OP_XATTR, MG_CWD, 0, MG_NEVER, 0),
	[__NR_removexattr] = MG_ONE(MG_OP_XATTR, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_lremovexattr] = MG_ONE(MG_OP_XATTR, MG_CWD, 0, MG_NEVER, 0),
	[MG_NR_setxattrat] = MG_ONE(MG_OP_XATTR, MG_FD0, 1, MG_UNLESS, 2),
	[MG_NR_removexattrat] = MG_ONE(MG_OP_XATTR, MG_FD0, 1, MG_UNLESS, 2),
	[__NR_ftruncate] = MG_DESCRIPTOR(MG_OP_TRUNCATE),
	[__NR_fchmod] = MG_DESCRIPTOR(MG_OP_CHMOD),
	[__NR_fchown] = MG_DESCRIPTOR(MG_OP_CHOWN),
	[__NR_fsetxattr] = MG_DESCRIPTOR(MG_OP_XATTR),
	[__NR_fremovexattr] = MG_DESCRIPTOR(MG_OP_XATTR),
	[__NR_execve] = { .kind = MG_SHAPE_EXEC, .op = MG_OP_EXEC, .access = MG_EXECUTE, .path = 0, .follow = MG_ALWAYS },
	[__NR_execveat] = { .kind = MG_SHAPE_EXEC, .op = MG_OP_EXEC, .access = MG_EXECUTE, .base = MG_FD0, .path = 1,
			    .follow = MG_UNLESS, .at_flags = 4 },
	[MG_NR_fstatat] = MG_LOOK(MG_OP_STAT, MG_FD0, 1, MG_UNLESS, 3),
	[__NR_statx] = MG_LOOK(MG_OP_STAT, MG_FD0, 1, MG_UNLESS, 2),
	[__NR_readlinkat] = MG_LOOK(MG_OP_READLINK, MG_FD0, 1, MG_NEVER, 0),
	[__NR_chdir] = MG_LOOK(MG_OP_CHDIR, MG_CWD, 0, MG_ALWAYS, 0),
	[__NR_inotify_add_watch] = MG_LOOK(MG_OP_WATCH, MG_CWD, 1, MG_WATCHES, 2),
	[__NR_bind] = { .kind = MG_SHAPE_BIND },
	[__NR_connect] = MG_PEER(MG_OP_CONNECT, 1),
	[__NR_sendto] = MG_PEER(MG_OP_SEND, 4),
	[__NR_sendmsg] = MG_PEER(MG_OP_SEND, 1),
	[__NR_name_to_handle_at] = MG_CALL(MG_CALL_HANDLE, 0),
	[__NR_open_by_handle_at] = MG_CALL(MG_CALL_HANDLE, 0),
	[__NR_setuid] = MG_CALL(MG_CALL_IDENTITY, 0),
	[__NR_setgid] = MG_CALL(MG_CALL_IDENTITY, 0),
	[__NR_setreuid] = MG_CALL(MG_CALL_IDENTITY, 1),
	[__NR_setregid] = MG_CALL(MG_CALL_IDENTITY, 1),
	[__NR_setresuid] = MG_CALL(MG_CALL_IDENTITY, 1),
	[__NR_setresgid] = MG_CALL(MG_CALL_IDENTITY, 1),
	[__NR_setgroups] = MG_CALL(MG_CALL_IDENTITY, 0),
	[__NR_capset] = MG_CALL(MG_CALL_IDENTITY, 0),
	[__NR_socket] = MG_CALL(MG_CALL_SOCKET, 0),
	[__NR_socketpair] = MG_CALL(MG_CALL_SOCKET, 0),
	[__NR_ptrace] = MG_CALL(MG_CALL_PTRACE, 1),
	[__NR_kill] = MG_CALL(MG_CALL_SIGNAL, 0),
	[__NR_tkill] = MG_CALL(MG_CALL_SIGNAL, 0),
	[__NR_tgkill] = MG_CALL(MG_CALL_SIGNAL, 0),
	[__NR_rt_sigqueueinfo] = MG_CALL(MG_CALL_SIGNAL, 0),
	[__NR_pidfd_send_signal] = MG_CALL(MG_CALL_SIGNAL, 0),
	[__NR_process_vm_readv] = MG_CALL(MG_CALL_PROCESS_MEMORY, 0),
	[__NR_process_vm_writev] = MG_CALL(MG_CALL_PROCESS_MEMORY, 0),
	[__NR_pidfd_getfd] = MG_CALL(MG_CALL_PIDFD_GETFD, 0),
	[__NR_bpf] = MG_CALL(MG_CALL_BPF, 0),
	[__NR_perf_event_open] = MG_CALL(MG_CALL_PERF, 1),
	[__NR_unshare] = MG_CALL(MG_CALL_UNSHARE, 0),
	[__NR_clone] = MG_CALL(MG_CALL_CLONE, 0),
	[__NR_clone3] = MG_CALL(MG_CALL_CLONE, 0),
	[__NR_setns] = MG_CALL(MG_CALL_SETNS, 1),
	[__NR_mount] = MG_CALL(MG_CALL_MOUNT, 3),
	[__NR_umount2] = MG_CALL(MG_CALL_MOUNT, 1),
	[__NR_pivot_root] = MG_CALL(MG_CALL_MOUNT, 0),
	[__NR_move_mount] = MG_CALL(MG_CALL_MOUNT, 4),
	[__NR_open_tree] = MG_CALL(MG_CALL_MOUNT, 2),
	[MG_NR_open_tree_attr] = MG_CALL(MG_CALL_MOUNT, 2),
	[__NR_fsopen] = MG_CALL(MG_CALL_MOUNT, 1),
	[__NR_fsmount] = MG_CALL(MG_CALL_MOUNT, 1),
	[__NR_fsconfig] = MG_CALL(MG_CALL_MOUNT, 1),
	[__NR_fspick] = MG_CALL(MG_CALL_MOUNT, 2),
	[__NR_mount_setattr] = MG_CALL(MG_CALL_MOUNT, 2),
	[__NR_chroot] = MG_CALL(MG_CALL_CHROOT, 0),
	[__NR_keyctl] = MG_CALL(MG_CALL_KEYCTL, 0),
	[__NR_add_key] = MG_CALL(MG_CALL_KEYCTL, 4),
	[__NR_request_key] = MG_CALL(MG_CALL_KEYCTL, 3),
	[__NR_init_module] = MG_CALL(MG_CALL_MODULE, 1),
	[__NR_finit_module] = MG_CALL(MG_CALL_MODULE, 0),
	[__NR_delete_module] = MG_CALL(MG_CALL_MODULE, 1),
	[__NR_process_madvise] = MG_CALL(MG_CALL_PIDFD_GETFD, 0),
	[__NR_kcmp] = MG_CALL(MG_CALL_PTRACE, 0),
	[__NR_acct] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_clock_adjtime] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_clock_settime] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_fanotify_init] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_kexec_file_load] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_kexec_load] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_quotactl] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_quotactl_fd] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_reboot] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_setdomainname] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_sethostname] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_settimeofday] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_swapoff] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_swapon] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_syslog] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_userfaultfd] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_vhangup] = MG_CALL(MG_CALL_HOST, 0),
#ifdef __NR_iopl /* x86 alone */
	[__NR_iopl] = MG_CALL(MG_CALL_HOST, 0),
	[__NR_ioperm] = MG_CALL(MG_CALL_HOST, 0),
#endif
	[__NR_io_uring_setup] = MG_CALL(MG_CALL_IO_URING, 0),
	[__NR_ioctl] = MG_CALL(MG_CALL_IOCTL, 1),
};

#endif
