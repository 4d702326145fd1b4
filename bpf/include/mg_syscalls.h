/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which system calls are on record, and where their paths stand among the arguments. */
#ifndef MG_SYSCALLS_H
#define MG_SYSCALLS_H

#include <asm/unistd.h>
#include <linux/types.h>
#include "mg_abi.h"

/* Younger than some build hosts' headers; one number on every architecture, but for the first. */
#ifndef __NR_newfstatat
#define __NR_newfstatat 79 /* arm64 */
#endif
#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
#ifndef __NR_setxattrat
#define __NR_setxattrat 463
#endif
#ifndef __NR_removexattrat
#define __NR_removexattrat 466
#endif
#ifndef __NR_open_tree_attr
#define __NR_open_tree_attr 467
#endif
#ifndef __NR_file_setattr
#define __NR_file_setattr 469
#endif

enum { MG_CALLS = 512 };

enum mg_shape_kind {
	MG_SHAPE_NONE = 0,
	MG_SHAPE_OPEN,
	MG_SHAPE_PATH,		/* on record when refused, and when it changed something */
	MG_SHAPE_EXEC,		/* a path, on record only when refused: success has its own record */
	MG_SHAPE_LOOK,		/* a path, on record only when refused; hooks say nothing of it but when they refuse it */
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
#define MG_LOOK(o, b, p, f, at) { .kind = MG_SHAPE_LOOK, .op = o, .access = MG_READ, .base = b, .path = p, .follow = f, .at_flags = at }
#define MG_PEER(o, a) { .kind = MG_SHAPE_PEER, .op = o, .access = MG_WRITE, .path = 1, .follow = MG_ALWAYS, .argument = a }
#define MG_CALL(o, a) { .kind = MG_SHAPE_CALL, .op = o, .argument = a }

static const struct mg_shape mg_shapes[MG_CALLS] = {
#define MG_LISTED_AS(function, name, ...) [__NR_##name] = __VA_ARGS__,
#define MG_LISTED(name, ...) MG_LISTED_AS(name, name, __VA_ARGS__)
#define MG_FILTERED(name, ...) MG_LISTED(name, __VA_ARGS__)
#include "mg_listed.h"
#undef MG_FILTERED
#undef MG_LISTED
#undef MG_LISTED_AS
};

#endif
