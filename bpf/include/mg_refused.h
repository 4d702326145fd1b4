/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Refused system calls: the sums of those with and without a path, and the record of one without. */
#ifndef MG_REFUSED_H
#define MG_REFUSED_H

#include "mg_entry.h"
#include "mg_ring.h"

struct mg_refused_key {
	__u64 life;
	__u64 hash[2];
	__u32 pid;
	__u32 number;
	__u32 result;
	__u32 access;
};

/* Refusals: nothing makes room; a full map means that every further refusal is sent singly. */
struct mg_refusals {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__uint(key_size, sizeof(struct mg_refused_key));
	__uint(value_size, sizeof(struct mg_sum));
};

MG_PER_SLOT(mg_refused_sums, struct mg_refusals);

/* `result` is the error's number; `argument` and `argument2` are the most telling ones. */
static __always_inline void mg_tell_refused(const struct mg_session *session, __u32 number, __u32 result, __u8 op,
					    __u64 argument, __u64 argument2)
{
	struct mg_refused_key key = {};
	struct mg_call record = {};

	mg_fill_head(&record.head, MG_RECORD_CALL);
	record.argument = argument;
	record.argument2 = argument2;
	record.number = number;
	record.result = result;
	record.op = op;
	key.life = mg_life();
	key.hash[0] = argument;
	key.hash[1] = argument2;
	key.pid = record.head.pid;
	key.number = number;
	key.result = result;
	record.count = mg_tally(session, mg_of_slot(&mg_refused_sums, session->slot), &key, &record.series);
	if (record.count)
		mg_send(session, &record, sizeof(record), 1);
}

/* The same of the call that the thread is in, by a hook: for calls that the record of system calls does not tell of. */
static __always_inline void mg_tell_own_call(const struct mg_session *session, __u32 result, __u8 op)
{
	struct mg_syscall call = {};
	void *registers = mg_entry_registers();

	mg_arguments(registers, &call);
	mg_tell_refused(session, mg_number(registers), result, op, call.args[0], call.args[1]);
}

#endif
