/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Threads whose refusal is on record already, by the hook that refused, so that the system call's own record would be a second
 * one. With the call's number: a word on a call that is on no list is never taken back, and says nothing about another call.
 * The oldest make room: the price is a refusal that is told twice.
 */
#ifndef MG_SPOKEN_H
#define MG_SPOKEN_H

#include "mg_entry.h"
#include "mg_session.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);	/* tid */
	__type(value, __u32);	/* number of the call */
} mg_spoken SEC(".maps");

/* Not 0 at the places of threads that a word was ever said of, so that others are told by a read. Never cleared: a word that is
 * missed could be taken for one about a later call.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MG_SPOKEN_PLACES);
	__type(key, __u32);
	__type(value, __u32);
} mg_spoken_places SEC(".maps");

static __always_inline __u32 *mg_spoken_place(__u32 tid)
{
	__u32 place = tid & (MG_SPOKEN_PLACES - 1);

	return bpf_map_lookup_elem(&mg_spoken_places, &place);
}

/* Say that the call which the current thread is in is on record. */
static __always_inline void mg_speak(void)
{
	__u32 tid = bpf_get_current_pid_tgid(), number = mg_number(mg_entry_registers());
	__u32 *place = mg_spoken_place(tid);

	if (place)
		*place = 1;
	bpf_map_update_elem(&mg_spoken, &tid, &number, BPF_ANY);
}

/* Is this call of the current thread on record? The word counts once. */
static __always_inline int mg_was_told(__u32 number)
{
	__u32 tid = bpf_get_current_pid_tgid(), *place = mg_spoken_place(tid), *found;
	int told;

	if (!place || !*place)
		return 0;
	found = bpf_map_lookup_elem(&mg_spoken, &tid);
	if (!found)
		return 0;
	told = *found == number;
	return !bpf_map_delete_elem(&mg_spoken, &tid) && told;
}

#endif
