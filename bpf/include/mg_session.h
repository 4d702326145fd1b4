/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose act is it? The guarded leaves of this host, and what belongs to each.
 *
 * The engine is loaded once per boot and shared by all sessions. A leaf is known by its cgroup id; everything that a
 * session owns (rings, counters, sums, tables) is a map of its own, found by the session's slot. Whoever is not in a known
 * leaf is nobody's business: one look-up, and the program leaves.
 */
#ifndef MG_SESSION_H
#define MG_SESSION_H

#include "mg_abi.h"
#include "mg_kernel.h"

const volatile struct mg_config mg_config SEC(".rodata.config") = { .abi_version = MG_ABI_VERSION };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MG_LEAVES_LIMIT);
	__type(key, __u64);
	__type(value, struct mg_session);
} mg_sessions SEC(".maps");

/* The session of the calling task; 0: it is not guarded. */
static __always_inline struct mg_session *mg_current_session(void)
{
	__u64 id = bpf_get_current_cgroup_id();

	return bpf_map_lookup_elem(&mg_sessions, &id);
}

/* Is a cgroup the leaf of this session, or one below it? */
static __always_inline int mg_is_of_slot(__u32 slot, __u64 cgroup)
{
	const struct mg_session *session = bpf_map_lookup_elem(&mg_sessions, &cgroup);

	return session && session->slot == slot;
}

/* An outer map with one inner map a slot; slots without a session are empty. `inner` is a struct that names sizes, not types:
 * the compiler describes no types that only an inner map mentions.
 */
#define MG_PER_SLOT(name, inner)				\
	struct {						\
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);	\
		__uint(max_entries, MG_SESSIONS_LIMIT);		\
		__type(key, __u32);				\
		__array(values, inner);				\
	} name SEC(".maps")

static __always_inline void *mg_of_slot(void *outer, __u32 slot)
{
	return bpf_map_lookup_elem(outer, &slot);
}

#endif
