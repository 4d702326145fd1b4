/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Threads whose refusal is on record already, by the hook that refused, so that the system call's own record would be a second
 * one. Only ever about the call that the thread is in. The oldest make room: the price is a refusal that is told twice.
 */
#ifndef MG_SPOKEN_H
#define MG_SPOKEN_H

#include "mg_session.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);	/* tid */
	__type(value, __u32);
} mg_spoken SEC(".maps");

enum mg_word {
	MG_SILENT = 0,
	MG_SPOKEN = 1,	/* the refusal is on record */
	MG_OWED = 2,	/* it is not, and the record of system calls knows the call only by this */
};

static __always_inline void mg_say(__u32 word)
{
	__u32 tid = bpf_get_current_pid_tgid();

	bpf_map_update_elem(&mg_spoken, &tid, &word, BPF_ANY);
}

/* Say that the current thread's call is on record. */
static __always_inline void mg_speak(void)
{
	mg_say(MG_SPOKEN);
}

/* The word on this call of the current thread. It counts once. */
static __always_inline __u32 mg_take_word(void)
{
	__u32 tid = bpf_get_current_pid_tgid(), word;
	__u32 *found = bpf_map_lookup_elem(&mg_spoken, &tid);

	if (!found)
		return MG_SILENT;
	word = *found;
	return bpf_map_delete_elem(&mg_spoken, &tid) ? MG_SILENT : word;
}

#endif
