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

/* Say that the call which the current thread is in is on record. */
static __always_inline void mg_speak(void)
{
	__u32 tid = bpf_get_current_pid_tgid(), number = mg_number(mg_entry_registers());

	bpf_map_update_elem(&mg_spoken, &tid, &number, BPF_ANY);
}

/* Is this call of the current thread on record? The word counts once. */
static __always_inline int mg_was_told(__u32 number)
{
	__u32 tid = bpf_get_current_pid_tgid();
	__u32 *found = bpf_map_lookup_elem(&mg_spoken, &tid);
	int told;

	if (!found)
		return 0;
	told = *found == number;
	return !bpf_map_delete_elem(&mg_spoken, &tid) && told;
}

#endif
