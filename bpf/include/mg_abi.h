/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The contract between the BPF programs and Python: every record, map key and map value, and nothing else.
 *
 * tools/gen_abi.py reads these structs from BTF and writes src/mcpguard/wire/_abi.py; a test repeats it and compares.
 * Rules: fixed-width integers, widest first, no hidden padding, host byte order unless a comment says otherwise.
 * Strings are bytes without a terminator; their lengths stand in the record and they follow it in the order listed.
 * Change anything here: raise MG_ABI_VERSION. The loader refuses an object whose number differs from its own.
 */
#ifndef MG_ABI_H
#define MG_ABI_H

#include <linux/types.h>

#define MG_ABI_VERSION 1

enum mg_limit {
	MG_COMM_BYTES = 16,
	MG_PATH_BYTES = 4096,	/* longest path of a record, as PATH_MAX; then cut is set */
	MG_ARGV_BYTES = 2048,	/* of an exec, then argv_cut is set */
	MG_PORT_RULES_LIMIT = 32,	/* of one address prefix */
	MG_SUN_BYTES = 108,	/* sun_path */
	MG_UNIX_RULES_LIMIT = 64,
};

enum mg_record_kind {
	MG_RECORD_FORK = 1,
	MG_RECORD_EXEC = 2,
	MG_RECORD_EXIT = 3,
	MG_RECORD_OPEN = 4,
	MG_RECORD_PATH_CALL = 5,
	MG_RECORD_CALL = 6,
	MG_RECORD_NET = 7,
	MG_RECORD_UNIX = 8,
};

enum mg_verdict { MG_ALLOW = 1, MG_DENY = 2, MG_AUDIT = 3 };

enum mg_access { MG_READ = 1, MG_WRITE = 2, MG_EXECUTE = 4 };

enum mg_file_kind { MG_FILE = 1, MG_DIRECTORY = 2, MG_DEVICE = 3, MG_MEMFD = 4, MG_OTHER = 5 };

enum mg_protocol { MG_TCP = 1, MG_UDP = 2 };

enum mg_net_op {
	MG_NET_CONNECT = 1,
	MG_NET_SENDMSG = 2,
	MG_NET_BIND = 3,
	MG_NET_SOCKET = 4,
	MG_NET_PACKET = 5,
	MG_NET_ACCEPT = 6,	/* somebody from outside asked to connect to the tree */
};

enum mg_detail {
	MG_DETAIL_NONE = 0,
	MG_DETAIL_NARROWED = 1,
	MG_DETAIL_OWN = 2,
	MG_DETAIL_NOT_PLAIN = 3, /* a unix socket path that is relative or has `.`, `..` or empty components */
};

enum mg_unix_match { MG_UNIX_EXACT = 0, MG_UNIX_SUBTREE = 1, MG_UNIX_BEGINNING = 2 };

enum mg_path_op {
	MG_OP_OPEN = 1,
	MG_OP_CREATE = 2,
	MG_OP_EXEC = 3,
	MG_OP_TRUNCATE = 4,
	MG_OP_UNLINK = 5,
	MG_OP_RMDIR = 6,
	MG_OP_MKDIR = 7,
	MG_OP_MKNOD = 8,
	MG_OP_SYMLINK = 9,
	MG_OP_LINK = 10,
	MG_OP_RENAME = 11,
	MG_OP_EXCHANGE = 12,
	MG_OP_CHMOD = 13,
	MG_OP_CHOWN = 14,
	MG_OP_XATTR = 15,
	MG_OP_UTIMES = 16,
	MG_OP_STAT = 17,
	MG_OP_READLINK = 18,
	MG_OP_CHDIR = 19,
};

enum mg_call_op {
	MG_CALL_SOCKET = 1,
	MG_CALL_PTRACE = 2,
	MG_CALL_SIGNAL = 3,
	MG_CALL_PROCESS_MEMORY = 4,
	MG_CALL_PIDFD_GETFD = 5,
	MG_CALL_BPF = 6,
	MG_CALL_PERF = 7,
	MG_CALL_UNSHARE = 8,
	MG_CALL_CLONE = 9,
	MG_CALL_SETNS = 10,
	MG_CALL_MOUNT = 11,
	MG_CALL_KEYCTL = 12,
	MG_CALL_MODULE = 13,
	MG_CALL_IO_URING = 14,
	MG_CALL_IOCTL = 15,
	MG_CALL_CHROOT = 16,
	MG_CALL_HANDLE = 17,
	MG_CALL_IDENTITY = 18,
};

/* First part of every record. */
struct mg_head {
	__u64 when_ns;		/* CLOCK_MONOTONIC */
	__u32 kind;		/* enum mg_record_kind */
	__u32 lost_before;	/* records of this ring dropped since the one before, on all CPUs */
	__u32 pid;		/* tgid */
	__u32 tid;
	__u32 ppid;
	__u32 reserved;
	char comm[MG_COMM_BYTES];
};

struct mg_fork {
	struct mg_head head;	/* of the parent */
	__u32 child;
	__u32 reserved;
};

struct mg_exit {
	struct mg_head head;
	__u32 code;		/* status << 8 | signal */
	__u32 reserved;
};

/* exe, argv (each argument ends with a zero byte) */
struct mg_exec {
	struct mg_head head;
	__u32 exe_length;
	__u32 argv_length;
	__u32 argv_cut;
	__u32 exe_cut;
};

/* path */
struct mg_open {
	struct mg_head head;
	__u64 series;		/* equal for all records of one aggregate; 0: not aggregated */
	__u64 count;
	__u32 fd;		/* descriptor that this open gave */
	__u32 reserved;
	__u32 path_length;
	__u8 access;		/* enum mg_access, or-ed; 0: O_PATH, which is no access */
	__u8 file_kind;
	__u8 created;
	__u8 cut;
};

/* base, path, base2, path2 */
struct mg_path_call {
	struct mg_head head;
	__u64 series;
	__u64 count;
	__u32 result;		/* 0 or a positive errno */
	__u16 base_length;
	__u16 path_length;
	__u16 base2_length;
	__u16 path2_length;
	__u8 op;
	__u8 access;
	__u8 follow;
	__u8 paths;		/* 1 or 2 */
	__u8 cut;
	__u8 reserved[7];
};

struct mg_call {
	struct mg_head head;
	__u64 series;
	__u64 count;
	__u64 argument;
	__u64 argument2;
	__u32 number;
	__u32 result;
	__u32 op;
	__u32 reserved;
};

struct mg_net {
	struct mg_head head;
	__u64 series;
	__u64 count;
	__u8 address[16];	/* network order, IPv4 mapped */
	__u32 rule;
	__u16 port;
	__u16 protocol;		/* IPPROTO_* */
	__u8 op;
	__u8 verdict;
	__u8 detail;
	__u8 reserved[5];
};

struct mg_unix {
	struct mg_head head;
	__u64 series;
	__u64 count;
	__u32 rule;
	__u8 op;		/* MG_NET_CONNECT or MG_NET_SENDMSG */
	__u8 verdict;
	__u8 detail;
	__u8 path_length;	/* an abstract name starts with a zero byte */
	__u8 path[MG_SUN_BYTES];
	__u32 reserved;
};

/* Per object, set before load. */
struct mg_config {
	__u64 cgroup_id;
	__u32 abi_version;
	__u32 audit;		/* 1: what only the default denies is let through */
	__u32 allow_relative;	/* 1: relative unix socket paths without `..` are let through */
	__u32 reserved;
};

/* Map mg_counters: one value, readable by mmap. `pending` moves into the next record's lost_before. */
struct mg_counters {
	__u64 series;
	__u64 denials_lost;
	__u64 denials_pending;
	__u64 activity_lost;
	__u64 activity_pending;
	__u64 scratch_busy;	/* activity or denials that found no scratch buffer; counted as lost, too */
};

/* Value of every aggregate: what was seen, and how much of it records already stand for. */
struct mg_sum {
	__u64 total;
	__u64 reported;
	__u64 series;
};

/* LPM trie key of mg_connect and mg_listen. */
struct mg_prefix {
	__u32 bits;		/* 0 to 128 */
	__u8 address[16];
};

struct mg_port_rule {
	__u32 rule;
	__u16 low;
	__u16 high;
	__u8 protocols;		/* enum mg_protocol, or-ed */
	__u8 verdict;		/* MG_ALLOW or MG_DENY */
	__u8 reserved[2];
};

/* The first rule that matches decides, so denies stand first. */
struct mg_port_rules {
	__u32 count;
	struct mg_port_rule rules[MG_PORT_RULES_LIMIT];
};

/* Name of a unix socket, and key of mg_own_names; an abstract one starts with a zero byte. */
struct mg_name {
	__u8 bytes[112];	/* MG_SUN_BYTES and zeroes; zero after `length` */
	__u32 length;
	__u32 type;		/* SOCK_STREAM, ...: each type has its own abstract names */
};

/* One unix socket rule: the first that matches decides, so denies stand first. */
struct mg_unix_rule {
	__u32 rule;
	__u8 verdict;		/* MG_ALLOW or MG_DENY */
	__u8 match;		/* enum mg_unix_match */
	__u8 length;
	__u8 reserved;
	__u8 pattern[MG_SUN_BYTES];
};

struct mg_unix_rules {
	__u32 count;
	struct mg_unix_rule rules[MG_UNIX_RULES_LIMIT];
};

#endif
