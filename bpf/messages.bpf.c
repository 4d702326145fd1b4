// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The messages of a tree from the tracepoint at the end of every system call. */
#include <asm/unistd.h>
#include "mg_stream.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Most calls are of no interest: they leave before any helper is called. Every process of the host pays for each. */
SEC("raw_tp/sys_exit")
int mg_any_send(struct bpf_raw_tracepoint_args *ctx)
{
	struct mg_syscall call = { .result = ctx->args[1] };
	const struct mg_session *session;

	if (call.result <= 0)
		return 0;
	call.number = mg_number((void *)ctx->args[0]);
	if (!mg_is_send(call.number))
		return 0;
	session = mg_current_session();
	if (!session)
		return 0;
	mg_arguments((void *)ctx->args[0], &call);
	return mg_send_ended(session, &call);
}
