/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a program at the end of every system call is given, in one of two ways.
 *
 * The raw tracepoint gives registers and result. Newer kernels may take the processor from a program on it, and then leave it out
 * for whoever else ends a call there. Around one on the tracepoint's performance event they hold preemption off.
 */
#ifndef MG_END_H
#define MG_END_H

#include "mg_entry.h"

/* Set by the loader before load. */
const volatile struct {
	__u32 by_event;
} mg_end SEC(".rodata.end");

/* What a program answers. On the event 0 would keep it from whoever else counts or follows it on this host. */
enum { MG_OTHERS_TOO = 1 };

struct mg_event_end {
	__u64 head;
	__u64 number;
	__u64 result;
};

static __always_inline void *mg_end_registers(void *ctx)
{
	return mg_end.by_event ? mg_entry_registers() : (void *)((struct bpf_raw_tracepoint_args *)ctx)->args[0];
}

static __always_inline __u64 mg_end_number(void *ctx)
{
	__u64 number;

	if (!mg_end.by_event)
		return mg_number((void *)((struct bpf_raw_tracepoint_args *)ctx)->args[0]);
	number = ((struct mg_event_end *)ctx)->number;
	barrier_var(number); /* or both reads become one, at a place that the kernel cannot follow */
	return (__u32)number;
}

static __always_inline long mg_end_result(void *ctx)
{
	long result;

	if (!mg_end.by_event)
		return ((struct bpf_raw_tracepoint_args *)ctx)->args[1];
	result = ((struct mg_event_end *)ctx)->result;
	barrier_var(result);
	return result;
}

#endif
