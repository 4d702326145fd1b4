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

#define MG_ABI_VERSION 17

enum mg_limit {
	MG_COMM_BYTES = 16,
	MG_PATH_BYTES = 4096,	/* longest path of a record, as PATH_MAX; then cut is set */
	MG_ARGV_BYTES = 2048,	/* of an exec, then argv_cut is set */
	MG_PORT_RULES_LIMIT = 32,	/* of one address prefix */
	MG_SUN_BYTES = 108,	/* sun_path */
	MG_UNIX_RULES_LIMIT = 64,
	MG_SESSIONS_LIMIT = 256,	/* slots for tables on one host; slot 0 is nobody's */
	MG_LEAVES_LIMIT = 1024,	/* of all sessions, with those below them */
	MG_PLACES = 4096,	/* of leaves, by the lower bits of their ids; a power of two */
	MG_SPOKEN_PLACES = 1024,	/* of threads that a hook told of, likewise by their ids */
	MG_POLICIES_LIMIT = 1024,	/* a session has one of files and one of sockets, and new ones while an edit goes live */
	MG_FACTORS_LIMIT = 8,
	MG_PAGE_LINES = 8192,
	MG_PAGES_LIMIT = 64,	/* of one policy */
	MG_NAMES_LIMIT = 4,	/* of one object, by mounts */
	MG_FLOWS_LIMIT = 8192,	/* destinations of one session whose bytes are told apart */
	MG_LEARNED_LIMIT = 8,	/* different ports of one address that names have opened */
	MG_HOST_BYTES = 256,	/* longest host name with what stands around it in a key */
	MG_BRANCH_BYTES = 32,	/* of a name on the way to a mount root; a longer one takes several steps */
	MG_PIECE_BYTES = 8192,	/* of a stream, in one record */
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
	MG_RECORD_FILE = 9,
	MG_RECORD_MESSAGE = 10,
	MG_RECORD_HOST = 11,
};

enum mg_verdict { MG_ALLOW = 1, MG_DENY = 2, MG_AUDIT = 3 };

enum mg_access { MG_READ = 1, MG_WRITE = 2, MG_EXECUTE = 4 };

enum mg_file_kind { MG_REGULAR = 1, MG_DIRECTORY = 2, MG_DEVICE = 3, MG_MEMFD = 4, MG_OTHER = 5 };

/* MG_NAMED: a rule for a name opens it, so what is sent must name a host that the rules allow. */
enum mg_protocol { MG_TCP = 1, MG_UDP = 2, MG_NAMED = 4 };

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
	MG_DETAIL_BELOW = 4,	/* a protected path lies below the directory that was to move */
	MG_DETAIL_WIDENS = 5,	/* a new hard link would open the file wider than its own name */
	MG_DETAIL_UNKNOWN = 6,	/* the file system was not there when the policy was made */
	MG_DETAIL_DETACHED = 7,	/* the name leads to no root */
	MG_DETAIL_DEEP = 8,	/* more directories than can be followed */
	MG_DETAIL_UNSTABLE = 9,	/* directories kept moving while the name was read */
	MG_DETAIL_NO_POLICY = 10, /* the session has no usable tables */
	MG_DETAIL_MEMORY = 11,	/* a program that lives in memory only */
	MG_DETAIL_RECEIVED = 12, /* a descriptor sent by another process */
	MG_DETAIL_MAPPED = 13,	/* mapped as code into a running program */
	MG_DETAIL_NAMES = 14,	/* mounted in more places than can be judged */
	MG_DETAIL_OUTSIDER = 15, /* it belongs to a process that is not of the tree */
	MG_DETAIL_EXPIRED = 16,	/* a name had opened the address, and its time is over */
	MG_DETAIL_RESOLVER = 17, /* it is the resolver of another session */
	MG_DETAIL_HOST = 18,	/* the first bytes name a host that the rules do not allow */
	MG_DETAIL_NO_HOST = 19,	/* what is sent names no host that can be read */
	MG_DETAIL_UNCLEAR = 20,	/* nobody can be sure that the peer reads the first bytes in the same way */
};

enum mg_channel { MG_PIPE = 1, MG_UNIX_STREAM = 2, MG_LOOPBACK = 3 };

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
	MG_OP_MAP = 20,
	MG_OP_RECEIVE = 21,
	MG_OP_WATCH = 22,
	MG_OP_IOCTL = 23,
	MG_OP_CONNECT = 24,	/* to a unix socket, by the file it stands for */
	MG_OP_SEND = 25,
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
	MG_CALL_PROCESS = 19,	/* limits, priority, scheduling or memory of another process, signals by a file */
	MG_CALL_HOST = 20,	/* what configures the host, or watches all of it */
};

/* First part of every record. */
struct mg_head {
	__u64 when_ns;		/* CLOCK_MONOTONIC */
	__u32 kind;		/* enum mg_record_kind */
	__u32 lost_before;	/* records of this ring dropped since the one before, on all CPUs */
	__u32 pid;		/* tgid */
	__u32 tid;
	__u32 ppid;
	__u32 said;		/* mg_counters.said at that moment */
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

/* base, path, base2, path2, cwd: where the process stood, left out where `base` is that */
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
	__u8 stands;		/* `base` is where the process stood */
	__u16 cwd_length;
	__u8 reserved[4];
};

/* name, name2: from the root of the file system; what the verdict was made on. A verdict of ours, made in the kernel. */
struct mg_file {
	struct mg_head head;
	__u64 series;
	__u64 count;
	__u32 rule;
	__u32 device;
	__u32 device2;
	__u16 name_length;
	__u16 name2_length;
	__u8 op;		/* enum mg_path_op */
	__u8 access;		/* what was asked and not allowed */
	__u8 verdict;
	__u8 detail;
	__u8 cut;		/* the names are not whole: their ends only */
	__u8 second;		/* the rule is about the second name */
	__u8 reserved[10];
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

/* A refused host name, and key of mg_host_denied. */
struct mg_host_target {
	__u8 address[16];	/* network order, IPv4 mapped */
	__u32 pid;
	__u32 rule;
	__u16 port;
	__u8 verdict;
	__u8 detail;
	__u8 length;		/* of the name */
	__u8 reserved[3];
	__u8 name[MG_HOST_BYTES];	/* in lower case, as it was sent; zero after its end */
};

/* The first bytes of a TCP stream to an address of a name were refused. */
struct mg_host {
	struct mg_head head;
	__u64 series;
	__u64 count;
	struct mg_host_target target;
};

/* Per object, as compiled in. */
struct mg_config {
	__u32 abi_version;
	__u32 reserved;
};

enum mg_session_flag {
	MG_SESSION_LIVE = 1,		/* unset: a value that nobody has filled; everything is refused */
	MG_SESSION_AUDIT = 2,		/* what only the default denies is let through */
	MG_SESSION_RELATIVE = 4,	/* relative unix socket paths without `..` are let through */
	MG_SESSION_FILES = 8,		/* the hooks for files, programs and processes judge; unset: they leave it to others */
	MG_SESSION_NAMESPACES = 16,	/* user namespaces, and mounts inside them, may be made */
	MG_SESSION_MEMORY_PROGRAMS = 32, /* what lives in memory only (memfd) may be executed */
	MG_SESSION_IO_URING = 64,
	MG_SESSION_PEERS = 256,		/* the hooks judge unix peers by the files behind their names */
	MG_SESSION_ENDED = 128,		/* in mg_leaves only: nobody lives there any more; its sockets may finish, not begin */
};

/* Map mg_sessions: the guarded leaf by its cgroup id, and those below it where servers live that are kept to less. Replaced as a
 * whole, so a new policy begins between two decisions.
 */
struct mg_session {
	__u32 slot;		/* of its rings, counters and sums; 1 to MG_SESSIONS_LIMIT - 1 */
	__u32 flags;		/* enum mg_session_flag */
	__u32 files;		/* index of the policy of its files; 0: none */
	__u32 sockets;		/* index of the policy of its socket paths; 0: none */
	__u32 resolver;		/* port on 127.0.0.1 and ::1 where questions for names go, whomever they were for; 0: none */
	__u32 kept;		/* slot of tables of destinations that hold here besides the session's own; 0: none */
};

/* Map mg_leaf_places, by the lower bits of a cgroup id: not 0 where a leaf in mg_sessions has them. */

/* Map mg_leaves, storage of the cgroup leaf: what the programs attached to it see of their session. Zero until it is written. */
struct mg_leaf {
	struct mg_session session;
	__u64 id;		/* cgroup id of the leaf, never used again */
};

/* One 16-byte line of the tables of a path automaton (policy/image.py tells what it holds). */
struct mg_line {
	__u32 words[4];
};

struct mg_page {
	struct mg_line lines[MG_PAGE_LINES];
};

/* Map mg_policies, by index: what the walk needs besides the lines. */
struct mg_policy {
	__u64 guard_masks[3];	/* guards that concern read, write, execute */
	__u32 factors;		/* 1 to MG_FACTORS_LIMIT; 0: no policy here, everything is refused */
	__u32 protect_from;	/* first rank that protects */
	__u32 rules;		/* first line of the rule ids, four ranks a line */
	__u32 guards;		/* first line of the guards' ranks, four a line */
	__u64 telling[4];	/* bytes, as bits: what a name begins with that can say something to a state which is dull */
};

/* What the automaton knows at a place. */
struct mg_state {
	__u32 at[MG_FACTORS_LIMIT];	/* line of the state where each factor begins the next name */
	__u32 ranks[3];
	__u32 pinned;		/* a rule would lose hold of something below, if this place moved */
	__u64 matched;
	__u64 excepted;
};

/* Maps mg_roots and mg_branches: the root of a file system, or a directory on the way to a mount root inside it.
 *
 * An object has one name for each place above it that is mounted somewhere. A rule on any of its names counts.
 */
struct mg_place {
	struct mg_state state;	/* of the first name, where there is one */
	__u32 node;		/* of the tree of mount roots; 0: no mount root lies below */
	__u32 names;		/* how many mount points show this very place; 0: it is only the way to one */
};

struct mg_root_key {
	__u32 policy;
	__u32 device;		/* s_dev; or enum mg_kindred for file systems that the tree mounted itself */
	__u32 name;		/* 0 for the first name of the place, 1 for the second, ... */
	__u32 reserved;
};

/* File systems made inside the tree's own user namespaces are judged like these. Devices 0:1 to 0:3 belong to the kernel. */
enum mg_kindred { MG_KINDRED_TMPFS = 1, MG_KINDRED_PROC = 2, MG_KINDRED_DEVPTS = 3 };

struct mg_branch_key {
	__u32 policy;
	__u32 device;
	__u32 node;		/* of the directory above, or of the piece before */
	__u16 left;		/* bytes of the name from here to its end */
	__u16 name;		/* as in mg_root_key */
	__u8 bytes[MG_BRANCH_BYTES];	/* the next piece; zero after the end */
};

/* Bytes that a process of the tree sent on a connection on which JSON-RPC is spoken, or received there from outside of the session, in
 * the order of the stream; they follow.
 */
struct mg_message {
	struct mg_head head;
	__u64 offset;	/* of the first byte, from the first one that was sent on since the connection is looked at */
	__u64 own;	/* inode number of the end that it was sent from, or read at: see `fate` */
	__u64 far;	/* of the end where it arrives: a pipe's own; 0: not known, or TCP */
	__u64 input;	/* of the sender's standard input; 0: none */
	__u32 device;	/* of own and far */
	__u32 input_device;
	__u32 length;
	__u32 lost;	/* bytes at the offset that were sent and are not told, instead of `length` */
	__u16 port;	/* TCP: of the sender, host byte order */
	__u16 far_port;
	__u8 channel;	/* enum mg_channel */
	__u8 ends_line;	/* the last lost byte was a line feed */
	__u8 output;	/* it is the sender's standard output */
	__u8 fate;	/* enum mg_fate */
};

/* What was done with the process that a piece is about. */
enum mg_fate {
	MG_GOES_ON = 0,
	MG_ENDED = 1,	/* it answered: see mg_counters.agent */
	MG_HELD = 2,	/* stopped: it has read the bytes, at the end `own`: see mg_counters.gated */
	MG_HEARD = 3,	/* nothing: it has received the bytes, at the end `own`; the ports are those of who sent them, and its own */
	MG_HELD_UNSEEN = 4,	/* the same, but nobody saw what it has read: who sent it has to tell */
};

/* For whom MCP servers start by way of the gate only. */
enum mg_gated {
	MG_NOT_GATED = 0,
	MG_GATED = 1,		/* for agents */
	MG_GATED_FOR_ALL = 2,	/* for every program of the tree */
};

/* Map mg_counters, one for each session: one value, readable by mmap. `pending` moves into the next record's lost_before. */
struct mg_counters {
	__u64 series;
	__u64 denials_lost;
	__u64 denials_pending;
	__u64 activity_lost;
	__u64 activity_pending;
	__u64 scratch_busy;	/* activity or denials that found no scratch buffer; counted as lost, too */
	__u64 messages_lost;
	__u64 messages_pending;
	__u64 said;		/* pieces of messages so far: acts before and after one are told apart, however often they are repeated */
	__u64 first;		/* the session's first process, by the user's process: never held, as who started it would see it stop */
	__u64 gated;		/* enum mg_gated, by the user's process: who reads a question of MCP that came from the tree is held */
	__u64 agent;		/* written by the user's process: who answers what this process asks in MCP is ended; 0: nobody is */
};

/* Value of every aggregate: what was seen, and how much of it records already stand for. */
struct mg_sum {
	__u64 total;
	__u64 reported;
	__u64 series;
	__u64 said;		/* mg_counters.said when it was counted last */
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
	__u8 protocols;		/* enum mg_protocol, or-ed; MG_NAMED: by a rule for a name */
	__u8 verdict;		/* MG_ALLOW or MG_DENY */
	__u8 reserved[2];
};

/* The first rule that matches decides, so denies stand first. */
struct mg_port_rules {
	__u32 count;
	struct mg_port_rule rules[MG_PORT_RULES_LIMIT];
};

/* What the first byte of a key of mg_hosts says of the rest. */
enum mg_host_kind { MG_HOST_NONE = 0, MG_HOST_NAMED = 1 };

/* LPM trie key of mg_hosts; values are mg_port_rules.
 *
 * MG_HOST_NAMED, the name backwards, and a zero byte, or for all that ends so: a dot. MG_HOST_NONE alone: what names no host;
 * where this is missing nobody looks at names.
 */
struct mg_host_key {
	__u32 bits;		/* 8 to 2048 */
	__u8 bytes[MG_HOST_BYTES];
};

/* Ports of an address that a name has opened, by the rule for that name. */
struct mg_learned_rule {
	__u64 expires_ns;	/* CLOCK_MONOTONIC; no new flow from then on */
	__u32 rule;
	__u16 low;
	__u16 high;
	__u8 protocols;		/* enum mg_protocol, or-ed */
	__u8 reserved[7];
};

/* Map mg_names, by address (16 bytes, network order, IPv4 mapped): written by the session's resolver. */
struct mg_learned {
	__u32 count;
	__u32 reserved;
	struct mg_learned_rule rules[MG_LEARNED_LIMIT];
};

/* Map mg_questions: who sent a question to the resolver, by where it came from. */
struct mg_question_key {
	__u8 address[16];	/* network order, IPv4 mapped */
	__u16 port;
	__u16 protocol;		/* IPPROTO_* */
};

struct mg_question {
	__u32 pid;		/* of the process that made the socket */
	__u32 tid;
	__u32 ppid;
	__u32 kept;	/* as mg_session.kept, of who asks */
	char comm[MG_COMM_BYTES];
	__u8 server[16];	/* whom it asked; zero: the resolver itself */
};

/* Map mg_flows: IP packets by the other end, headers included. All zero: those for which there was no room. */
struct mg_flow_key {
	__u8 address[16];	/* of the other end; network order, IPv4 mapped */
	__u16 port;		/* of the other end; of this end where others came to us */
	__u16 protocol;		/* IPPROTO_* */
	__u8 op;		/* MG_NET_CONNECT, or MG_NET_ACCEPT where others came to us */
	__u8 reserved[3];
};

struct mg_flow {
	__u64 sent;
	__u64 received;
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
