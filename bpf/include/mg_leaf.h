/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The session of a program that is attached to a leaf. The current task says nothing there: a socket of the tree may be used
 * by a process outside, and packets leave in the name of whoever was interrupted.
 */
#ifndef MG_LEAF_H
#define MG_LEAF_H

#include "mg_session.h"

/* A key of 64 bits makes one storage for all programs of a leaf. The kernel makes it with the first of them, filled with
 * zeroes, and puts every new value in place as a whole.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct mg_leaf);
} mg_leaves SEC(".maps");

static __always_inline const struct mg_leaf *mg_leaf_here(void)
{
	return bpf_get_local_storage(&mg_leaves, 0);
}

static __always_inline int mg_is_live(const struct mg_leaf *leaf)
{
	return !!(leaf->session.flags & MG_SESSION_LIVE);
}

#endif
