// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The messages of a tree from the tracepoint at the end of every system call. */
#include <asm/unistd.h>
#include "mg_end.h"
#include "mg_stream.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __noinline int mg_look_at_send(void *registers, __u64 number, long result)
{
	const struct mg_session *session = mg_current_session();

	return session ? mg_send_ended(session, registers, number, result) : 0;
}

static __noinline int mg_look_at_receive(void *registers, __u64 number, long result)
{
	const struct mg_session *session = mg_current_session();

	return session ? mg_received(session, registers, number, mg_first(registers), result) : 0;
}

/* Most calls are of no interest: they leave before any helper is called, and before room for more is made. Every process of the
 * host pays for each.
 */
static __always_inline void mg_look_at_call(void *ctx)
{
	long result = mg_end_result(ctx);
	__u64 number;

	if (result <= 0)
		return;
	number = mg_end_number(ctx);
	if (mg_way_of(number) != MG_NOTHING)
		mg_look_at_send(mg_end_registers(ctx), number, result);
	else if (mg_way_of_reading(number) != MG_NOTHING)
		mg_look_at_receive(mg_end_registers(ctx), number, result);
}

SEC("raw_tp/sys_exit")
int mg_any_send(void *ctx)
{
	mg_look_at_call(ctx);
	return MG_OTHERS_TOO;
}
