/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose act is it? The guarded leaves of this host, and what belongs to each.
 *
 * The engine is loaded once per boot and shared by all sessions. A leaf is known by its cgroup id; everything that a
 * session owns (rings, counters, sums, tables) is a map of its own, found by the session's slot. Whoever is not in a known
 * leaf is nobody's business: a few reads, and the program leaves.
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

/* Not 0 at the place of each leaf in mg_sessions; so nearly all who are in none are told by a few reads, without a call. Written
 * before the session is, and cleared after it: whoever is guarded is never missed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MG_PLACES);
	__type(key, __u32);
	__type(value, __u32);
} mg_leaf_places SEC(".maps");

/* As bpf_get_current_cgroup_id(), by reads. */
static __always_inline __u64 mg_current_leaf(void)
{
	return mg_current_task()->cgroups->dfl_cgrp->kn->id;
}

/* 0: the leaf has no session. */
static __always_inline int mg_may_have_session(__u64 leaf)
{
	__u32 place = leaf & (MG_PLACES - 1), *taken = bpf_map_lookup_elem(&mg_leaf_places, &place);

	return taken && *taken;
}

/* The session of the calling task; 0: it is not guarded. */
static __always_inline struct mg_session *mg_current_session(void)
{
	__u64 leaf = mg_current_leaf();

	return mg_may_have_session(leaf) ? bpf_map_lookup_elem(&mg_sessions, &leaf) : 0;
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
