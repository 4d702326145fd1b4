/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Names of unix sockets, and which abstract ones the tree itself holds. */
#ifndef MG_UNIX_H
#define MG_UNIX_H

#include "mg_ring.h"

enum { MG_AF_UNIX = 1, MG_NAME_ROOM = 112, MG_SUN_PATH_AT = 2 };

/* Abstract names that the tree bound, and the socket. A hint only: mg_holds_name() asks the socket itself. The record of system
 * calls fills it, the verdict on connect reads it.
 */
struct mg_names {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(struct mg_name));
	__uint(value_size, sizeof(__u64));
};

MG_PER_SLOT(mg_own_names, struct mg_names);

/* Copy the name part of a socket address; `size` counts from the family on. An abstract name is all of it, a path ends at
 * its first zero byte. 0: there is none.
 */
static __always_inline int mg_read_name(struct mg_name *name, const void *address, __u32 size)
{
	const void *from = address + MG_SUN_PATH_AT;
	long length;

	if (size <= MG_SUN_PATH_AT || size > MG_SUN_PATH_AT + MG_SUN_BYTES)
		return 0;
	size -= MG_SUN_PATH_AT;
	barrier_var(size);
	if (size > MG_SUN_BYTES || bpf_probe_read_kernel(name->bytes, 1, from))
		return 0;
	if (!name->bytes[0]) {
		name->length = size;
		return !bpf_probe_read_kernel(name->bytes, size, from);
	}
	length = bpf_probe_read_kernel_str(name->bytes, size + 1, from);
	name->length = length > 0 ? length - 1 : 0;
	return length > 1;
}

/* Was it made in the session of this slot? */
static __always_inline int mg_is_tree_socket(struct sock *sk, __u32 slot)
{
	return BPF_CORE_READ(sk, __sk_common.skc_family) == MG_AF_UNIX &&
	       mg_is_of_slot(slot, BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id));
}

#endif
